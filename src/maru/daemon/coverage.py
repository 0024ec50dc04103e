"""Which bytes of a piece of the pool its client has written.

Memory that is handed out still holds what was stored there before, perhaps by somebody else. A client whose bytes come
over the wire cannot read it; it could, if it were let publish a chunk that it has not written whole.
"""

from __future__ import annotations

from bisect import bisect_left

from maru.errors import BadMessage

RANGES_MAX = 1024
"""Stretches that do not touch. Clients write from front to back, over several connections at most slightly mixed."""


class Coverage:
    """Stretches of bytes, joined as they grow together."""

    def __init__(self) -> None:
        self._begins: list[int] = []
        self._ends: list[int] = []

    def add(self, begin: int, end: int) -> None:
        """Bytes `begin` to `end` (not included) were written. Raises BadMessage for too many stretches."""
        if self._ends and self._begins[-1] <= begin <= self._ends[-1]:  # As nearly always.
            self._ends[-1] = max(end, self._ends[-1])
            return
        first = bisect_left(self._ends, begin)
        last = first
        while last < len(self._begins) and self._begins[last] <= end:
            begin, end = min(begin, self._begins[last]), max(end, self._ends[last])
            last += 1
        if first == last and len(self._begins) >= RANGES_MAX:
            raise BadMessage(f"more than {RANGES_MAX} separate pieces of one chunk: write it from front to back")
        self._begins[first:last] = [begin]
        self._ends[first:last] = [end]

    def forget(self) -> None:
        """Nothing counts as written any more."""
        self._begins.clear()
        self._ends.clear()

    def is_whole(self, size_bytes: int) -> bool:
        """Was every byte written of so many?"""
        return self._begins == [0] and self._ends[0] >= size_bytes
