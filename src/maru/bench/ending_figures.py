"""How long what ended in a pool can still be found elsewhere: by another process of the host, by a pool of another host
in front of it, and in a place below.

A sample lasts from the call that ends a chunk, the chunks of a prefix or a namespace until the other one finds none of
it. The other process asks again and again, the others are asked twice a millisecond, and what they do now and then is
met at any moment. The far pool's daemon is a process of its own on this host: what a network would add is not in it.
"""

from __future__ import annotations

import multiprocessing
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from maru.bench.daemons import serving, why_no_daemon
from maru.bench.ground import MIB, Keys, Missing, Plan, bench_pool, split, until_ready
from maru.bench.measure import Progress, Row
from maru.key import Identity
from maru.native import core
from maru.pool import Namespace, Outcome, Pool

CHUNK_BYTES = 64 * 1024
CHUNKS = 16
POOL_BYTES = 64 * MIB
ROUNDS, ROUNDS_ANOTHER = 30, 5
"""The second where one takes ten seconds."""
DEADLINE_S = 60.0
PAUSE_S = 0.0005
IDENTITY = Identity(model="bench", kv_layout="bench/1")
KINDS = ("one chunk removed", f"a prefix of {CHUNKS} removed", "a namespace bumped")


@dataclass(frozen=True)
class _Ending:
    """What ends, in one round."""

    kind: str
    pool: Pool
    space: Namespace
    keys: bytes

    def begin(self) -> float:
        """End it; when that began, in seconds."""
        keys = split(self.keys)
        begun = time.monotonic()
        if self.kind == KINDS[2]:
            self.space.bump()
            return begun
        while not self.pool.remove(keys[-1]):  # A daemon holds what it sent a moment longer.
            if not self.pool.exists(keys[-1]):
                raise RuntimeError("what was to be removed is gone")
            time.sleep(PAUSE_S)
            begun = time.monotonic()
        for key in reversed(keys[:-1]):
            while not self.pool.remove(key):
                time.sleep(PAUSE_S)
        return begun


def ending_rows(plan: Plan, progress: Progress) -> list[Row]:
    """Each kind of ending, seen by each of the others. Raises Missing."""
    if reason := why_no_daemon():
        raise Missing(reason)
    rows = []
    where = {
        "another process": _another_process,
        "a near pool, its daemon on this host": _near,
        "a folder below": _below,
    }
    steps = len(where) * len(KINDS)
    for number, (name, samples) in enumerate(where.items()):
        with samples() as sample:
            for at, kind in enumerate(KINDS):
                is_slow = samples is _below and kind == KINDS[2]
                rounds = plan.rounds(ROUNDS_ANOTHER if is_slow else ROUNDS)
                seconds = tuple(sample(kind) for _ in range(rounds))
                shown = "another pool on a folder below" if is_slow else name
                rows.append(Row(f"{kind}: {shown}", seconds))
                progress(number * len(KINDS) + at + 1, steps)
    return rows


def _stored(pool: Pool, supply: Keys, kind: str) -> _Ending:
    space = pool.namespace(IDENTITY)
    keys = supply.packed(1 if kind == KINDS[0] else CHUNKS)
    chunks = [bytes(CHUNK_BYTES)] * len(split(keys))
    if set(pool.put_many(keys, chunks, namespace=space)) != {Outcome.STORED}:
        raise RuntimeError("the chunks were not stored")
    return _Ending(kind, pool, space, keys)


def _until(is_so: Callable[[], bool]) -> float:
    """When it was so. Raises RuntimeError."""
    ends = time.monotonic() + DEADLINE_S
    while not is_so():
        if time.monotonic() > ends:
            raise RuntimeError(f"what ended was still found after {DEADLINE_S:g} s")
        time.sleep(PAUSE_S)
    return time.monotonic()


