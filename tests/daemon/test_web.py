"""The web face: it listens or says why not, tells nobody more than they may know, and lets nobody hold it up."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

import maru
from fake_daemon import FakeFacts
from http_asking import DEADLINE_S, TOKENS, ask, connect, events, serving
from maru.daemon import answers, feed, patient_http
from maru.daemon.access import SECURITY_HEADERS
from maru.daemon.metrics import CONTENT_TYPE
from maru.daemon.routes import ROUTES
from maru.daemon.web import OPEN_PATHS, WebServer, make_app
from maru.daemon.web_settings import WebSettings, is_loopback
from maru.errors import CannotListen, NotProtected

SECRET_PATHS = [
    "/metrics", "/events", "/v1/openapi.json", "/v1/pools", "/v1/pools/kv", "/v1/pools/none", "/v1/nothing",
    "/nothing", "/dashboard/nothing.js", "/../etc/passwd",
]  # fmt: skip


@pytest.fixture
def facts(pool: maru.Pool) -> FakeFacts:
    return FakeFacts(pools={"kv": pool})


@pytest.fixture
def server(facts: FakeFacts) -> Iterator[WebServer]:
    with serving(facts) as running:
        yield running


@pytest.fixture
def guarded(facts: FakeFacts) -> Iterator[WebServer]:
    with serving(facts, authenticate=TOKENS.get) as running:
        yield running


# ---- What is where -------------------------------------------------------------------------------------------------


def test_health_readiness_metrics_and_page_are_there(server: WebServer, facts: FakeFacts) -> None:
    assert (ask(server, "/healthz").status, ask(server, "/healthz").body) == (200, b"ok\n")
    assert (ask(server, "/readyz").status, ask(server, "/readyz").body) == (200, b"ready\n")
    scrape = ask(server, "/metrics")
    assert (scrape.status, scrape.headers["content-type"]) == (200, CONTENT_TYPE)
    assert b'maru_pool_up{pool="kv"} 1.0' in scrape.body
    page = ask(server, "/")
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")


def test_what_is_not_ready_says_why(server: WebServer, facts: FakeFacts) -> None:
    facts.ready = (False, "pool kv is being rebuilt")
    answer = ask(server, "/readyz")
    assert (answer.status, answer.body) == (503, b"not ready: pool kv is being rebuilt\n")


@pytest.mark.parametrize("path", ["/nothing", "/v1", "/v1/pools/", "/dashboard/../web.py", "/dashboard/none.js"])
def test_a_path_that_is_not_there_is_told_in_the_one_form(server: WebServer, path: str) -> None:
    answer = ask(server, path)
    assert (answer.status, answer.json["error"]) == (404, "UnknownPath")


def test_a_method_that_a_path_has_not_is_told(server: WebServer) -> None:
    answer = ask(server, "/v1/pools/kv/expire")
    assert (answer.status, answer.json["error"], answer.headers["allow"]) == (405, "WrongMethod", "POST")


def test_a_head_request_has_no_body_and_does_not_hang(server: WebServer) -> None:
    for path in ("/", "/events", "/v1/pools", "/healthz"):
        answer = ask(server, path, method="HEAD")
        assert (answer.status, answer.body) == (200, b"")


@pytest.mark.parametrize("path", ["/", "/metrics", "/v1/pools", "/v1/nothing", "/healthz"])
def test_every_answer_carries_the_security_headers(server: WebServer, path: str) -> None:
    headers = ask(server, path).headers
    assert {name: headers.get(name.lower()) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert "unsafe" not in headers["content-security-policy"]
    assert "server" not in headers


def test_a_mistake_of_ours_is_told_without_details(server: WebServer, facts: FakeFacts) -> None:
    facts.pools["broken"] = None  # type: ignore[assignment]
    answer = ask(server, "/v1/pools")
    assert (answer.status, answer.json["error"]) == (500, "InternalError")
    assert "None" not in answer.json["message"]
    assert ask(server, "/healthz").status == 200


# ---- Who may ask ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "authorization", [None, "Bearer wrong", "Bearer ", "Basic cmVhZGVyLXRva2Vu", "reader-token", "Bearer " + "x" * 2000]
)
def test_without_a_valid_token_everything_is_one_and_the_same_refusal(
    guarded: WebServer, authorization: str | None
) -> None:
    headers = {"Authorization": authorization} if authorization else {}
    seen = set()
    for path in SECRET_PATHS:
        for method in ("GET", "POST", "DELETE", "PUT", "OPTIONS"):
            answer = ask(guarded, path, method=method, headers=headers)
            shown = {name: value for name, value in answer.headers.items() if name != "date"}
            seen.add((answer.status, answer.body, tuple(sorted(shown.items()))))
    ((status, _, shown),) = seen
    assert status == 401
    assert dict(shown)["www-authenticate"] == "Bearer"


def test_the_empty_page_and_the_probes_need_no_token_and_tell_nothing(guarded: WebServer, facts: FakeFacts) -> None:
    facts.ready = (False, "pool kv is being rebuilt")
    for path in OPEN_PATHS - {"/readyz"}:
        assert ask(guarded, path).status == 200
        assert ask(guarded, path, token="wrong").status == 401
    assert ask(guarded, "/readyz").body == b"not ready\n"
    assert b"rebuilt" in ask(guarded, "/readyz", token="reader-token").body


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: f"{route.method} {route.path}")
def test_a_reader_may_look_and_change_nothing(guarded: WebServer, route: object) -> None:
    path = route.path.replace("{pool}", "kv").replace("{segment}", "0")  # type: ignore[attr-defined]
    method = route.method  # type: ignore[attr-defined]
    body = None if method == "GET" else {}
    reader = ask(guarded, path, body, method, token="reader-token").status
    assert reader == (403 if route.role == "admin" else 404 if "{" in path else 200)  # type: ignore[attr-defined]
    assert ask(guarded, path, body, method, token="admin-token").status not in (401, 403)
    assert ask(guarded, path, body, method, token="client-token").status == 403


@pytest.mark.parametrize(
    "host", ["attacker.example", "attacker.example:80", "10.0.0.1", "", "127.0.0.1.attacker.example"]
)
def test_without_tokens_a_website_cannot_ask_through_a_browser(server: WebServer, host: str) -> None:
    """A name that its owner lets resolve to this host is not this host's own name."""
    assert ask(server, "/v1/pools", headers={"Host": host}).json["error"] == "WrongHost"


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:6556", "[::1]:6556", "LOCALHOST:1"])
def test_this_host_is_asked_by_its_own_names(server: WebServer, host: str) -> None:
    assert ask(server, "/v1/pools", headers={"Host": host}).status == 200


