"""Who waits for which key, and what they are told.

Leaves:     connections to `server`, which namespaces are visible to `tenancy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from maru import wire
from maru.credentials import Level
from maru.daemon.sessions import Limits, Session, refuse_one_more
from maru.daemon.tenancy import Tenancy
from maru.errors import BadMessage
from maru.pool import Pool

WATCH_S_MAX = 600


@dataclass
class _Watch:
    session: Session
    peer: bytes
    number: int
    key: bytes
    deadline_s: float


class Watches:
    """Of one pool. Not thread-safe."""

    def __init__(self, pool: Pool, tenancy: Tenancy, limits: Limits, clock: Callable[[], float]) -> None:
        self._pool, self._tenancy, self._limits, self._clock = pool, tenancy, limits, clock
        self._watches: list[_Watch] = []

    def __bool__(self) -> bool:
        return bool(self._watches)

    def add(self, session: Session, request: wire.Watch, key: bytes, peer: bytes) -> None:
        """Remember who waits for a key, and on which connection. Raises BadMessage, PoolBusy."""
        if not 0 <= request.timeout_s <= WATCH_S_MAX:
            raise BadMessage(f"a watch lasts 0 to {WATCH_S_MAX} seconds")
        whose, limits = [one.session for one in self._watches], self._limits
        refuse_one_more(whose, session.client, limits.watches, limits.tenant_share, "watches")
        until_s = self._clock() + request.timeout_s
        self._watches.append(_Watch(session, peer, request.number, key, until_s))

    def drop(self, session: Session | None = None) -> None:
        """A session, or all of them, waits no more."""
        self._watches = [watch for watch in self._watches if session is not None and watch.session is not session]

    def due(self) -> Iterator[tuple[bytes, wire.Answer]]:
        """(connection, answer) of the watches that have one now."""
        if not self._watches:
            return
        now, waiting = self._clock(), []
        for watch in self._watches:
            mine = self._tenancy.visible(watch.session.client, Level.LOOKUP)
            # Before the look: a seal between the two is seen.
            is_written = self._pool.being_written(watch.key, namespaces=mine)
            if self._pool.exists(watch.key, namespaces=mine):
                yield watch.peer, wire.Done(watch.number, 1)
            elif not is_written:
                yield watch.peer, wire.Done(watch.number, 0)
            elif now >= watch.deadline_s:
                yield watch.peer, wire.Done(watch.number, wire.STILL_WRITTEN)
            else:
                waiting.append(watch)
        self._watches = waiting
