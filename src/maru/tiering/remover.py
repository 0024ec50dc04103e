"""What somebody removed from the pool goes from the places below too, in the background, asked again while one fails.

Nobody waits for it. What a place has not taken away after TRIES is given up, and counted: there the object lies on, and
may come up again; if it was to be overwritten, that is told in the log too. The list is this process's own, and ends
with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from maru.tiering.place import Place, Which

_log = logging.getLogger("maru")

AGAIN_S = 5.0
TRIES = 60
"""Five minutes and a bit."""
PENDING_MAX = 1 << 16
AT_ONCE = 8


class Remover:
    """Runs on the ladder's loop, from run() until it is cancelled."""

    def __init__(self, places: Sequence[Place], has_right: Callable[[], bool]) -> None:
        """`has_right`: this process is the one that copies down, and so may change places that have one writer."""
        self._places, self._has_right = places, has_right
        self._pending: dict[tuple[Which, Place], int] = {}
        self._asked = asyncio.Event()
        self._figures: Counter[str] = Counter()

    def add(self, chunks: Iterable[Which]) -> None:
        """Take these away from every place, soon."""
        for chunk in chunks:
            for place in self._places:
                if len(self._pending) < PENDING_MAX:
                    self._pending[chunk, place] = 0
                else:
                    self._give_up(chunk, place)
        self._asked.set()

    async def run(self) -> None:
        try:
            await self._run()
        finally:
            for chunk, place in self._pending:
                _tell_if_zeroed(chunk, place)

    async def _run(self) -> None:
        while True:
            if not self._pending:
                await self._asked.wait()
            self._asked.clear()
            todo = list(self._pending)
            for at in range(0, len(todo), AT_ONCE):
                await asyncio.gather(*(self._take(*one) for one in todo[at : at + AT_ONCE]))
            if self._pending:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), AGAIN_S)

    async def _take(self, chunk: Which, place: Place) -> None:
        is_ours = self._has_right() or place.is_ours_to_clear
        if is_ours and await place.remove(chunk):
            self._figures["removed"] += 1
            del self._pending[chunk, place]
            return
        self._pending[chunk, place] += 1
        if self._pending[chunk, place] >= TRIES:
            self._give_up(chunk, place)
            del self._pending[chunk, place]

    def _give_up(self, chunk: Which, place: Place) -> None:
        self._figures["given_up"] += 1
        _tell_if_zeroed(chunk, place)

    def stats(self) -> dict[str, Any]:
        """Counts of objects, one for each chunk and place: asked away, not yet, and not any more."""
        return {
            "removed": self._figures["removed"],
            "pending": len(self._pending),
            "given_up": self._figures["given_up"],
        }


def _tell_if_zeroed(chunk: Which, place: Place) -> None:
    if chunk.is_zeroed:
        _log.warning(
            "%s: chunk %s of a namespace that is zeroed was removed, and is not known to be overwritten there",
            place.name,
            chunk.key.hex(),
        )
