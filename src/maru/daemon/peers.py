"""Daemons that know of each other: who else serves a pool, where, and when it was last there.

Holds:      the thread that looks, what it saw, and asking daemons that were named by hand over HTTP.
Promises:   looking never raises, and waits no longer than its deadlines and the system's own for a name; what another
            daemon says of itself is cut to a bounded number of short printable words before anybody sees it; a token
            goes into a header and to the peers that were named, nowhere else. Nothing that this daemon serves depends
            on a peer.
Leaves:     the registry in Redis to `registry`, showing it to the web face.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from maru.config import redact
from maru.daemon.facts import PeerFigures
from maru.daemon.web_settings import is_header, is_loopback

LOOK_S = 5.0
DEADLINE_S = 2.0
FORGET_S = 3600.0
"""Who was not seen for so long is shown no more."""
STOP_DEADLINE_S = 5.0
PEERS_MAX = 64
POOLS_MAX = 32
NAME_CHARS_MAX = 64
URL_CHARS_MAX = 200
WHY_CHARS_MAX = 200
ANSWER_BYTES_MAX = 256 << 10
ASKED_AT_ONCE = 8
_log = logging.getLogger("maru.daemon")


@dataclass(frozen=True)
class Peer:
    """What is known of another daemon."""

    name: str
    url: str
    pools: tuple[str, ...] = ()


@dataclass(frozen=True)
class PeerAddress:
    """A daemon that was named by hand. Raises ValueError for what is no address of a web face."""

    name: str
    url: str
    """What stands before /v1: http://HOST:PORT or https://HOST:PORT."""

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            is_good = False
        if not self.name or _plain(self.name, NAME_CHARS_MAX) != self.name:
            raise ValueError(f"a peer has a name of 1 to {NAME_CHARS_MAX} printable characters")
        if not is_good or parts.query or parts.fragment or len(self.url) > URL_CHARS_MAX:
            raise ValueError("a peer's URL is http://HOST:PORT or https://HOST:PORT, with no query")
        if parts.username or parts.password:
            raise ValueError("a peer's URL holds no password; its token goes into MARU_PEER_TOKEN")

    @property
    def keeps_secrets(self) -> bool:
        """May a token be sent there?"""
        parts = urlsplit(self.url)
        return parts.scheme == "https" or is_loopback(parts.hostname or "")


@dataclass(frozen=True)
class PeerSettings:
    """How a daemon finds others. Raises ValueError for a name given twice, or for more than PEERS_MAX."""

    peers: tuple[PeerAddress, ...] = ()
    token: str = field(default="", repr=False)
    """Of role `read`, for the web faces of `peers`."""
    context: ssl.SSLContext | None = None
    """Whom to trust where a peer is https; None: whom the system trusts."""
    registry: str = field(default="", repr=False)
    """redis://… that daemons write themselves into; may hold a password."""

    def __post_init__(self) -> None:
        names = {peer.name for peer in self.peers}
        if len(names) != len(self.peers) or len(names) > PEERS_MAX:
            raise ValueError(f"peers have names of their own, and are {PEERS_MAX} at most")
        if not is_header(self.token):
            raise ValueError("the token has a character that no header may have, such as a line's end")
        if self.token and any(not peer.keeps_secrets for peer in self.peers):
            raise ValueError("a token would cross the network without TLS: name peers by https")


class Source(Protocol):
    """Somewhere that peers are seen."""

    def look(self) -> list[Peer]:
        """Who is there now. Never raises for a world that fails."""

    def close(self) -> None:
        """There is no next look."""


