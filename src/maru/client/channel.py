"""Speaking with a daemon: requests and answers over connections that come and go.

Holds:      a session with a daemon, the connections that its threads use, and the namespaces named there.
Promises:   a call ends within its deadline, with an answer or with NoDaemon. What was not answered is asked again under
            the same number, over a new connection, after a pause that grows; the daemon does it once.
Leaves:     what is asked to `remote`.

One connection serves one thread at a time, so nothing is locked while bytes travel; a thread that finds none free makes
another, up to CONNECTIONS_MAX.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import zmq

from maru import errors, wire
from maru.credentials import ClientKey, secure_client
from maru.errors import BadMessage, MaruError, NoDaemon
from maru.message_memory import keep_message_memory

CONNECTIONS_MAX = 16
TRY_S = 1.0
"""How long one try waits for an answer before the connection is made anew, unless the link is known to be slower."""
TRY_S_MAX = 30.0
CONNECT_MS = 2000
PIECE_BYTES_MIN = 64 << 10
QUICK_S = 0.25
"""When a window of pieces is answered sooner they may be larger; when one takes twice as long, smaller."""
PAUSE_S = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0)
LOOK_S = 0.1
"""How often a thread that waits for an answer looks whether the client was closed."""
CLOSE_DEADLINE_S = 1.0
WINDOW = 8
"""Pieces under way at once: what either side buffers for one transfer, in megabytes."""
HEARTBEAT_MS = 2000
HEARTBEAT_TIMEOUT_MS = 6000
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

Body = bytes | bytearray | memoryview


class Channel:
    """One client's session. Thread-safe."""

    def __init__(
        self,
        endpoint: str,
        key: ClientKey | None,
        is_mapped: bool,
        deadline_s: float,
    ) -> None:
        """`endpoint`: tcp://HOST:PORT. Nothing is sent before the first call."""
        keep_message_memory()
        self.endpoint = endpoint
        self.deadline_s = deadline_s
        self.key = key
        self.is_mapped = is_mapped
        self.session = os.urandom(16)
        self.welcome: wire.Welcome | None = None
        self.old_rows: list[tuple[int, int]] = []
        """Rows of earlier daemons that something of ours is still held by."""
        self.breaks = False
        """Somebody calls renew() again and again: then others need not wait for a daemon that did not answer."""
        self.is_down = False
        self.answered = 0
        """How many requests got an answer: nothing fails as long as this grows."""
        self.held_until_s = 0.0
        """Until when, by our monotonic clock, the daemon certainly keeps what we hold."""
        self.try_s = TRY_S
        """How long a try waits now: twice as long after each that was in vain, less again as answers come sooner.
        A link that is slow must not be taken for a broken one: each new connection makes it slower."""
        self.piece_bytes = PIECE_BYTES_MIN
        """How much of a chunk to send or fetch at once, so that what is under way keeps nothing else waiting long."""
        self._quick = 0
        self.lapses = 0
        """How often that time ran out before it was renewed: what was held before is given up for good."""
        self._numbers = count(1)
        self._context: zmq.Context[Any] = zmq.Context()
        self._free: list[_Line] = []
        self._made = 0
        self._changed = threading.Condition()
        self._greeting = threading.Lock()
        self._namespaces: dict[tuple[bytes, str], tuple[float | None, int]] = {}
        self._closed = False
        self.over = threading.Event()
        """Set by close(): nobody need wait for anything any more."""

    @property
    def daemon(self) -> bytes:
        """Which start of the daemon answered last."""
        return self.welcome.daemon if self.welcome else b""

    def call(self, request: wire.Request, body: Body = b"", deadline_s: float | None = None) -> tuple[Any, memoryview]:
        """The answer and its body. Raises NoDaemon, and what the daemon refused by the error it named."""
        ((_, answer, bodies),) = self.exchange([(request, body)], deadline_s)
        return answer, bodies[0] if bodies else memoryview(b"")

    def exchange(
        self, requests: Iterable[tuple[wire.Request, Body]], deadline_s: float | None = None
    ) -> Iterator[tuple[wire.Request, Any, list[memoryview]]]:
        """(request, answer, its bodies) of many, in the order of their answers; WINDOW of them are under way at once.

        Each answer has the whole deadline. Raises as call(); what was not answered then may have been done, or not.
        """
        if self.is_down:
            raise NoDaemon(f"no daemon answered at {self.endpoint} a moment ago", host=self.endpoint)
        yield from self._exchange(requests, deadline_s or self.deadline_s)

    def _exchange(
        self, requests: Iterable[tuple[wire.Request, Body]], deadline_s: float
    ) -> Iterator[tuple[wire.Request, Any, list[memoryview]]]:
        try:
            answered = self.answered
            with self._line() as line:
                yield from line.exchange(requests, deadline_s)
            self.is_down = False
        except NoDaemon:
            self.is_down = self.breaks and not self._closed and self.answered == answered
            raise

    def register(self, digest: bytes, tenant: str, ttl_s: float | None, policy: int = 0) -> tuple[int, bytes]:
        """The id of a namespace, and the digest that seeds its keys: where the daemon has secrets of its tenants, that
        is not the one it was asked for by. Another daemon is told of it when it answers first.
        """
        answer, _ = self.call(wire.Register(0, digest, tenant, ttl_s, policy))
        self._namespaces[digest, tenant] = ttl_s, policy
        return int(answer.value), answer.digest if len(answer.digest) == len(digest) else digest

    def renew(self, rows: list[tuple[int, int]], deadline_s: float) -> None:
        """Tell the daemon that we live, and which rows of an earlier one to keep. Raises as call()."""
        sent_s = time.monotonic()
        ((_, answer, _),) = self._exchange([(wire.Renew(0, rows), b"")], deadline_s)
        welcome = self.welcome
        assert welcome is not None
        self.old_rows = [row for row in answer.rows if row != welcome.row]
        self._keep(sent_s, welcome)

    def segments(self) -> list[wire.Segment]:
        """Those that the pool has by now: some may have come since we were greeted. Raises as call()."""
        answer, _ = self.call(self._hello())
        return list(_welcome(answer).segments)

    def close(self) -> None:
        """Say goodbye, if the daemon listens, and close. Idempotent."""
        if self._closed:
            return
        if self.welcome is not None:
            with contextlib.suppress(MaruError):
                self.call(wire.Goodbye(0), deadline_s=0.3)
        with self._changed:
            self._closed = True
            self.over.set()
            # A socket is its thread's alone: what still waits for an answer notices within LOOK_S, and lets go itself.
            self._changed.wait_for(lambda: len(self._free) == self._made, CLOSE_DEADLINE_S)
            for line in self._free:
                line.drop()
            self._free.clear()
        self._context.destroy(linger=0)

    def heard(self, asked: wire.Request, answer: wire.Answer, sent_s: float) -> None:
        """An answer to what was first sent then. Every request renews what is held by the daemon itself; rows are
        renewed by Hello and Renew alone.
        """
        self.answered += 1
        took_s = time.monotonic() - sent_s
        if took_s < self.try_s / 4:
            self.try_s = max(TRY_S, self.try_s / 2)
        if not isinstance(asked, wire.Read | wire.Fetch | wire.Write | wire.Fill):
            pass  # Says nothing of what bytes cost.
        elif took_s < QUICK_S:
            self._quick += 1
            if self._quick % WINDOW == 0:  # The first ones of a window have nobody before them, and tell less.
                self.piece_bytes = min(wire.PIECE_BYTES, 2 * self.piece_bytes)
        else:
            self._quick = 0
            if took_s > 2 * QUICK_S:
                self.piece_bytes = max(PIECE_BYTES_MIN, self.piece_bytes // 2)
        if self.welcome is not None and not self.is_mapped and not isinstance(answer, wire.Refused):
            self._keep(sent_s, self.welcome)

    def heard_nothing(self) -> None:
        """A try was in vain."""
        self.try_s = min(TRY_S_MAX, 2 * self.try_s)
        self.piece_bytes = max(PIECE_BYTES_MIN, self.piece_bytes // 2)

    def _keep(self, sent_s: float, welcome: wire.Welcome) -> None:
        """What is held is held until so long after the daemon was asked."""
        if time.monotonic() >= self.held_until_s:
            self.lapses += 1
        self.held_until_s = max(self.held_until_s, sent_s + welcome.lease_s - welcome.guard_s)

    def next_number(self) -> int:
        return next(self._numbers)

    def greet(self, line: _Line, deadline: float) -> None:
        """Say hello over a new connection. One at a time: each sees what the one before learned."""
        with self._greeting:
            sent_s = time.monotonic()
            known = self.welcome
            hello = self._hello()
            hello.number = self.next_number()
            answer = _welcome(line.ask_once(hello, deadline)[0])
            if self.is_mapped and known is not None and known.pool_uuid != answer.pool_uuid:
                # What is mapped here is the memory of the old one; bytes over the wire can come from any.
                raise NoDaemon("another pool is served there now", host=self.endpoint)
            is_new = known is None or known.daemon != answer.daemon
            self.welcome = answer
            self.old_rows = list(answer.rows)
            if is_new:
                self.held_until_s = min(self.held_until_s, time.monotonic())  # Another's promise, of another length.
            self._keep(sent_s, answer)
            if is_new:
                for (digest, tenant), (ttl_s, policy) in list(self._namespaces.items()):
                    line.ask_once(wire.Register(self.next_number(), digest, tenant, ttl_s, policy), deadline)

    def _hello(self) -> wire.Hello:
        known, rows = self.welcome, list(self.old_rows)
        if known is not None and known.row is not None and known.row not in rows:
            rows.append(known.row)
        return wire.Hello(
            0, (wire.PROTOCOL, wire.PROTOCOL), _library(), self.session, f"{platform.node()}:{os.getpid()}",
            BOOT_ID.read_text().strip(), self.is_mapped, rows,
        )  # fmt: skip

    @contextlib.contextmanager
    def _line(self) -> Iterator[_Line]:
        with self._changed:
            if self._closed:
                raise NoDaemon("this client is closed", host=self.endpoint)
            self._changed.wait_for(lambda: self._free or self._made < CONNECTIONS_MAX, self.deadline_s)
            if self._free:
                line = self._free.pop()
            elif self._made < CONNECTIONS_MAX:
                self._made += 1
                line = _Line(self, self._context)
            else:
                raise NoDaemon(f"all {CONNECTIONS_MAX} connections are busy", host=self.endpoint)
        is_clean = False
        try:
            yield line
            is_clean = True
        finally:
            if not is_clean:
                line.drop()  # Answers may be under way that nobody waits for.
            with self._changed:
                if self._closed:
                    line.drop()
                self._free.append(line)
                self._changed.notify()


class _Line:
    """One connection. Used by one thread at a time."""

    def __init__(self, channel: Channel, context: zmq.Context[Any]) -> None:
        self._channel = channel
        self._context = context
        self._socket: zmq.Socket[bytes] | None = None
        self._is_greeted = False

    def drop(self) -> None:
        if self._socket is not None:
            self._socket.close(linger=0)
        self._socket, self._is_greeted = None, False

    def _open(self) -> zmq.Socket[bytes]:
        if self._socket is None:
            socket = self._context.socket(zmq.DEALER)
            socket.linger = 0
            socket.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
            socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, HEARTBEAT_TIMEOUT_MS)
            socket.setsockopt(zmq.MAXMSGSIZE, wire.BODY_BYTES_MAX + wire.HEADER_BYTES_MAX)
            socket.setsockopt(zmq.CONNECT_TIMEOUT, CONNECT_MS)  # The kernel's own pauses grow too long for a lease.
            socket.ipv6 = True
            if self._channel.key is not None:
                secure_client(socket, self._channel.key)
            socket.connect(self._channel.endpoint)
            self._socket = socket
        return self._socket

    def ask_once(self, request: wire.Request, deadline: float) -> tuple[wire.Answer, list[memoryview]]:
        """One try on this connection. Raises _NoAnswer, and what was refused."""
        self._send(request, b"")
        while True:
            answer, bodies = self._receive(deadline)
            if answer.number == request.number:
                return _granted(answer), bodies

    def exchange(
        self, requests: Iterable[tuple[wire.Request, Body]], deadline_s: float
    ) -> Iterator[tuple[wire.Request, Any, list[memoryview]]]:
        source = iter(requests)
        waiting: dict[int, tuple[wire.Request, Body, float]] = {}
        """What has no answer yet, and since when."""
        deadline = time.monotonic() + deadline_s
        tries = 0
        while True:
            try:
                if not self._is_greeted:
                    self._channel.greet(self, min(deadline, time.monotonic() + self._channel.try_s))
                    self._is_greeted = True
                    for request, body, _ in waiting.values():  # All that the last connection took with it.
                        self._send(request, body)
                while True:
                    while len(waiting) < WINDOW and (item := next(source, None)) is not None:
                        request, body = item
                        request.number = self._channel.next_number()
                        waiting[request.number] = (request, body, time.monotonic())
                        self._send(request, body)
                    if not waiting:
                        return
                    answer, bodies = self._receive(min(deadline, time.monotonic() + self._channel.try_s))
                    if answer.number in waiting:
                        if isinstance(answer, wire.Refused) and answer.error == "SessionUnknown":
                            raise _NoAnswer
                        asked, _, sent_s = waiting.pop(answer.number)
                        self._channel.heard(asked, answer, sent_s)
                        yield asked, _granted(answer), bodies
                        deadline, tries = time.monotonic() + deadline_s, 0
            except (_NoAnswer, zmq.ZMQError):
                self.drop()
                self._channel.heard_nothing()
                pause_s = PAUSE_S[min(tries, len(PAUSE_S) - 1)]
                tries += 1
                if time.monotonic() + pause_s >= deadline:
                    raise NoDaemon(
                        f"no daemon answers at {self._channel.endpoint} in {deadline_s:g} s",
                        host=self._channel.endpoint,
                    ) from None
                self._channel.over.wait(pause_s)

    def _send(self, request: wire.Request, body: Body) -> None:
        socket = self._open()
        header = wire.encode(request)
        if len(body) == 0:
            socket.send(header, zmq.NOBLOCK)
        else:
            socket.send_multipart((header, body), zmq.NOBLOCK, copy=len(body) < wire.COPIED_BYTES)

    def _receive(self, deadline: float) -> tuple[wire.Answer, list[memoryview]]:
        socket = self._open()
        while not socket.poll(int(1000 * min(LOOK_S, max(0.0, deadline - time.monotonic()))) + 1):
            if self._channel.over.is_set():
                raise NoDaemon("this client is closed", host=self._channel.endpoint)
            if time.monotonic() >= deadline:
                raise _NoAnswer
        frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
        try:
            if not 1 <= len(frames) <= 1 + wire.FETCH_CHUNKS_MAX:
                raise BadMessage(f"an answer of {len(frames)} frames")
            answer = wire.decode_answer(frames[0].buffer)
        except BadMessage:
            raise _NoAnswer from None
        return answer, [frame.buffer for frame in frames[1:]]


class _NoAnswer(Exception):
    """Not in time, or nothing that can be read."""


def _granted(answer: wire.Answer) -> wire.Answer:
    """Raises what the daemon refused, as the class that it names."""
    if isinstance(answer, wire.Refused):
        raise refusal(answer.error, answer.message)
    return answer


def refusal(name: str, words: str) -> MaruError:
    """The error that a daemon names, as the class of that name here."""
    kind = getattr(errors, name, MaruError)
    return (kind if isinstance(kind, type) and issubclass(kind, MaruError) else MaruError)(words[:500])


def _welcome(answer: wire.Answer) -> wire.Welcome:
    if not isinstance(answer, wire.Welcome):
        raise BadMessage(f"a daemon answers a greeting with a welcome, not {type(answer).__name__}")
    return answer


def _library() -> str:
    import maru

    return f"maru {maru.__version__}"