# ---- Where it listens ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "host.example"])
def test_no_network_is_served_without_tokens_or_with_tokens_in_the_clear(
    facts: FakeFacts, host: str, tmp_path: Path
) -> None:
    with pytest.raises(NotProtected, match="no tokens"):
        make_app(facts, WebSettings(host=host))
    with pytest.raises(NotProtected, match="without TLS"):
        make_app(facts, WebSettings(host=host, authenticate=TOKENS.get))
    make_app(facts, WebSettings(host=host, authenticate=TOKENS.get, plain=True))
    make_app(facts, WebSettings(host=host, authenticate=TOKENS.get, certificate=tmp_path / "c", key=tmp_path / "k"))


@pytest.mark.parametrize(
    ("host", "is_ours"), [("127.0.0.9", True), ("::1", True), ("localhost", True), ("1.2.3.4", False)]
)
def test_loopback_is_told_by_the_address(host: str, is_ours: bool) -> None:
    assert is_loopback(host) is is_ours


def test_a_taken_port_is_a_named_error(facts: FakeFacts, server: WebServer) -> None:
    settings = WebSettings(port=server.port)
    with pytest.raises(CannotListen, match="in use") as caught:
        WebServer(make_app(facts, settings), settings).start()
    assert (caught.value.host, caught.value.port) == ("127.0.0.1", server.port)


