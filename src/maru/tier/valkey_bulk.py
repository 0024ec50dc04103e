"""What is large, to and from one Valkey or Redis: redis-py's blocking connections in a few threads.

Holds:      Bulk, which has a connection's conversation held in a thread, and Line, the connection as that sees it.
Promises:   values are sent from where they lie, and are not joined; whoever stops waiting breaks the connection off, so
            that its thread comes back at once and nothing that was half sent is ever completed; no command is sent
            twice; a connection over which anything went wrong is not used again.
Leaves:     what is asked to `valkey`. A cluster is not spoken to from here.

An event loop moves large values at half the speed of this: it is woken for every few hundred KiB that a socket takes or
gives, and copies them once more each way.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from maru.tier.contract import PIECE_BYTES
from maru.tier.crew import Crew

if TYPE_CHECKING:
    from typing_extensions import Buffer

THREADS_MAX = 8
"""A ladder stores four objects at once, and loads four."""
CLOSE_S_MAX = 5.0
_COPIED_BYTES = 6000
"""What is shorter travels together with what is beside it."""
_T = TypeVar("_T")


class GivenUp(OSError):
    """Nobody waits for this any more."""


class Line:
    """One connection, during one conversation."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._connection: Any = None
        self._socket: socket.socket | None = None
        self._is_given_up = False

    def give_up(self) -> None:
        """Let nothing pass any more. Returns at once; for any thread, at any time."""
        with self._guard:
            self._is_given_up = True
            if self._socket is not None:
                with suppress(OSError):  # Past TLS's own shutdown, which would have the rest sent in plain.
                    socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def ask(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Answers of commands that are sent together. Raises RedisError, OSError; then the line is of no more use.

        A word is bytes, text, a number, or a list of buffers, which are one value.
        """
        for words in commands:
            self._connection.send_packed_command(packed(words), check_health=False)
        return [self._connection.read_response() for _ in commands]

    def hold(self, connection: Any) -> None:
        """Speak over this one. Raises GivenUp."""
        with self._guard:
            if self._is_given_up:
                raise GivenUp("given up before anything was sent")
            self._connection, self._socket = connection, connection._sock

    def let_go(self) -> None:
        """From here on the connection is nobody's to break off. Raises GivenUp when somebody already has."""
        with self._guard:
            self._connection = self._socket = None
            if self._is_given_up:
                raise GivenUp("given up")


class Bulk:
    """Threads and connections for one server."""

    def __init__(self, threads: int, settings: dict[str, Any]) -> None:
        """`settings`: as redis.Redis takes them. Nothing is sent yet."""
        from redis.backoff import NoBackoff
        from redis.connection import Connection, ConnectionPool, SSLConnection
        from redis.retry import Retry

        plain = {name: value for name, value in settings.items() if name != "ssl"}
        self._pool: Any = ConnectionPool(
            connection_class=SSLConnection if settings.get("ssl") else Connection,
            socket_read_size=PIECE_BYTES, retry=Retry(NoBackoff(), 0), **plain,
        )  # fmt: skip
        self._crew = Crew("maru-valkey", min(threads, THREADS_MAX))
        self._lines: set[Line] = set()

    async def talk(self, conversation: Callable[..., _T], *args: Any) -> _T:
        """What `conversation(line, *args)` returns, from a thread. Cancelled, it is broken off.

        Raises what it raises, RedisError, OSError.
        """
        line = Line()
        self._lines.add(line)
        try:
            return await asyncio.wrap_future(self._crew.submit(self._hold, line, conversation, args))
        finally:
            self._lines.discard(line)
            line.give_up()  # No more than a word when it is over.

    async def close(self) -> None:
        """Break everything off; threads that connect at this moment are waited for CLOSE_S_MAX."""
        for line in list(self._lines):
            line.give_up()
        await asyncio.to_thread(self._crew.end, CLOSE_S_MAX)
        self._pool.disconnect()

    def _hold(self, line: Line, conversation: Callable[..., _T], args: tuple[Any, ...]) -> _T:
        connection = self._pool.get_connection()
        is_good = False
        try:
            line.hold(connection)
            try:
                answer = conversation(line, *args)
            finally:
                line.let_go()
            is_good = True
            return answer
        finally:
            if not is_good:
                connection.disconnect()
            self._pool.release(connection)


def packed(words: Sequence[Any]) -> list[Buffer]:
    """A command as it travels, in parts: long values are themselves parts, where redis-py's packer joins them."""
    parts: list[Buffer] = []
    near = bytearray(b"*%d\r\n" % len(words))
    for word in words:
        values = word if isinstance(word, list) else [word if isinstance(word, bytes) else str(word).encode()]
        near += b"$%d\r\n" % sum(map(len, values))
        for value in values:
            if len(value) <= _COPIED_BYTES:
                near += value
            else:
                parts += [near, value]
                near = bytearray()
        near += b"\r\n"
    return [*parts, near]
