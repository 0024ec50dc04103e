"""What one pool did lately: its counters at the latest looks, and rates between two of them.

Promises:   rates are counted by the pool's own clock; a pool that was made anew begins anew.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

POINTS_MAX = 600
SMOOTH_S = 5.0


@dataclass(frozen=True)
class Point:
    """Counters at one look."""

    unix_s: float
    now_ns: int
    lookups: int
    hits: int
    read_bytes: int
    stored_bytes: int


@dataclass(frozen=True)
class Rates:
    """Per second, between two looks. `hit_share` is None when nothing was asked for."""

    hit_share: float | None = None
    lookups: float = 0.0
    read_bytes: float = 0.0
    stored_bytes: float = 0.0


class Trail:
    """The latest points of one pool."""

    def __init__(self) -> None:
        self._points: deque[Point] = deque(maxlen=POINTS_MAX)
        self._uuid = ""

    def add(self, unix_s: float, figures: Mapping[str, Any]) -> None:
        """Remember a look: Pool.stats(), or a sample of /events. One that is not newer is left out."""
        if figures["uuid"] != self._uuid:
            self._points.clear()
            self._uuid = figures["uuid"]
        if self._points and figures["now_ns"] <= self._points[-1].now_ns:
            return
        counters = figures.get("counters", figures)
        names = ("lookup_keys", "hit_keys", "pinned_bytes", "stored_bytes")
        self._points.append(Point(unix_s, figures["now_ns"], *(counters[name] for name in names)))

    def lately(self, seconds: float = SMOOTH_S) -> Rates:
        """Rates over about the last `seconds`."""
        return self._rates(len(self._points) - 1, seconds)

    def series(self, count: int) -> list[Rates]:
        """Rates at the latest `count` looks, oldest first."""
        last = len(self._points)
        return [self._rates(index, SMOOTH_S) for index in range(max(1, last - count), last)]

    def _rates(self, index: int, seconds: float) -> Rates:
        if index < 1:
            return Rates()
        now, start = self._points[index], index - 1
        while start > 0 and now.now_ns - self._points[start].now_ns < (seconds - 0.5) * 1e9:
            start -= 1
        before = self._points[start]
        elapsed_s = (now.now_ns - before.now_ns) / 1e9
        lookups, hits = max(0, now.lookups - before.lookups), max(0, now.hits - before.hits)
        return Rates(
            min(1.0, hits / lookups) if lookups else None,
            lookups / elapsed_s,
            max(0, now.read_bytes - before.read_bytes) / elapsed_s,
            max(0, now.stored_bytes - before.stored_bytes) / elapsed_s,
        )
