"""Whether a place is asked at all, and how fast it was of late: so that a dead or slow one costs little.

After some failures in a row nobody asks it for a while, which doubles each time up to a minute; then one caller at a
time may try. Speeds are averages that forget: a place that was slow yesterday is not slow for ever.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

FAILURES_MAX = 3
REST_S, REST_MAX_S = 1.0, 60.0
_NEWEST_SHARE = 0.2


class Breaker:
    """Of one place. Thread-safe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._failures = 0
        self._rest_s = REST_S
        self._closed_again_s = 0.0
        self._is_tried = False

    @property
    def is_open(self) -> bool:
        """It is left alone for now."""
        with self._guard:
            return self._failures >= FAILURES_MAX and (self._is_tried or self._clock() < self._closed_again_s)

    def may_ask(self) -> bool:
        """Ask now? After a rest the first who is told so tries for all, and has to tell how it went."""
        with self._guard:
            if self._failures < FAILURES_MAX:
                return True
            if self._is_tried or self._clock() < self._closed_again_s:
                return False
            self._is_tried = True
            return True

    def went_well(self) -> None:
        with self._guard:
            self._failures, self._rest_s, self._is_tried = 0, REST_S, False

    def let_go(self) -> None:
        """Whoever asked went away before the place could show anything: the next one may try."""
        with self._guard:
            self._is_tried = False

    def failed(self) -> bool:
        """True when it is left alone from now on, for the first time since it worked."""
        with self._guard:
            self._failures += 1
            if self._failures < FAILURES_MAX:
                return False
            if self._failures > FAILURES_MAX and not self._is_tried and self._clock() < self._closed_again_s:
                return False  # It was asked before the rest began, so this is no news.
            self._is_tried = False
            self._closed_again_s = self._clock() + self._rest_s
            self._rest_s = min(2 * self._rest_s, REST_MAX_S)
            return self._failures == FAILURES_MAX


class Speed:
    """Seconds until the first byte, and bytes a second from there. Thread-safe enough: figures are hints."""

    def __init__(self) -> None:
        self.first_s: float | None = None
        self.bytes_per_s: float | None = None

    def saw(self, first_s: float, rest_s: float, size_bytes: int) -> None:
        """One load: how long until something came, and how long `size_bytes` took from there."""
        self.first_s = _mixed(self.first_s, first_s)
        self.bytes_per_s = _mixed(self.bytes_per_s, size_bytes / max(rest_s, 1e-6))

    def seconds_for(self, size_bytes: int, at_once: int = 1) -> float | None:
        """Of so many bytes, `at_once` objects at a time; None when nothing was measured yet."""
        if self.first_s is None or self.bytes_per_s is None:
            return None
        return self.first_s + size_bytes / (self.bytes_per_s * max(1, at_once))


def _mixed(before: float | None, now: float) -> float:
    return now if before is None else before + _NEWEST_SHARE * (now - before)