def test_half_a_tls_pair_and_a_bad_one_are_refused(facts: FakeFacts, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs both"):
        WebSettings(certificate=tmp_path / "absent")
    (tmp_path / "bad").write_text("no certificate")
    for name in ("absent", "bad"):
        settings = WebSettings(port=0, certificate=tmp_path / name, key=tmp_path / name)
        with pytest.raises(CannotListen, match="certificate"):
            WebServer(make_app(facts, settings), settings).start()


def test_an_app_that_does_not_begin_is_a_named_error(facts: FakeFacts) -> None:
    settings = WebSettings(port=0)
    app = make_app(facts, settings)

    @contextlib.asynccontextmanager
    async def broken(_: object) -> AsyncIterator[None]:
        raise RuntimeError("no")
        yield

    app.router.lifespan_context = broken
    with pytest.raises(CannotListen, match="did not begin"):
        WebServer(app, settings).start()


def test_stopping_frees_the_port_and_a_server_begins_anew_on_it(facts: FakeFacts) -> None:
    with serving(facts) as first:
        port = first.port
    with serving(facts, port=port) as second:
        assert ask(second, "/healthz").status == 200
    assert not any(thread.name == "maru-web" for thread in threading.enumerate())


# ---- Events --------------------------------------------------------------------------------------------------------


def test_events_begin_with_history_and_go_on_with_frames(server: WebServer, pool: maru.Pool) -> None:
    pool.put(b"k" * 16, b"x" * 100)
    connection = connect(server)
    connection.request("GET", "/events")
    stream = events(connection.getresponse())
    name, history = next(stream)
    assert (name, isinstance(history, list)) == ("history", True)
    name, frame = next(stream)
    assert name == "frame"
    assert frame["daemon"]["name"] == "desk"
    assert frame["pools"][0]["stats"]["chunks"]["sealed"] == 1
    assert frame["rpc"]["seconds"]["lookup"]["buckets"] == [[0.001, 6], [0.01, 3], [None, 1]]
    assert [lease["host"] for lease in frame["leases"]] == ["host-b"]
    pool.put(b"l" * 16, b"x" * 100)
    assert next(stream)[1]["pools"][0]["stats"]["chunks"]["sealed"] == 2
    connection.close()


def test_no_more_follow_than_the_limit_and_a_place_is_free_again(facts: FakeFacts) -> None:
    with serving(facts, listeners_max=1) as server:
        first = connect(server)
        first.request("GET", "/events")
        response = first.getresponse()
        next(events(response))
        refusal = ask(server, "/events")
        assert (refusal.status, refusal.json["error"]) == (503, "TooManyListeners")
        response.close()
        first.close()
        wait_until(lambda: server.app.state.followers.count == 0)
        again = connect(server)
        again.request("GET", "/events")
        assert again.getresponse().status == 200
        again.close()


def test_a_stream_ends_when_its_token_does(facts: FakeFacts) -> None:
    tokens = dict(TOKENS)
    with serving(facts, authenticate=tokens.get) as server:
        connection = connect(server)
        connection.request("GET", "/events", headers={"Authorization": "Bearer reader-token"})
        stream = events(connection.getresponse())
        assert [next(stream)[0], next(stream)[0]] == ["history", "frame"]
        del tokens["reader-token"]
        assert len(list(stream)) <= 1
        connection.close()


def test_stopping_ends_every_stream(facts: FakeFacts) -> None:
    with serving(facts) as server:
        connection = connect(server)
        connection.request("GET", "/events")
        stream = events(connection.getresponse())
        next(stream)
        server.stop()
        assert len(list(stream)) <= 1  # It ends as a whole answer does: http.client would raise otherwise.
        connection.close()


def test_history_is_bounded_and_holds_what_rates_need(facts: FakeFacts, pool: maru.Pool) -> None:
    looks = feed.Looks(facts, 0.0)
    now_s = 0.0
    history = feed.Feed(facts, looks, feed.KeptPrefixes(1, 0.5), clock=lambda: now_s)
    for _ in range(feed.SAMPLES_MAX + 5):
        now_s += feed.SAMPLE_S
        history.sample()
    samples = feed.msgspec.json.decode(history.history())
    assert len(samples) == feed.SAMPLES_MAX
    assert samples[-1]["unix_s"] == now_s
    assert set(samples[0]["pools"]["kv"]) == {
        "uuid", "now_ns", "used_bytes", "lookup_keys", "hit_keys", "pinned_bytes", "stored_bytes",
    }  # fmt: skip


# ---- Who holds it up -----------------------------------------------------------------------------------------------


def test_whoever_sends_a_request_too_slowly_is_cut_off(facts: FakeFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_http, "HEAD_DEADLINE_S", 0.2)
    with serving(facts) as server, socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as slow:
        slow.sendall(b"GET /healthz HTTP/1.1\r\nHost: local")
        assert slow.recv(100) == b""
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as silent:
            assert silent.recv(100) == b""


def test_a_body_that_does_not_come_is_refused(facts: FakeFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "BODY_DEADLINE_S", 0.2)
    monkeypatch.setattr(patient_http, "HEAD_DEADLINE_S", 0.2)
    head = (
        b"POST /v1/pools/kv/expire HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: 100\r\n\r\n{"
    )
    with serving(facts) as server, socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as slow:
        slow.sendall(head)
        received = b""
        while piece := slow.recv(4096):
            received += piece
    assert received.startswith(b"HTTP/1.1 408 ")
    assert b"BodyTooSlow" in received


def test_an_event_stream_outlives_the_deadline_for_requests(facts: FakeFacts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patient_http, "HEAD_DEADLINE_S", 0.1)
    with serving(facts) as server:
        connection = connect(server)
        connection.request("GET", "/events")
        stream = events(connection.getresponse())
        assert [next(stream)[0] for _ in range(3)] == ["history", "frame", "frame"]
        connection.close()


@pytest.mark.parametrize(
    "raw",
    [
        b"\x00" * 50 + b"\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 100_000,
        b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused_and_others_are_answered(server: WebServer, raw: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), DEADLINE_S) as bad:
        bad.sendall(raw)
        assert bad.recv(4096).startswith(b"HTTP/1.1 4")
    assert ask(server, "/healthz").status == 200


def wait_until(is_so: object) -> None:
    """Look again until it is so, with a deadline."""
    pause = threading.Event()
    for _ in range(2000):
        if is_so():  # type: ignore[operator]
            return
        pause.wait(0.01)
    raise AssertionError("it did not come to be so")
