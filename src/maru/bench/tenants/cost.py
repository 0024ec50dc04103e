"""What keeping tenants apart costs: a hit and a store in a pool of one tenant, beside a pool with all of it.

All of it: two tenants with a share each, content that is overwritten when it leaves, keys seeded with a secret, and an
audit log. Beside the plain pool stands another plain one: what differs between those two is what two pools differ by,
on this machine, at this time. That is up to a tenth, by where their memory happens to lie, so all of them are made anew
several times.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from maru.bench.audit_figures import pin_of
from maru.bench.ground import MIB, PREFIX_CHUNKS, Keys, Plan, bench_pool, until_ready
from maru.bench.measure import Contestant, Progress, Row, Target, interleave
from maru.key import Identity
from maru.pool import Namespace, Outcome, Policy, Pool

CHUNK_BYTES = 8 * 1024
POOL_BYTES = 32 * MIB
BATCH = 64
SETS = 8
"""Of fresh pools; the rounds are spread over them."""
RATIO_MAX = 1.05


@dataclass(frozen=True)
class _House:
    """A pool with a prefix in it, as one of its tenants has it."""

    name: str
    pool: Pool
    space: Namespace
    keys: bytes


def cost_rows(plan: Plan, progress: Progress) -> list[Row]:
    """A prefix of 680 keys pinned and released; 64 chunks stored in a full pool."""
    pins: dict[str, tuple[float, ...]] = {}
    puts: dict[str, tuple[float, ...]] = {}
    for number in range(SETS):
        pin_seconds, put_seconds = _one_set(plan)
        for name, seconds in pin_seconds.items():
            pins[name] = (*pins.get(name, ()), *seconds)
        for name, seconds in put_seconds.items():
            puts[name] = (*puts.get(name, ()), *seconds)
        progress(number + 1, SETS)
    return [*_rows(pins, Target(ratio_max=RATIO_MAX)), *_rows(puts, None)]


def _one_set(plan: Plan) -> tuple[dict[str, tuple[float, ...]], dict[str, tuple[float, ...]]]:
    """Seconds of the pins, and of the puts."""
    with tempfile.TemporaryDirectory(prefix="maru-bench-tenants-") as folder, ExitStack() as stack:
        houses = [
            _plain(stack, "one tenant"),
            _plain(stack, "one tenant, another pool"),
            _shared(stack, Path(folder), "two tenants, shares, secret, audit", ()),
            _shared(stack, Path(folder), "the same, zeroed", ("zeroed",)),
        ]
        pins = [Contestant(f"pin + release, 680 keys: {one.name}", pin_of(one.pool, one.keys)) for one in houses]
        pin_seconds = interleave(pins, plan.rounds(200))
        for one in houses:
            _fill(one)
        puts = [
            Contestant(f"put, {BATCH} chunks of 8 KiB in a full pool: {one.name}", _put_of(one), _fresh(one), 4)
            for one in houses
        ]
        return pin_seconds, interleave(puts, plan.rounds(100))


def _plain(stack: ExitStack, name: str) -> _House:
    label = f"tenants-{len(name)}"
    pool = stack.enter_context(bench_pool(label, POOL_BYTES, f"chunk_bytes={CHUNK_BYTES}&gate=off"))
    attached = stack.enter_context(Pool.attach(pool.config.url))
    return _stored(name, attached, "default", ())


def _shared(stack: ExitStack, folder: Path, name: str, policy: tuple[Policy, ...]) -> _House:
    label = f"tenants-{len(name)}"
    secret, log = folder / f"{label}.secret", folder / f"{label}.log"
    secret.touch(mode=0o600)
    secret.write_text(f"red {secrets.token_hex(32)}\nblue {secrets.token_hex(32)}\n")
    pool = stack.enter_context(bench_pool(label, POOL_BYTES, f"chunk_bytes={CHUNK_BYTES}&gate=off"))
    for tenant in ("red", "blue"):
        pool.set_share(tenant, POOL_BYTES // 2)
    attached = stack.enter_context(Pool.attach(f"{pool.config.url}?tenant_secret=file:{secret}&audit={log}"))
    _stored(name, attached, "blue", policy)
    return _stored(name, attached, "red", policy)


def _stored(name: str, pool: Pool, tenant: str, policy: tuple[Policy, ...]) -> _House:
    until_ready(pool)
    space = pool.namespace(Identity(model="bench", kv_layout="bench/1", tenant=tenant), policy=policy)
    keys = Keys(f"{name}-{tenant}").packed(PREFIX_CHUNKS)
    if set(pool.put_many(keys, [bytes(CHUNK_BYTES)] * PREFIX_CHUNKS, namespace=space)) != {Outcome.STORED}:
        raise RuntimeError("the prefix was not stored")
    return _House(name, pool, space, keys)


def _fill(house: _House) -> None:
    supply, count = Keys(f"{house.name}-fill"), 0
    while count < 2 * POOL_BYTES // CHUNK_BYTES:
        house.pool.put_many(supply.packed(BATCH), [bytes(CHUNK_BYTES)] * BATCH, namespace=house.space)
        count += BATCH


def _fresh(house: _House) -> Callable[[int], list[bytes]]:
    supply = Keys(f"{house.name}-fresh")
    return lambda repeats: [supply.packed(BATCH) for _ in range(repeats)]


def _put_of(house: _House) -> Callable[[list[bytes]], None]:
    chunks, pool, space = [bytes(CHUNK_BYTES)] * BATCH, house.pool, house.space

    def put(batches: list[bytes]) -> None:
        for keys in batches:
            if pool.put_many(keys, chunks, namespace=space)[-1] is not Outcome.STORED:
                raise RuntimeError("a chunk was not stored")

    return put


def _rows(seconds: dict[str, tuple[float, ...]], target: Target | None) -> list[Row]:
    """The first is the reference; the one before it that shows what chance does has no target."""
    first, between, *others = seconds
    reference = seconds[first]
    return [
        Row(first, reference),
        Row(between, seconds[between], 0, first, reference),
        *(Row(name, seconds[name], 0, first, reference, target) for name in others),
    ]
