"""The figures of a pool that clients are told of and measured by: its sizes, its limits, its segments.

Promises:   looked at once, and again, at most every LOOK_AGE_S seconds, only while the pool awaits segments: nothing
            else of them changes.
Leaves:     who asks, and for how much, to `control`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maru import wire
from maru.errors import BadMessage
from maru.pool import Pool

LOOK_AGE_S = 0.25
"""A look walks the whole index, and everybody may greet; processes too find an added segment within such a time."""


class PoolFigures:
    """Of one pool. `clock` counts seconds."""

    def __init__(self, pool: Pool, clock: Callable[[], float]) -> None:
        self._pool, self._clock = pool, clock
        self.told: dict[str, Any] = pool.stats()
        """As Pool.stats() gave them."""
        self._looked_s = clock()

    def look_again(self) -> None:
        """Segments may have come."""
        is_awaiting = any(row["state"] == "AWAITED" for row in self.told["segments"])
        if is_awaiting and self._clock() - self._looked_s >= LOOK_AGE_S:
            self.told, self._looked_s = self._pool.stats(), self._clock()

    def __getitem__(self, name: str) -> Any:
        return self.told[name]

    def segments(self) -> list[wire.Segment]:
        """Those that are there."""
        return [
            wire.Segment(row["uuid"], row["path"], row["medium"], row["first_byte"], row["bytes"], row["data_offset"])
            for row in self.told["segments"]
            if row["state"] != "AWAITED"
        ]

    def share(self, of_it: float) -> int:
        """So much of the pool's bytes."""
        return int(of_it * self.told["size_bytes"])

    def taken(self, size: int) -> int:
        """What a chunk of so many bytes takes of the pool: the smallest ones take a whole unit too."""
        unit: int = self.told["unit_bytes"]
        return -(-size // unit) * unit

    def refuse_size(self, size: int) -> None:
        """Raises BadMessage for a chunk that no slab holds."""
        if not 0 < size <= self.told["slab_bytes"]:
            raise BadMessage(f"a chunk of {size} bytes does not fit this pool's slabs of {self.told['slab_bytes']}")
