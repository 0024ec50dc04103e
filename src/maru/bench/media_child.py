"""One process that moves bytes and nothing else: over a plain mapping, or through a pool. No engine.

All processes of a sample begin at the same moment, which the parent names; each reports when it began and ended. What
they copy from and to rotates over more bytes than the caches hold, is mapped before, and is compared afterwards: what
still lies where it was copied to.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from maru.bench.ground import Keys, Rotation, source_array, touched_array
from maru.bench.machine import last_level_cache_bytes
from maru.bench.rivals.contract import Answering, RivalFailed, insist_on
from maru.native import core
from maru.pool import Outcome, Pool

CHUNK_BYTES = 8 << 20
LINE_BYTES = 64
_READY_S = 60.0
_MPOL_DEFAULT, _MPOL_BIND = 0, 2  # <linux/mempolicy.h>
_MASK_BITS = 64
_SET_MEMPOLICY = {"x86_64": 238, "aarch64": 237}
"""The system call's number; glibc has no function for it."""
_SHARE_READ = 0.75
"""Of what there is room for: a pool has to hold all that is read, and plain mappings have no more of it."""
Pairs = list[tuple[Any, Any]]
"""(To, from): slices or keys, and data."""


def prefix_chunks(size_bytes: int) -> int:
    """How many chunks readers know, of so many bytes."""
    return int(_SHARE_READ * size_bytes) // CHUNK_BYTES


