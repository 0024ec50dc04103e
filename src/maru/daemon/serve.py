"""The daemon as a whole: one pool, its RPC socket, and what people see of it.

Holds:      the parts, in the order in which they start and stop.
Promises:   a part that cannot start is an error that names it, with everything before it stopped again. stop() ends
            within seconds and loses nothing: what is sealed stays, leases run on.
Leaves:     each part to its room.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import maru
from maru.audit import Audit, AuditLog
from maru.audit.log import default_key
from maru.credentials import (
    EVENTS_ZAP_DOMAIN,
    Authorised,
    load_certificate,
    load_pool_secret,
    load_server_keys,
    secure_server,
)
from maru.daemon.audited import AuditedAuthorised, AuditedControl
from maru.daemon.audited_web import WebAudit
from maru.daemon.control import Control
from maru.daemon.facts import DaemonIdentity, Histogram, LeaseFigures, PeerFigures, RpcFigures
from maru.daemon.kv_publisher import EventPublisher, EventSettings
from maru.daemon.local_socket import Doorkeeper, LocalSocket
from maru.daemon.peers import NamedPeers, PeerSettings, PeerWatch, Source
from maru.daemon.registry import Registry
from maru.daemon.server import SECONDS_BOUNDS, RpcServer
from maru.daemon.sessions import Limits
from maru.daemon.tenancy import tenants_seed
from maru.daemon.web import WebServer, make_app
from maru.daemon.web_settings import WebSettings
from maru.errors import CredentialNotFound
from maru.pool import Namespace, Pool
from maru.tiering.ladder import Ladder

DEFAULT_RPC_URL = "tcp://127.0.0.1:6555"


@dataclass(frozen=True)
class ServeConfig:
    """What `maru serve` was told."""

    pool_url: str = field(repr=False)
    rpc_url: str = DEFAULT_RPC_URL
    plain: bool = False
    """Serve other hosts without encryption, by RPC and HTTP."""
    keys: Path | None = None
    """The folder of `maru keys`: who may ask, by RPC and HTTP, and the certificate."""
    web: WebSettings | None = field(default_factory=WebSettings)
    """None: no web face. Its tokens and certificate come from `keys`."""
    events: EventSettings | None = None
    """Where KV events go for routers; None: nowhere."""
    limits: Limits = field(default_factory=Limits)
    peers: PeerSettings = field(default_factory=PeerSettings)
    """Other daemons."""
    tiers: Sequence[str] = field(default=(), repr=False)
    """URLs of places below the pool, the nearest first."""
    audit: Path | None = None
    """The folder of an audit log: who stored, hit, was refused, changed what."""
    audit_key: Path | None = None
    local: Path | None = None
    """A Unix socket for users of this host, who are let in by their uid; None: none."""


class Daemon:
    """One daemon. start(), then wait() and stop(). It is the `Facts` of its own web face."""

    def __init__(self, config: ServeConfig) -> None:
        """Open the pool, or make it. Raises what Pool.open raises, BadUrl, NotProtected, CredentialError."""
        self.config = config
        authorised = keys = None
        web = config.web
        self.audit = _audit(config)
        if config.keys is not None:
            authorised = AuditedAuthorised(config.keys, self.audit) if self.audit else Authorised(config.keys)
            keys = load_server_keys(config.keys)
            web = web and _with_credentials(web, config.keys, authorised)
        if web and self.audit:
            web = replace(web, audit=WebAudit(self.audit, authorised.token_name if authorised else None))
        self.identity = DaemonIdentity(f"{platform.node()}:{os.getpid()}", maru.__version__, time.time())
        self.pool = Pool.open(config.pool_url)
        self.ladder: Ladder | None = None
        try:
            if config.tiers:
                self.ladder = Ladder(self.pool, config.tiers, audit=self.audit)
            self.control = self._control(authorised)(
                self.pool,
                config.limits,
                os.urandom(16),
                f"maru {maru.__version__}",
                begin_rise=self.rise,
                seed=tenants_seed(self.pool, load_pool_secret(config.keys)) if config.keys else None,
            )
            self.rpc_server = RpcServer(self.control, config.rpc_url, keys, authorised, config.plain)
            self.web_server = WebServer(make_app(self, web), web) if web else None
            self.events: EventPublisher | None = None
            self.peer_watch = PeerWatch([])
            self.local_socket: LocalSocket | None = None
            self._keys, self._authorised = keys, authorised
        except BaseException:
            if self.ladder:
                self.ladder.close()
            self.pool.close()
            if self.audit:
                self.audit.close()
            raise
        self._over = threading.Event()

    def start(self) -> None:
        """Listen. Raises BadUrl or CannotListen when an address is taken."""
        try:
            self.rpc_server.start()
            if self.config.events:
                self.events = self._publisher(self.config.events)
                self.events.start()
            if self.web_server:
                self.web_server.start()
            if self.config.local:
                self.local_socket = self._local_socket(self.config.local)
                self.local_socket.start()
            self.peer_watch = PeerWatch(self._peer_sources())
            self.peer_watch.start()
        except BaseException:
            self.stop()
            raise

    def wait(self, seconds: float | None = None) -> bool:
        """Until stop(), the pool's destruction, or the RPC thread's end. False when `seconds` were not enough."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._over.wait(0.25):
            if not self.is_ready()[0]:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
        return True

    def stop(self) -> None:
        """End all parts. Idempotent."""
        self.peer_watch.stop()
        if self.local_socket:
            self.local_socket.stop()
        if self.web_server:
            self.web_server.stop()
        if self.events:
            self.events.stop()
        self.rpc_server.stop()
        if self.ladder:
            self.ladder.close()
        self.pool.close()
        if self.audit:
            self.audit.close()
        self._over.set()

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _control(self, authorised: Authorised | None) -> Callable[..., Control]:
        """What makes the part that answers clients."""
        if self.audit is None:
            return Control
        tenants = authorised if isinstance(authorised, AuditedAuthorised) else None
        return partial(AuditedControl, audit=self.audit, tenants=tenants)

    def _publisher(self, settings: EventSettings) -> EventPublisher:
        """Its sockets let in only who may know of every tenant's chunks. One context has one authenticator."""
        keys = self._keys
        secure = None if keys is None else lambda socket: secure_server(socket, keys, EVENTS_ZAP_DOMAIN)
        context = self.rpc_server.context
        return EventPublisher(self.pool, settings, context, secure, self.config.plain, self._authorised)

    def _local_socket(self, path: Path) -> LocalSocket:
        secret = load_pool_secret(self.config.keys) if self.config.keys else None
        uuid = self.pool.stats()["uuid"]
        endpoint = self.rpc_server.url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
        return LocalSocket(
            path, Doorkeeper(self.pool, uuid, endpoint, self._authorised, self._keys, secret), self.audit
        )

    def _peer_sources(self) -> list[Source]:
        settings, found = self.config.peers, list[Source]()
        if settings.peers:
            found.append(NamedPeers(settings))
        if settings.registry:
            web_url = _for_others(self.web_server.url) if self.web_server else ""
            rpc_url = _for_others(self.rpc_server.url)
            found.append(Registry(settings.registry, self.identity.name, web_url, rpc_url, list(self.pools)))
        return found

    # What it tells its web face

    @property
    def pools(self) -> Mapping[str, Pool]:
        return {self.pool.config.name: self.pool}

    def rpc(self) -> RpcFigures:
        counts = self.rpc_server.counts
        bounds = (*SECONDS_BOUNDS, float("inf"))
        return RpcFigures(
            clients=len(self.control.sessions),
            requests=dict(counts.requests),
            errors=dict(counts.errors),
            bytes_in=counts.bytes_in,
            bytes_out=counts.bytes_out,
            seconds={
                name: Histogram(tuple(zip(bounds, row, strict=True)), counts.seconds_sum.get(name, 0.0))
                for name, row in list(counts.seconds.items())
            },
        )

    def leases(self) -> Sequence[LeaseFigures]:
        now_s = time.monotonic()
        return [
            LeaseFigures(
                host=session.name,
                kind="mapped" if session.is_mapped else "wire",
                row=session.row_number,
                seconds_left=max(0.0, session.heard_s + self.control.limits.lease_s - now_s),
                pins=session.pins,
                pinned_bytes=session.pinned_bytes,
                reservations=len(session.holds),
                pool=self.pool.config.name,
            )
            for session in list(self.control.sessions.values())
        ]

    def peers(self) -> Sequence[PeerFigures]:
        return self.peer_watch.figures()

    def below(self) -> Mapping[str, Any]:
        return self.ladder.stats() if self.ladder else {}

    @property
    def rise(self) -> Callable[[bytes, Namespace, bytes | None], Future[int] | None] | None:
        return self.ladder.begin if self.ladder else None

    @property
    def remove_below(self) -> Callable[[bytes, Namespace], None] | None:
        return self.ladder.remove if self.ladder else None

    def is_ready(self) -> tuple[bool, str]:
        if not self.rpc_server.is_alive:
            return False, "the RPC thread has ended"
        if self.pool.closed or self.pool.destroyed:
            return False, "the pool was destroyed"
        return True, ""


def _audit(config: ServeConfig) -> Audit | None:
    """Raises AuditError, and CredentialError for its key."""
    if config.audit is None:
        return None
    return Audit(AuditLog(config.audit, default_key(config.audit, config.audit_key)))


def _with_credentials(web: WebSettings, keys: Path, authorised: Authorised) -> WebSettings:
    """Tokens for the web face, also those that are made later, and TLS when there is a certificate."""
    web = replace(web, authenticate=authorised.authenticate)
    try:
        certificate = load_certificate(keys)
    except CredentialNotFound:
        return web
    return replace(web, certificate=certificate.server_pem, key=certificate.server_pem)


def _for_others(url: str) -> str:
    """Where others may try to reach what listens at every address of this host: by its name."""
    for anywhere in ("//0.0.0.0:", "//[::]:"):
        url = url.replace(anywhere, f"//{platform.node()}:")
    return url
