"""The daemon's RPC socket: frames in, frames out, in one thread.

Holds:      a ROUTER socket, which connection is which session, and figures about both.
Promises:   no frame, however made, ends the thread or keeps others waiting: it is answered, refused or dropped, and
            counted. Bytes go out from the pool's own memory; a frame on its way holds its chunk. What a peer that does
            not read keeps of us is bounded by the socket's marks, and ends within a lease.
Leaves:     meaning to `control`, who may connect to `credentials`.

Encrypted by CURVE where server keys are given. Without, it listens on this host only, unless told by name to be plain.
"""

from __future__ import annotations

import logging
import resource
import threading
import time
from bisect import bisect_left
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import zmq
from zmq.auth.thread import ThreadAuthenticator

from maru import wire
from maru.config import redact, why_no_url
from maru.credentials import EVENTS_ZAP_DOMAIN, ZAP_DOMAIN, Authorised, Client, ServerKeys, ZapCallback, secure_server
from maru.daemon.control import Control, Out
from maru.daemon.sessions import Session
from maru.daemon.web_settings import is_loopback
from maru.errors import BadMessage, BadUrl, MaruError, NotAttached, NotProtected, SessionUnknown
from maru.message_memory import keep_message_memory

_log = logging.getLogger("maru")

TICK_MS = 250
WATCH_TICK_MS = 2
SILENCE_MS_MAX = 10_000
"""A connection that is silent for so long, or for a lease, is none: the bytes on their way to it hold chunks."""
HANDSHAKE_MS = 5000
CONNECTIONS_MAX = 8192
OUT_MARK = 64
"""Frames on their way to one client before it must read some: of a megabyte each at most."""
IN_MARK = 64
START_DEADLINE_S = 10.0
STOP_DEADLINE_S = 5.0

SECONDS_BOUNDS = (50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 1.0)


@dataclass
class RpcCounts:
    """What the socket saw. Written by its thread only; read by anybody."""

    requests: dict[str, int] = field(default_factory=dict)
    errors: dict[str, int] = field(default_factory=dict)
    seconds: dict[str, list[int]] = field(default_factory=dict)
    """Per request, how many took at most each of SECONDS_BOUNDS; the last: longer."""
    seconds_sum: dict[str, float] = field(default_factory=dict)
    bytes_in: int = 0
    bytes_out: int = 0
    dropped: int = 0
    """Frames that nobody could be answered for."""

    def took(self, name: str, seconds: float) -> None:
        self.requests[name] = self.requests.get(name, 0) + 1
        row = self.seconds.setdefault(name, [0] * (len(SECONDS_BOUNDS) + 1))
        row[bisect_left(SECONDS_BOUNDS, seconds)] += 1
        self.seconds_sum[name] = self.seconds_sum.get(name, 0.0) + seconds

    def failed(self, name: str) -> None:
        self.errors[name] = self.errors.get(name, 0) + 1


