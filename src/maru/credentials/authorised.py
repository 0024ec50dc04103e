"""Who is let in while a daemon runs: asked at each handshake, each message and each HTTP request.

Holds:      the lists of clients and tokens as they are on the disk now, and the answer for ZeroMQ's own ZAP handler.
Promises:   an `add` or `revoke` counts from the next question on, without a restart. When a list cannot be read any
            more nobody is let in, and the log says why once.
Leaves:     encryption to ZeroMQ, TLS to the web server.

A file's stamp tells whether it changed, but only once it is older than the clock's grain: a file changed twice within
one tick may look like the first of the two. Until then it is read again at each question.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

from maru.credentials.clients import CLIENTS_FILE, Client, read_clients
from maru.credentials.folder import KeyFolder
from maru.credentials.tokens import TOKENS_FILE, Role, Token, read_tokens, role_of, token_of
from maru.errors import CredentialError

if TYPE_CHECKING:
    import zmq

STAMP_GRAIN_S = 2.0
_USER_ID = "User-Id"

_log = logging.getLogger("maru.credentials")
Value = TypeVar("Value")


class _Watched(Generic[Value]):
    """One list on the disk. Thread-safe."""

    def __init__(self, folder: KeyFolder, name: str, read: Callable[[bytes | None, Path], Value]) -> None:
        self._folder, self._path, self._read = folder, folder.path / name, read
        self._lock = threading.Lock()
        self._stamp: tuple[int, ...] | None = None
        self._complaint = ""
        self._value = self._load()

    def value(self) -> Value:
        """What is on the disk now; what an absent list means when it cannot be read."""
        with self._lock:
            if self._stamp is None or self._stamp_now() != self._stamp:
                try:
                    self._value = self._load()
                    self._complaint = ""
                except CredentialError as error:
                    self._value, self._stamp = self._read(None, self._path), None
                    if str(error) != self._complaint:
                        self._complaint = str(error)
                        _log.error("nobody is let in by %s: %s", self._path, error)
            return self._value

    def _load(self) -> Value:
        # The stamp first: what changes between the two is then read once more, never missed.
        stamp = self._stamp_now()
        value = self._read(self._folder.read(self._path.name), self._path)
        self._stamp = stamp
        return value

    def _stamp_now(self) -> tuple[int, ...] | None:
        """What changes with the file and its folder; None when that does not say enough."""
        try:
            folder, file = self._folder.path.lstat(), self._path.lstat()
        except OSError:
            return None
        if time.time() - max(file.st_mtime, file.st_ctime, folder.st_ctime) < STAMP_GRAIN_S:
            return None
        return (
            *(folder.st_dev, folder.st_ino, folder.st_ctime_ns, file.st_dev, file.st_ino),
            *(file.st_size, file.st_mtime_ns, file.st_ctime_ns),
        )


class Authorised:
    """Who may speak to the daemon whose keys lie in `folder`. Thread-safe."""

    def __init__(self, folder: Path) -> None:
        """Raises CredentialNotFound, UnsafeCredentials, BadCredential: a daemon had better not start then."""
        keys = KeyFolder(folder)
        self._clients = _Watched(keys, CLIENTS_FILE, _clients_by_key)
        self._tokens: _Watched[list[Token]] = _Watched(keys, TOKENS_FILE, read_tokens)

    def is_authorised(self, public_z85: str) -> str | None:
        """The name of the client with this public key; None: it may not speak."""
        client = self.client(public_z85)
        return client.name if client else None

    def client(self, public_z85: str) -> Client | None:
        """The client with this public key, with its tenant; None: it may not speak."""
        return self._clients.value().get(public_z85)

    def user(self, uid: int) -> Client | None:
        """The client that this user of the daemon's host is; None: it is none."""
        return next((one for one in self._clients.value().values() if one.uid == uid), None)

    def onlookers(self) -> frozenset[str]:
        """The keys of all clients that may know of every tenant's chunks: those that may map the pool."""
        return frozenset(key for key, client in self._clients.value().items() if client.may_map)

    def who_sent(self, frame: zmq.Frame) -> Client | None:
        """Who sent a frame that a CURVE socket received with copy=False; None: it may not speak any more.

        ZeroMQ asks once a connection. A daemon asks this for each message, or a revoked client would be served for as
        long as its connection lasts.
        """
        import zmq

        try:
            key = frame.get(_USER_ID)
        except (KeyError, zmq.ZMQError):  # Came in without a handshake: not from a socket of ours.
            return None
        return self.client(str(key))

    def authenticate(self, token: str) -> Role | None:
        """The role of an HTTP bearer token; None: nobody made it. Takes as long for one as for the other."""
        return role_of(self._tokens.value(), token)

    def token_name(self, token: str) -> str | None:
        """The name that an HTTP bearer token was made under; None: nobody made it."""
        found = token_of(self._tokens.value(), token)
        return found.name if found else None


def _clients_by_key(raw: bytes | None, path: Path) -> dict[str, Client]:
    return {one.public_z85: one for one in read_clients(raw, path)}


class ZapCallback:
    """What zmq.auth asks about a client's key: configure_curve_callback(ZAP_DOMAIN, ZapCallback(authorised))."""

    def __init__(self, authorised: Authorised, onlookers: bool = False) -> None:
        """`onlookers`: only clients that may know of every tenant's chunks, for EVENTS_ZAP_DOMAIN."""
        self._authorised = authorised
        self._onlookers = onlookers

    def callback(self, domain: str, key: bytes) -> bool:
        """May the holder of this key (Z85) connect? Never raises."""
        client = self._authorised.client(key.decode("ascii", "replace"))
        name = client.name if client and (client.may_map or not self._onlookers) else None
        _log.debug("%s: %s", domain, f"{name} connects" if name else "refused a key that is not in the list")
        return name is not None
