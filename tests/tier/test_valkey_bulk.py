"""Large values to and from a server that stops in the middle, and callers that do not wait for it."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis_servers import redis_server

from maru.errors import TierFailed
from maru.testing.tier_contract import content_of, fresh_name, read
from maru.tier.contract import PIECE_BYTES
from maru.tier.opening import open_tier, parse_tier_url
from maru.tier.valkey import PART_BYTES, WHOLE_BYTES
from maru.tier.valkey_bulk import Bulk, Line, packed

redis = pytest.importorskip("redis")

MORE_THAN_SOCKETS_HOLD = content_of(PIECE_BYTES) * 64
PATIENCE_S = 600.0


class Server:
    """A server that can be stopped like a machine that hangs: its sockets stay, and nobody is behind them."""

    def __init__(self, port: int) -> None:
        self.port = port
        with redis.Redis(port=port) as looker:
            self._process: int = looker.info("server")["process_id"]

    def stop(self) -> None:
        os.kill(self._process, signal.SIGSTOP)

    def go_on(self) -> None:
        os.kill(self._process, signal.SIGCONT)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with redis_server(tmp_path) as port:
        one = Server(port)
        try:
            yield one
        finally:
            one.go_on()


def bulk_of(server: Server, deadline_s: float = PATIENCE_S) -> Bulk:
    """With one thread: what is asked next is asked when that has come back."""
    return Bulk(1, {"host": "127.0.0.1", "port": server.port, "socket_timeout": deadline_s})


@contextmanager
def threads_that_end() -> Iterator[None]:
    yield
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("maru-valkey")] == []


def ask(line: Line, *words: Any) -> Any:
    return line.ask([words])[0]


def stop_and_ask(line: Line, server: Server, has_stopped: threading.Event, *words: Any) -> Any:
    line.ask([("PING",)])
    server.stop()
    has_stopped.set()
    return line.ask([words])


def test_a_value_whose_caller_gave_up_in_the_middle_never_appears(server: Server) -> None:
    async def run() -> None:
        bulk, has_stopped = bulk_of(server), threading.Event()
        words = ("SET", b"late", [MORE_THAN_SOCKETS_HOLD])
        storing = asyncio.ensure_future(bulk.talk(stop_and_ask, server, has_stopped, *words))
        await asyncio.to_thread(has_stopped.wait)
        storing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await storing
        server.go_on()
        assert await bulk.talk(ask, "EXISTS", b"late") == 0
        await bulk.close()

    with threads_that_end():
        asyncio.run(run())


def test_an_answer_that_nobody_waits_for_is_not_taken_for_another_one(server: Server) -> None:
    async def run() -> None:
        bulk, has_stopped = bulk_of(server), threading.Event()
        asking = asyncio.ensure_future(bulk.talk(stop_and_ask, server, has_stopped, "ECHO", b"late"))
        await asyncio.to_thread(has_stopped.wait)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        server.go_on()
        assert await bulk.talk(ask, "ECHO", b"in time") == b"in time"
        await bulk.close()

    with threads_that_end():
        asyncio.run(run())


@pytest.mark.parametrize("words", [("SET", b"late", [MORE_THAN_SOCKETS_HOLD]), ("ECHO", b"late")])
def test_a_server_that_stops_in_the_middle_costs_a_deadline_and_its_connection(
    server: Server, words: tuple[Any, ...]
) -> None:
    async def run() -> None:
        bulk = bulk_of(server, deadline_s=0.2)
        with pytest.raises(redis.RedisError):
            await bulk.talk(stop_and_ask, server, threading.Event(), *words)
        server.go_on()
        patient = bulk_of(server)
        assert await patient.talk(ask, "EXISTS", b"late") == 0
        await patient.close()
        await bulk.close()

    with threads_that_end():
        asyncio.run(run())


def test_an_error_of_the_server_is_told_and_the_next_answer_is_the_next_ones(server: Server) -> None:
    async def run() -> None:
        bulk = bulk_of(server)
        with pytest.raises(redis.ResponseError):
            await bulk.talk(lambda line: line.ask([("NONSENSE",), ("ECHO", b"left over")]))
        assert await bulk.talk(ask, "ECHO", b"mine") == b"mine"
        await bulk.close()

    asyncio.run(run())


def test_a_tier_that_is_closed_while_its_server_hangs_leaves_no_thread(server: Server) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(f"redis://127.0.0.1:{server.port}?deadline=600"))
        name = fresh_name()
        await tier.store(name, [content_of(2 * PIECE_BYTES)])
        server.stop()
        storing = asyncio.ensure_future(tier.store(name, [content_of(2 * PIECE_BYTES)]))
        loading = asyncio.ensure_future(read(tier, name))
        await asyncio.sleep(0)
        await tier.close()
        for one in (storing, loading):
            with pytest.raises(TierFailed):
                await one

    with threads_that_end():
        asyncio.run(run())


def test_values_are_sent_from_where_they_lie_and_read_in_parts(server: Server) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(f"redis://127.0.0.1:{server.port}"))
        name, frame = fresh_name(), content_of(PIECE_BYTES)
        count = WHOLE_BYTES // PIECE_BYTES
        await tier.store(name, [frame, frame])  # Threads and connections are there.
        tracemalloc.start()
        try:
            await tier.store(name, [frame] * count)
            assert tracemalloc.get_traced_memory()[1] < PIECE_BYTES
            size = 0
            async for piece in tier.load(name):
                assert len(piece) <= PART_BYTES
                size += len(piece)
            assert size == WHOLE_BYTES
            assert tracemalloc.get_traced_memory()[1] < 4 * PART_BYTES
        finally:
            tracemalloc.stop()
        await tier.close()

    asyncio.run(run())


def test_an_object_of_one_command_was_never_there_in_parts(server: Server) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(f"redis://127.0.0.1:{server.port}"))
        with redis.Redis(port=server.port) as looker:
            looker.config_resetstat()
            await tier.store(fresh_name(), [content_of(WHOLE_BYTES)], ttl_s=60.0)
            did = looker.info("commandstats")
            assert did["cmdstat_set"]["calls"] == 1
            assert "cmdstat_append" not in did
        await tier.close()

    asyncio.run(run())


def test_a_command_is_packed_as_redis_py_packs_it() -> None:
    from redis.connection import Encoder, PythonRespSerializer

    large, small = content_of(70_000), b"four"
    theirs = PythonRespSerializer(6000, Encoder("utf-8", "strict", False).encode)
    for words in (("PING",), ("SET", b"key", large, "PX", 12345), ("SET", b"", small), ("GETRANGE", b"k", 0, 7)):
        assert b"".join(packed(words)) == b"".join(theirs.pack(*words))
    parts = packed(("SET", b"key", [small, large, small, large], "PX", 1))
    assert b"".join(parts) == b"".join(theirs.pack("SET", b"key", (small + large) * 2, "PX", 1))
    assert [part is large for part in parts] == [False, True, False, True, False]