class RpcServer:
    """Serves one Control from one thread until stop()."""

    def __init__(
        self,
        control: Control,
        url: str,
        keys: ServerKeys | None = None,
        authorised: Authorised | None = None,
        plain: bool = False,
    ) -> None:
        """`url`: tcp://ADDRESS:PORT, port 0 for any free one. `keys` and who is let in by them go together; `plain`:
        without encryption beyond this host.

        Raises BadUrl, NotProtected.
        """
        assert (keys is None) == (authorised is None)
        self.control = control
        self.counts = RpcCounts()
        self._url = url
        self._keys = keys
        self._authorised = authorised
        self._context: zmq.Context[Any] | None = None
        self._wake = f"inproc://maru-server-{id(self)}"
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._connections: OrderedDict[bytes, Session] = OrderedDict()
        self.url = ""
        """Where it listens, once started."""
        _refuse_open_plain(url, keys is not None, plain)

    def start(self) -> None:
        """Listen. Raises BadUrl when the address is taken or not ours."""
        _allow_files(2 * CONNECTIONS_MAX)
        keep_message_memory()
        self._context = zmq.Context()
        self._thread = threading.Thread(target=self._run, args=(self._context,), name="maru-rpc", daemon=True)
        self._thread.start()
        if not self._ready.wait(START_DEADLINE_S) or self._failure is not None:
            self.stop()
            raise BadUrl(f"cannot listen on {redact(self._url)}: {self._failure or 'no answer in time'}")

    def stop(self) -> None:
        """Answer nobody any more; what clients hold by rows stays theirs. Idempotent."""
        if self._context is None or self._context.closed:
            return
        if self._thread is not None and self._thread.is_alive():
            bell = self._context.socket(zmq.PUSH)
            bell.linger = 0
            bell.connect(self._wake)
            bell.send(b"")
            self._thread.join(STOP_DEADLINE_S)
            bell.close()
        self._context.destroy(linger=200)

    @property
    def context(self) -> zmq.Context[Any]:
        """Whose authenticator answers for every socket made from it. Only while it runs."""
        assert self._context is not None
        return self._context

    @property
    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def _run(self, context: zmq.Context[Any]) -> None:
        authenticator = None
        socket = context.socket(zmq.ROUTER)
        bell = context.socket(zmq.PULL)
        try:
            if self._authorised is not None:
                authenticator = ThreadAuthenticator(context)
                authenticator.start()
                authenticator.configure_curve_callback(ZAP_DOMAIN, ZapCallback(self._authorised))
                onlookers = ZapCallback(self._authorised, onlookers=True)
                authenticator.configure_curve_callback(EVENTS_ZAP_DOMAIN, onlookers)
            self._arrange(socket)
            socket.bind(self._url)
            bell.bind(self._wake)
            self.url = socket.getsockopt_string(zmq.LAST_ENDPOINT)
        except (zmq.ZMQError, OSError) as error:
            self._failure = error
            self._ready.set()
            socket.close(linger=0)
            bell.close(linger=0)
            return
        self._ready.set()
        try:
            self._serve(socket, bell)
        except Exception:
            _log.exception("the RPC thread stopped; the pool and local processes are not concerned")
        finally:
            self.control.leave()
            socket.close(linger=200)
            bell.close(linger=0)
            if authenticator is not None:
                authenticator.stop()

    def _arrange(self, socket: zmq.Socket[bytes]) -> None:
        socket.linger = 200
        socket.ipv6 = ":" in (urlsplit(self._url).hostname or "")
        socket.sndhwm, socket.rcvhwm = OUT_MARK, IN_MARK
        socket.setsockopt(zmq.MAXMSGSIZE, wire.BODY_BYTES_MAX + wire.HEADER_BYTES_MAX)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)  # What cannot be sent is known, not silently gone.
        silence_ms = min(SILENCE_MS_MAX, int(self.control.limits.lease_s * 1000))
        socket.setsockopt(zmq.HEARTBEAT_IVL, silence_ms // 5)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, silence_ms - silence_ms // 5)
        # No heartbeat goes out behind bytes that the peer does not take: then the kernel has to give up instead.
        socket.setsockopt(zmq.TCP_MAXRT, silence_ms)
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        if self._keys is not None:
            secure_server(socket, self._keys)

    def _serve(self, socket: zmq.Socket[bytes], bell: zmq.Socket[bytes]) -> None:
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(bell, zmq.POLLIN)
        next_tick_s = time.monotonic()
        while True:
            wait_ms = WATCH_TICK_MS if self.control.has_watches else TICK_MS
            ready = dict(poller.poll(wait_ms))
            if bell in ready:
                return
            if socket in ready:
                self._take_all(socket)
            for peer, answer in self.control.due():
                self._send(socket, peer, answer, b"")
            now_s = time.monotonic()
            if now_s >= next_tick_s:
                next_tick_s = now_s + TICK_MS / 1000
                self.control.expire()

    def _take_all(self, socket: zmq.Socket[bytes]) -> None:
        """What has arrived, but not for ever: watches and leases want their turn too."""
        for _ in range(256):
            try:
                frames = socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            except zmq.ZMQError:
                self.counts.dropped += 1
                continue
            self._take(socket, frames)

    def _take(self, socket: zmq.Socket[bytes], frames: list[Any]) -> None:
        peer = frames[0].bytes
        if not 2 <= len(frames) <= 3:
            self.counts.dropped += 1
            return
        client = None
        if self._authorised is not None:
            client = self._authorised.who_sent(frames[1])
            if client is None:  # Revoked since it connected: it learns nothing any more.
                self.counts.dropped += 1
                return
        body: memoryview | bytes = frames[2].buffer if len(frames) == 3 else b""
        self.counts.bytes_in += len(body)
        begun_s = time.perf_counter()
        try:
            request = wire.decode_request(frames[1].buffer)
        except BadMessage as error:
            self.counts.failed("BadMessage")
            self._send(socket, peer, wire.Refused(-1, "BadMessage", error.message), b"")
            return
        name = type(request).__name__
        try:
            answer = self._answer(peer, request, body, client)
        except MaruError as error:
            self.counts.failed(type(error).__name__)
            self._send(socket, peer, wire.Refused(request.number, type(error).__name__, error.message), b"")
            return
        except Exception as error:  # A mistake of ours, or a value no check foresaw: this client's request alone.
            _log.exception("a %s request failed", name)
            self.counts.failed("internal")
            self._send(socket, peer, wire.Refused(request.number, "MaruError", f"failed inside: {error!r}"[:200]), b"")
            return
        if answer is not None:
            self._send(socket, peer, *answer)
        self.counts.took(name, time.perf_counter() - begun_s)

    def _answer(
        self, peer: bytes, request: wire.Request, body: memoryview | bytes, client: Client | None
    ) -> tuple[wire.Answer, Out] | None:
        if isinstance(request, wire.Hello):
            session, welcome = self.control.greet(client, request)
            self._remember(peer, session)
            return welcome, b""
        known = self._connections.get(peer)
        if known is None or self.control.sessions.get(known.session) is not known or known.client != client:
            raise SessionUnknown("say hello first: this daemon does not know the session")
        if self.control.pool.destroyed:
            raise NotAttached("the pool was destroyed")
        if isinstance(request, wire.Watch):
            self.control.watch(known, request, body, peer)
            return None
        return self.control.answer(known, request, body)

    def _remember(self, peer: bytes, session: Session) -> None:
        self._connections[peer] = session
        self._connections.move_to_end(peer)
        while len(self._connections) > CONNECTIONS_MAX:
            self._connections.popitem(last=False)

    def _send(self, socket: zmq.Socket[bytes], peer: bytes, answer: wire.Answer, out: Out) -> None:
        bodies = out if isinstance(out, list) else [out] if len(out) else []
        size = sum(map(len, bodies))
        try:
            are_small = size < wire.COPIED_BYTES * max(1, len(bodies))
            socket.send_multipart((peer, wire.encode(answer), *bodies), zmq.NOBLOCK, copy=are_small)
            self.counts.bytes_out += size
        except zmq.ZMQError:  # Gone, or it does not read: it will ask again, or not.
            self.counts.dropped += 1


def _allow_files(wanted: int) -> None:
    """As many open files as the host lets us have, up to `wanted`. The 1024 of many a shell are soon used up by those
    who connect and say nothing; then not even the list of keys can be read, and nobody is served.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))


def _refuse_open_plain(url: str, is_encrypted: bool, plain: bool) -> None:
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname or "", parts.port
    except ValueError as error:
        raise BadUrl(f"{redact(url)!r} is not an address to listen on: {why_no_url(error)}") from None
    if parts.scheme == "ipc" and parts.path:
        return
    if parts.scheme != "tcp" or not host:
        raise BadUrl(f"{redact(url)!r} is not an address to listen on: write tcp://ADDRESS:PORT")
    if not (is_encrypted or plain or is_loopback(host)):
        raise NotProtected(f"{redact(url)} can be reached from other hosts, and there are no keys", host=host)
