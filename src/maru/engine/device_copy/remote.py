"""Which of the pool's bytes are remote: on another NUMA node than the GPU, so that copies cross the link between them.

Holds:      the byte ranges of such segments.
Promises:   a byte is remote when its segment's node and the GPU's are known and differ. Nothing is guessed: a segment
            in /dev/shm has no node of its own.
Leaves:     where new chunks are taken from to Pool.prefer_numa_node, the figures to copies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


class RemoteRanges:
    """Of one pool, seen from one GPU. Segments keep their nodes as long as the pool lives."""

    def __init__(self, segments: Sequence[Mapping[str, Any]], node: int | None) -> None:
        """`segments`: as Pool.stats() tells them. `node`: the GPU's, None when nobody knows it."""
        self._ranges = [
            (int(segment["first_byte"]), int(segment["first_byte"]) + int(segment["bytes"]))
            for segment in segments
            if node is not None and int(segment["numa_node"]) >= 0 and int(segment["numa_node"]) != node
        ]

    def bytes_of(self, rows: Iterable[tuple[int, int, int]]) -> int:
        """How many bytes of these rows (offset in the pool's data, address on the device, bytes) are remote."""
        if not self._ranges:
            return 0
        return sum(
            max(0, min(offset + size, end) - max(offset, first))
            for offset, _, size in rows
            for first, end in self._ranges
        )
