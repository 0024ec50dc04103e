"""Promotions: prefixes that come up from the places below the pool because somebody asked, before an engine does.

Promises:   a bounded number of them at a time, each with the ladder's own deadline, and the outcomes of the latest to
            look up. Nobody waits here.
Leaves:     the loading to the ladder, and who may ask to `access`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Literal

from maru.daemon.admin_bodies import Promotion
from maru.daemon.answers import Refused
from maru.pool import Namespace, Pool

KEY_BYTES = 16
OUTCOMES_MAX = 64
UNDER_WAY_MAX = 16

Rise = Callable[[bytes, Namespace, bytes | None], "Future[int] | None"]
"""Ladder.begin: missing keys, their namespace, the key before them."""


@dataclass
class _Asked:
    pool: Pool
    keys: bytes
    here: int
    asked_s: float
    future: Future[int] | None
    ended_s: float | None = None


class Promotions:
    """All of one daemon; safe from many threads. `clock` counts seconds."""

    def __init__(self, rise: Rise | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._rise, self._clock = rise, clock
        self._lock = threading.Lock()
        self._asked: OrderedDict[str, _Asked] = OrderedDict()

    def ask(self, pool: Pool, keys: bytes, namespace: Namespace) -> Promotion:
        """Begin. Raises Refused without places below, and when too many are under way."""
        if self._rise is None:
            raise Refused(409, "NoPlaces", "nothing lies below this pool", "start the daemon with --tier URL")
        with self._lock:
            under_way = sum(one.future is not None and not one.future.done() for one in self._asked.values())
            if under_way >= UNDER_WAY_MAX:
                raise Refused(429, "TooManyPromotions", f"{under_way} are under way", "try again when one is done")
            here = pool.lookup(keys)
            missing, before = keys[here * KEY_BYTES :], keys[(here - 1) * KEY_BYTES : here * KEY_BYTES]
            future = self._rise(missing, namespace, before or None) if missing else None
            number = secrets.token_hex(4)
            asked = _Asked(pool, keys, here, self._clock(), future)
            if future is None:
                asked.ended_s = asked.asked_s
            else:
                future.add_done_callback(lambda _: self._end(asked))
            self._asked[number] = asked
            while len(self._asked) > OUTCOMES_MAX:
                self._asked.popitem(last=False)
        return self._line(number, asked)

    def all(self, pool: Pool) -> list[Promotion]:
        """Those of one pool, newest first."""
        with self._lock:
            found = [(number, asked) for number, asked in reversed(self._asked.items()) if asked.pool is pool]
        return [self._line(number, asked) for number, asked in found]

    def _end(self, asked: _Asked) -> None:
        asked.ended_s = self._clock()

    def _line(self, number: str, asked: _Asked) -> Promotion:
        future = asked.future
        state: Literal["running", "done", "failed"] = "done"
        if future is not None:
            state = "running" if not future.done() else "failed" if _failed(future) else "done"
        return Promotion(
            id=number,
            pool=asked.pool.config.name,
            state=state,
            chunks=len(asked.keys) // KEY_BYTES,
            were_here=asked.here,
            are_here=asked.pool.lookup(asked.keys),
            seconds=(self._clock() if asked.ended_s is None else asked.ended_s) - asked.asked_s,
        )


def _failed(future: Future[int]) -> bool:
    return future.cancelled() or future.exception() is not None
