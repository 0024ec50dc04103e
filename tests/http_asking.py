"""Asking a web server as programs do: plain HTTP over a real socket, and nothing of the app's own code."""

from __future__ import annotations

import http.client
import json
import ssl
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fake_daemon import FakeFacts
from maru.daemon.web import WebServer, make_app
from maru.daemon.web_settings import WebSettings

DEADLINE_S = 20.0
TOKENS = {"reader-token": "read", "admin-token": "admin", "client-token": "client"}


@dataclass
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@contextmanager
def serving(facts: FakeFacts, **settings: Any) -> Iterator[WebServer]:
    """The whole web face on a free port of this host, until the with block ends."""
    chosen = WebSettings(**{"port": 0, "look_age_s_max": 0.0, **settings})
    server = WebServer(make_app(facts, chosen), chosen)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def connect(server: WebServer, context: ssl.SSLContext | None = None) -> http.client.HTTPConnection:
    if context:
        return http.client.HTTPSConnection("127.0.0.1", server.port, timeout=DEADLINE_S, context=context)
    return http.client.HTTPConnection("127.0.0.1", server.port, timeout=DEADLINE_S)


def ask(
    server: WebServer,
    path: str,
    body: Any = None,
    method: str | None = None,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    context: ssl.SSLContext | None = None,
) -> Answer:
    """One request. `body`: bytes as they are, anything else as JSON."""
    sent = dict(headers or {})
    if token is not None:
        sent["Authorization"] = f"Bearer {token}"
    raw = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    if raw is not None:
        sent.setdefault("Content-Type", "application/json")
    connection = connect(server, context)
    try:
        connection.request(method or ("GET" if raw is None else "POST"), path, raw, sent)
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


def events(response: http.client.HTTPResponse) -> Iterator[tuple[str, Any]]:
    """The events of a stream, as (name, document), until it ends."""
    name = ""
    while line := response.readline():
        field, _, value = line.decode().rstrip("\n").partition(": ")
        if field == "event":
            name = value
        elif field == "data":
            yield name, json.loads(value)
