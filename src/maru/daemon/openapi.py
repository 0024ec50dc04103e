"""The OpenAPI 3.1 description of everything the web face serves, made from the same Structs that read the bodies."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from maru.daemon.answers import JSON_TYPE, Problem
from maru.daemon.routes import Route

_NAMES = re.compile(r"{(\w+)}")
_REFUSALS = {
    "400": "The body, or a name in the path, is not as described",
    "401": "No valid token",
    "403": "The token's role does not allow it",
    "404": "What the path or the body names is not there",
    "409": "The pool, or a limit, does not allow it",
    "413": "The body is too large",
    "415": "The body is not JSON",
    "429": "A queue or table is full",
    "503": "The pool cannot be reached now",
}
# What is not the admin API: (path, summary, media type, for everybody).
PLAIN: tuple[tuple[str, str, str, bool], ...] = (
    ("/", "The dashboard", "text/html", True),
    ("/dashboard/{file}", "What the dashboard is made of", "text/plain", True),
    ("/healthz", "200 while the process serves", "text/plain", True),
    ("/readyz", "200 when requests are answered, else 503; with a token also why not", "text/plain", True),
    ("/metrics", "All figures for Prometheus", "text/plain", False),
    ("/events", "Server-sent events: `history` once, then `frame` every second", "text/event-stream", False),
    ("/v1/openapi.json", "This description", JSON_TYPE, False),
)


def describe(routes: Sequence[Route], version: str, has_tokens: bool) -> dict[str, Any]:
    """The whole document."""
    kinds = {kind for route in routes for kind in (route.answer, route.body) if kind} | {Problem}
    _, components = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__), ref_template="#/components/schemas/{name}"
    )
    paths: dict[str, dict[str, Any]] = {}
    for route in routes:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, has_tokens)
    for path, summary, media_type, is_open in PLAIN:
        answers = {"200": {"description": summary, "content": {media_type: {"schema": _plain(media_type)}}}}
        operation: dict[str, Any] = {"summary": summary, "operationId": _name_of(path), "responses": answers}
        if path == "/readyz":
            answers["503"] = {"description": "Not now", "content": {media_type: {"schema": {"type": "string"}}}}
        if has_tokens and not is_open:
            answers["401"] = _refusal("401")
            operation["security"] = [{"token": []}]
        paths[path] = {"get": operation | _parameters(path)}
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "maru serve",
            "version": version,
            "description": "Pools of KV cache: look, expire, remove, drain, keep, prewarm.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": dict(sorted(paths.items())),
        "components": {"schemas": dict(sorted(components.items()))},
    }
    if has_tokens:
        told = "A token of role `read` may look; one of role `admin` may also change."
        document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer", "description": told}}
    return document


def _operation(route: Route, has_tokens: bool) -> dict[str, Any]:
    content = {JSON_TYPE: {"schema": _reference(route.answer)}}
    refusals = ["400", "404", "409", "503"] + (["401", "403"] if has_tokens else [])
    operation: dict[str, Any] = {
        "summary": route.summary,
        "operationId": route.does,
        "description": f"Needs the role `{route.role}`.",
        **_parameters(route.path),
    }
    if route.body:
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": _reference(route.body)}}}
        refusals += ["413", "415", "429"]
    operation["responses"] = {str(route.status): {"description": "Done", "content": content}} | {
        status: _refusal(status) for status in sorted(refusals)
    }
    if has_tokens:
        operation["security"] = [{"token": []}]
    return operation


def _parameters(path: str) -> dict[str, Any]:
    names = _NAMES.findall(path)
    found = [{"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names]
    return {"parameters": found} if found else {}


def _refusal(status: str) -> dict[str, Any]:
    return {"description": _REFUSALS[status], "content": {JSON_TYPE: {"schema": _reference(Problem)}}}


def _reference(kind: type[msgspec.Struct]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{kind.__name__}"}


def _plain(media_type: str) -> dict[str, str]:
    return {"type": "object" if media_type == JSON_TYPE else "string"}


def _name_of(path: str) -> str:
    words = re.findall(r"\w+", path)
    return "_".join(words) if words else "page"
