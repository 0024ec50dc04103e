"""Which bytes of the pool's mapping a device reaches: registered in pieces, smaller where the driver refuses.

Holds:      the walk over the mapping, and the pieces that are registered so far.
Promises:   a piece begins and ends on slabs and lies in one data segment, so no chunk lies in two of them; one that is
            refused is tried smaller after a pause, then left out. Refusals are counted and bounded. Each segment's
            first piece is a small one, and all of these come before any other.
Leaves:     how a driver registers, in which thread, and what keeps the mapping, to the doors: LMCache's and our own.

Pieces of 8 GiB: one registration of 512 GiB fails on some drivers, and others refuse large ones now and then. They take
about a second each, and whoever cannot do without registered memory waits for the first ones: hence those are small.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

PIECE_BYTES = 8 << 30
PIECE_BYTES_MIN = 64 << 20
FIRST_PIECE_BYTES = 256 << 20
"""Of each segment, rounded to slabs. Tens of milliseconds to register, and the first chunks of a new pool fit it."""
BACKOFF_S = 0.05
BACKOFF_S_MAX = 1.0
ATTEMPTS_AT_SMALLEST = 3
REFUSED_IN_A_ROW_MAX = 8
"""Pieces. A driver that refused so many will not take the next one, and each refusal costs it seconds."""


class Registrar(Protocol):
    """How one driver registers memory. Neither raises."""

    def register(self, address: int, size_bytes: int) -> bool: ...

    def unregister(self, address: int) -> bool: ...


class Part(NamedTuple):
    """Some bytes of the pool's data that are wholly in one registered piece, or wholly in none."""

    offset: int
    size_bytes: int
    is_registered: bool


class RegisteredPieces:
    """The pool's data as one device sees it. Thread-safe."""

    def __init__(
        self,
        registrar: Registrar,
        address: int,
        ranges: Sequence[tuple[int, int]],
        slab_bytes: int,
        pause: Callable[[float], bool],
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """`ranges`: (offset, bytes) of each data segment, counted from `address`, beginning on slabs.

        `pause` waits so many seconds and says whether to stop. `piece_bytes`: rounded down to slabs.
        """
        self._registrar = registrar
        self._address = address
        self._ranges = list(ranges)
        self._slab_bytes = slab_bytes
        self._pause = pause
        self._piece_bytes = max(slab_bytes, piece_bytes // slab_bytes * slab_bytes)
        self._first_piece_bytes = min(self._piece_bytes, max(slab_bytes, FIRST_PIECE_BYTES // slab_bytes * slab_bytes))
        self._lock = threading.Lock()
        self._edges: tuple[list[int], list[int]] = [], []
        """Begins and ends, in order. Replaced, never changed: readers take no lock."""
        self.registered_bytes = 0
        self.refused_bytes = 0
        self.first_tried = threading.Event()
        """Set when the first piece of every segment was tried, and when the walk is over."""

    @property
    def size_bytes(self) -> int:
        return sum(size for _, size in self._ranges)

    def walk(self) -> None:
        """Try every byte. Segments take turns, each from its beginning: that is where chunks lie first."""
        try:
            self._walk()
        finally:
            self.first_tried.set()

    def _walk(self) -> None:
        slab = self._slab_bytes
        smallest = max(slab, PIECE_BYTES_MIN)
        waiting = deque((offset, offset + size) for offset, size in self._ranges if size)
        beginnings = {at for at, _ in waiting}
        # Two sizes: what a small piece was refused for says nothing about large ones, which would be many more then.
        largest = {True: self._first_piece_bytes, False: self._piece_bytes}
        failures, in_a_row = 0, 0
        while waiting and not self._pause(0.0):
            at, end = waiting.popleft()
            is_first = at in beginnings
            if not is_first:
                self.first_tried.set()
            size = min(largest[is_first], end - at)
            is_taken = self._registrar.register(self._address + at, size)
            if not is_taken:
                failures += 1
                is_halved = size // 2 >= smallest
                if is_halved:
                    largest[is_first] = size // 2 // slab * slab
                if is_halved or (failures < ATTEMPTS_AT_SMALLEST and not in_a_row):
                    waiting.appendleft((at, end))
                    self._pause(min(BACKOFF_S * 2 ** (failures - 1), BACKOFF_S_MAX))
                    continue
            self._note(at, size, is_taken)
            failures, in_a_row = 0, 0 if is_taken else in_a_row + 1
            if at + size < end:
                waiting.append((at + size, end))
            if in_a_row == REFUSED_IN_A_ROW_MAX:
                self.refused_bytes += sum(last - first for first, last in waiting)
                return

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Does one registered piece hold all of these bytes of the pool's data?"""
        starts, ends = self._edges
        at = bisect.bisect_right(starts, offset) - 1
        return at >= 0 and offset + size_bytes <= ends[at]

    def cut(self, offset: int, size_bytes: int) -> list[Part]:
        """These bytes in parts, none of which crosses the edge of a registered piece."""
        starts, ends = self._edges
        parts = []
        while size_bytes > 0:
            at = bisect.bisect_right(starts, offset) - 1
            is_registered = at >= 0 and offset < ends[at]
            edges = ends[at:] if is_registered else starts[at + 1 :]
            taken = min(size_bytes, edges[0] - offset) if edges else size_bytes
            parts.append(Part(offset, taken, is_registered))
            offset, size_bytes = offset + taken, size_bytes - taken
        return parts

    def give_back(self) -> bool:
        """Unregister every piece where it was registered. False when the driver kept one: its mapping must stay."""
        with self._lock:
            starts, self._edges = self._edges[0], ([], [])
            self.registered_bytes = 0
        kept = [start for start in starts if not self._registrar.unregister(self._address + start)]
        return not kept

    def _note(self, offset: int, size_bytes: int, is_taken: bool) -> None:
        if not is_taken:
            self.refused_bytes += size_bytes
            return
        with self._lock:
            starts, ends = (list(edges) for edges in self._edges)
            bisect.insort(starts, offset)
            bisect.insort(ends, offset + size_bytes)
            self._edges = starts, ends
            self.registered_bytes += size_bytes
