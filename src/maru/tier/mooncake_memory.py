"""The memory through which objects travel to and from Mooncake: registered once, and cut into slots.

Holds:      Memory, and its Slots. A slot is one store's or one load's: as a whole, or as two parts, each with room
            for an object's head before it.
Leaves:     who has which slot, and when it may be used again, to the tier.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, Sequence

from maru.tier.contract import PIECE_BYTES

PART_BYTES = 2 << 20
HEAD_ROOM_BYTES = 4096
SLOT_BYTES = 2 * (HEAD_ROOM_BYTES + PART_BYTES)


class Memory:
    """What the client reads and writes from, cut into slots."""

    def __init__(self, count: int) -> None:
        self.size_bytes = count * SLOT_BYTES
        memory = mmap.mmap(-1, self.size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        view = memoryview(memory)
        self.address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
        self.slots = [
            Slot(view[at : at + SLOT_BYTES], self.address + at) for at in range(0, self.size_bytes, SLOT_BYTES)
        ]


class Slot:
    """Memory of one store or load: as a whole, or as two parts with a page before each, for an object's head."""

    def __init__(self, view: memoryview, address: int) -> None:
        self.view, self.address = view, address

    def address_of(self, turn: int) -> int:
        return self.address + turn * SLOT_BYTES // 2 + HEAD_ROOM_BYTES

    def part(self, turn: int) -> memoryview:
        begin = turn * SLOT_BYTES // 2 + HEAD_ROOM_BYTES
        return self.view[begin : begin + PART_BYTES]

    def head_of(self, turn: int, size: int) -> bytes:
        begin = turn * SLOT_BYTES // 2
        return bytes(self.view[begin : begin + size])

    def fillings(self, views: Sequence[memoryview]) -> Iterator[int]:
        """Copy all of `views` here, as much as there is room for at a time, and give how many bytes that is."""
        size = 0
        for view in views:
            rest = view
            while rest:
                taken = rest[: min(SLOT_BYTES - size, PIECE_BYTES)]  # The interpreter stands still while it copies.
                self.view[size : size + len(taken)] = taken
                rest, size = rest[len(taken) :], size + len(taken)
                if size == SLOT_BYTES:
                    yield size
                    size = 0
        if size:
            yield size
