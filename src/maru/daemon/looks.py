"""Looks at the pools, shared: however many scrapers and pages ask, an index is walked at most once a second.

Promises:   safe from many threads; whoever comes while another walks waits for that walk's result. A pool that cannot
            be looked at any more is in the result, with its error.
Leaves:     what to do with the figures to `metrics`, `feed` and `admin`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from maru.daemon.facts import Facts
from maru.errors import MaruError, NotAttached

LOOK_AGE_S_MAX = 1.0


@dataclass(frozen=True)
class Look:
    """One pool at one moment: its figures as Pool.stats() gives them, or why there are none."""

    name: str
    stats: dict[str, Any] = field(default_factory=dict)
    error: MaruError | None = None


class Looks:
    """The pools of a daemon, looked at no more often than `age_s_max` seconds. `clock` counts seconds."""

    def __init__(
        self, facts: Facts, age_s_max: float = LOOK_AGE_S_MAX, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._facts, self._age_s_max, self._clock = facts, age_s_max, clock
        self._lock = threading.Lock()
        self._looks: dict[str, Look] = {}
        self._taken_s = float("-inf")

    def all(self) -> Mapping[str, Look]:
        """Every pool by name, none of the looks older than the limit."""
        with self._lock:
            if self._clock() - self._taken_s >= self._age_s_max:
                self._looks = {name: self._look(name) for name in sorted(self._facts.pools)}
                self._taken_s = self._clock()
            return self._looks

    def forget(self) -> None:
        """Something was changed: the next look is a new one."""
        with self._lock:
            self._taken_s = float("-inf")

    def _look(self, name: str) -> Look:
        try:
            pool = self._facts.pools[name]
            if pool.destroyed:
                return Look(name, error=NotAttached(f"pool {name} was destroyed", path=pool.folder))
            return Look(name, pool.stats())
        except KeyError:  # Dropped by the daemon since we asked for the names.
            return Look(name, error=NotAttached(f"pool {name} is not served any more"))
        except MaruError as error:
            return Look(name, error=error)
