"""A daemon's local socket, from the side of who knocks: a pool that is handed over, or a key to ask it with.

    maru.connect("unix:///run/maru/kv.sock")

Holds:      the socket's one answer, and a pool that is reached by the descriptor that came with it.
Promises:   the tenant is whom the daemon says we are: an identity that names another is refused, as by messages. Where
            the files' modes let us only read, the pool is attached for reading. The descriptor is closed with the
            pool's handle.
Leaves:     asking by messages to `remote`.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from maru import wire
from maru.address import LOCAL_SOCKET
from maru.client.channel import refusal
from maru.config import PoolConfig, default_copy_threads
from maru.errors import BadMessage, BadUrl, Forbidden, NoDaemon, PoolMismatch, VersionSkew
from maru.pool import Pool

if TYPE_CHECKING:
    from maru.key import Identity


class HandedPool(Pool):
    """A pool of this host whose folder was handed over. Forked children have it too."""

    def __init__(self, config: PoolConfig, folder: int, tenant: str, tenant_secret: bytes) -> None:
        """`folder`: a descriptor of the pool's folder, closed by close(). Raises as Pool.attach."""
        self._folder = folder
        self._tenant, self._tenant_secret = tenant, tenant_secret
        super().__init__(config)

    def _tenant_of(self, identity: Identity) -> str:
        """Whom the daemon knows us as, for an identity that names that one or none. Raises Forbidden."""
        if self._tenant and identity.tenant not in ("", self._tenant):
            raise Forbidden(f"this user is of tenant {self._tenant!r}: name that one, or none")
        return self._tenant or identity.tenant

    def _secret_of(self, tenant: str) -> bytes | None:
        return self._tenant_secret or super()._secret_of(tenant)

    def close(self) -> None:
        """As Pool.close."""
        super().close()
        folder, self._folder = self._folder, -1
        if folder >= 0:
            os.close(folder)


def knock(url: str, deadline_s: float) -> tuple[wire.Handed, int]:
    """What the daemon at unix:///PATH hands us, and a descriptor of the pool's folder, or -1.

    Raises NoDaemon, BadUrl, VersionSkew, BadMessage, and what the daemon refuses us by.
    """
    path = url[len(LOCAL_SOCKET) :].partition("?")[0]
    if not path.startswith("/"):
        raise BadUrl(f"{url!r} is not a local socket: write unix:///PATH, as `maru serve --local PATH` listens")
    end_s = time.monotonic() + deadline_s
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as asking:
        folders: list[int] = []
        try:
            asking.settimeout(deadline_s)
            asking.connect(path)
            raw = b""
            while len(raw) <= wire.HANDED_BYTES_MAX:
                asking.settimeout(max(0.001, end_s - time.monotonic()))
                piece, more, _, _ = socket.recv_fds(asking, wire.HANDED_BYTES_MAX, 1)
                folders += more
                if not piece:
                    break
                raw += piece
            handed = wire.decode_handed(raw)
            if handed.protocol != wire.PROTOCOL:
                raise VersionSkew(f"the daemon at {path} speaks protocol {handed.protocol}, this one {wire.PROTOCOL}")
            if handed.refused:
                raise refusal(*handed.refused.partition("\n")[::2])
            if len(folders) != bool(handed.access):
                raise BadMessage(f"the daemon at {path} handed over {len(folders)} folders")
            return handed, folders.pop() if folders else -1
        except OSError as error:
            why = error.strerror or "no answer in time"
            raise NoDaemon(f"no daemon answers at {path}: {why}", host=path) from None
        finally:
            for folder in folders:
                os.close(folder)


def attach_handed(url: str, handed: wire.Handed, folder: int) -> HandedPool:
    """The pool that was handed over; `folder` is ours from here on. Raises as Pool.attach, and PoolMismatch for another
    pool than was meant.
    """
    try:
        pool = _attach(url, handed, folder)
    except BaseException:
        os.close(folder)
        raise
    if pool.stats()["uuid"] != handed.uuid:
        pool.close()
        raise PoolMismatch(f"{url} handed over another pool than it serves")
    return pool


def _attach(url: str, handed: wire.Handed, folder: int) -> HandedPool:
    config = PoolConfig(
        handed.pool,
        Path(f"/proc/self/fd/{folder}"),
        copy_threads=default_copy_threads(),
        reads_only=handed.access != "write",
        handed_by=url.partition("?")[0],
    )
    try:
        with contextlib.suppress(FileNotFoundError):
            os.close(os.open(config.folder / "index", os.O_RDWR | os.O_CLOEXEC))
    except PermissionError:
        raise PoolMismatch(
            f"{url} hands over a pool whose files keep this user out: make it with share=handed, or take mode=wire"
        ) from None
    try:
        return HandedPool(config, folder, handed.tenant, handed.tenant_secret)
    except PoolMismatch:
        if config.reads_only:
            raise
    return HandedPool(replace(config, reads_only=True), folder, handed.tenant, handed.tenant_secret)
