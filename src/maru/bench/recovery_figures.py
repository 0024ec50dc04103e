"""After a death, and after a loss: how long cleaning up, the next call, a rebuilt index and a late newcomer take.

The deaths are real: children are forked, attach, take something and are killed.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from maru.bench.ground import Keys, Plan, bench_pool
from maru.bench.measure import Progress, Row, Target
from maru.pool import Outcome, Pool

UNIT_BYTES = 512
CHUNKS = 1_000_000
NEIGHBOURS = 63
SWEEP_S_PER_SLOT = 50e-9  # 50 ms for a million.
_BATCH = 1000


def recovery_rows(plan: Plan, progress: Progress) -> list[Row]:
    """On a pool of small chunks, with a million slots or more."""
    chunks = CHUNKS // 10 if plan.quick else CHUNKS
    slots = f"slots={2 * chunks}"
    options = f"unit_bytes={UNIT_BYTES}&{slots}&slab_bytes=1MiB&processes=80&populate=off&gate=off"
    rounds = plan.rounds(20)
    with bench_pool("recovery", chunks * UNIT_BYTES * 5 // 4, options) as pool:
        _fill(pool, chunks)
        slot_count = int(pool.stats()["chunks"]["slots"])
        sweeps, calls = [], []
        for number in range(rounds):
            sweeps.append(_sweep_after_death(pool))
            calls.append(_call_after_death(pool, number))
            progress(number + 1, rounds)
        alone, crowded = _attach_times(pool, plan.rounds(10))
        rebuilt = _rebuild_times(pool, plan.rounds(5))
    sweep_max_s = SWEEP_S_PER_SLOT * slot_count
    return [
        Row(f"clean up after a death, {slot_count:,} slots", tuple(sweeps), target=Target(seconds_max=sweep_max_s)),
        Row("put under a key that a dead process was writing", tuple(calls), target=Target(seconds_max=1e-3)),
        Row("attach, nobody else there", tuple(alone)),
        Row(f"attach beside {NEIGHBOURS} others", tuple(crowded), 0, "attach, nobody else there", tuple(alone),
            Target(ratio_max=1.2)),
        Row(f"rebuild a lost index, {chunks:,} chunks", tuple(rebuilt), target=Target(seconds_max=3.0)),
    ]  # fmt: skip


def _fill(pool: Pool, chunks: int) -> None:
    keys = Keys("recovery")
    for _ in range(chunks // _BATCH):
        pool.put_many(keys.packed(_BATCH), [b"chunk"] * _BATCH)


def _killed_while(pool: Pool, act: Callable[[Pool], object]) -> None:
    """Fork a child that attaches, does `act` and is killed; returns when its memory is gone."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = act(pool)
        os.write(write, b"x")
        signal.pause()
        del held
    os.read(read, 1)
    os.close(read)
    os.close(write)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


def _sweep_after_death(pool: Pool) -> float:
    while True:
        _killed_while(pool, lambda child: child.allocate(UNIT_BYTES))
        start = time.perf_counter_ns()
        cleaned = pool.reap()
        taken = (time.perf_counter_ns() - start) * 1e-9
        if cleaned == 1:  # Else the housekeeper was faster.
            return taken


def _call_after_death(pool: Pool, number: int) -> float:
    key = number.to_bytes(16, "little")
    _killed_while(pool, lambda child: child.reserve(key, UNIT_BYTES))
    start = time.perf_counter_ns()
    outcome = pool.put(key, b"chunk")
    taken = (time.perf_counter_ns() - start) * 1e-9
    if outcome is not Outcome.STORED:
        raise RuntimeError(f"the key of the dead was not free: {outcome.name}")
    return taken


def _attach_times(pool: Pool, rounds: int) -> tuple[list[float], list[float]]:
    """Seconds to attach and look for one chunk: with only this process there, and with many idle ones beside it."""

    def attach() -> float:
        start = time.perf_counter_ns()
        with Pool.attach(pool.config.url) as newcomer:
            newcomer.exists(bytes(16))
        return (time.perf_counter_ns() - start) * 1e-9

    attach()
    alone = [attach() for _ in range(rounds)]
    neighbours = [_idle_neighbour(pool) for _ in range(NEIGHBOURS - 1)]
    crowded = [attach() for _ in range(rounds)]
    for pid in neighbours:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    return alone, crowded


def _idle_neighbour(pool: Pool) -> int:
    """A child that attaches and then does nothing; returns its number when it is there."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        pool.exists(bytes(16))  # A child attaches by itself.
        os.write(write, b"x")
        signal.pause()
        os._exit(0)
    os.read(read, 1)
    os.close(read)
    os.close(write)
    return pid


def _rebuild_times(pool: Pool, rounds: int) -> list[float]:
    """Ends the pool's own life: its index is removed and made anew, again and again."""
    sealed = int(pool.stats()["chunks"]["sealed"])
    index, url = Path(pool.stats()["folder"]) / "index", pool.config.url
    pool.close()
    seconds = []
    for _ in range(rounds):
        index.unlink()
        start = time.perf_counter_ns()
        found = Pool.rebuild(url)
        seconds.append((time.perf_counter_ns() - start) * 1e-9)
        if found["chunks"] != sealed:
            raise RuntimeError(f"{found['chunks']:,} of {sealed:,} chunks came back: {found['left_out']}")
    return seconds
