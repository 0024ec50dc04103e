"""Whatever is sent, the web face stays up, makes no mistake of its own, and changes nothing that nobody asked for."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import maru
from fake_daemon import FakeFacts
from http_asking import DEADLINE_S, ask, serving
from maru.daemon.routes import ROUTES
from maru.daemon.web import WebServer
from pools import with_force_gone

CHANGES = [route for route in ROUTES if route.body]
FIELDS = (
    "namespace",
    "tenant",
    "keys",
    "token_ids",
    "chunk_tokens",
    "seconds",
    "state",
    "engine",
    "model",
    "prompt",
    "x",
)
SLOWLY = settings(
    max_examples=150, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

leaves = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=40)
    | st.sampled_from(["ab" * 16, "00" * 16, "draining", "blue", "AB" * 16])
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner), max_leaves=8
)
objects = st.dictionaries(st.sampled_from(FIELDS), values, max_size=5)
segments = st.text(st.characters(codec="utf-8", exclude_characters="/?#"), max_size=12)


@pytest.fixture(scope="module")
def served() -> Iterator[tuple[WebServer, maru.Pool]]:
    """A server over a pool with one chunk of a tenant `kept` in it, which no test names."""
    url = f"maru:///test-{os.getpid()}-hostile-http?size=8MiB&slots=1024&processes=32"
    with_force_gone(url)
    with maru.Pool.create(url) as pool:
        assert pool.wait_ready(20)
        pool.put(
            b"k" * 16, b"x" * 100, namespace=pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="kept"))
        )
        with serving(FakeFacts(pools={"kv": pool})) as server:
            yield server, pool
    with_force_gone(url)


def is_refused_or_done(answer: Any) -> bool:
    """A 503 is the world's fault; a 500 would be ours."""
    if answer.status >= 400:
        assert set(json.loads(answer.body)) == {"error", "message", "hint"}
    return answer.status < 500 or answer.status == 503


@SLOWLY
@given(route=st.sampled_from(CHANGES), body=objects)
@example(route=CHANGES[0], body={"tenant": "\ud7ff\x00"})
@example(route=CHANGES[1], body={"namespace": "ab" * 16, "token_ids": [2**32]})
@example(route=CHANGES[3], body={"keys": "ab" * 16, "seconds": 1e308})
def test_no_body_makes_a_mistake_of_ours(served: tuple[WebServer, maru.Pool], route: Any, body: dict[str, Any]) -> None:
    server, pool = served
    path = route.path.replace("{pool}", "kv").replace("{segment}", "9")
    assert is_refused_or_done(ask(server, path, body, route.method))
    assert pool.lookup(b"k" * 16) == 1


@SLOWLY
@given(raw=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@example(raw=b"[" * 100_000)
@example(raw=b'{"tenant": "' + b"a" * 100_000 + b'"}')
@example(raw=b'{"tenant": "\\ud800"}')
@example(raw=b'{"seconds": NaN}')
def test_no_bytes_make_a_mistake_of_ours(served: tuple[WebServer, maru.Pool], raw: bytes) -> None:
    server, _ = served
    assert is_refused_or_done(ask(server, "/v1/pools/kv/expire", raw))


@SLOWLY
@given(parts=st.lists(segments, min_size=1, max_size=4), method=st.sampled_from(["GET", "POST", "DELETE"]))
@example(parts=["v1", "pools", "kv", "segments", "٣"], method="POST")
@example(parts=["dashboard", "..", "web.py"], method="GET")
def test_no_path_makes_a_mistake_of_ours(served: tuple[WebServer, maru.Pool], parts: list[str], method: str) -> None:
    server, _ = served
    path = "/" + "/".join("".join(f"%{byte:02x}" for byte in part.encode()) for part in parts)
    answer = ask(server, path, {"state": "online"} if method == "POST" else None, method)
    assert answer.status < 500


@SLOWLY
@given(raw=st.binary(min_size=1, max_size=400))
@example(raw=b"GET / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n")
@example(raw=b"POST /v1/pools HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n")
@example(raw=b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
def test_no_stream_of_bytes_takes_it_down(served: tuple[WebServer, maru.Pool], raw: bytes) -> None:
    server, _ = served
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as wire:
        wire.sendall(raw)
    assert ask(server, "/healthz").status == 200
