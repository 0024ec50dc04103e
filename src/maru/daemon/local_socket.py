"""The daemon's local socket: who connects is told what is theirs, by the user that the system says they are.

Holds:      a Unix socket, and a thread that answers it.
Promises:   identity is the peer's uid as the kernel knows it, and nothing that the peer says: it says nothing. It is
            given a descriptor of the pool's folder if it may map, and what to ask the daemon by messages with if not.
            No peer can keep another waiting: nothing is read from any, and what is sent fits the socket's buffer.
Leaves:     who may what to `maru.credentials`; what the pool's files let whom do to the kernel.

Where the pool's folder lies in one that only its owner may enter, this is the one way to it for other users: a name
leads nowhere for them, the descriptor does. What they may then do to the files is what the files' modes say
(`share=handed`: read the data, count pins in the index). The descriptor outlives the daemon, so that its death or
restart is not noticed, and ends with the process it was given to.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
import struct
import threading
from dataclasses import dataclass
from pathlib import Path

from maru import wire
from maru.audit import Audit, Who
from maru.audit.record import What
from maru.credentials import Authorised, Client, Level, PoolSecret, ServerKeys, key_of_user, level_anywhere
from maru.daemon.tenancy import tenant_secret
from maru.errors import CannotListen, Forbidden, MaruError
from maru.pool import Pool

_log = logging.getLogger("maru")

TICK_S = 0.25
BACKLOG = 128
STOP_DEADLINE_S = 5.0
_PEER = struct.Struct("3i")


@dataclass(frozen=True)
class Doorkeeper:
    """What decides who is given what."""

    pool: Pool
    uuid: str
    endpoint: str
    """Where the daemon is asked by messages."""
    authorised: Authorised | None
    keys: ServerKeys | None
    pool_secret: PoolSecret | None
    """What tenants' secrets are made of, where the pool's URL does not give them."""

    def for_user(self, uid: int) -> wire.Handed:
        """Raises Forbidden, CredentialNotFound."""
        client = self.authorised.user(uid) if self.authorised else None
        if client is None:
            if uid != os.getuid():
                raise Forbidden(f"the user {uid} is nobody's client here: `maru keys add NAME --uid {uid}` lets it in")
            return wire.Handed(wire.PROTOCOL, "", self.pool.config.name, self.uuid, "write")
        assert self.keys is not None
        key = key_of_user(self.keys, client)
        access = ""
        if client.may_map:
            access = "write" if level_anywhere(client.grants) >= Level.WRITE else "read"
        return wire.Handed(
            wire.PROTOCOL,
            "",
            self.pool.config.name,
            self.uuid,
            access,
            client.tenant,
            self._seed_of(client) if access else b"",
            self.endpoint,
            (key.name, key.public_z85, key.server_public_z85, key.secret_z85),
        )

    def _seed_of(self, client: Client) -> bytes:
        """As the daemon seeds its messages' clients, so that both ways lead to the same chunks."""
        return tenant_secret(self.pool, self.pool_secret, client.tenant) or b""


class LocalSocket:
    """One socket, from start() to stop()."""

    def __init__(self, path: Path, keeper: Doorkeeper, audit: Audit | None = None) -> None:
        self.path, self._keeper, self._audit = path, keeper, audit
        self._listening: socket.socket | None = None
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def start(self) -> None:
        """Listen; a socket that a daemon before us left in that place is replaced. Raises CannotListen."""
        listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._clear_place()
            listening.bind(str(self.path))
            self.path.chmod(0o666)  # Everybody may ask; the answer depends on who it is.
            listening.listen(BACKLOG)
            listening.settimeout(TICK_S)
        except BaseException as error:
            listening.close()
            if not isinstance(error, OSError):
                raise
            why = "the path is too long" if "too long" in str(error) else error.strerror
            raise CannotListen(f"cannot listen at {self.path}: {why}", host=str(self.path)) from None
        self._listening = listening
        self._thread = threading.Thread(target=self._run, args=(listening,), name="maru-local", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Idempotent."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(STOP_DEADLINE_S)
        if self._listening is not None:
            self._listening.close()
            self._listening = None
            with contextlib.suppress(OSError):
                self.path.unlink()

    def _clear_place(self) -> None:
        """Raises CannotListen when somebody answers there, or something else lies there; OSError."""
        folder = self.path.parent.stat()
        if folder.st_mode & stat.S_IWOTH:
            raise CannotListen(
                f"anybody may write to {self.path.parent}, and so put a socket of theirs in the place of ours; take a "
                "folder that only this user may write to",
                host=str(self.path),
            )
        try:
            there = self.path.lstat()
        except FileNotFoundError:
            return
        if not stat.S_ISSOCK(there.st_mode):
            raise CannotListen(f"{self.path} is no socket; remove it, or take another path", host=str(self.path))
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as asking:
            asking.settimeout(TICK_S)
            with contextlib.suppress(OSError):
                asking.connect(str(self.path))
                raise CannotListen(f"another daemon answers at {self.path}", host=str(self.path))
        self.path.unlink()

    def _run(self, listening: socket.socket) -> None:
        while not self._stopping.is_set():
            try:
                peer, _ = listening.accept()
            except TimeoutError:
                continue
            except OSError as error:  # Out of descriptors, say: others' turn again after a while.
                _log.warning("the local socket could not take a connection: %s", error)
                self._stopping.wait(TICK_S)
                continue
            with peer, contextlib.suppress(OSError):
                self._answer(peer)

    def _answer(self, peer: socket.socket) -> None:
        peer.setblocking(False)
        _, uid, _ = _PEER.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _PEER.size))
        try:
            handed = self._keeper.for_user(uid)
        except MaruError as error:
            self._note(uid, "", type(error).__name__)
            handed = wire.Handed(wire.PROTOCOL, f"{type(error).__name__}\n{error.message}")
        except Exception as error:
            _log.exception("a user could not be answered at the local socket")
            handed = wire.Handed(wire.PROTOCOL, f"MaruError\nthe daemon failed: {type(error).__name__}")
        raw = wire.encode_handed(handed)
        if not handed.access:
            peer.send(raw)
            return
        self._note(uid, handed.tenant, f"mapped for {'writing' if handed.access == 'write' else 'reading'}")
        folder = os.open(self._keeper.pool.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            socket.send_fds(peer, [raw], [folder])
        finally:
            os.close(folder)

    def _note(self, uid: int, tenant: str, outcome: str) -> None:
        if self._audit is not None:
            what: What = "exported" if outcome.startswith("mapped") else "refused"
            name = self._keeper.pool.config.name
            self._audit.note((what, "local", Who(tenant, f"uid {uid}"), name, "", outcome, "Connect"))
