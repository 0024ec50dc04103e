"""What the figures stand on: sizes that fit this machine, pools that vanish, keys, and buffers that rotate.

Buffers rotate over more bytes than the caches hold, since KV bytes come from elsewhere and go elsewhere.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from maru.bench.machine import last_level_cache_bytes, memory_available_bytes
from maru.config import format_size
from maru.errors import PoolNotFound
from maru.native import core
from maru.pool import Pool

MIB = 1 << 20
SHM = Path("/dev/shm")
READY_TIMEOUT_S = 60.0
PREFIX_CHUNKS = 680

# Two chunks of 32 MiB a slab, and at least two slabs of them.
SLAB_BYTES = 64 * MIB
DATA_BYTES_MIN = 2 * SLAB_BYTES


class TooSmall(RuntimeError):
    """This machine has no room for the benchmark; the message says how much is missing, and where."""


class Missing(RuntimeError):
    """Something that these rows need is not installed; the message says what, and how to get it."""


@dataclass(frozen=True)
class Plan:
    """How much is measured, and on how many bytes."""

    quick: bool
    data_bytes: int
    """Size of the pools that bytes are moved through, and of the memory that they are compared with."""
    source_bytes: int
    note: str
    """What had to be made smaller; "" if nothing."""

    def rounds(self, full: int) -> int:
        """`full` rounds, or a few of them."""
        return max(2, full // 10) if self.quick else full


def make_plan(quick: bool) -> Plan:
    """Choose sizes by the room that is there. Raises TooSmall."""
    source_bytes = min(max((2 if quick else 4) * last_level_cache_bytes(), 128 * MIB), 1024 * MIB)
    wanted = data_bytes = (256 if quick else 1024) * MIB
    place = os.statvfs(SHM)
    shm_bytes, memory_bytes = place.f_bavail * place.f_frsize, memory_available_bytes()
    # At most a pool and a plain file of its size lie in /dev/shm, and an array of the size and the source beside them.
    while data_bytes >= DATA_BYTES_MIN and (
        2.1 * data_bytes > shm_bytes or 3.2 * data_bytes + source_bytes > 0.8 * memory_bytes
    ):
        data_bytes //= 2
        source_bytes = max(source_bytes // 2, 64 * MIB)
    if data_bytes < DATA_BYTES_MIN:
        raise TooSmall(
            f"the benchmark needs {format_size(int(2.1 * DATA_BYTES_MIN))} in {SHM}, which has "
            f"{format_size(shm_bytes)} free, and {format_size(4 * DATA_BYTES_MIN)} of memory, of which "
            f"{format_size(memory_bytes)} are available"
        )
    note = ""
    if data_bytes < wanted:
        note = (
            f"pools of {format_size(data_bytes)} instead of {format_size(wanted)}: {SHM} has {format_size(shm_bytes)} "
            f"free, memory {format_size(memory_bytes)}"
        )
    return Plan(quick, data_bytes, source_bytes, note)


@contextmanager
def bench_pool(label: str, size_bytes: int, options: str = "", *, wait: bool = True) -> Iterator[Pool]:
    """A fresh pool, ready unless told not to wait; destroyed afterwards whatever happened."""
    url = f"maru:///bench-{os.getpid()}-{label}?size={size_bytes}" + (f"&{options}" if options else "")
    try:
        with Pool.create(url) as pool:
            if wait:
                until_ready(pool)
            yield pool
    finally:
        with suppress(PoolNotFound):
            Pool.destroy(url, force=True)


def until_ready(pool: Pool) -> None:
    """Wait until the pool's memory is real and touched. Raises TooSmall."""
    if not pool.wait_ready(READY_TIMEOUT_S):
        raise TooSmall(f"{pool!r} was not ready after {READY_TIMEOUT_S:.0f} s")


class Keys:
    """An endless supply of keys that no pool has seen."""

    def __init__(self, family: str) -> None:
        self._family = family.encode()
        self._batch = 0

    def packed(self, count: int) -> bytes:
        """`count` new keys, 16 bytes each."""
        self._batch += 1
        return core.blake3(self._family + self._batch.to_bytes(8, "little"), 16 * count)

    def take(self, count: int) -> list[bytes]:
        return split(self.packed(count))


def split(packed: bytes) -> list[bytes]:
    """Packed keys one by one."""
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


def source_array(size_bytes: int) -> Any:
    """Bytes to store: a touched array of uint8 without a repeating pattern."""
    return np.random.default_rng(1).integers(0, 1 << 63, size_bytes // 8, dtype=np.int64).view(np.uint8)


def touched_array(size_bytes: int) -> Any:
    """Ordinary memory that was written to before."""
    return np.ones(size_bytes, dtype=np.uint8)


@contextmanager
def shared_array(size_bytes: int) -> Iterator[Any]:
    """Memory of the same kind as a pool's: a touched shared mapping of a file in /dev/shm. The file has no name."""
    path = SHM / f"maru-bench-{os.getpid()}"
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        path.unlink()
        os.posix_fallocate(fd, 0, size_bytes)
        memory = mmap.mmap(fd, size_bytes)
    finally:
        os.close(fd)
    with suppress(OSError):  # A kernel without huge pages refuses; a pool asks in the same way.
        memory.madvise(mmap.MADV_HUGEPAGE)
    array = np.frombuffer(memory, dtype=np.uint8)
    array.fill(1)
    yield array


class Rotation:
    """Slices of one size of an array, in order, again and again."""

    def __init__(self, array: Any, slice_bytes: int) -> None:
        self._slices = [array[at : at + slice_bytes] for at in range(0, array.nbytes - slice_bytes + 1, slice_bytes)]
        self._next = 0

    def __len__(self) -> int:
        return len(self._slices)

    def take(self, count: int) -> list[Any]:
        """The next `count` slices."""
        start = self._next
        self._next = (start + count) % len(self._slices)
        return [self._slices[(start + n) % len(self._slices)] for n in range(count)]
