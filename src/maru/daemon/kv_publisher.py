"""Sends a pool's KV events to routers, numbered, and again to whoever missed some.

Holds:      a thread that looks at the pool and owns two sockets: PUB (topic, number, batch) and ROUTER for replay
            (a reader sends the number it wants to begin with, gets batches, and at the end number -1), as vLLM's.
Promises:   numbers rise by one, and above those of any earlier daemon. Who asks for batches that are not kept any more
            gets what is in the pool now instead. Nothing here waits for a reader, and memory is bounded.
Leaves:     what the events say to `kv_events`, and who may connect to whoever hands in `secure` and `authorised`.

The first batch is AllBlocksCleared: what an earlier daemon told nobody can vouch for. A router that stayed connected
sees the jump in the numbers and asks, as it does when it lost something. Empty batches go out now and then, so that a
lost last one is noticed too.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import msgspec
import zmq

from maru.credentials import Authorised
from maru.daemon.kv_events import CHANGE, AllBlocksCleared, EventStream, KVEventBatch
from maru.daemon.web_settings import is_loopback
from maru.errors import CannotListen, MaruError, NotProtected
from maru.native import core
from maru.pool import POLICIES, Pool

CHANGES_A_LOOK = 1 << 14
BUSY_SHARE = 0.1
"""Of one core, at most, for looking at a pool where nothing happens; catching up may take half."""
STOP_DEADLINE_S = 1.0
BIND_DEADLINE_S = 1.0
END_NUMBER = (-1).to_bytes(8, "big", signed=True)
_POLL_S = 0.05
_PUB_QUEUE_BATCHES = 1000
_REQUEST_BYTES_MAX = 1024

_log = logging.getLogger("maru.daemon")
Socket = zmq.Socket[Any]


@dataclass(frozen=True)
class EventSettings:
    """Where events go, and how often somebody looks. Raises ValueError for figures that cannot be."""

    endpoint: str = "tcp://127.0.0.1:5557"
    replay_endpoint: str = "tcp://127.0.0.1:5558"
    topic: str = ""
    interval_s: float = 0.1
    heartbeat_s: float = 5.0
    chunk_tokens: int = 0
    """Tokens in a chunk, if all engines agree: sent as `block_size`."""
    kept_batches: int = 10_000
    kept_bytes: int = 64 << 20

    def __post_init__(self) -> None:
        if not 0.001 <= self.interval_s <= 60 or not 0.01 <= self.heartbeat_s <= 3600:
            raise ValueError("interval_s must be 0.001 to 60, heartbeat_s 0.01 to 3600")
        if self.chunk_tokens < 0 or self.kept_batches < 1 or self.kept_bytes < 1:
            raise ValueError("chunk_tokens must be 0 or more, kept_batches and kept_bytes 1 or more")


class Journal:
    """The latest batches with their numbers, as many as `kept_batches` and `kept_bytes` allow."""

    def __init__(self, first_number: int, kept_batches: int, kept_bytes: int) -> None:
        self._next = first_number
        self._kept: deque[tuple[int, bytes]] = deque()
        self._bytes = 0
        self._kept_batches, self._kept_bytes = kept_batches, kept_bytes

    @property
    def last_number(self) -> int:
        """Of the batch that was added last; one below the first before that."""
        return self._next - 1

    def add(self, payload: bytes) -> int:
        """Keep a batch; returns its number."""
        number, self._next = self._next, self._next + 1
        self._kept.append((number, payload))
        self._bytes += len(payload)
        while self._kept and (len(self._kept) > self._kept_batches or self._bytes > self._kept_bytes):
            self._bytes -= len(self._kept.popleft()[1])
        return number

    def since(self, number: int) -> list[tuple[int, bytes]] | None:
        """The batches from `number` on; None when some of them are not kept any more, or were another daemon's."""
        if number > self.last_number:
            return []
        if not self._kept or number < self._kept[0][0]:
            return None
        return [one for one in self._kept if one[0] >= number]


