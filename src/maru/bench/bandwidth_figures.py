"""The rows that move bytes: put against plain copies, the first puts into a fresh pool, verified reads.

Sources and destinations rotate over more bytes than the last-level cache holds, on every side of a comparison alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from maru.bench.ground import (
    MIB,
    SLAB_BYTES,
    Keys,
    Plan,
    Rotation,
    bench_pool,
    shared_array,
    source_array,
    touched_array,
)
from maru.bench.measure import Contestant, Progress, Row, Target, interleave, no_garbage_collection
from maru.native import core
from maru.pool import Outcome, Pool

# Slabs that hold every size measured here; everything else, the size of the index too, is what a pool has by default.
OPTIONS = f"slab_bytes={SLAB_BYTES}"
SIZES_MIB = (1, 8, 32)
SAMPLE_BYTES = 8 * MIB  # Moved per sample, at least.
COLD_CHUNK_BYTES = 32 * MIB
VERIFIED_CHUNK_BYTES = 8 * MIB


def store(pool: Pool, key: bytes, data: Any) -> None:
    """Put, and insist."""
    outcome = pool.put(key, data)
    if outcome is not Outcome.STORED:
        raise RuntimeError(f"a chunk was not stored: {outcome}")


def put_rows(plan: Plan, progress: Progress) -> list[Row]:
    """put at three sizes, a raw streaming copy into memory of the same kind, and numpy into ordinary memory."""
    source, ordinary = source_array(plan.source_bytes), touched_array(plan.data_bytes)
    rows: list[Row] = []
    rounds = plan.rounds(300)
    with shared_array(plan.data_bytes) as shared:
        for number, size_mib in enumerate(SIZES_MIB):

            def of_all(done: int, total: int, before: int = number) -> None:
                progress(before * total + done, len(SIZES_MIB) * total)

            rows += put_rows_of_size(plan, size_mib, source, shared, ordinary, rounds, of_all)
    return rows


def put_rows_of_size(
    plan: Plan, size_mib: int, source: Any, shared: Any, ordinary: Any, rounds: int, progress: Progress
) -> list[Row]:
    ours, raw, plain = (
        f"put, {size_mib} MiB",
        f"raw streaming copy, {size_mib} MiB",
        f"numpy.copyto to ordinary memory, {size_mib} MiB",
    )
    size = size_mib * MIB
    fresh, data = Keys(f"put {size}"), Rotation(source, size)
    into_shared, into_ordinary = Rotation(shared, size), Rotation(ordinary, size)

    def pairs_with(other: Callable[[int], list[Any]]) -> Callable[[int], list[tuple[Any, Any]]]:
        return lambda count: list(zip(other(count), data.take(count), strict=True))

    def stream(pairs: list[tuple[Any, Any]]) -> None:
        for to, bytes_of_chunk in pairs:
            core.stream_copy(to, bytes_of_chunk)

    def copy_by_numpy(pairs: list[tuple[Any, Any]]) -> None:
        for to, bytes_of_chunk in pairs:
            np.copyto(to, bytes_of_chunk)

    together = f"{ours}, by two threads"
    with (
        bench_pool(f"put-{size_mib}", plan.data_bytes, OPTIONS) as pool,
        Pool.attach(f"maru:///{pool.config.name}?copy_threads=2") as helped,
    ):
        stored = Outcome.STORED

        def put_all(pairs: list[tuple[Any, Any]], put: Callable[..., Outcome] = pool.put) -> None:
            for key, bytes_of_chunk in pairs:
                if put(key, bytes_of_chunk) is not stored:
                    raise RuntimeError("a chunk was not stored")

        def put_together(pairs: list[tuple[Any, Any]]) -> None:
            put_all(pairs, helped.put)

        put_all(pairs_with(fresh.take)(plan.data_bytes // size + 1))
        repeats = max(1, SAMPLE_BYTES // size)
        contestants = [
            Contestant(ours, put_all, pairs_with(fresh.take), repeats),
            Contestant(raw, stream, pairs_with(into_shared.take), repeats),
            Contestant(plain, copy_by_numpy, pairs_with(into_ordinary.take), repeats),
        ]
        if size_mib == SIZES_MIB[-1]:
            contestants.append(Contestant(together, put_together, pairs_with(fresh.take), repeats))
        seconds = interleave(contestants, rounds, progress=progress)
        if pool.stats()["counters"]["evicted"] < rounds * repeats:
            raise RuntimeError("the pool was not full")
    target = Target(ratio_min=0.95) if size_mib == SIZES_MIB[-1] else None
    rows = [
        Row(ours, seconds[ours], size, raw, seconds[raw], target),
        Row(raw, seconds[raw], size, plain, seconds[plain]),
        Row(plain, seconds[plain], size),
    ]
    if together in seconds:
        rows.append(Row(together, seconds[together], size, ours, seconds[ours]))
    return rows


def cold_put_rows(plan: Plan, progress: Progress) -> list[Row]:
    """A ready fresh pool filled once, then filled again; and one that is filled while it is still being made ready."""
    data, fresh = Rotation(source_array(plan.source_bytes), COLD_CHUNK_BYTES), Keys("cold")
    count = plan.data_bytes // COLD_CHUNK_BYTES
    samples: dict[bool, list[float]] = {True: [], False: []}
    warm: list[float] = []
    ready: list[float] = []
    rounds = 2 if plan.quick else 4
    for number in range(rounds):
        for wait in (True, False):
            start = time.perf_counter_ns()
            with bench_pool("cold", plan.data_bytes, OPTIONS, wait=wait) as pool:
                if wait:
                    ready.append((time.perf_counter_ns() - start) * 1e-9)
                # The first call of any kind in a process has costs of its own; it is not what is looked at here.
                pool.lookup(fresh.packed(1))
                samples[wait] += timed_puts(pool, fresh.take(count), data.take(count))
                if wait:
                    warm += timed_puts(pool, fresh.take(count), data.take(count))
        progress(number + 1, rounds)
    chunk, steady = COLD_CHUNK_BYTES, "put again, once full"
    target = Target(ratio_min=0.8)
    return [
        Row("first puts, after wait_ready()", tuple(samples[True]), chunk, steady, tuple(warm), target),
        Row("first puts, right after create", tuple(samples[False]), chunk, steady, tuple(warm)),
        Row(steady, tuple(warm), chunk),
        Row(f"create until ready, pool of {plan.data_bytes // MIB} MiB", tuple(ready)),
    ]


def timed_puts(pool: Pool, keys: list[bytes], chunks: list[Any]) -> list[float]:
    """Seconds of each put."""
    seconds = []
    with no_garbage_collection():
        for key, chunk in zip(keys, chunks, strict=True):
            start = time.perf_counter_ns()
            store(pool, key, chunk)
            seconds.append((time.perf_counter_ns() - start) * 1e-9)
    return seconds


def verified_rows(plan: Plan, progress: Progress) -> list[Row]:
    """Every byte copied out of a pool that verifies each read and of one that does not: in one call, and by a view."""
    size = VERIFIED_CHUNK_BYTES
    pool_bytes = min(plan.data_bytes, 512 * MIB)
    count = pool_bytes // size
    data, landing = Rotation(source_array(plan.source_bytes), size), touched_array(size)
    keys = Keys("verified").take(count)
    with (
        bench_pool("verified", pool_bytes, OPTIONS + "&checksum=always") as careful,
        bench_pool("unverified", pool_bytes, OPTIONS + "&checksum=off") as plain,
    ):
        for key, chunk in zip(keys, data.take(count), strict=True):
            store(careful, key, chunk)
            store(plain, key, chunk)

        def reader(pool: Pool) -> Callable[[list[bytes]], None]:
            def read(chosen: list[bytes]) -> None:
                for key in chosen:
                    np.copyto(landing, np.frombuffer(pool.get(key), dtype=np.uint8))

            return read

        def copier(pool: Pool) -> Callable[[list[bytes]], None]:
            def read(chosen: list[bytes]) -> None:
                for key in chosen:
                    if pool.read_into(key, [landing]) != 1:
                        raise RuntimeError("a chunk was missing")

            return read

        def in_turn() -> Callable[[int], list[bytes]]:
            place = iter(range(1 << 62))
            return lambda repeats: [keys[next(place) % count] for _ in range(repeats)]

        seconds = interleave(
            [
                Contestant("read_into, verified", copier(careful), in_turn(), 1),
                Contestant("read_into, unverified", copier(plain), in_turn(), 1),
                Contestant("get + copy, verified", reader(careful), in_turn(), 1),
                Contestant("get + copy, unverified", reader(plain), in_turn(), 1),
            ],
            plan.rounds(400),
            progress=progress,
        )
    verified, unverified, in_place, in_place_unverified = seconds
    return [
        Row(verified, seconds[verified], size, unverified, seconds[unverified], Target(ratio_min=0.8)),
        Row(unverified, seconds[unverified], size),
        Row(in_place, seconds[in_place], size, in_place_unverified, seconds[in_place_unverified]),
        Row(in_place_unverified, seconds[in_place_unverified], size),
    ]
