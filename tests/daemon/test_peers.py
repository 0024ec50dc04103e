"""Daemons that know of each other: by hand and by a registry, and whatever the others say of themselves."""

from __future__ import annotations

import json
import logging
import shutil
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import Clock, serve_process, until

import maru
from fake_daemon import FakeFacts
from http_asking import TOKENS, serving
from maru.daemon.facts import PeerFigures
from maru.daemon.peers import (
    ANSWER_BYTES_MAX,
    FORGET_S,
    NAME_CHARS_MAX,
    PEERS_MAX,
    POOLS_MAX,
    NamedPeers,
    Peer,
    PeerAddress,
    PeerSettings,
    PeerWatch,
    Source,
    peer_of,
)
from maru.daemon.registry import KEY, NAMES, TTL_S, Registry
from maru.errors import BadUrl, MissingPackage

DEADLINE_S = 0.3


class Told:
    """A source that sees whom a test names."""

    def __init__(self, *peers: Peer) -> None:
        self.peers = list(peers)
        self.closed = 0

    def look(self) -> list[Peer]:
        return list(self.peers)

    def close(self) -> None:
        self.closed += 1


def test_a_peer_is_shown_with_when_it_was_last_seen_and_forgotten_at_last() -> None:
    clock, told = Clock(), Told(Peer("b", "https://b:1", ("kv",)), Peer("a", "https://a:1"))
    watch = PeerWatch([told], clock)
    watch.look()
    clock.go(7)
    told.peers = [Peer("b", "https://b:2", ("kv", "more"))]
    watch.look()
    assert watch.figures() == [
        PeerFigures("a", "https://a:1", (), 7.0),
        PeerFigures("b", "https://b:2", ("kv", "more"), 0.0),
    ]
    clock.go(FORGET_S - 6)
    watch.look()
    assert [one.name for one in watch.figures()] == ["b"]


def test_no_more_peers_are_kept_than_can_be_shown() -> None:
    clock = Clock()
    told = Told(*(Peer(f"peer-{n}", "") for n in range(PEERS_MAX + 5)))
    watch = PeerWatch([told], clock)
    watch.look()
    clock.go(1)
    told.peers = [Peer("new", "")]
    watch.look()
    assert len(watch.figures()) == PEERS_MAX
    assert "new" in {one.name for one in watch.figures()}


def test_watching_goes_on_when_a_source_is_broken_and_ends_when_told() -> None:
    class Broken(Told):
        looks = 0

        def look(self) -> list[Peer]:
            self.looks += 1
            raise RuntimeError("a mistake of ours")

    broken = Broken()
    watch = PeerWatch([broken])
    watch.start()
    assert until(lambda: broken.looks)
    watch.stop()
    watch.stop()
    assert (watch.figures(), broken.closed) == ([], 1)


@pytest.mark.parametrize(
    ("name", "url", "pools"),
    [(None, "x", []), ("a", 1, []), ("", "x", []), ("\x1b\n", "x", []), (["a"], "x", []), ({}, None, None)],
)
def test_what_is_no_peer_is_passed_over(name: Any, url: Any, pools: Any) -> None:
    assert peer_of(name, url, pools) is None


def test_what_a_peer_says_of_itself_is_cut_and_shows_no_secret() -> None:
    said = peer_of(
        "na\x1b[31mme" + "x" * 1000, "https://user:secret@host:1?token=abc", ["kv\n", 3, None, ""] + ["p"] * 99
    )
    assert said is not None
    assert said.name.startswith("na[31mmexx")
    assert len(said.name) <= NAME_CHARS_MAX
    assert said.url == "https://***@host:1?token=***"
    assert said.pools == ("kv", *["p"] * (POOLS_MAX - 4))
    assert peer_of("a", "x", "kv") == Peer("a", "x")


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("", "http://host:1"),
        ("a\n", "http://host:1"),
        ("a" * 65, "http://host:1"),
        ("a", ""),
        ("a", "ftp://host:1"),
        ("a", "http://"),
        ("a", "http://host:port"),
        ("a", "http://host:1?x=y"),
        ("a", "http://user:word@host:1"),
        ("a", "http://host:1/" + "x" * 200),
    ],
)
def test_an_address_that_is_none_is_refused(name: str, url: str) -> None:
    with pytest.raises(ValueError, match="peer"):
        PeerAddress(name, url)


