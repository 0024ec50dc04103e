"""Two OpenAI API servers over one pool, each as a user starts it."""

from __future__ import annotations

import itertools
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import zmq
from vllm_server import ANSWER_DEADLINE_S, Server, free_port

import maru

CHUNK = 256
ASK = """
import sys, urllib.request as web
web.urlopen(web.Request(sys.argv[1], sys.stdin.buffer.read(), {"Content-Type": "application/json"}))
"""

pytestmark = [pytest.mark.engines, pytest.mark.crash, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def event_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def two(
    model: Path, pool_of_module: str, event_port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[Server]]:
    """B tells what it has in the pool by KV events."""
    folder = tmp_path_factory.mktemp("servers")
    events = {"enable_kv_cache_events": True, "publisher": "zmq", "endpoint": f"tcp://*:{event_port}"}
    servers = [
        Server(model, pool_of_module, "0", folder / "a.log"),
        Server(model, pool_of_module, "1", folder / "b.log", ("--kv-events-config", json.dumps(events))),
    ]
    try:
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.kill()


def until(there: Callable[[], bool], beside: Server) -> None:
    """Look again and again, as long as the server beside it lives."""
    deadline = time.monotonic() + ANSWER_DEADLINE_S
    while not there() and time.monotonic() < deadline:
        beside.process_wait(0.002)
        assert beside.process.poll() is None, "the server ended"
    assert there()


def stored(pool_name: str) -> int:
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        return int(pool.stats()["counters"]["stored"])


def loaded_chunks(pool_name: str) -> int:
    """Chunks read in place since the pool was made: by schedulers that pinned them, and by workers that copied them."""
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        return int(pool.stats()["counters"]["pinned"])


def test_what_one_server_computed_the_other_answers_from(
    two: list[Server], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    prompt = text_ids[: 4 * CHUNK + 20]
    computed, _ = a.ask(prompt)
    assert stored(pool_of_module) >= 4
    before = loaded_chunks(pool_of_module)
    answered, _ = b.ask(prompt)
    assert answered == computed
    assert loaded_chunks(pool_of_module) == before + 8  # Four by the scheduler, four by the worker.


def test_metrics_say_what_was_loaded_and_stored_and_how_the_pool_is(two: list[Server], text_ids: list[int]) -> None:
    a, b = two
    prompt = text_ids[1_000 : 1_000 + 3 * CHUNK + 20]
    before = [server.metrics() for server in two]
    a.ask(prompt)
    b.ask(prompt)
    after = [server.metrics() for server in two]
    grown = [{name: now[name] - then[name] for name in now} for now, then in zip(after, before, strict=True)]
    assert (grown[0]["stored_tokens_total"], grown[0]["loaded_tokens_total"]) == (3 * CHUNK, 0)
    assert (grown[1]["stored_tokens_total"], grown[1]["loaded_tokens_total"]) == (0, 3 * CHUNK)
    assert grown[0]["stored_bytes_total"] == grown[1]["loaded_bytes_total"] > 0
    assert grown[1]["load_seconds_total"] > 0
    assert grown[1]["lookups_total"] >= 1
    assert after[1]["pool_bytes"] == 1 << 30


def test_users_with_other_salts_do_not_hit_each_other(two: list[Server], text_ids: list[int]) -> None:
    a, b = two
    prompt = text_ids[3_000 : 3_000 + 3 * CHUNK + 20]
    loaded = [b.metrics()["loaded_tokens_total"]]
    computed, _ = a.ask(prompt, cache_salt="ada")
    answers = []
    for salt in ("bob", "ada"):
        answers.append(b.ask(prompt, cache_salt=salt)[0])
        loaded.append(b.metrics()["loaded_tokens_total"])
    assert answers == [computed, computed]
    assert [after - before for before, after in itertools.pairwise(loaded)] == [0, 3 * CHUNK]


def test_a_request_that_is_marked_leaves_nothing_behind(
    two: list[Server], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    prompt = text_ids[5_000 : 5_000 + 3 * CHUNK + 20]
    before = stored(pool_of_module)
    kept_back, _ = a.ask(prompt, kv_transfer_params={"maru.cache": "off"})
    a.ask(prompt, kv_transfer_params={"maru.cache": "read"})
    assert stored(pool_of_module) == before
    assert b.ask(prompt)[0] == kept_back
    assert stored(pool_of_module) == before + 3


def test_kv_events_tell_what_can_be_taken_from_the_pool(
    two: list[Server], text_ids: list[int], event_port: int
) -> None:
    a, b = two
    with zmq.Context() as context, context.socket(zmq.SUB) as line:
        line.setsockopt(zmq.SUBSCRIBE, b"")
        line.connect(f"tcp://127.0.0.1:{event_port}")

        def told(within_ms: int) -> list[dict[str, Any]]:
            """Our events of the next batch that has some."""
            while line.poll(within_ms):
                batch = msgspec.msgpack.decode(line.recv_multipart()[-1])
                if ours := [one for one in batch[1] if one.get("ownership") == "maru"]:
                    return ours
            return []

        for attempt in range(20):  # A subscriber hears what comes after it joined, and joining takes a moment.
            b.ask(text_ids[20_000 + 10 * attempt :][: CHUNK + 10])
            if told(500):
                break
        prompt = text_ids[2_000 : 2_000 + 2 * CHUNK + 20]
        a.ask(prompt)
        b.ask(prompt)
        events = told(ANSWER_DEADLINE_S * 1000)
    assert [one["type"] for one in events] == ["BlockStored"] * 2
    assert [token for one in events for token in one["token_ids"]] == prompt[: 2 * CHUNK]
    assert all(len(one["block_hashes"]) * one["block_size"] == CHUNK for one in events)
    assert events[1]["parent_block_hash"] == events[0]["block_hashes"][-1]


def test_a_request_that_is_aborted_leaves_nothing_behind(
    two: list[Server], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    prompt = text_ids[7_000 : 7_000 + 6 * CHUNK + 20]
    wanted, _ = a.ask(prompt)
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        for tokens in (1, 64, 500):
            body = b.request(prompt, tokens).data
            assert isinstance(body, bytes)
            with socket.create_connection(("127.0.0.1", b.port), timeout=ANSWER_DEADLINE_S) as line:
                before = b.metrics()["lookups_total"]
                line.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: m\r\nContent-Type: application/json\r\n")
                line.sendall(b"Content-Length: %d\r\n\r\n" % len(body) + body)
                until(lambda before=before: b.metrics()["lookups_total"] > before, b)
            until(lambda: not any(row["pins"] for row in pool.stats()["processes"]), b)
            assert pool.stats()["reservations"] == []
    assert b.ask(prompt)[0] == wanted


def test_a_server_killed_in_a_store_leaves_the_other_untouched(
    two: list[Server], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    prompt = text_ids[5_000 : 5_000 + 8 * CHUNK + 20]
    known, _ = b.ask(text_ids[: 4 * CHUNK + 20])
    before = stored(pool_of_module)
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        request = a.request(prompt, 1)
        asking = subprocess.Popen(
            [sys.executable, "-c", ASK, request.full_url], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert asking.stdin is not None
        asking.stdin.write(request.data or b"")  # type: ignore[arg-type]
        asking.stdin.close()
        until(lambda: bool(pool.stats()["reservations"]), b)
        assert pool.stats()["counters"]["stored"] == before
        a.kill()
        asking.wait(30)
        # The server's children die a moment after it: gigabytes of mappings are taken down first.
        until(lambda: not pool.stats()["reservations"], b)
        pool.reap()
        assert pool.stats()["reservations"] == []
        assert pool.check() == []
    assert b.ask(text_ids[: 4 * CHUNK + 20])[0] == known
    computed, _ = b.ask(prompt)
    assert b.ask(prompt)[0] == computed
