"""What lies below and is of no use to anybody goes, slowly, in the background, by whoever copies down.

That is: what was stored before a bump that this process told the place of, and what has run out without anybody asking
for it, where a place may be swept. Removing is only tidying: nobody would have been given it. What is left, since the
process ended or the place failed, goes by the place's own rules.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from maru.tiering.place import Place

ENDED_EVERY_S = 15.0
EXPIRED_EVERY_S = 3600.0
"""The first time soon after the start: a process that lives shorter than that would never look."""
FIRST_S = 60.0


class Sweeper:
    """Runs on the ladder's loop, from run() until it is cancelled."""

    def __init__(
        self,
        places: Sequence[Place],
        has_right: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`has_right`: this process is the one that copies down."""
        self._places, self._has_right, self._clock = places, has_right, clock
        self._due_s = clock() + FIRST_S

    async def run(self) -> None:
        while True:
            await asyncio.sleep(ENDED_EVERY_S)
            await self.turn()

    async def turn(self) -> None:
        """What is due now."""
        if not self._has_right():
            return
        for place in self._places:
            await place.sweep_ended()
        if self._clock() < self._due_s:
            return
        self._due_s = self._clock() + EXPIRED_EVERY_S
        for place in self._places:
            await place.sweep_expired()