def test_a_token_goes_to_peers_by_https_or_on_this_host_alone() -> None:
    here, far = PeerAddress("here", "http://127.0.0.1:1"), PeerAddress("far", "https://far:1")
    assert "word" not in repr(PeerSettings((here, far), "word", registry="redis://:word@host"))
    with pytest.raises(ValueError, match="without TLS"):
        PeerSettings((replace(far, url="http://far:1"),), "word")
    with pytest.raises(ValueError, match="names of their own"):
        PeerSettings((here, replace(far, name="here")))


def named(url: str, token: str = "") -> list[Peer]:
    peers = NamedPeers(PeerSettings((PeerAddress("other", url),), token), DEADLINE_S)
    try:
        return peers.look()
    finally:
        peers.close()


def test_a_named_daemon_tells_its_pools_to_who_may_look(pool_url: str) -> None:
    authenticate = TOKENS.get
    with maru.Pool.create(pool_url) as pool:
        facts = FakeFacts(pools={"kv": pool, "spare": pool})
        with serving(facts, authenticate=authenticate) as server:
            assert named(server.url, "reader-token") == [Peer("other", server.url, ("kv", "spare"))]
            assert named(server.url, "wrong") == [Peer("other", server.url)]
            assert named(server.url) == [Peer("other", server.url)]
        assert named(server.url, "reader-token") == []


@contextmanager
def answering(*pieces: bytes) -> Iterator[str]:
    """A server that says these, whatever it is asked; an empty piece: and then nothing for ever."""
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def serve() -> None:
        with listener, ExitStack() as stack:
            listener.settimeout(0.05)
            while not over.is_set():
                try:
                    wire = stack.enter_context(listener.accept()[0])
                except TimeoutError:
                    continue
                wire.recv(1 << 16)
                for piece in pieces:
                    over.wait(0.1 if not piece else 0)
                    try:
                        wire.sendall(piece or b" ")
                    except OSError:
                        break
                else:
                    wire.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        over.set()
        thread.join(20)


