"""The admin API: it does what it says to a real pool, refuses by name what it cannot, and describes itself."""

from __future__ import annotations

import http.server
import json
import re
import threading
from array import array
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

import maru
from fake_daemon import FakeFacts
from http_asking import Answer, ask, serving
from maru.daemon.admin_bodies import PrewarmBody
from maru.daemon.answers import BODY_BYTES_MAX, Refused
from maru.daemon.keeps import KeptPrefixes
from maru.daemon.prewarm import Prewarmer
from maru.daemon.promotions import UNDER_WAY_MAX
from maru.daemon.web import WebServer
from maru.daemon.web_settings import Engine

CHUNK = 64 << 10
TOKENS = list(range(32))
CHUNK_TOKENS = 8


@pytest.fixture
def space(pool: maru.Pool) -> maru.Namespace:
    """A namespace of tenant `blue` with a prefix of four chunks in it, and another tenant's beside it."""
    other = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="red"))
    pool.put(b"r" * 16, b"red", namespace=other)
    blue = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="blue"), ttl=3600.0)
    keys = blue.chunk_keys(array("I", TOKENS), CHUNK_TOKENS)
    assert pool.put_many(keys, [b"b" * CHUNK] * 4, namespace=blue) == [maru.Outcome.STORED] * 4
    return blue


@pytest.fixture
def server(pool: maru.Pool) -> Iterator[WebServer]:
    with serving(FakeFacts(pools={"kv": pool}), keep_share_max=0.04) as running:
        yield running


def keys_of(space: maru.Namespace, chunks: int = 4) -> str:
    return space.chunk_keys(array("I", TOKENS[: chunks * CHUNK_TOKENS]), CHUNK_TOKENS).hex()


def refused(answer: Answer, status: int, error: str) -> bool:
    assert set(answer.json) == {"error", "message", "hint"}
    return (answer.status, answer.json["error"]) == (status, error)


# ---- Looking -------------------------------------------------------------------------------------------------------


