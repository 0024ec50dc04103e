"""Processes that ask places below a pool for bytes, beside the same bytes asked for without us. No engine.

Holds:      a place beside the same thing raw (PlaceChild), foreground puts while what they push out goes down
            (PutsChild), and prefixes that come up (PrefixChild).
Promises:   memory that bytes land in holds other ones before, and every byte that came is compared after the time has
            stopped. A put that was not stored, a prefix that did not come whole, a ladder that copied nothing is a
            failure and no sample.
Leaves:     in which order these are asked to `figures.below`; what raw means to `raw_places`.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import time
from array import array
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from maru.bench.ground import Keys, Rotation, source_array, split
from maru.bench.machine import last_level_cache_bytes
from maru.bench.raw_places import AT_ONCE, RawMover, raw_of
from maru.bench.rivals.contract import Answering, RivalFailed, insist_on
from maru.config import parse_url
from maru.key import Identity
from maru.native import core
from maru.pool import Outcome, Pool
from maru.tier.envelope import ChunkFacts
from maru.tier.opening import TierConfig, parse_tier_url
from maru.tiering.ladder import LadderSettings
from maru.tiering.place import Loaded, Place, Which
from maru.tiering.tiered import TieredPool

CHUNK_BYTES = 8 << 20
PLACE, RAW, POOL = "maru", "raw", "pool"
_CHUNK_TOKENS = 16
"""Of keys only: nothing is computed here."""
_READY_S = 60.0
_FLUSH_S = 120.0
_PATIENT = LadderSettings(promote_deadline_s=60.0)
"""A disturbed machine makes a slow sample, not a miss."""
_COMPARED = 4
"""Chunks at either end of a block of puts that are looked at again."""


class PlaceMover:
    """A place as a ladder asks it, several chunks at a time, on a loop of its own."""

    def __init__(self, config: TierConfig) -> None:
        self._config = config
        self._runner = asyncio.Runner()
        self._digest = os.urandom(16)
        self._place = self._runner.run(self._opened())

    async def _opened(self) -> Place:
        return Place.open(self._config, os.urandom(16))

    def store(self, keys: Sequence[bytes], chunks: Sequence[Any]) -> None:
        async def one(key: bytes, chunk: Any) -> None:
            if not await self._place.store(Which(key, self._digest, 0), None, memoryview(chunk), None):
                raise RivalFailed(f"{self._place.name} did not take a chunk: {self._place.stats()}")

        self._runner.run(_some_at_once([one(*pair) for pair in zip(keys, chunks, strict=True)]))

    def load(self, keys: Sequence[bytes], landings: Sequence[Any]) -> list[Any]:
        async def one(key: bytes, landing: Any) -> None:
            async def begin(_facts: ChunkFacts) -> memoryview:
                return memoryview(landing)

            if await self._place.load(Which(key, self._digest, 0), begin) is not Loaded.WHOLE:
                raise RivalFailed(f"{self._place.name} did not give a chunk back: {self._place.stats()}")

        self._runner.run(_some_at_once([one(*pair) for pair in zip(keys, landings, strict=True)]))
        return list(landings)

    def remove(self, _keys: Sequence[bytes]) -> None:
        """All of them: nobody else stores under this namespace."""
        self._runner.run(self._place.forget(self._digest))

    def end(self) -> None:
        self._runner.run(self._place.close())
        self._runner.close()


async def _some_at_once(jobs: Sequence[Any]) -> None:
    room = asyncio.Semaphore(AT_ONCE)

    async def one(job: Any) -> None:
        async with room:
            await job

    await asyncio.gather(*(one(job) for job in jobs))


class PlaceChild(Answering):
    """One place, and the same thing raw."""

    def answer(self, request: dict[str, Any]) -> Any:
        acts: dict[str, Callable[..., Any]] = {"open": self.open, "trial": self.trial}
        return acts[request.pop("do")](**request)

    def open(self, url: str, chunks: int) -> None:
        config = parse_tier_url(url)
        self._movers: dict[str, RawMover | PlaceMover] = {}
        self._movers[RAW] = RawMover(raw_of(config))
        self._movers[PLACE] = PlaceMover(config)
        self._source, self._landing = _chunks_of(_filled(chunks)), _chunks_of(_pages(chunks))
        self._keys = Keys(f"below {os.getpid()}")

    def trial(self, way: str) -> tuple[float, float, int, int]:
        """Seconds of storing that many new chunks, and of loading them; how many were compared, how many are wrong."""
        mover, keys = self._movers[way], self._keys.take(len(self._source))
        _spoil(self._landing, self._source)
        begun = time.perf_counter()
        mover.store(keys, self._source)
        stored = time.perf_counter()
        found = mover.load(keys, self._landing)
        loaded = time.perf_counter()
        mover.remove(keys)
        return stored - begun, loaded - stored, len(keys), _wrong(found, self._source)

    def end(self) -> None:
        for mover in getattr(self, "_movers", {}).values():
            mover.end()


class PutsChild(Answering):
    """Puts into a full pool, with a place below it or without."""

    def answer(self, request: dict[str, Any]) -> Any:
        acts: dict[str, Callable[..., Any]] = {"open": self.open, "puts": self.puts}
        return acts[request.pop("do")](**request)

    def open(self, pool: str, url: str) -> None:
        """`url`: of the place, which has write=through; "" for none. The pool is full afterwards."""
        config = parse_url(pool)
        self._pool = TieredPool(config, [url], _PATIENT) if url else Pool(config)
        self._pool.wait_ready(_READY_S)
        self._namespace = self._pool.namespace(Identity(model="bench", kv_layout="below"))
        chunks = max(2, 2 * last_level_cache_bytes() // CHUNK_BYTES)
        self._source = Rotation(_filled(chunks), CHUNK_BYTES)
        self._keys = Keys(f"puts {os.getpid()}")
        for key in self._keys.take(self._pool.stats()["size_bytes"] // CHUNK_BYTES * 5 // 4):
            self._put(key, self._source.take(1)[0])
        self._flush()

    def puts(self, span_s: float, every_s: float) -> tuple[list[float], int, int]:
        """Seconds of each put of `span_s`, one every `every_s`; how many chunks were compared, how many are wrong.

        Begins when nothing is being copied below, and ends when everything that is still there was.
        """
        before = self._copied()
        pairs: list[tuple[bytes, Any]] = []
        seconds: list[float] = []
        due = time.perf_counter()
        ends = due + span_s
        while due < ends or not pairs:
            (key,), (chunk,) = self._keys.take(1), self._source.take(1)
            pairs.append((key, chunk))
            if (early_s := due - time.perf_counter()) > 0:
                time.sleep(early_s)
            begun = time.perf_counter()
            self._put(key, chunk)
            seconds.append(time.perf_counter() - begun)
            due = max(due + every_s, begun)
        self._flush()
        if isinstance(self._pool, TieredPool) and self._copied() == before:
            raise RivalFailed("nothing was copied below: these puts cost what they cost without a place")
        return seconds, *self._compared(pairs)

    def _put(self, key: bytes, chunk: Any) -> None:
        outcome = self._pool.put(key, chunk, self._namespace)
        if outcome is not Outcome.STORED:
            raise RivalFailed(f"a chunk was not stored: {outcome}")

    def _copied(self) -> int:
        pool = self._pool
        return int(pool.ladder.stats()["places"][0]["stored"]) if isinstance(pool, TieredPool) else 0

    def _flush(self) -> None:
        if isinstance(self._pool, TieredPool) and not self._pool.ladder.flush(_FLUSH_S):
            raise RivalFailed(f"not everything was copied below in {_FLUSH_S:.0f} s")

    def _compared(self, pairs: Sequence[tuple[bytes, Any]]) -> tuple[int, int]:
        """(compared, wrong) of what can be read of the last puts and, from below, of the first."""
        compared = wrong = 0
        for key, chunk in [*pairs[-_COMPARED:], *pairs[:_COMPARED]]:
            with self._pool.pin(key) as found:
                compared += len(found)
                wrong += _wrong(found.views, [chunk]) if len(found) else 0
        return compared, wrong

    def end(self) -> None:
        if hasattr(self, "_pool"):
            self._pool.close()


class PrefixChild(Answering):
    """Prefixes that lie only below, each beside the same bytes raw."""

    def answer(self, request: dict[str, Any]) -> Any:
        acts: dict[str, Callable[..., Any]] = {"open": self.open, "take": self.take, "forget": self.forget}
        return acts[request.pop("do")](**request)

    def open(self, pool: str, url: str, prefixes: int, chunks: int) -> None:
        """Store so many prefixes of so many chunks through a pool, raw as well, and take them out of the pool."""
        self._config = parse_tier_url(url)
        self._raw = RawMover(raw_of(self._config))
        self._pool = TieredPool(parse_url(pool), [self._config.url], _PATIENT)
        self._pool.wait_ready(_READY_S)
        self._namespace = self._pool.namespace(Identity(model="bench", kv_layout="below", salt=os.urandom(8).hex()))
        self._contents = _chunks_of(_filled(chunks + prefixes - 1))
        self._landing = _chunks_of(_pages(chunks))
        self._prefixes: list[bytes] = []
        for number in range(prefixes):
            tokens = array("q", [number] * (chunks * _CHUNK_TOKENS))
            packed = bytes(self._namespace.chunk_keys(tokens, _CHUNK_TOKENS))
            self._prefixes.append(packed)
            outcomes = self._pool.put_many(packed, self._content(number), self._namespace)
            insist_on(outcomes.count(Outcome.STORED), chunks)
            self._raw.store(split(packed), self._content(number))
            if not self._pool.ladder.flush(_FLUSH_S):
                raise RivalFailed(f"a prefix was not copied below in {_FLUSH_S:.0f} s")
            self.forget(number)

    def _content(self, number: int) -> list[Any]:
        """Of a prefix, chunk by chunk: no two have the same one in the same place."""
        return self._contents[number : number + len(self._landing)]

    def forget(self, prefix: int) -> None:
        """The prefix lies only below from now on."""
        for key in reversed(split(self._prefixes[prefix])):
            core.PoolCore.remove(self._pool, key)  # A tiered pool's own remove() would reach below.
        insist_on(core.PoolCore.lookup(self._pool, self._prefixes[prefix]), 0)

    def take(self, way: str, prefix: int) -> tuple[float, int, int]:
        """Seconds until a prefix is there by one way; how many chunks were compared, how many are wrong.

        PLACE: from below, until it is pinned. POOL: it is in the pool; until it was copied out. RAW: until it was read.
        """
        packed, content = self._prefixes[prefix], self._content(prefix)
        _spoil(self._landing, content)
        if way != RAW:
            insist_on(core.PoolCore.lookup(self._pool, packed), len(content) if way == POOL else 0)
        begun = time.perf_counter()
        if way == RAW:
            arrived = self._raw.load(split(packed), self._landing)
            return time.perf_counter() - begun, len(arrived), _wrong(arrived, content)
        with self._pool.pin(packed) as found:
            if way == POOL:
                for to, view in zip(self._landing, found.views, strict=False):
                    core.stream_copy(to, view)
            seconds = time.perf_counter() - begun
            insist_on(len(found), len(content))
            return seconds, len(found), _wrong(self._landing if way == POOL else found.views, content)

    def end(self) -> None:
        """Nothing stays in a place that outlives the run."""
        if hasattr(self, "_prefixes"):
            self._raw.remove([key for packed in self._prefixes for key in split(packed)])
        if hasattr(self, "_pool"):
            digest = self._namespace.digest
            self._pool.close()
            asyncio.run(_cleared(self._config, digest))
        if hasattr(self, "_raw"):
            self._raw.end()


async def _cleared(config: TierConfig, digest: bytes) -> None:
    place = Place.open(config, os.urandom(16))
    try:
        await place.forget(digest)
    finally:
        await place.close()


def _pages(chunks: int) -> Any:
    """Touched memory for so many chunks that begins with a page: else nothing goes past the page cache."""
    memory = np.frombuffer(mmap.mmap(-1, chunks * CHUNK_BYTES), dtype=np.uint8)
    memory.fill(1)
    return memory


def _filled(chunks: int) -> Any:
    """Such memory with bytes to store."""
    memory = _pages(chunks)
    memory[:] = source_array(chunks * CHUNK_BYTES)
    return memory


def _chunks_of(memory: Any) -> list[Any]:
    return [memory[at : at + CHUNK_BYTES] for at in range(0, memory.nbytes, CHUNK_BYTES)]


def _spoil(landing: Sequence[Any], wanted: Sequence[Any]) -> None:
    """Every byte becomes another one than is wanted there: none is right that was not written."""
    for to, data in zip(landing, wanted, strict=True):
        np.invert(data, out=to)


def _wrong(found: Sequence[Any], wanted: Sequence[Any]) -> int:
    """How many chunks are not byte for byte what they have to be."""
    return sum(
        not np.array_equal(np.frombuffer(one, dtype=np.uint8), data) for one, data in zip(found, wanted, strict=True)
    )
