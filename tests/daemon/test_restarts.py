"""A daemon that goes away, comes back, or serves another pool: what its clients see of it."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from serving import IDENTITY, LIMITS, bytes_for, keys_of, remote, roomy, served, until

import maru
from maru import Outcome
from maru.client import channel
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.errors import (
    LeaseEnded,
)

SIZES = [20_000, 20_000, 5, 3_000_000, 3_000_000, 20_000]
WAYS = ("wire", "mapped")


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    with roomy(pool_url) as fresh:
        yield fresh


@pytest.mark.parametrize("way", WAYS)
def test_without_a_daemon_everything_is_a_miss_said_once_and_comes_back_by_itself(
    pool: maru.Pool, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    with served(pool) as server, remote(server, way, deadline=0.3) as client:
        keys = keys_of(client.namespace(IDENTITY), 2)
        client.put_many(keys, [b"x" * 1000] * 2)
        url = server.url
        server.stop()
        caplog.set_level(logging.WARNING, "maru")
        assert client.lookup(keys) == 0
        assert client.get(keys[:16]) is None
        assert client.put(bytes(16), b"y") is Outcome.BUSY
        assert client.remove(keys[:16]) is False
        assert len([record for record in caplog.records if "no help now" in record.message]) == 1
        assert client.failures["NoDaemon"] >= 4
        with served(pool, url=url):
            assert until(lambda: client.lookup(keys) == 2)
            assert client.put(bytes(16), b"y") is Outcome.STORED


@pytest.mark.parametrize("way", WAYS)
def test_what_the_next_daemon_gave_is_held_by_it_and_given_back_to_it(pool: maru.Pool, way: str) -> None:
    """The first question after a restart greets on its way: its lease is the new daemon's, not that of before."""
    with served(pool) as server, remote(server, way) as client:
        client.put(bytes(16), b"x" * 1000)
        url = server.url
        server.stop()
        with served(pool, url=url):
            assert until(lambda: client.get(bytes(16)))
            assert "LeaseEnded" not in client.failures
            assert not any(row["pins"] for row in pool.stats()["processes"])


def test_a_daemon_that_does_not_answer_is_waited_for_once(pool: maru.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(pool) as server, remote(server, "wire", deadline=0.3) as client:
        server.stop()
        asked: list[str] = []
        ask = channel._Line.exchange

        def count(line: channel._Line, *parts: Any) -> Any:
            asked.append(threading.current_thread().name)
            return ask(line, *parts)

        monkeypatch.setattr(channel._Line, "exchange", count)
        assert [client.lookup(bytes(16)) for _ in range(50)] == [0] * 50
        assert client.failures["NoDaemon"] >= 50
        assert 1 <= asked.count(threading.current_thread().name) < 25  # The rest did not even try.


def test_what_is_read_in_place_stays_through_a_restart_of_the_daemon(pool: maru.Pool) -> None:
    with served(pool) as server, remote(server, "mapped") as client:
        client.put(bytes(16), bytes_for(5))
        prefix = client.pin(bytes(16))
        view = prefix.views[0]
        url = server.url
        server.stop()
        assert pool.remove(bytes(16)) is False
        assert prefix.held
        with served(pool, url=url):
            assert until(lambda: client.exists(bytes(16)))
            assert pool.remove(bytes(16)) is False
            assert prefix.held
            assert bytes(view) == bytes_for(5)
            client.renew()
            assert pool.remove(bytes(16)) is False
            prefix.release()
            client.renew()  # Nothing is read by the earlier daemon's row any more: it goes.
            assert pool.remove(bytes(16)) is True
            client.close()


def test_what_was_to_be_fetched_is_not_held_through_a_restart(pool: maru.Pool) -> None:
    with served(pool) as server, remote(server, "wire") as client:
        client.put(bytes(16), bytes_for(5))
        prefix = client.pin(bytes(16))
        url = server.url
        server.stop()
        with served(pool, url=url):
            assert until(lambda: client.exists(bytes(16)))
            assert not prefix.held
            with pytest.raises(LeaseEnded):
                _ = prefix.views


def test_a_pool_that_was_made_anew_is_used_over_the_wire(pool_url: str) -> None:
    with maru.Pool.create(pool_url) as first, served(first) as server:
        client = remote(server, "wire")
        namespace = client.namespace(IDENTITY)
        keys = keys_of(namespace, 1)
        client.put(keys, b"old", namespace)
        url = server.url
        server.stop()
    maru.Pool.destroy(pool_url)
    with maru.Pool.create(pool_url) as second, served(second, url=url):
        assert until(lambda: client.put(keys, b"new", namespace) is Outcome.STORED)
        view = second.get(keys)
        assert view is not None
        assert bytes(view) == b"new"
        rows = {row["digest"]: row["chunks"] for row in second.stats()["namespaces"]}
        assert rows[namespace.digest.hex()] == 1
        del view
        client.close()


def test_a_pool_that_was_made_anew_is_not_what_is_mapped(pool_url: str) -> None:
    with maru.Pool.create(pool_url) as first, served(first) as server:
        client = remote(server, "mapped", deadline=0.5)
        client.put(bytes(16), b"old")
        url = server.url
        server.stop()
    maru.Pool.destroy(pool_url)
    with maru.Pool.create(pool_url) as second, served(second, url=url):
        second.put(bytes(16), b"new")
        assert client.get(bytes(16)) is None
        assert client.lookup(bytes(16)) == 0
        client.close()


class Forgetful(Control):
    """Does what it is asked, once, and dies before it can say so."""

    def _seal(self, session: object, request: object, body: object) -> object:  # type: ignore[override]
        super()._seal(session, request, body)  # type: ignore[arg-type]
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("way", WAYS)
def test_a_seal_whose_answer_was_lost_is_looked_up_and_not_assumed(pool: maru.Pool, way: str) -> None:
    server = RpcServer(Forgetful(pool, LIMITS, os.urandom(16), "test"), "tcp://127.0.0.1:0")
    server.start()
    with remote(server, way) as client, client.reserve(bytes(16), 1000) as reservation:
        reservation.buffer[:] = b"x" * 1000
        successor = RpcServer(Control(pool, LIMITS, os.urandom(16), "test"), server.url)
        starter = threading.Thread(target=follow, args=(server, successor))
        starter.start()
        assert reservation.seal() is Outcome.EXISTS
        starter.join(20)
    successor.stop()


def follow(dead: RpcServer, successor: RpcServer) -> None:
    assert dead._thread is not None
    dead._thread.join(20)
    dead.stop()
    successor.start()
