"""Who may ask, decided before anybody looks at the path; and the headers that every answer carries.

Promises:   with tokens, a request without one or with a wrong one gets one and the same 401, whether what it asks for
            exists or not; only the empty page and two words for probes are there for everybody. `read` may look,
            `admin` may also change. Without tokens only what asks for this host by its own name is answered, so that no
            website can make a browser ask for it.
Leaves:     comparing tokens to whoever gave `authenticate`.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from maru.daemon.answers import Refused, refusal
from maru.daemon.audited_web import WebAudit
from maru.daemon.web_settings import Authenticate, is_loopback

READING = frozenset({"GET", "HEAD"})
ROLES = frozenset({"read", "admin"})
TOKEN_CHARS_MAX = 512
SECURITY_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_UNKNOWN = Refused(401, "Unauthorized", "no valid token", "send Authorization: Bearer TOKEN")


class Access:
    """The outermost layer of the app. The role that was found is in scope["state"]["role"], None in the open part."""

    def __init__(
        self,
        app: ASGIApp,
        authenticate: Authenticate | None,
        open_paths: Iterable[str],
        audit: WebAudit | None = None,
    ) -> None:
        self._app, self._authenticate, self._open_paths = app, authenticate, frozenset(open_paths)
        self._audit = audit

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":  # Nothing here speaks WebSocket.
            await send({"type": "websocket.close", "code": 1008})
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            scope.setdefault("state", {})["role"] = self._role_for(scope)
        except Refused as refused:
            if self._audit is not None:
                given = Headers(scope=scope).get("authorization", "")
                self._audit.refused(refused.status, refused.problem.error, given, Request(scope))
            await refusal(refused)(scope, receive, send_with_headers)
            return
        await self._app(scope, receive, send_with_headers)

    def _role_for(self, scope: Scope) -> str | None:
        headers = Headers(scope=scope)
        if self._authenticate is None:
            if not _is_of_this_host(headers.get("host", "")):
                raise Refused(403, "WrongHost", "without tokens only this host's own name is answered")
            return "admin"
        given = headers.get("authorization")
        if given is None and scope["method"] in READING and scope["path"] in self._open_paths:
            return None
        role = role_of(given or "", self._authenticate)
        if role is None:
            raise _UNKNOWN
        if role not in ROLES or (role != "admin" and scope["method"] not in READING):
            raise Refused(403, "Forbidden", "this token's role does not allow it", "changes need a token of role admin")
        return role


def role_of(authorization: str, authenticate: Authenticate) -> str | None:
    """The role behind an Authorization header, or None."""
    kind, _, token = authorization.partition(" ")
    token = token.strip()
    if kind.lower() != "bearer" or not token or len(token) > TOKEN_CHARS_MAX:
        return None
    return authenticate(token)


def _is_of_this_host(host: str) -> bool:
    try:
        return is_loopback(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