class EventPublisher:
    """Sends the events of one pool. Use it as a context manager, or start() and stop() it."""

    def __init__(
        self,
        pool: Pool,
        settings: EventSettings,
        context: zmq.Context[Any] | None = None,
        secure: Callable[[Socket], None] | None = None,
        plain: bool = False,
        authorised: Authorised | None = None,
    ) -> None:
        """`pool` stays open until after stop(). `secure` is called with each socket before it is bound.

        `plain`: also beyond this host without encryption, which is all that routers of today speak. `authorised`: who
        may read along, of them those that may know of every tenant, asked again at each batch; without it a router that
        is revoked reads on until it disconnects.

        Raises NotProtected.
        """
        for host in map(_host_of, () if secure or plain else (settings.endpoint, settings.replay_endpoint)):
            if not is_loopback(host):
                raise NotProtected(f"KV events at {host} could be read from other hosts, by everybody", host=host)
        self._pool = pool
        self._settings = settings
        self._context = context or zmq.Context.instance()
        self._secure = secure
        self._authorised = authorised
        self._let_in: frozenset[str] = frozenset()
        self._encoder = msgspec.msgpack.Encoder()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self.endpoint = self._settings.endpoint
        """Where to subscribe; after start() with the port that was really taken."""
        self.replay_endpoint = self._settings.replay_endpoint

    def start(self) -> None:
        """Bind and begin. Raises CannotListen, NotAttached."""
        assert self._thread is None, "a publisher is started once"
        figures = self._pool.stats()
        self._stream = EventStream(figures["medium"], self._settings.chunk_tokens)
        self._scan = core.ChangeScan(self._pool)
        # Microseconds since 1970: above what an earlier daemon came to, who sent far fewer than one each.
        first_number = time.time_ns() // 1000
        self._journal = Journal(first_number, self._settings.kept_batches, self._settings.kept_bytes)
        publisher, self.endpoint = self._bind(zmq.PUB, self._settings.endpoint, _PUB_QUEUE_BATCHES)
        self._publisher: Socket | None = publisher
        try:
            room = self._settings.kept_batches + 1
            self._replay, self.replay_endpoint = self._bind(zmq.ROUTER, self._settings.replay_endpoint, room)
        except BaseException:
            publisher.close(linger=0)
            raise
        self._thread = threading.Thread(target=self._run, name="maru-kv-events", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End within a second. The sockets close with the thread."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_DEADLINE_S)

    @property
    def is_running(self) -> bool:
        """Does the thread live?"""
        return self._thread is not None and self._thread.is_alive()

    def __enter__(self) -> EventPublisher:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _bind(self, kind: int, endpoint: str, queue_batches: int) -> tuple[Socket, str]:
        socket: Socket = self._context.socket(kind)
        try:
            socket.sndhwm = queue_batches
            socket.linger = 0
            if kind == zmq.ROUTER:
                socket.router_mandatory = True  # A reader that does not read is an error here, not a silent loss.
                socket.maxmsgsize = _REQUEST_BYTES_MAX
            if self._secure is not None:
                self._secure(socket)
            self._bind_patiently(socket, endpoint)
            return socket, socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except zmq.ZMQError as error:
            socket.close(linger=0)
            raise CannotListen(f"cannot send KV events at {endpoint}: {error}", host=_host_of(endpoint)) from None

    # ---- the thread ----

    def _bind_patiently(self, socket: Socket, endpoint: str) -> None:
        """A socket that was closed lets go of its port a moment later. Raises ZMQError."""
        deadline = time.monotonic() + BIND_DEADLINE_S
        while True:
            try:
                socket.bind(endpoint)
                return
            except zmq.ZMQError as error:
                if error.errno != zmq.EADDRINUSE or time.monotonic() >= deadline:
                    raise
            self._stopping.wait(_POLL_S)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:
            _log.exception("KV events ended: routers will see no more of this pool")
        finally:
            self._replay.close(linger=0)
            if self._publisher is not None:
                self._publisher.close(linger=0)

    def _serve(self) -> None:
        self._is_over = False
        self._send(KVEventBatch(time.time(), [AllBlocksCleared()]))
        next_look = time.monotonic()
        while not self._stopping.is_set():
            if self._replay.poll(int(1000 * max(0.0, min(next_look - time.monotonic(), _POLL_S)))):
                self._answer()
            began = time.monotonic()
            if began < next_look:
                continue
            is_whole = self._is_over or self._look()
            took = time.monotonic() - began
            next_look = began + (max(self._settings.interval_s, took / BUSY_SHARE) if is_whole else 2 * took)
            if began - self._sent_s >= self._settings.heartbeat_s:
                self._send(KVEventBatch(time.time(), []))

    def _look(self) -> bool:
        """Look once and send what changed. True when all slots were looked at."""
        try:
            if not self._pool.destroyed:
                changes, is_whole = self._scan.look(CHANGES_A_LOOK)
                batch = self._stream.batch(self._shared(changes), self._scan.told_count, time.time())
                if batch is not None:
                    self._send(batch)
                return is_whole
            _log.warning("the pool %s was destroyed: its KV events end", self._pool.folder)
        except MaruError as error:
            _log.error("KV events end: %s", error)
        self._is_over = True
        self._send(KVEventBatch(time.time(), [AllBlocksCleared()]))
        return True

    def _send(self, batch: KVEventBatch) -> None:
        payload = self._encoder.encode(batch)
        number = self._journal.add(payload)
        self._shut_out_the_revoked()
        if self._publisher is not None:
            self._publisher.send_multipart(self._message(number, payload), zmq.NOBLOCK)
        self._sent_s = time.monotonic()

    def _shut_out_the_revoked(self) -> None:
        """ZeroMQ asks who may read when a connection begins, and a PUB socket cannot end one of them alone. So all of
        them end, and whoever is still let in comes back by itself and asks for what it missed.
        """
        if self._authorised is not None:
            before, self._let_in = self._let_in, self._authorised.onlookers()
            if before - self._let_in and self._publisher is not None:
                self._publisher.close(linger=0)
                self._publisher = None
        if self._publisher is None:
            try:
                self._publisher, _ = self._bind(zmq.PUB, self.endpoint, _PUB_QUEUE_BATCHES)
            except CannotListen as error:  # The address is free a moment after the socket is closed.
                _log.debug("%s", error)

    def _message(self, number: int, payload: bytes) -> list[bytes]:
        return [self._settings.topic.encode(), number.to_bytes(8, "big"), payload]

    def _answer(self) -> None:
        """Answer one request for replay. Who does not read gets no end mark, and may ask again."""
        frames = self._replay.recv_multipart(zmq.NOBLOCK, copy=False)
        if len(frames) != 3 or len(frames[2]) != 8:
            return
        if self._authorised is not None:
            client = self._authorised.who_sent(frames[2])
            if client is None or not client.may_map:
                return
        reader, blank, start = (frame.bytes for frame in frames)
        batches = self._journal.since(int.from_bytes(start, "big"))
        if batches is None:
            batches = [(self._journal.last_number, self._encoder.encode(self._snapshot()))]
        try:
            for number, payload in batches:
                self._replay.send_multipart([reader, blank, *self._message(number, payload)], zmq.NOBLOCK)
            self._replay.send_multipart([reader, blank, b"", END_NUMBER, b""], zmq.NOBLOCK)
        except zmq.ZMQError as error:
            _log.info("a reader of KV events went away, or does not read: %s", error)

    def _shared(self, changes: bytes) -> bytes:
        """Without those of namespaces that are not to be shared."""
        hidden = {bytes(16): False}
        shared = bytearray()
        for at in range(0, len(changes), CHANGE.size):
            digest = changes[at + 32 : at + 48]
            if digest not in hidden:
                hidden[digest] = bool(self._pool._policy_of(digest) & POLICIES["no-share"])
            if not hidden[digest]:
                shared += changes[at : at + CHANGE.size]
        return bytes(shared)

    def _snapshot(self) -> KVEventBatch:
        told = b"" if self._is_over else self._shared(self._scan.told())
        return self._stream.snapshot(told, time.time())


def _host_of(endpoint: str) -> str:
    """The host of a tcp address; this one for those of ZeroMQ that reach no further."""
    parts = urlsplit(endpoint)
    return (parts.hostname or "*") if parts.scheme == "tcp" else "localhost"
