"""Where the chunks came from that were asked for: the pool, a place below it, or nowhere: those were computed."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any


class Sources:
    """Of one ladder, in chunks. Thread-safe."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._pool = self._computed = 0
        self._below: Counter[str] = Counter()
        self.is_told_all = False
        """Whoever asks also tells what it found in the pool and what had to be computed; a daemon does not know."""

    def from_pool(self, chunks: int) -> None:
        """They were in the pool, or another process brought them there meanwhile."""
        with self._guard:
            self._pool += max(0, chunks)

    def from_below(self, place: str, chunks: int) -> None:
        """`place`: its URL as it may be shown."""
        with self._guard:
            self._below[place] += chunks

    def computed(self, chunks: int) -> None:
        """They were in neither, came too late, or computing them was quicker."""
        with self._guard:
            self._computed += max(0, chunks)

    def stats(self) -> dict[str, Any]:
        """ "pool", "below" (by place) and "computed": chunks since the start; None for what nobody tells."""
        with self._guard:
            return {
                "pool": self._pool if self.is_told_all else None,
                "below": dict(self._below),
                "computed": self._computed if self.is_told_all else None,
            }

    def anew(self) -> Sources:
        """For a forked child: nothing was asked for yet, and no thread of the parent's holds the lock."""
        fresh = Sources()
        fresh.is_told_all = self.is_told_all
        return fresh