OK = b"HTTP/1.0 200 OK\r\n\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        (b"",) * 20,
        (b"no http at all\r\n\r\n",),
        (b"HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",),
        (b"HTTP/1.0 500 Oh\r\n\r\n",),
        (OK, b"not json"),
        (OK, b"[" * 100_000),
        (OK, b"x" * (ANSWER_BYTES_MAX + 1)),
        (OK, b'{"pools": [', *(b"",) * 20),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", b'{"pools": ['),
    ],
    ids=["silence", "no-http", "redirect", "failure", "no-json", "deep", "long", "dripping", "short"],
)
def test_a_named_daemon_that_answers_badly_is_not_seen(
    pieces: tuple[bytes, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with answering(*pieces) as url, caplog.at_level(logging.WARNING):
        peers = NamedPeers(PeerSettings((PeerAddress("other", url),)), DEADLINE_S)
        assert (peers.look(), peers.look()) == ([], [])
        peers.close()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("body", [b"{}", b"[]", b"null", b'{"pools": 3}', b'{"pools": [1, {"name": 2}, {}]}'])
def test_a_named_daemon_that_tells_no_pools_is_seen_without(body: bytes) -> None:
    with answering(OK, body) as url:
        assert named(url) == [Peer("other", url)]


@pytest.fixture
def redis_url(tmp_path: Path) -> Iterator[str]:
    """A real server, with a password."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("there is no redis-server")
    path = tmp_path / "socket"
    words = ["--port", "0", "--unixsocket", str(path), "--save", "", "--requirepass", "hidden", "--dir", str(tmp_path)]
    server = subprocess.Popen([program, *words], stdout=subprocess.DEVNULL)
    try:
        assert until(lambda: path.exists())
        yield f"unix://:hidden@{path}"
    finally:
        server.terminate()
        server.wait(20)


def registered(url: str, name: str) -> Registry:
    return Registry(url, name, f"https://{name}:1", f"tcp://{name}:2", ["kv", name])


def client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


def test_daemons_find_each_other_in_a_registry_and_leave_it(redis_url: str) -> None:
    a, b = registered(redis_url, "a"), registered(redis_url, "b")
    assert a.look() == []
    assert b.look() == [Peer("a", "https://a:1", ("kv", "a"))]
    assert a.look() == [Peer("b", "https://b:1", ("kv", "b"))]
    with client(redis_url) as looker:
        assert 0 < looker.ttl(KEY + "a") <= TTL_S
        b.close()
        assert (a.look(), looker.smembers(NAMES)) == ([], {b"a"})
        a.close()
        assert looker.keys() == []


def test_a_daemon_that_died_is_gone_when_its_entry_is(redis_url: str) -> None:
    a, b = registered(redis_url, "a"), registered(redis_url, "b")
    b.look()
    with client(redis_url) as looker:
        looker.delete(KEY + "b")  # As its time does.
        assert (a.look(), looker.smembers(NAMES)) == ([], {b"a"})
    b.close()
    a.close()


def test_what_others_write_into_the_registry_is_passed_over_or_cut(redis_url: str) -> None:
    a = registered(redis_url, "a")
    entries = {
        "json": b"{", "list": b"[]", "deep": b"[" * 4000, "huge": b"x" * 1_000_000, "null": b"null",
        "long": json.dumps({"name": "n" * 3000, "url": "redis://:hidden@u", "pools": [1, "p"]}).encode(),
    }  # fmt: skip
    with client(redis_url) as looker:
        for name, entry in entries.items():
            looker.set(KEY + name, entry)
        looker.hset(KEY + "hash", "a", "b")
        looker.sadd(NAMES, "hash", b"\xff\x00", *entries, *(f"never-{n}" for n in range(20)))
        assert a.look() == [Peer("n" * NAME_CHARS_MAX, "redis://***@u", ("p",))]
    a.close()


def test_a_registry_that_fails_is_said_once_without_its_password(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"unix://:hidden@{tmp_path}/nowhere"
    registry = registered(url, "a")
    assert (registry.look(), registry.look()) == ([], [])
    registry.close()
    assert len(caplog.records) == 1
    assert "hidden" not in caplog.text


def test_a_registry_that_cannot_be_is_refused_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadUrl) as refused:
        registered("http://:hidden@host", "a")
    assert "hidden" not in str(refused.value)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(MissingPackage, match=r"maru-kvcache\[registry\]"):
        registered("redis://host", "a")


def test_two_daemons_show_each_other(pool_url: str, redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARU_REGISTRY", redis_url)

    def told(http: str) -> list[dict[str, Any]]:
        with urllib.request.urlopen(f"{http}/v1/daemon", timeout=20) as answer:
            found: list[dict[str, Any]] = json.loads(answer.read())["peers"]
            return found

    anywhere = ("--http", "127.0.0.1:0")
    with (
        serve_process(pool_url, *anywhere) as one,
        serve_process(pool_url, *anywhere, "--peer", f"first={one.http}") as two,
    ):
        pool = pool_url.partition("?")[0].rpartition("/")[2]
        assert until(lambda: len(told(two.http)) == 2)
        assert {(peer["name"] == "first", peer["url"]) for peer in told(two.http)} == {
            (True, one.http),
            (False, one.http),
        }
        assert until(lambda: told(one.http))
        assert [(peer["url"], peer["pools"]) for peer in told(one.http)] == [(two.http, [pool])]


def test_both_kinds_are_sources() -> None:
    sources: list[Source] = [NamedPeers(PeerSettings())]
    assert PeerWatch(sources).figures() == []
