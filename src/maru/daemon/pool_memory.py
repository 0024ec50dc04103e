"""The pool's bytes as the processes of this host see them: what the daemon flushes, reads and compares."""

from __future__ import annotations

import ctypes

from maru.native import core


class PoolMemory:
    """The pool's bytes as one attachment of this host sees them; of no use after it was closed."""

    def __init__(self, pool: core.PoolCore) -> None:
        address, _, size = pool._data_range()
        self._bytes = _memory_at(address, size)

    def view(self, offset: int, size: int) -> memoryview:
        return self._bytes[offset : offset + size]

    def store(self, offset: int, data: bytes | memoryview) -> None:
        core.stream_copy(self.view(offset, len(data)), data)

    def flush(self, offset: int, size: int) -> None:
        core.flush_lines(self.view(offset, size))


def _memory_at(address: int, size: int) -> memoryview:
    return memoryview((ctypes.c_uint8 * size).from_address(address)).cast("B")