def test_pools_and_one_pool_are_told(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    (line,) = ask(server, "/v1/pools").json["pools"]
    assert (line["name"], line["chunks"], line["processes"], line["error"]) == ("kv", 5, 1, None)
    detail = ask(server, "/v1/pools/kv").json
    assert detail["stats"]["uuid"] == pool.stats()["uuid"]


def test_namespaces_say_who_takes_up_how_much(server: WebServer, space: maru.Namespace) -> None:
    rows = {row["tenant"]: row for row in ask(server, "/v1/pools/kv/namespaces").json["namespaces"]}
    assert rows["blue"]["digest"] == space.digest.hex()
    assert (rows["blue"]["chunks"], rows["blue"]["bytes"], rows["blue"]["ttl_s"]) == (4, 4 * CHUNK, 3600.0)
    assert rows["red"]["ttl_s"] is None


def test_processes_say_who_pins_and_who_writes(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    with pool.pin(bytes.fromhex(keys_of(space))) as prefix, pool.reserve(b"w" * 16, CHUNK):
        assert len(prefix) == 4
        told = ask(server, "/v1/pools/kv/processes").json
    assert [row["pins"] for row in told["processes"]] == [4]
    assert len(told["oldest_pins"]) == 4
    assert [row["state"] for row in told["reservations"]] == ["reserved"]
    assert 0 < told["reservations"][0]["seconds_left"] <= 30


def test_the_daemon_tells_its_leases_and_peers(server: WebServer) -> None:
    told = ask(server, "/v1/daemon").json
    assert [lease["host"] for lease in told["leases"]] == ["host-b"]
    assert [peer["name"] for peer in told["peers"]] == ["other"]
    assert told["is_ready"] is True


# ---- Changing ------------------------------------------------------------------------------------------------------


def test_an_expired_namespace_is_a_miss_and_others_are_not(
    server: WebServer, pool: maru.Pool, space: maru.Namespace
) -> None:
    answer = ask(server, "/v1/pools/kv/expire", {"namespace": space.digest.hex()})
    assert answer.json["expired"] == [
        {"namespace": space.digest.hex(), "tenant": "blue", "epoch": space.epoch, "chunks": 4}
    ]
    assert pool.lookup(bytes.fromhex(keys_of(space))) == 0
    assert pool.lookup(b"r" * 16) == 1
    assert space.ttl == 3600.0


def test_a_tenant_is_expired_with_all_its_namespaces(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    second = pool.namespace(maru.Identity(model="other", kv_layout="l", tenant="blue"))
    expired = ask(server, "/v1/pools/kv/expire", {"tenant": "blue"}).json["expired"]
    assert {row["namespace"] for row in expired} == {space.digest.hex(), second.digest.hex()}
    assert pool.lookup(b"r" * 16) == 1


def test_what_is_not_known_is_refused_and_never_made(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    before = len(pool.stats()["namespaces"])
    assert refused(ask(server, "/v1/pools/kv/expire", {"namespace": "ab" * 16}), 404, "UnknownNamespace")
    assert refused(ask(server, "/v1/pools/kv/expire", {"tenant": "nobody"}), 404, "UnknownNamespace")
    assert refused(ask(server, "/v1/pools/kv/expire", {"namespace": "00" * 16}), 404, "UnknownNamespace")
    assert refused(ask(server, "/v1/pools/none/expire", {"tenant": "blue"}), 404, "UnknownPool")
    assert refused(ask(server, "/v1/pools/kv/segments/7", {"state": "draining"}), 404, "UnknownSegment")
    assert len(pool.stats()["namespaces"]) == before


def test_a_prefix_named_by_its_tokens_is_removed(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    named = {"namespace": space.digest.hex(), "token_ids": [*TOKENS, 1, 2], "chunk_tokens": CHUNK_TOKENS}
    assert ask(server, "/v1/pools/kv/remove", named).json == {"removed": 4, "pinned": 0, "absent": 0}
    assert pool.lookup(bytes.fromhex(keys_of(space))) == 0


def test_what_somebody_reads_stays_and_is_counted(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    keys = keys_of(space)
    with pool.pin(bytes.fromhex(keys_of(space, chunks=2))):
        assert ask(server, "/v1/pools/kv/remove", {"keys": keys + "ee" * 16}).json == {
            "removed": 2, "pinned": 2, "absent": 1,
        }  # fmt: skip
        assert pool.lookup(bytes.fromhex(keys)) == 2  # From the tail up: what is left is a prefix.


def test_a_prefix_goes_from_its_tail_up(pool: maru.Pool, space: maru.Namespace) -> None:
    """So that a daemon that dies in between leaves a prefix, and no orphans."""
    order: list[bytes] = []

    class Watched:
        destroyed = False

        def remove(self, key: bytes) -> bool:
            order.append(key)
            return pool.remove(key)

    facts = FakeFacts(pools={"kv": Watched()})  # type: ignore[dict-item]
    with serving(facts) as server:
        ask(server, "/v1/pools/kv/remove", {"keys": keys_of(space)})
    keys = bytes.fromhex(keys_of(space))
    assert order == [keys[start : start + 16] for start in (48, 32, 16, 0)]


def test_a_segment_drains_and_comes_back(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    assert ask(server, "/v1/pools/kv/segments/0", {"state": "draining"}).json == {"number": 0, "state": "draining"}
    assert pool.stats()["segments"][0]["state"] == "DRAINING"
    ask(server, "/v1/pools/kv/segments/0", {"state": "online"})
    assert ask(server, "/v1/pools/kv").json["stats"]["segments"][0]["state"] == "ONLINE"
    lost = ask(server, "/v1/pools/kv/segments/0", {"state": "lost"})
    assert refused(lost, 400, "BadBody")


def test_a_kept_prefix_is_pinned_until_it_is_ended(server: WebServer, pool: maru.Pool, space: maru.Namespace) -> None:
    keys = keys_of(space)
    answer = ask(server, "/v1/pools/kv/keeps", {"keys": keys, "seconds": 60})
    kept = answer.json
    assert (answer.status, kept["chunks"], kept["bytes"]) == (201, 4, 4 * CHUNK)
    assert ask(server, "/v1/pools/kv/remove", {"keys": keys}).json["pinned"] == 4
    assert [one["id"] for one in ask(server, "/v1/pools/kv/keeps").json["keeps"]] == [kept["id"]]
    assert ask(server, f"/v1/pools/kv/keeps/{kept['id']}", method="DELETE").json == {"id": kept["id"]}
    assert ask(server, "/v1/pools/kv/remove", {"keys": keys}).json["removed"] == 4
    assert refused(ask(server, f"/v1/pools/kv/keeps/{kept['id']}", method="DELETE"), 404, "UnknownKeep")


def test_keeps_hold_no_more_than_their_share_of_a_pool(
    server: WebServer, pool: maru.Pool, space: maru.Namespace
) -> None:
    body = {"keys": keys_of(space), "seconds": 60}  # 256 KiB; the share is 4 % of 8 MiB: 335 KB.
    assert ask(server, "/v1/pools/kv/keeps", body).status == 201
    answer = ask(server, "/v1/pools/kv/keeps", body)
    assert refused(answer, 409, "KeepTooLarge")
    assert "256 KiB are held" in answer.json["message"]
    assert sum(row["pins"] for row in pool.stats()["processes"]) == 4


@pytest.mark.parametrize("seconds", [0, -1, 86_401, "60"])
def test_a_keep_lasts_a_day_at_most(server: WebServer, space: maru.Namespace, seconds: object) -> None:
    assert refused(ask(server, "/v1/pools/kv/keeps", {"keys": keys_of(space), "seconds": seconds}), 400, "BadBody")


def test_a_keep_ends_by_itself(pool: maru.Pool, space: maru.Namespace) -> None:
    now_s = 0.0
    keeps = KeptPrefixes(count_max=1, share_max=0.5, clock=lambda: now_s)
    keys = bytes.fromhex(keys_of(space))
    keeps.keep("kv", pool, keys, seconds=10)
    with pytest.raises(Refused, match="holds 1 keeps already"):
        keeps.keep("kv", pool, keys, seconds=10)
    now_s = 10.0
    keeps.end_late()
    assert keeps.all() == []
    assert sum(row["pins"] for row in pool.stats()["processes"]) == 0
    with pytest.raises(Refused, match="first chunk"):
        keeps.keep("kv", pool, b"?" * 16, seconds=10)


def test_stopping_lets_go_of_every_keep(pool: maru.Pool, space: maru.Namespace) -> None:
    with serving(FakeFacts(pools={"kv": pool})) as server:
        assert ask(server, "/v1/pools/kv/keeps", {"keys": keys_of(space), "seconds": 60}).status == 201
        assert sum(row["pins"] for row in pool.stats()["processes"]) == 4
    assert sum(row["pins"] for row in pool.stats()["processes"]) == 0


# ---- Promotions ----------------------------------------------------------------------------------------------------


def test_a_promotion_needs_places_below(server: WebServer, space: maru.Namespace) -> None:
    door, digest = "/v1/pools/kv/promotions", digest_of(server)
    assert refused(ask(server, door, {"namespace": digest, "keys": keys_of(space)}), 409, "NoPlaces")
    assert refused(ask(server, door, {"namespace": "ab" * 16, "keys": keys_of(space)}), 404, "UnknownNamespace")
    assert ask(server, door).json == {"promotions": []}


def digest_of(server: WebServer) -> str:
    rows = ask(server, "/v1/pools/kv/namespaces").json["namespaces"]
    return str(next(row["digest"] for row in rows if row["tenant"] == "blue"))


def test_promotions_bring_only_what_is_missing_and_so_many_at_a_time(pool: maru.Pool, space: maru.Namespace) -> None:
    began: list[tuple[bytes, bytes | None, Future[int]]] = []

    def rise(missing: bytes, _: maru.Namespace, before: bytes | None) -> Future[int]:
        began.append((missing, before, Future()))
        return began[-1][2]

    keys = bytes.fromhex(keys_of(space))
    pool.remove(keys[48:])
    with serving(FakeFacts(pools={"kv": pool}, rise=rise)) as server:
        door, body = "/v1/pools/kv/promotions", {"namespace": digest_of(server), "token_ids": TOKENS}
        body["chunk_tokens"] = CHUNK_TOKENS
        asked = ask(server, door, body)
        assert asked.status == 202
        assert began[0][:2] == (keys[48:], keys[32:48])
        told = asked.json
        assert (told["state"], told["chunks"], told["were_here"], told["are_here"]) == ("running", 4, 3, 3)
        for _ in range(UNDER_WAY_MAX - 1):
            assert ask(server, door, body).status == 202
        assert refused(ask(server, door, body), 429, "TooManyPromotions")
        began[0][2].set_result(0)
        began[1][2].set_exception(OSError("a disk fell out"))
        states = [one["state"] for one in ask(server, door).json["promotions"]]
        assert sorted(states) == ["done", "failed", *["running"] * (UNDER_WAY_MAX - 2)]
        pool.put(keys[48:], b"b" * CHUNK, namespace=space, parent=keys[32:48])
        whole = ask(server, door, body).json
        assert (whole["state"], whole["were_here"]) == ("done", 4)
        assert len(began) == UNDER_WAY_MAX


def test_what_is_removed_is_removed_below_too_unless_somebody_reads_it(pool: maru.Pool, space: maru.Namespace) -> None:
    below: list[tuple[bytes, bytes]] = []
    keys = bytes.fromhex(keys_of(space))

    def remove_below(gone: bytes, namespace: maru.Namespace) -> None:
        below.append((gone, namespace.digest))

    with serving(FakeFacts(pools={"kv": pool}, remove_below=remove_below)) as server, pool.pin(keys[:16]):
        told = ask(server, "/v1/pools/kv/remove", {
            "namespace": digest_of(server), "token_ids": TOKENS, "chunk_tokens": CHUNK_TOKENS,
        })  # fmt: skip
        assert told.json == {"removed": 3, "pinned": 1, "absent": 0}
        assert below == [(keys[48:] + keys[32:48] + keys[16:32], space.digest)]
        ask(server, "/v1/pools/kv/remove", {"keys": keys[48:].hex()})
        assert (keys[48:], space.digest) in below[1:]


# ---- Bodies --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ({"tenant": "blue", "colour": 1}, "colour"),
        ({"namespace": "XYZ"}, "namespace"),
        ({}, "either"),
        ({"tenant": "a", "namespace": "ab" * 16}, "not both"),
        (b"{", "truncated"),
        (b"\xff\xfe", ""),
        (b"[" * 5000, ""),
    ],
)
def test_a_body_that_is_not_as_described_is_refused_by_name(server: WebServer, body: object, told: str) -> None:
    answer = ask(server, "/v1/pools/kv/expire", body)
    assert refused(answer, 400, "BadBody")
    assert told in answer.json["message"]


@pytest.mark.parametrize(
    "body",
    [
        {"keys": "ab"},
        {"keys": ""},
        {"token_ids": TOKENS},
        {"namespace": "ab" * 16},
        {"keys": "ab" * 16, "token_ids": TOKENS, "namespace": "ab" * 16},
        {"token_ids": [-1], "namespace": "ab" * 16},
        {"token_ids": TOKENS, "namespace": "ab" * 16, "chunk_tokens": 0},
    ],
)
def test_a_prefix_is_named_in_exactly_one_way(server: WebServer, body: dict[str, Any]) -> None:
    assert refused(ask(server, "/v1/pools/kv/remove", body), 400, "BadBody")


def test_too_few_tokens_make_no_chunk(server: WebServer, space: maru.Namespace) -> None:
    answer = ask(server, "/v1/pools/kv/remove", {"namespace": space.digest.hex(), "token_ids": [1, 2]})
    assert refused(answer, 400, "BadBody")


def test_a_body_beyond_the_limit_is_refused(server: WebServer) -> None:
    assert refused(ask(server, "/v1/pools/kv/expire", b" " * (BODY_BYTES_MAX + 1)), 413, "BodyTooLarge")


def test_a_body_that_is_not_json_is_refused(server: WebServer) -> None:
    """Which also keeps websites from changing anything through a browser on this host: it would have to ask first."""
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = ask(server, "/v1/pools/kv/expire", b'{"tenant": "blue"}', headers={"Content-Type": kind})
        assert refused(answer, 415, "NotJson")


def test_a_destroyed_pool_is_told_as_such(pool: maru.Pool, pool_url: str) -> None:
    with serving(FakeFacts(pools={"kv": pool})) as server:
        maru.Pool.destroy(pool_url, force=True)
        (line,) = ask(server, "/v1/pools").json["pools"]
        assert "destroyed" in line["error"]
        assert refused(ask(server, "/v1/pools/kv"), 503, "NotAttached")
        assert refused(ask(server, "/v1/pools/kv/expire", {"tenant": "blue"}), 503, "NotAttached")


# ---- Prewarm -------------------------------------------------------------------------------------------------------


class FakeEngine(http.server.BaseHTTPRequestHandler):
    """Answers /v1/completions as `plan` says, and remembers what it was asked."""

    plan: str
    asked: list[tuple[str, dict[str, Any], str | None]]
    began: threading.Event
    release: threading.Event

    def do_POST(self) -> None:
        self.began.set()
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append((self.path, body, self.headers["Authorization"]))
        if self.plan == "redirect":
            self.send_response(307)
            self.send_header("Location", "http://127.0.0.1:1/elsewhere")
            self.end_headers()
            return
        if self.plan == "hang":
            self.release.wait(20)
            return
        self.send_response(500 if self.plan == "fail" else 200)
        self.end_headers()
        self.wfile.write(json.dumps({"choices": [], "usage": {"prompt_tokens": 12}}).encode())

    def log_message(self, *_: object) -> None:
        return


@pytest.fixture
def engine() -> Iterator[Any]:
    own = {"plan": "good", "asked": [], "began": threading.Event(), "release": threading.Event()}
    kind = type("Handler", (FakeEngine,), own)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), kind) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        kind.url = f"http://127.0.0.1:{listening.server_address[1]}"  # type: ignore[attr-defined]
        yield kind
        kind.release.set()
        listening.shutdown()
        thread.join()


def outcome(prewarmer: Prewarmer, number: str) -> Any:
    """Wait, on the clock alone, until a prewarm has ended."""
    ended = threading.Event()
    for _ in range(2000):
        found = prewarmer.one(number)
        assert found is not None
        if found.state in ("done", "failed"):
            return found
        ended.wait(0.01)
    raise AssertionError("still running")


def test_a_prewarm_asks_the_engine_for_one_token(engine: Any) -> None:
    prewarmer = Prewarmer({"one": Engine(engine.url, token="secret")}, 2, 20.0)
    asked = prewarmer.ask(PrewarmBody(engine="one", model="m", prompt=[1, 2, 3]))
    done = outcome(prewarmer, asked.id)
    prewarmer.stop(5)
    assert (done.state, done.prompt_tokens) == ("done", 12)
    ((path, body, authorization),) = engine.asked
    assert (path, authorization) == ("/v1/completions", "Bearer secret")
    assert (body["prompt"], body["max_tokens"]) == ([1, 2, 3], 1)


@pytest.mark.parametrize(("plan", "told"), [("redirect", "307"), ("fail", "500"), ("hang", "no answer within 0.2 s")])
def test_a_prewarm_that_fails_says_why(engine: Any, plan: str, told: str) -> None:
    engine.plan = plan
    prewarmer = Prewarmer({"one": Engine(engine.url)}, 2, 0.2 if plan == "hang" else 20.0)
    failed = outcome(prewarmer, prewarmer.ask(PrewarmBody(engine="one", model="m", prompt="x")).id)
    engine.release.set()
    prewarmer.stop(5)
    assert failed.state == "failed"
    assert told in failed.message


def test_a_full_queue_is_refused_and_stopping_ends_what_runs(engine: Any) -> None:
    engine.plan = "hang"
    prewarmer = Prewarmer({"one": Engine(engine.url)}, 1, 20.0)
    body = PrewarmBody(engine="one", model="m", prompt="x")
    asked = [prewarmer.ask(body)]
    assert engine.began.wait(20)  # It runs, and is not in the queue any more.
    asked.append(prewarmer.ask(body))
    with pytest.raises(Refused, match="wait already"):
        prewarmer.ask(body)
    prewarmer.stop(20)
    told = [(one.state, one.message) for one in prewarmer.all()]
    engine.release.set()
    assert told == [("failed", "the daemon stopped")] * len(asked)


def test_only_engines_that_were_named_can_be_asked(pool: maru.Pool, engine: Any) -> None:
    with serving(FakeFacts(pools={"kv": pool}), engines={"one": Engine(engine.url)}) as server:
        body = {"engine": "two", "model": "m", "prompt": "x"}
        assert refused(ask(server, "/v1/prewarms", body), 404, "UnknownEngine")
        assert refused(ask(server, "/v1/prewarms", {**body, "url": engine.url}), 400, "BadBody")
        answer = ask(server, "/v1/prewarms", {**body, "engine": "one"})
        assert answer.status == 202
        assert ask(server, f"/v1/prewarms/{answer.json['id']}").json["engine"] == "one"
        assert ask(server, "/v1/prewarms").json["engines"] == ["one"]
        assert refused(ask(server, "/v1/prewarms/none"), 404, "UnknownPrewarm")


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host/?x=1", "http://user:word@host", "host:80"])
def test_an_engine_url_is_plain_http(url: str) -> None:
    with pytest.raises(ValueError, match="engine's URL"):
        Engine(url)


# ---- The description -----------------------------------------------------------------------------------------------


def test_the_description_is_valid_openapi(server: WebServer) -> None:
    OpenAPIV31SpecValidator(ask(server, "/v1/openapi.json").json).validate()


def test_every_route_is_in_the_description_and_no_other(server: WebServer) -> None:
    described = {
        (path, method.upper())
        for path, methods in ask(server, "/v1/openapi.json").json["paths"].items()
        for method in methods
    }
    served = {
        (route.path, method)
        for route in server.app.routes  # type: ignore[attr-defined]
        for method in route.methods - {"HEAD"}
    }
    assert described == served


def test_every_body_that_is_described_names_its_fields(server: WebServer) -> None:
    document = ask(server, "/v1/openapi.json").json
    schemas = document["components"]["schemas"]
    referenced = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(document)))
    assert referenced <= set(schemas)
    bodies = {name: schema for name, schema in schemas.items() if name.endswith("Body")}
    assert len(bodies) == 7
    assert all(schema["additionalProperties"] is False and schema["description"] for schema in bodies.values())