class PeerWatch:
    """Looks again and again, in a thread of its own. `clock` counts seconds."""

    def __init__(self, sources: Sequence[Source], clock: Callable[[], float] = time.monotonic) -> None:
        self._sources, self._clock = list(sources), clock
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[Peer, float]] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="maru-peers", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread, and say goodbye where that is done. Idempotent."""
        if not self._over.is_set():
            self._over.set()
            if self._thread.is_alive():
                self._thread.join(STOP_DEADLINE_S)
            for source in self._sources:
                source.close()

    def look(self) -> None:
        """Once, at every source; who said nothing for FORGET_S is forgotten."""
        for source in self._sources:
            found = source.look()
            now_s = self._clock()
            with self._lock:
                for peer in found:
                    self._seen[peer.name] = (peer, now_s)
                late = sorted(self._seen, key=lambda name: self._seen[name][1])[:-PEERS_MAX]
                late += [name for name, (_, seen_s) in self._seen.items() if now_s - seen_s > FORGET_S]
                for name in set(late):
                    del self._seen[name]

    def figures(self) -> list[PeerFigures]:
        """Who was seen, by name."""
        now_s = self._clock()
        with self._lock:
            seen = sorted(self._seen.values(), key=lambda one: one[0].name)
        return [PeerFigures(peer.name, peer.url, peer.pools, max(0.0, now_s - at_s)) for peer, at_s in seen]

    def _watch(self) -> None:
        while not self._over.is_set():
            try:
                self.look()
            except Exception:  # A mistake of ours: peers are only shown, and nothing else may suffer from it.
                _log.exception("looking for other daemons failed")
            self._over.wait(LOOK_S)


class NamedPeers:
    """Daemons named by hand, each asked for its pools. Whoever answers is there, also where the token is no good."""

    def __init__(self, settings: PeerSettings, deadline_s: float = DEADLINE_S) -> None:
        self._settings, self._deadline_s = settings, deadline_s
        self._silent: set[str] = set()
        self._askers = ThreadPoolExecutor(ASKED_AT_ONCE, "maru-peer")

    def look(self) -> list[Peer]:
        return [peer for peer in self._askers.map(self._ask, self._settings.peers) if peer is not None]

    def close(self) -> None:
        self._askers.shutdown(wait=False, cancel_futures=True)

    def _ask(self, address: PeerAddress) -> Peer | None:
        try:
            pools = self._pools_of(address)
        except (OSError, http.client.HTTPException, ValueError, RecursionError) as error:
            if address.name not in self._silent:
                self._silent.add(address.name)
                why = _plain(str(error), WHY_CHARS_MAX)
                _log.warning("the daemon %s at %s does not answer: %s", address.name, address.url, why)
            return None
        self._silent.discard(address.name)
        return peer_of(address.name, address.url, pools)

    def _pools_of(self, address: PeerAddress) -> list[Any]:
        """Names of its pools; none where it does not let us look. Raises OSError, HTTPException, ValueError."""
        parts = urlsplit(address.url)
        host = parts.hostname or ""
        if parts.scheme == "https":
            context = self._settings.context or ssl.create_default_context()
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, parts.port, timeout=self._deadline_s, context=context
            )
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=self._deadline_s)
        with contextlib.closing(connection):
            connection.connect()
            return self._asked(connection, parts.path.rstrip("/") + "/v1/pools")

    def _asked(self, connection: http.client.HTTPConnection, path: str) -> list[Any]:
        headers = {"Authorization": f"Bearer {self._settings.token}"} if self._settings.token else {}
        with _cut_after(connection.sock, self._deadline_s):
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            if response.status in (401, 403):
                return []
            if response.status != 200:
                raise ValueError(f"it answered {response.status}")
            text = response.read(ANSWER_BYTES_MAX + 1)
        if len(text) > ANSWER_BYTES_MAX:
            raise ValueError(f"it answered more than {ANSWER_BYTES_MAX} bytes")
        told = json.loads(text)
        lines = told.get("pools") if isinstance(told, dict) else None
        return [line.get("name") for line in lines if isinstance(line, dict)] if isinstance(lines, list) else []


def peer_of(name: Any, url: Any, pools: Any) -> Peer | None:
    """What a stranger said, as far as it can be shown; None when it is no peer at all."""
    if not isinstance(name, str) or not isinstance(url, str) or not (plain_name := _plain(name, NAME_CHARS_MAX)):
        return None
    named = pools[:POOLS_MAX] if isinstance(pools, list) else []
    words = [_plain(word, NAME_CHARS_MAX) for word in named if isinstance(word, str)]
    return Peer(plain_name, _plain(redact(url), URL_CHARS_MAX), tuple(word for word in words if word))


def _plain(text: str, chars_max: int) -> str:
    return "".join(char for char in text[:chars_max] if char.isprintable())


@contextmanager
def _cut_after(wire: socket.socket, seconds: float) -> Iterator[None]:
    """The socket's own timeout is for each piece; this one is for all of them: nobody keeps us by dripping."""

    def cut() -> None:
        with contextlib.suppress(OSError):
            wire.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
