"""A process that has just started: how soon it is ready, and whether its first retrieval is as fast as the next.

Holds both sides: the rows, and the program of the new process (`python -m maru.bench.newcomer`), which takes packed
keys on its standard input and answers with one line of JSON.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from maru.bench.ground import MIB, PREFIX_CHUNKS, Keys, Plan, bench_pool, touched_array, until_ready
from maru.bench.measure import Progress, Row, Target, no_garbage_collection
from maru.pool import Outcome, Pool

TIMEOUT_S = 120


@dataclass(frozen=True)
class Arrival:
    """What one new process measured, in seconds."""

    attach: float
    ready: float
    """From the call of attach until everything is touched."""
    first: float
    following: list[float]


def newcomer_rows(plan: Plan, progress: Progress) -> list[Row]:
    """Several processes, one after the other, on a pool that is ready and holds the prefix."""
    chunk_bytes = chunk_bytes_for(plan.data_bytes)
    processes = 2 if plan.quick else 7
    keys = Keys("newcomer").packed(PREFIX_CHUNKS)
    arrivals = []
    with bench_pool("newcomer", plan.data_bytes, f"chunk_bytes={chunk_bytes}") as pool:
        outcomes = pool.put_many(keys, [touched_array(chunk_bytes)] * PREFIX_CHUNKS)
        if set(outcomes) != {Outcome.STORED}:
            raise RuntimeError(f"the prefix was not stored: {set(outcomes)}")
        for number in range(processes):
            arrivals.append(arrive(pool.config.url, keys, chunk_bytes))
            progress(number + 1, processes)
    first, following = "first retrieval in a new process", "retrieval after that"
    prefix_bytes = PREFIX_CHUNKS * chunk_bytes
    steady = tuple(statistics.median(one.following) for one in arrivals)
    # A ratio of times is what the target is about, so these two are shown as times.
    return [
        Row(f"{first}, {prefix_bytes // MIB} MiB", tuple(one.first for one in arrivals), 0, following, steady,
            Target(ratio_max=1.1)),
        Row(following, steady),
        Row("attach", tuple(one.attach for one in arrivals)),
        Row(f"attach until ready, pool of {plan.data_bytes // MIB} MiB", tuple(one.ready for one in arrivals)),
    ]  # fmt: skip


def chunk_bytes_for(data_bytes: int) -> int:
    """The largest power of two of which 680 leave a quarter of the pool free."""
    chunk_bytes = 4096
    while PREFIX_CHUNKS * chunk_bytes * 2 <= data_bytes * 3 // 4:
        chunk_bytes *= 2
    return chunk_bytes


def arrive(url: str, keys: bytes, chunk_bytes: int) -> Arrival:
    """Start a process and let it measure."""
    command = [sys.executable, "-m", "maru.bench.newcomer", url, str(chunk_bytes)]
    done = subprocess.run(command, input=keys, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S)
    return Arrival(**json.loads(done.stdout))


def retrieve(pool: Pool, keys: bytes, landing: Any) -> float:
    """Seconds to pin a prefix and read every byte of it."""
    start = time.perf_counter_ns()
    with pool.pin(keys) as prefix:
        if len(prefix) * 16 != len(keys):
            raise RuntimeError("the prefix is not whole")
        for view in prefix.views:
            np.copyto(landing, np.frombuffer(view, dtype=np.uint8))
    return (time.perf_counter_ns() - start) * 1e-9


def main() -> None:
    url, chunk_bytes = sys.argv[1], int(sys.argv[2])
    keys, landing = sys.stdin.buffer.read(), touched_array(chunk_bytes)
    np.copyto(landing, np.frombuffer(bytes(chunk_bytes), dtype=np.uint8))
    start = time.perf_counter_ns()
    with Pool.attach(url) as pool:
        attached = time.perf_counter_ns()
        until_ready(pool)
        ready = time.perf_counter_ns()
        retrieve(pool, b"", landing)  # Warms the interpreter, and nothing of the pool.
        with no_garbage_collection():
            seconds = [retrieve(pool, keys, landing) for _ in range(8)]
    arrival = Arrival((attached - start) * 1e-9, (ready - start) * 1e-9, seconds[0], seconds[1:])
    print(json.dumps(asdict(arrival)))


if __name__ == "__main__":
    main()
