"""What people change through the web face, and who was refused there, noted for the daemon's audit log.

Promises:   a change is one entry a namespace, with counts and no content; a prompt that an engine is asked to compute
            is named by nothing but the engine. Reading is not noted. Refusals are summed: a flood of them is one line
            a second.
Leaves:     lines and files to `maru.audit`, what a change does to `admin`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from starlette.requests import Request

from maru.audit import Audit, Entry, Who
from maru.audit.record import What
from maru.daemon import admin_bodies as bodies
from maru.daemon.routes import Route

NameOf = Callable[[str], str | None]
"""A token's name; None for one that nobody made."""


class WebAudit:
    """The web face's side of the log."""

    def __init__(self, audit: Audit, name_of: NameOf | None) -> None:
        """`name_of`: None where nobody asks for tokens."""
        self._audit, self._name_of = audit, name_of

    def changed(self, request: Request, route: Route, told: Mapping[str, Any], done: object) -> None:
        """A change was made. `told`: what the path and the body said; `done`: the answer."""
        if route.role != "admin":
            return
        pool, who = str(told.get("pool", "")), self.who(request.headers.get("authorization", ""), request)
        body = told.get("body")

        def tell(what: What, namespace: str = "", chunks: int = 0, size: int = 0, reason: str = "") -> None:
            self._audit.tell(Entry(what, "http", who, pool, namespace, chunks, size, reason=reason))

        match done:
            case bodies.Expired():
                for line in done.expired:
                    tell("expired", line.namespace, line.chunks, reason=f"of tenant {line.tenant}")
            case bodies.Removed():
                asked = f"{done.pinned} pinned, {done.absent} absent"
                tell("removed", getattr(body, "namespace", None) or "", done.removed, reason=asked)
            case bodies.Keep():
                tell("policy", getattr(body, "namespace", None) or "", done.chunks, done.bytes, f"keep {done.id}")
            case bodies.Promotion():
                tell("policy", getattr(body, "namespace", ""), done.chunks, reason=f"promotion {done.id}")
            case bodies.Prewarm():
                tell("policy", reason=f"prewarm {done.id} by {done.engine}")
            case bodies.SegmentNow():
                tell("policy", reason=f"segment {done.number} {done.state}")
            case bodies.Ended():
                tell("policy", reason=f"keep {done.id} ended")
            case _:
                tell("policy", reason=route.does)

    def refused(self, status: int, error: str, authorization: str, request: Request | None) -> None:
        """A request was refused: by what it brought as a token (401, 403), or a change by what it asked for."""
        who = self.who(authorization, request)
        self._audit.note(("refused", "http", who, "", "", error, f"HTTP {status}"))

    def who(self, authorization: str, request: Request | None) -> Who:
        """The name of a token that is one; what nobody made is not written down."""
        kind, _, token = authorization.partition(" ")
        if self._name_of is None:
            return Who(client=f"?{request.client.host}" if request is not None and request.client else "?")
        name = self._name_of(token.strip()) if kind.lower() == "bearer" and token.strip() else None
        return Who(client=name or "")
