"""How the web face is set up: one frozen value, checked when it is made.

Promises:   settings that would show the pools to a network without tokens, or tokens to a network without TLS, are
            refused before there is an app.
Leaves:     reading a command line or a file to whoever makes the value.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from maru.config import why_no_url
from maru.daemon.audited_web import WebAudit
from maru.daemon.looks import LOOK_AGE_S_MAX
from maru.errors import NotProtected

Authenticate = Callable[[str], str | None]
"""A token's role ("read", "admin", or one that the web face does not know); None for a token that is nobody's."""

PORT_DEFAULT = 6556


@dataclass(frozen=True)
class Engine:
    """An OpenAI-compatible engine that may be asked to compute a prefix. Raises ValueError for another kind of URL."""

    url: str
    """What stands before /v1/completions: http://HOST:PORT."""
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
        except ValueError as error:
            raise ValueError(why_no_url(error)) from None
        if not is_header(self.token):
            raise ValueError("an engine's token has a character that no header may have, such as a line's end")
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise ValueError("an engine's URL is http://HOST:PORT or https://HOST:PORT, with no query")
        if parts.username or parts.password:
            raise ValueError("an engine's URL holds no password; give its token by itself")


@dataclass(frozen=True)
class WebSettings:
    """Where the web face listens, who may ask, and the limits of what it holds for those who do.

    Tokens and certificate may be added by dataclasses.replace(): whether the whole protects what it shows is asked at
    the end, by refuse_unprotected(). Raises ValueError for half a TLS pair and for limits below one.
    """

    host: str = "127.0.0.1"
    port: int = PORT_DEFAULT
    """0: any that is free."""
    authenticate: Authenticate | None = None
    certificate: Path | None = None
    key: Path | None = None
    plain: bool = False
    """Serve a network without TLS, since a proxy in front has it."""
    engines: Mapping[str, Engine] = field(default_factory=dict)
    """Who may be asked to prewarm, by name. Requests choose a name; no request brings a URL."""
    look_age_s_max: float = LOOK_AGE_S_MAX
    """How old a pool's figures may be when they are told: its index is walked no more often."""
    connections_max: int = 256
    listeners_max: int = 32
    """Pages and terminals that follow /events."""
    keeps_max: int = 64
    keep_share_max: float = 0.25
    """Of a pool's size, held by all keeps together."""
    prewarm_queue_max: int = 16
    prewarm_deadline_s: float = 120.0
    stop_deadline_s: float = 5.0
    audit: WebAudit | None = None
    """Who changed what, and who was refused; None: nobody keeps account of it."""

    def __post_init__(self) -> None:
        if (self.certificate is None) != (self.key is None):
            raise ValueError("TLS needs both: a certificate and its key")
        limits = (self.connections_max, self.listeners_max, self.keeps_max, self.prewarm_queue_max)
        if (
            min(limits) < 1
            or not 0 < self.keep_share_max < 1
            or min(self.prewarm_deadline_s, self.stop_deadline_s) <= 0
        ):
            raise ValueError("limits are at least one, deadlines above zero, and keep_share_max a share below 1")

    def refuse_unprotected(self) -> None:
        """Raises NotProtected for an address beyond this host without tokens, or with tokens and without TLS unless
        `plain` says that something else encrypts.
        """
        if self.is_local:
            return
        if self.authenticate is None:
            raise NotProtected(f"{self.host} can be reached from other hosts, and there are no tokens", host=self.host)
        if self.certificate is None and not self.plain:
            raise NotProtected(
                f"{self.host} can be reached from other hosts, and tokens would cross the network without TLS",
                host=self.host,
            )

    @property
    def is_local(self) -> bool:
        """Does it listen for this host alone?"""
        return is_loopback(self.host)

    @property
    def scheme(self) -> str:
        return "https" if self.certificate else "http"


def is_header(text: str) -> bool:
    """May it stand in a header? What may not would be quoted by the error that says so."""
    return text.isascii() and text.isprintable()


def is_loopback(host: str) -> bool:
    """Is it this host's own address, which no other host can reach? Other names are not looked up: they may change."""
    try:
        return host == "localhost" or ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