@contextmanager
def _another_process() -> Iterator[Callable[[str], float]]:
    ours, theirs = multiprocessing.Pipe()
    with bench_pool("endings", POOL_BYTES, f"chunk_bytes={CHUNK_BYTES}&gate=off") as pool:
        until_ready(pool)
        onlooker = multiprocessing.get_context("spawn").Process(
            target=_look_on, args=(pool.config.url, theirs), daemon=True
        )
        onlooker.start()
        supply = Keys("endings-another")

        def sample(kind: str) -> float:
            ending = _stored(pool, supply, kind)
            ours.send(ending.keys)
            _answer(ours)  # It has seen them all.
            begun = ending.begin()
            return float(_answer(ours)) - begun

        try:
            yield sample
        finally:
            ours.send(b"")
            onlooker.join(DEADLINE_S)


def _answer(line: Connection) -> float:
    if not line.poll(DEADLINE_S):
        raise RuntimeError("the other process does not answer")
    return float(line.recv())


def _look_on(url: str, line: Connection) -> None:
    """Tell when all keys were there, and when none of them was."""
    with Pool.attach(url) as pool:
        while keys := split(line.recv()):
            while not all(map(pool.exists, keys)):
                continue
            line.send(time.monotonic())
            while any(map(pool.exists, keys)):
                continue
            line.send(time.monotonic())


@contextmanager
def _near() -> Iterator[Callable[[str], float]]:
    from maru.client.listener import POLL_S
    from maru.client.near import NearPool
    from maru.client.remote import RemotePool
    from maru.client.ways import connect_to_daemon

    query = f"chunk_bytes={CHUNK_BYTES}&gate=off"
    with ExitStack() as stack:
        pool = stack.enter_context(bench_pool("endings-far", POOL_BYTES, query))
        before = stack.enter_context(bench_pool("endings-near", POOL_BYTES, query))
        address = stack.enter_context(serving(pool.config.url))
        far = connect_to_daemon(address, "wire", None, (), 5.0, None)
        if not isinstance(far, RemotePool):
            raise RuntimeError("the far pool is not read over the wire")
        near = stack.enter_context(NearPool(before.config, far))
        near.namespace(IDENTITY)
        supply, lot = Keys("endings-near"), random.Random(1)

        def sample(kind: str) -> float:
            time.sleep(lot.uniform(0.0, 2 * POLL_S))
            ending = _stored(pool, supply, kind)
            with near.pin(ending.keys) as prefix:
                if len(prefix) != len(split(ending.keys)):
                    raise RuntimeError("the near pool did not get the chunks")
            begun = ending.begin()
            each = split(ending.keys)
            return _until(lambda: not any(core.PoolCore.exists(near, key) for key in each)) - begun

        yield sample


@contextmanager
def _below() -> Iterator[Callable[[str], float]]:
    from maru.tiering.generations import LOOK_AGAIN_S
    from maru.tiering.ladder import LadderSettings
    from maru.tiering.tiered import TieredPool

    query = f"chunk_bytes={CHUNK_BYTES}&gate=off"
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maru-bench-endings-")))
        tier = f"file://{folder}/below?size=1GiB&write=through"
        first = stack.enter_context(bench_pool("endings-tier", POOL_BYTES, query))
        second = stack.enter_context(bench_pool("endings-others", POOL_BYTES, query))
        pool = TieredPool(first.config, [tier])
        stack.enter_context(pool)
        others = TieredPool(second.config, [tier], LadderSettings(demotes=False))
        stack.enter_context(others)
        supply, lot = Keys("endings-below"), random.Random(1)

        def files(keys: bytes) -> list[Path]:
            return [path for key in split(keys) for path in folder.rglob(key.hex())]

        def sample(kind: str) -> float:
            ending = _stored(pool, supply, kind)
            if not pool.ladder.flush(DEADLINE_S):
                raise RuntimeError("the chunks were not copied below")
            paths = files(ending.keys)
            if kind != KINDS[2]:
                begun = ending.begin()
                return _until(lambda: not any(path.exists() for path in paths)) - begun
            space = others.namespace(IDENTITY)
            _until(lambda: others.ladder.leading(ending.keys, space) == CHUNKS)
            time.sleep(lot.uniform(0.0, LOOK_AGAIN_S))
            begun = ending.begin()
            return _until(lambda: others.ladder.leading(ending.keys, space) == 0) - begun

        yield sample
