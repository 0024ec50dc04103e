"""What an audit log costs a hit: the same pool, attached with and without one, in turns.

Beside the audited attachment stand two plain ones: what differs between those two is what two mappings of one pool
differ by, on this machine, at this time.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

from maru.audit import Wanted, entries_in
from maru.bench.ground import MIB, PREFIX_CHUNKS, Keys, Plan, bench_pool, split, until_ready
from maru.bench.measure import Contestant, Progress, Row, Target, interleave
from maru.key import Identity
from maru.pool import Outcome, Pool

CHUNK_BYTES = 8 * 1024
RATIO_MAX = 1.02


def audit_rows(plan: Plan, progress: Progress) -> list[Row]:
    """A prefix pinned and released, and one chunk got and released."""
    keys = Keys("audit").packed(PREFIX_CHUNKS)
    singles = split(keys)
    with (
        tempfile.TemporaryDirectory(prefix="maru-bench-audit-") as folder,
        bench_pool("audit", 64 * MIB, f"chunk_bytes={CHUNK_BYTES}") as plain,
    ):
        space = plain.namespace(Identity(model="bench", kv_layout="bench/1"))
        if set(plain.put_many(keys, [bytes(CHUNK_BYTES)] * PREFIX_CHUNKS, namespace=space)) != {Outcome.STORED}:
            raise RuntimeError("the prefix was not stored")
        log = Path(folder) / "log"
        url = plain.config.url
        with Pool.attach(url) as again, Pool.attach(f"{url}?audit={log}") as audited:
            for one in (again, audited):
                until_ready(one)
            pins = [
                Contestant("pin + release, 680 keys, no audit", pin_of(plain, keys)),
                Contestant("pin + release, 680 keys, no audit, another attachment", pin_of(again, keys)),
                Contestant("pin + release, 680 keys, with audit", pin_of(audited, keys)),
            ]
            gets = [
                Contestant("get → view → release, no audit", get_of(plain), repeated(singles)),
                Contestant("get → view → release, no audit, another attachment", get_of(again), repeated(singles)),
                Contestant("get → view → release, with audit", get_of(audited), repeated(singles)),
            ]
            seconds = interleave(pins, plan.rounds(1000), progress=progress)
            single_seconds = interleave(gets, plan.rounds(1000), progress=progress)
        if not any(entries_in(log, Wanted(what="hit"))):
            raise RuntimeError("the log has no hit in it")
    target = Target(ratio_max=RATIO_MAX)
    return [*_compared(seconds, target), *_compared(single_seconds, None)]


def pin_of(pool: Pool, keys: bytes) -> Callable[[Iterable[None]], None]:
    def pin(turns: Iterable[None]) -> None:
        for _ in turns:
            with pool.pin(keys) as prefix:
                if len(prefix) != PREFIX_CHUNKS:
                    raise RuntimeError("the prefix is not whole")

    return pin


def get_of(pool: Pool) -> Callable[[list[bytes]], None]:
    get = pool.get

    def get_and_release(chosen: list[bytes]) -> None:
        for key in chosen:
            get(key).release()  # type: ignore[union-attr]  # A miss would raise, as it should here.

    return get_and_release


def repeated(singles: list[bytes]) -> Callable[[int], list[bytes]]:
    return lambda repeats: (singles * (repeats // len(singles) + 1))[:repeats]


def _compared(seconds: dict[str, tuple[float, ...]], target: Target | None) -> list[Row]:
    """The first is the reference; the last has the target."""
    first, between, last = seconds
    reference = seconds[first]
    return [
        Row(first, reference),
        Row(between, seconds[between], 0, first, reference),
        Row(last, seconds[last], 0, first, reference, target),
    ]
