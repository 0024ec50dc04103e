"""What a store's process does when it is asked: keep prefixes and fill the store untimed, take samples, write on.

Every answer is checked while it is measured: a miss that is fast is no figure. Keys and bytes of a prefix follow from
its number alone, so that each process can tell whether what it reads is what another one stored.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from maru.bench.measure import Clock, Contestant, sample_ns, turns
from maru.bench.rivals.contract import KEY_BYTES, Array, Rival, RivalFailed, insist_on, split

FILLER_BYTES = 8 << 20
FILL_SECONDS_MAX = 3.0


@dataclass(frozen=True)
class Job:
    """The sizes of a run."""

    capacity_bytes: int
    source_bytes: int
    """What stored chunks are cut from, again and again: more than the caches hold."""
    prefix_chunks: int
    chunk_bytes: int


def prefix_keys(generation: int, chunks: int) -> bytes:
    """Packed keys of a prefix by its number."""
    return hashlib.shake_128(b"maru rivals %d" % generation).digest(KEY_BYTES * chunks)


class Worker:
    """One store in this process, and what is asked of it."""

    def __init__(self, rival: Rival, job: Job, clock: Clock = time.perf_counter_ns) -> None:
        self._rival, self._job, self._clock = rival, job, clock
        self._source = np.random.default_rng(1).integers(0, 1 << 63, job.source_bytes // 8).view(np.uint8)
        self._landing: Array = None
        self._cut_bytes = 0
        self._cuts: Any = iter(())

    def _slices(self, size: int) -> list[Array]:
        return [self._source[at : at + size] for at in range(0, self._job.source_bytes - size + 1, size)]

    def _next_slice(self, size: int) -> Array:
        if size != self._cut_bytes:
            self._cut_bytes, self._cuts = size, itertools.cycle(self._slices(size))
        return next(self._cuts)

    def _fresh(self, size: int, count: int) -> list[tuple[Any, Array]]:
        """Keys that no store has seen, with bytes for each."""
        keys = split(os.urandom(KEY_BYTES * count))
        return [(self._rival.key_of(key), self._next_slice(size)) for key in keys]

    def _put_all(self, pairs: Iterable[tuple[Any, Array]]) -> None:
        put = self._rival.put
        for key, data in pairs:
            put(key, data)

    def store_prefix(self, generation: int) -> None:
        """Store a prefix. Raises RivalFailed."""
        keys = split(prefix_keys(generation, self._job.prefix_chunks))
        chunks = itertools.cycle(self._slices(self._job.chunk_bytes))
        self._put_all((self._rival.key_of(key), data) for key, data in zip(keys, chunks, strict=False))

    def verify(self, generation: int) -> None:
        """Read a prefix and compare every byte. Raises RivalFailed."""
        landing = self._read(generation)
        size = self._job.chunk_bytes
        chunks = itertools.cycle(self._slices(size))
        for number, chunk in zip(range(self._job.prefix_chunks), chunks, strict=False):
            if not np.array_equal(landing[number * size : (number + 1) * size], chunk):
                raise RivalFailed(f"chunk {number} has other bytes than were stored")

    def fill(self, size: int) -> None:
        """Bring the store where every further put of this size has to make room, or as near as some seconds take it."""
        for _ in range(self._job.capacity_bytes // FILLER_BYTES + 1):
            self._put_all(self._fresh(FILLER_BYTES, 1))
        deadline = self._clock() + int(FILL_SECONDS_MAX * 1e9)
        for _ in range(self._job.capacity_bytes // size // 16 + 1):
            self._put_all(self._fresh(size, 16))
            if self._clock() > deadline:
                break

    def sample(self, what: str, repeats: int, generation: int = 0, size: int = 0) -> int:
        """Nanoseconds that so many operations take: "lookup", "get", "read" or "put". Raises RivalFailed."""
        return sample_ns(self._contestant(what, generation, size), repeats, self._clock)

    def _contestant(self, what: str, generation: int, size: int) -> Contestant:
        chunks = self._job.prefix_chunks
        packed = prefix_keys(generation, chunks)
        rival = self._rival
        if what == "lookup":
            lookup, keys = rival.lookup, rival.keys_of(packed)

            def look_up(turns: Iterable[None]) -> None:
                for _ in turns:
                    insist_on(lookup(keys), chunks)

            return Contestant(what, look_up)
        if what == "get":
            wanted = itertools.cycle([rival.key_of(key) for key in split(packed)])
            get_view, release, chunk_bytes = rival.get_view, rival.release, self._job.chunk_bytes

            def get(chosen: Iterable[Any]) -> None:
                for key in chosen:
                    view = get_view(key)
                    if view.nbytes != chunk_bytes:
                        raise RivalFailed("a chunk is not whole")
                    release(key, view)

            return Contestant(what, get, lambda repeats: list(itertools.islice(wanted, repeats)))
        if what == "read":
            return Contestant(what, lambda turns: [self._read(generation) for _ in turns], turns)
        if what == "put":
            return Contestant(what, self._put_all, lambda repeats: self._fresh(size, repeats))
        raise RivalFailed(f"nobody knows how to measure {what!r}")

    def _read(self, generation: int) -> Array:
        if self._landing is None:
            self._landing = self._rival.make_landing(self._job.prefix_chunks * self._job.chunk_bytes)
        keys = self._rival.keys_of(prefix_keys(generation, self._job.prefix_chunks))
        self._rival.read_into(keys, self._landing)
        return self._landing

    def write_until(self, is_over: Callable[[], bool], size: int, bytes_max: int) -> tuple[int, int]:
        """Store one chunk after the other until told, at least one. Returns how many, and nanoseconds."""
        count, taken_ns = 0, 0
        while not count or (not is_over() and (count + 1) * size <= bytes_max):
            taken_ns += self.sample("put", 1, size=size)
            count += 1
        return count, taken_ns