class MediaChild(Answering):
    """Opens files or a pool, and moves bytes when it is told."""

    def answer(self, request: dict[str, Any]) -> Any:
        acts: dict[str, Callable[..., Any]] = {
            "open": self.open, "move": self.move, "fill": self.fill, "chase": self.chase, "watch": self.watch,
            "make": self.make, "forget": self.forget,
        }  # fmt: skip
        return acts[request.pop("do")](**request)

    def make(self, paths: list[str], size: int, node: int) -> None:
        """Files whose memory lies on a NUMA node, wherever this process runs. Raises OSError."""
        on_node(node)
        try:
            for path in paths:
                with Path(path).open("wb") as out:
                    os.posix_fallocate(out.fileno(), 0, size)
        finally:
            on_node(None)

    def open(self, paths: list[str], pool: str, index: int, members: int) -> None:
        """`paths`: of the segments, mapped plainly; or the URL of a pool. Each of `members` reads a part of its own."""
        self._index, self._members = index, members
        own_bytes = 2 * last_level_cache_bytes()
        self._own = Rotation(touched_array(max(own_bytes, 2 * CHUNK_BYTES)), CHUNK_BYTES)
        self._source = Rotation(source_array(max(own_bytes, 2 * CHUNK_BYTES)), CHUNK_BYTES)
        self._contents = self._source.take(len(self._source))
        self._pool: Pool | None = None
        self._maps: list[Any] = []
        if pool:
            self._pool = Pool.attach(pool)
            self._pool.wait_ready(_READY_S)
            self._fresh = Keys(f"media {os.getpid()}")
            self._written: list[bytes] = []
            return
        for path in paths:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            try:
                mapping = mmap.mmap(fd, Path(path).stat().st_size)
            finally:
                os.close(fd)
            with suppress(OSError):  # A kernel without huge pages refuses; the pool asks in the same way.
                mapping.madvise(mmap.MADV_HUGEPAGE)
            self._maps.append(np.frombuffer(mapping, dtype=np.uint8))
            int(self._maps[-1][::4096].sum())  # Mapped by now, as the pool's memory is once it is ready.
        self._all = [
            segment[at : at + CHUNK_BYTES]
            for at in range(0, self._maps[0].nbytes - CHUNK_BYTES + 1, CHUNK_BYTES)
            for segment in self._maps
        ]
        self._slices = self._all[: prefix_chunks(sum(one.nbytes for one in self._maps))][index::members]

    def fill(self, keys: str) -> None:
        """Make everything real: fill the mapping, or store chunks under keys that readers know."""
        if self._pool is None:
            for number, part in enumerate(self._all):
                np.copyto(part, self._content(number))
            return
        for number, key in enumerate(_split(keys)):
            _store(self._pool, key, self._content(number))

    def forget(self) -> None:
        """Take out of the pool what this process wrote there: only what readers know is in it then, and has room."""
        assert self._pool is not None
        for key in self._written:
            self._pool.remove(key)
        self._written.clear()

    def _content(self, number: int) -> Any:
        """What lies under a key that readers know, by its number: the same in every process."""
        return self._contents[number % len(self._contents)]

    def move(self, what: str, start_ns: int, chunks: int, keys: str) -> tuple[int, int, int, int]:
        """Read or write so many chunks.

        Returns nanoseconds of time.monotonic_ns() at both ends, how many chunks were compared, and how many are wrong.
        """
        act, outcome = self._prepared(what, chunks, keys)
        while time.monotonic_ns() < start_ns:
            pass
        begun = time.monotonic_ns()
        act()
        ended = time.monotonic_ns()
        return begun, ended, *_compared(outcome())

    def _prepared(self, what: str, chunks: int, keys: str) -> tuple[Callable[[], None], Callable[[], Pairs]]:
        """What is timed, and what gives the pairs that have to be equal then."""
        pool = self._pool
        if pool is None:
            own = (self._own if what == "read" else self._source).take(chunks)
            there = [self._slices[n % len(self._slices)] for n in range(chunks)]
            pairs = list(zip(own, there, strict=True) if what == "read" else zip(there, own, strict=True))
            return partial(_copy_all, pairs), lambda: pairs
        if what == "read":
            known = list(enumerate(_split(keys)))[self._index :: self._members]
            wanted = [known[n % len(known)] for n in range(chunks)]
            own = self._own.take(chunks)
            reading = [(key, to) for (_, key), to in zip(wanted, own, strict=True)]
            return partial(_read_all, pool, reading), lambda: [
                (to, self._content(number)) for (number, _), to in zip(wanted, own, strict=True)
            ]
        fresh = list(zip(self._fresh.take(chunks), self._source.take(chunks), strict=True))
        self._written += [key for key, _ in fresh]
        return partial(_put_all, pool, fresh), lambda: _read_back(pool, fresh)

    def watch(self, key: str) -> int:
        """Look a chunk up until it is not there any more, or for ten seconds. Returns time.monotonic_ns()."""
        assert self._pool is not None
        lookup, packed, until = self._pool.lookup, bytes.fromhex(key), time.monotonic() + 10.0
        while lookup(packed) and time.monotonic() < until:
            pass
        return time.monotonic_ns()

    def chase(self, hops: int) -> float:
        """Seconds of one load that waits for the one before, over the first segment."""
        segment = self._maps[0]
        lines = segment.nbytes // LINE_BYTES
        order = np.random.default_rng(1).permutation(lines).astype(np.uint32)
        chain = segment[: lines * LINE_BYTES].view(np.uint32).reshape(lines, LINE_BYTES // 4)
        chain[order, 0] = np.roll(order, -1)
        begun = time.perf_counter()
        core._follow_chain(segment, hops)
        return (time.perf_counter() - begun) / hops

    def end(self) -> None:
        if getattr(self, "_pool", None) is not None:
            assert self._pool is not None
            self._pool.close()


def on_node(node: int | None) -> None:
    """From now on this thread's new memory comes from one NUMA node; None: from wherever it runs. Raises OSError."""
    policy, mask = (_MPOL_DEFAULT, None) if node is None else (_MPOL_BIND, ctypes.byref(ctypes.c_ulong(1 << node)))
    libc = ctypes.CDLL(None, use_errno=True)
    number = _SET_MEMPOLICY.get(platform.machine())
    if number is None or libc.syscall(number, policy, mask, 0 if node is None else _MASK_BITS):
        error = ctypes.get_errno()
        raise OSError(error, f"set_mempolicy for node {node}: {os.strerror(error)}")


def _split(keys: str) -> list[bytes]:
    packed = bytes.fromhex(keys)
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


def _compared(pairs: Pairs) -> tuple[int, int]:
    """(compared, wrong) of pairs that have to be equal; of those that share a place only the last."""
    last = {to.ctypes.data: (to, data) for to, data in pairs}
    return len(last), sum(not np.array_equal(to, data) for to, data in last.values())


def _read_back(pool: Pool, pairs: Pairs) -> Pairs:
    """What of these chunks is still there, with what it has to be."""
    found: Pairs = []
    for key, data in pairs:
        with pool.pin(key) as prefix:
            if len(prefix):
                found.append((np.array(np.frombuffer(prefix.views[0], dtype=np.uint8)), data))
    return found


def _copy_all(pairs: list[tuple[Any, Any]]) -> None:
    for to, data in pairs:
        core.stream_copy(to, data)


def _read_all(pool: Pool, pairs: list[tuple[bytes, Any]]) -> None:
    for key, to in pairs:
        with pool.pin(key) as found:
            insist_on(len(found), 1)
            core.stream_copy(to, found.views[0])


def _put_all(pool: Pool, pairs: list[tuple[bytes, Any]]) -> None:
    for key, data in pairs:
        _store(pool, key, data)


def _store(pool: Pool, key: bytes, data: Any) -> None:
    outcome = pool.put(key, data)
    if outcome not in (Outcome.STORED, Outcome.EXISTS):
        raise RivalFailed(f"a chunk was not stored: {outcome}")
