"""Answers in JSON, and one form for every refusal: {error, message, hint}.

Promises:   a request's body is read whole only up to a limit and a deadline; what is not as described is refused by the
            name of what is wrong. What we did wrong ourselves is logged, and told without details.
Leaves:     what is asked and answered to `admin`.
"""

from __future__ import annotations

import asyncio
from typing import Any, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from maru.errors import (
    BadKey,
    BadUrl,
    MaruError,
    NamespaceTableFull,
    NotAttached,
    PoolBusy,
    PoolMismatch,
    PoolNotFound,
)

BODY_BYTES_MAX = 1 << 20
BODY_DEADLINE_S = 10.0
JSON_TYPE = "application/json"
_STATUS: dict[type[MaruError], int] = {
    PoolNotFound: 404,
    PoolMismatch: 409,
    PoolBusy: 503,
    NotAttached: 503,
    NamespaceTableFull: 507,
    BadKey: 400,
    BadUrl: 400,
}

Body = TypeVar("Body", bound=msgspec.Struct)


class Problem(msgspec.Struct):
    """Why a request was refused."""

    error: str
    """A name for programs."""
    message: str
    """What happened, for people."""
    hint: str = ""
    """What to do about it, if anything."""


class Refused(Exception):
    """A request that will not be done, as HTTP tells it."""

    def __init__(self, status: int, error: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.status, self.problem = status, Problem(error, message, hint)


def answer(document: Any, status: int = 200) -> Response:
    """A Struct, or anything that msgspec writes, as JSON."""
    return Response(msgspec.json.encode(document), status_code=status, media_type=JSON_TYPE)


def refusal(refused: Refused) -> Response:
    response = answer(refused.problem, refused.status)
    if refused.status == 401:
        response.headers["WWW-Authenticate"] = "Bearer"
    if refused.status in (413, 408):
        response.headers["Connection"] = "close"  # The rest of the body is not read.
    return response


def refused_by_pool(error: MaruError) -> Refused:
    """A pool's own error in HTTP's words. Paths of this machine are in the message: who may ask may also know them."""
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 409)
    return Refused(status, type(error).__name__, error.message, error.hint)


async def read_body(request: Request, kind: type[Body]) -> Body:
    """The request's body as `kind`. Raises Refused."""
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != JSON_TYPE:
        raise Refused(415, "NotJson", f"send the body as Content-Type: {JSON_TYPE}")
    raw = bytearray()
    try:
        async with asyncio.timeout(BODY_DEADLINE_S):
            async for piece in request.stream():
                raw += piece
                if len(raw) > BODY_BYTES_MAX:
                    raise Refused(413, "BodyTooLarge", f"a body has at most {BODY_BYTES_MAX} bytes")
    except TimeoutError:
        raise Refused(408, "BodyTooSlow", f"the body was not there after {BODY_DEADLINE_S:.0f} s") from None
    except ClientDisconnect:
        raise Refused(400, "BodyIncomplete", "the connection ended inside the body") from None
    try:
        return msgspec.json.decode(bytes(raw), type=kind)
    except msgspec.DecodeError as error:  # Also of the right JSON with the wrong fields.
        raise Refused(400, "BadBody", str(error), "GET /v1/openapi.json describes every body") from None
    except UnicodeDecodeError:
        raise Refused(400, "BadBody", "the body is not UTF-8") from None
