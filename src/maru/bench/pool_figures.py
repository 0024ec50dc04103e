"""The groups of rows in the order of the table, and the rows that take microseconds: keys, prefixes, single chunks.

Each operation is checked while it is measured (a prefix is whole, a chunk was stored): a fast failure is no figure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from maru.bench.audit_figures import audit_rows
from maru.bench.bandwidth_figures import cold_put_rows, put_rows, verified_rows
from maru.bench.ending_figures import ending_rows
from maru.bench.ground import MIB, PREFIX_CHUNKS, Keys, Plan, Rotation, bench_pool, source_array, split
from maru.bench.measure import Contestant, Progress, Row, Target, interleave
from maru.bench.newcomer import newcomer_rows
from maru.bench.recovery_figures import recovery_rows
from maru.bench.wire_figures import client_rows, rpc_rows, transfer_rows
from maru.key import Identity
from maru.native import core
from maru.pool import Outcome, Pool

CHUNK_TOKENS = 256
TOKENS = CHUNK_TOKENS * PREFIX_CHUNKS
SMALL_CHUNK_BYTES = 8 * 1024
FULL_CHUNK_BYTES = 16 * 1024
SMALL_SIZES_KIB = (4, 16, 64, 256)
BATCH_CHUNKS = 32


def small_pool_options(chunk_bytes: int) -> str:
    """So that the index has slots enough for chunks this small."""
    return f"chunk_bytes={chunk_bytes}"


def store_small(pool: Pool, keys: bytes) -> None:
    """Store a small chunk under each of the packed keys."""
    outcomes = pool.put_many(keys, [bytes(SMALL_CHUNK_BYTES)] * (len(keys) // 16))
    if set(outcomes) != {Outcome.STORED}:
        raise RuntimeError(f"the prefix was not stored: {set(outcomes)}")


def key_rows(plan: Plan, progress: Progress) -> list[Row]:
    """The tokens of a long prompt to keys and to pinned extents."""
    tokens = np.random.default_rng(7).integers(0, 150_000, TOKENS, dtype=np.int32)
    with bench_pool("keys", 64 * MIB, small_pool_options(SMALL_CHUNK_BYTES)) as pool:
        ns = pool.namespace(Identity(model="bench", kv_layout="bench/1"))
        store_small(pool, ns.chunk_keys(tokens, CHUNK_TOKENS))

        def to_extents(turns: Iterable[None]) -> None:
            for _ in turns:
                with pool.pin(ns.chunk_keys(tokens, CHUNK_TOKENS)) as prefix:
                    if len(prefix.extents()) != 16 * PREFIX_CHUNKS:
                        raise RuntimeError("the prefix is not whole")

        def to_keys(turns: Iterable[None]) -> None:
            for _ in turns:
                ns.chunk_keys(tokens, CHUNK_TOKENS)

        def one_pass(turns: Iterable[None]) -> None:
            for _ in turns:
                core.blake3(tokens)

        seed, places = ns.digest, dict.fromkeys(naive_keys(tokens.data, ns.digest), (0, SMALL_CHUNK_BYTES))

        def naive(turns: Iterable[None]) -> None:
            for _ in turns:
                if len([places[key] for key in naive_keys(tokens.data, seed)]) != PREFIX_CHUNKS:
                    raise RuntimeError("the prefix is not whole")

        seconds = interleave(
            [
                Contestant("tokens → keys → pinned extents → release", to_extents),
                Contestant("tokens → keys", to_keys),
                Contestant("one BLAKE3 over all tokens", one_pass),
                Contestant("plain Python: blake2b a chunk, dict walk", naive),
            ],
            plan.rounds(300),
            progress=progress,
        )
    targets = {"tokens → keys → pinned extents → release": Target(seconds_max=300e-6)}
    return compared(seconds, "one BLAKE3 over all tokens", targets)


def naive_keys(tokens: memoryview, seed: bytes) -> list[bytes]:
    """A chain of keys as one would write it in an afternoon."""
    keys, key = [], seed
    for start in range(0, len(tokens), CHUNK_TOKENS):
        key = hashlib.blake2b(key + tokens[start : start + CHUNK_TOKENS].tobytes(), digest_size=16).digest()
        keys.append(key)
    return keys


def prefix_rows(plan: Plan, progress: Progress) -> list[Row]:
    """One prefix of 680 chunks: is it there, and where."""
    keys = Keys("prefix").packed(PREFIX_CHUNKS)
    with bench_pool("prefix", 64 * MIB, small_pool_options(SMALL_CHUNK_BYTES)) as pool:
        store_small(pool, keys)
        in_dict, singles = dict.fromkeys(split(keys), (0, SMALL_CHUNK_BYTES)), split(keys)

        def lookup(turns: Iterable[None]) -> None:
            for _ in turns:
                if pool.lookup(keys) != PREFIX_CHUNKS:
                    raise RuntimeError("the prefix is not whole")

        def pin(turns: Iterable[None]) -> None:
            for _ in turns:
                with pool.pin(keys) as prefix:
                    if len(prefix.extents()) != 16 * PREFIX_CHUNKS:
                        raise RuntimeError("the prefix is not whole")

        def views(turns: Iterable[None]) -> None:
            for _ in turns:
                with pool.pin(keys) as prefix:
                    if len(prefix.views) != PREFIX_CHUNKS:
                        raise RuntimeError("the prefix is not whole")

        def walk(turns: Iterable[None]) -> None:
            for _ in turns:
                for key in singles:
                    if key not in in_dict:
                        raise RuntimeError("the prefix is not whole")

        seconds = interleave(
            [
                Contestant("lookup, 680 keys", lookup),
                Contestant("pin + extents + release, 680 keys", pin),
                Contestant("pin + views + release, 680 keys", views),
                Contestant("walk of a dict, 680 keys", walk),
            ],
            plan.rounds(500),
            progress=progress,
        )
    targets = {
        "lookup, 680 keys": Target(seconds_max=10e-6),
        "pin + extents + release, 680 keys": Target(seconds_max=25e-6),
    }
    return compared(seconds, "walk of a dict, 680 keys", targets)


def single_rows(plan: Plan, progress: Progress) -> list[Row]:
    """One chunk at a time, found."""
    keys = Keys("single").packed(PREFIX_CHUNKS)
    with bench_pool("single", 64 * MIB, small_pool_options(SMALL_CHUNK_BYTES)) as pool:
        store_small(pool, keys)
        singles = split(keys)
        in_dict = dict.fromkeys(singles, bytes(SMALL_CHUNK_BYTES))
        get, exists, get_from_dict = pool.get, pool.exists, in_dict.get

        def some(repeats: int) -> list[bytes]:
            return (singles * (repeats // len(singles) + 1))[:repeats]

        def get_and_release(chosen: list[bytes]) -> None:
            for key in chosen:
                get(key).release()  # type: ignore[union-attr]  # A miss would raise, as it should here.

        def ask(chosen: list[bytes]) -> None:
            for key in chosen:
                if not exists(key):
                    raise RuntimeError("a chunk is missing")

        def view_from_dict(chosen: list[bytes]) -> None:
            for key in chosen:
                memoryview(get_from_dict(key)).release()  # type: ignore[arg-type]

        seconds = interleave(
            [
                Contestant("get → view → release", get_and_release, some),
                Contestant("exists", ask, some),
                Contestant("dict.get → memoryview → release", view_from_dict, some),
            ],
            plan.rounds(500),
            progress=progress,
        )
    targets = {"get → view → release": Target(seconds_max=0.6e-6)}
    return compared(seconds, "dict.get → memoryview → release", targets)


def reserve_rows(plan: Plan, progress: Progress) -> list[Row]:
    """One small chunk into a pool that is full, so that another has to go."""
    fresh = Keys("reserve")
    size_bytes = min((64 if plan.quick else 256) * MIB, plan.data_bytes)
    with bench_pool("reserve", size_bytes, small_pool_options(FULL_CHUNK_BYTES)) as pool:
        content = bytes(FULL_CHUNK_BYTES)
        for key in fresh.take(2 * size_bytes // FULL_CHUNK_BYTES):
            pool.put(key, content)
        reserve, put, stored = pool.reserve, pool.put, Outcome.STORED

        def seal(keys: list[bytes]) -> None:
            for key in keys:
                if reserve(key, FULL_CHUNK_BYTES).seal() is not stored:
                    raise RuntimeError("a chunk was not stored")

        def discard(keys: list[bytes]) -> None:
            for key in keys:
                reserve(key, FULL_CHUNK_BYTES).discard()

        def put_one(keys: list[bytes]) -> None:
            for key in keys:
                if put(key, content) is not stored:
                    raise RuntimeError("a chunk was not stored")

        before = pool.stats()["counters"]
        seconds = interleave(
            [
                Contestant("reserve + seal, 16 KiB, full pool", seal, fresh.take),
                Contestant("put, 16 KiB, full pool", put_one, fresh.take),
                Contestant("reserve + discard, 16 KiB, full pool", discard, fresh.take),
            ],
            plan.rounds(300),
            progress=progress,
        )
        after = pool.stats()["counters"]
    # A discarded reservation leaves its memory to the next one, so each sample may save one eviction, not more.
    evicted, stores = after["evicted"] - before["evicted"], after["stored"] - before["stored"]
    if evicted < 0.8 * stores:
        raise RuntimeError(f"the pool was not full: {evicted} evictions for {stores} chunks")
    return [Row(name, samples) for name, samples in seconds.items()]


def small_put_rows(plan: Plan, progress: Progress) -> list[Row]:
    """Puts of small chunks into a full pool: one by one, and 32 in one call against 32 calls."""
    rows: list[Row] = []
    source = source_array(plan.source_bytes)
    for number, size_kib in enumerate(SMALL_SIZES_KIB):

        def of_all(done: int, total: int, before: int = number) -> None:
            progress(before * total + done, len(SMALL_SIZES_KIB) * total)

        rows += small_put_rows_of_size(plan, size_kib, source, of_all)
    return rows


def small_put_rows_of_size(plan: Plan, size_kib: int, source: Any, progress: Progress) -> list[Row]:
    one, many, calls = (
        f"put, {size_kib} KiB",
        f"put_many of {BATCH_CHUNKS}, {size_kib} KiB",
        f"{BATCH_CHUNKS} puts, {size_kib} KiB",
    )
    size = size_kib * 1024
    fresh, data = Keys(f"small {size}"), Rotation(source, size)
    size_bytes = min((64 if plan.quick else 256) * MIB, plan.data_bytes)
    with bench_pool(f"small-{size_kib}", size_bytes, small_pool_options(size)) as pool:
        put, put_many, stored = pool.put, pool.put_many, Outcome.STORED

        def pairs(repeats: int) -> list[tuple[bytes, Any]]:
            return list(zip(fresh.take(repeats), data.take(repeats), strict=True))

        def batches(repeats: int) -> list[tuple[bytes, list[Any]]]:
            return [(fresh.packed(BATCH_CHUNKS), data.take(BATCH_CHUNKS)) for _ in range(repeats)]

        def put_all(chosen: list[tuple[bytes, Any]]) -> None:
            for key, content in chosen:
                if put(key, content) is not stored:
                    raise RuntimeError("a chunk was not stored")

        def put_batches(chosen: list[tuple[bytes, list[Any]]]) -> None:
            for keys, contents in chosen:
                if put_many(keys, contents).count(stored) != BATCH_CHUNKS:
                    raise RuntimeError("a chunk was not stored")

        put_all(pairs(2 * size_bytes // size))
        before = pool.stats()["counters"]
        seconds = interleave(
            [
                Contestant(one, put_all, pairs),
                Contestant(many, put_batches, batches),
                Contestant(calls, put_all, lambda repeats: pairs(BATCH_CHUNKS * repeats)),
            ],
            plan.rounds(200),
            progress=progress,
        )
        after = pool.stats()["counters"]
    evicted, stores = after["evicted"] - before["evicted"], after["stored"] - before["stored"]
    if evicted < 0.8 * stores:
        raise RuntimeError(f"the pool was not full: {evicted} evictions for {stores} chunks")
    return [Row(one, seconds[one]), Row(many, seconds[many], 0, calls, seconds[calls]), Row(calls, seconds[calls])]


def compared(seconds: dict[str, tuple[float, ...]], reference: str, targets: dict[str, Target]) -> list[Row]:
    """Rows of which all but the reference are compared with it."""
    return [
        Row(name, samples)
        if name == reference
        else Row(name, samples, 0, reference, seconds[reference], targets.get(name))
        for name, samples in seconds.items()
    ]


Figures = Callable[[Plan, Progress], list[Row]]

GROUPS: dict[str, tuple[str, Figures]] = {
    "keys": (f"A prompt of {TOKENS:,} tokens in chunks of {CHUNK_TOKENS}", key_rows),
    "prefix": (f"A prefix of {PREFIX_CHUNKS} chunks", prefix_rows),
    "single": ("One chunk", single_rows),
    "audit": ("Hits with an audit log, and without", audit_rows),
    "reserve": ("One small chunk into a full pool", reserve_rows),
    "small": ("Puts of small chunks, full pool", small_put_rows),
    "put": ("Bandwidth of put, full pool", put_rows),
    "cold": ("The first bytes into a fresh pool, 32 MiB chunks", cold_put_rows),
    "newcomer": (f"A new process, {PREFIX_CHUNKS} chunks", newcomer_rows),
    "recovery": ("After a death, and after a loss", recovery_rows),
    "rpc": (f"A prefix of {PREFIX_CHUNKS} chunks, by a daemon over TCP", rpc_rows),
    "transfer": (f"Bytes of a prefix of {PREFIX_CHUNKS} chunks, by a daemon", transfer_rows),
    "clients": ("Clients of a daemon that look up 680 keys at once", client_rows),
    "endings": ("Until what ended is found nowhere", ending_rows),
    "verified": ("Reads with checksum=always, 8 MiB chunks", verified_rows),
}
"""Name on the command line, title in the table, and what measures it."""
