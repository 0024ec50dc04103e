"""HTTP/1.1 with bounded patience: a request's head is there within a deadline, or its connection is closed.

uvicorn bounds how long a connection may be idle between two requests, but not how slowly a request may arrive; enough
connections that send a byte a minute would keep everybody else out.

Leaves:     the deadline for bodies to `answers`, and everything else to uvicorn.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_DEADLINE_S = 10.0


class BoundedProtocol(H11Protocol):
    """One connection. The clock runs whenever no request is being answered, and stops when a whole head is there; what
    comes of a body after its request was answered does not stop it."""

    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._stop()

    @property
    def _is_waiting(self) -> bool:
        return self.conn.their_state is h11.IDLE or (self.cycle is not None and self.cycle.response_complete)

    def _watch(self) -> None:
        if not self._is_waiting:
            self._stop()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_DEADLINE_S, self._give_up)

    def _stop(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        self._head_timer = None
        if self._is_waiting and not self.transport.is_closing():
            self.transport.close()
