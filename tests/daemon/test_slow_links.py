"""Links that are slow, break in the middle of a frame, or stand still: the same bytes, later; or a miss in time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import zmq
from relay import Link, relay
from serving import IDENTITY, bytes_for, keys_of, served, until

import maru
from maru import Outcome, wire
from maru.client.remote import RemotePool
from maru.daemon.server import RpcServer
from maru.daemon.sessions import Limits
from pools import with_force_gone

DEADLINE_S = 5.0
LATE_S = 2.0
"""What a call may take beyond its deadline on a busy machine."""
SIZE = 3_000_000
DATA = [bytes_for(n, SIZE) for n in range(3)]


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    url = pool_url.partition("?")[0] + "?size=64MiB&slots=2048&processes=32"
    with maru.Pool.create(url) as fresh:
        yield fresh
    with_force_gone(url)


@pytest.fixture
def server(pool: maru.Pool) -> Iterator[RpcServer]:
    with served(pool) as server:
        yield server


def connected(address: str, deadline_s: float = DEADLINE_S) -> RemotePool:
    client = maru.connect(address, mode="wire", deadline=deadline_s)
    assert isinstance(client, RemotePool)
    return client


def stored_by_engines(pool: maru.Pool) -> bytes:
    namespace = pool.namespace(IDENTITY)
    keys = keys_of(namespace, len(DATA))
    assert pool.put_many(keys, DATA, namespace) == [Outcome.STORED] * len(DATA)
    return keys


@pytest.mark.parametrize(
    ("bytes_per_s", "delay_s"), [(20e6, 0.02), (4e6, 0.1), (0.6e6, 0.0)], ids=["fast", "far", "poor"]
)
def test_a_slow_link_carries_the_same_bytes_later(
    pool: maru.Pool, server: RpcServer, bytes_per_s: float, delay_s: float
) -> None:
    keys = stored_by_engines(pool)
    chunks = 1 if bytes_per_s < 1e6 else len(DATA)
    with relay(server.url) as link, connected(link.address) as client:
        link.link.bytes_per_s, link.link.delay_s = bytes_per_s, delay_s
        begun_s = time.monotonic()
        with client.pin(keys[: 16 * chunks]) as prefix:
            assert [bytes(view) for view in prefix.views] == DATA[:chunks]
        assert time.monotonic() - begun_s > 0.9 * chunks * SIZE / bytes_per_s  # It was the link that set the pace.
        other = keys_of(client.namespace(IDENTITY), chunks, first=5000)
        assert client.put_many(other, DATA[:chunks]) == [Outcome.STORED] * chunks
        with pool.pin(other) as there:
            assert [bytes(view) for view in there.views] == DATA[:chunks]
        assert client.failures == {}
    assert pool.check() == []


def test_a_link_that_is_too_slow_is_a_miss_in_time(pool: maru.Pool, server: RpcServer) -> None:
    keys = stored_by_engines(pool)
    with relay(server.url) as link, connected(link.address, 1.0) as client:
        link.link.bytes_per_s = 20e3
        begun_s = time.monotonic()
        assert client.get(keys[:16]) is None
        assert time.monotonic() - begun_s < 3.0 + LATE_S
        assert client.failures["NoDaemon"] >= 1
        link.link.bytes_per_s = 0
        assert until(lambda: client.get(keys[:16]) == DATA[0])


@pytest.mark.parametrize("after", [0, 10, 64, 500, 70_000, 3 << 20])
@pytest.mark.parametrize("fate", ["ends", "stalls"])
def test_connections_that_break_in_the_middle_of_a_frame_are_made_anew(
    pool: maru.Pool, server: RpcServer, fate: str, after: int
) -> None:
    keys = stored_by_engines(pool)
    link = Link()
    (link.ends_after if fate == "ends" else link.stalls_after).extend([after, after + 1])
    with relay(server.url, link) as between:
        with connected(between.address) as client:
            with client.pin(keys) as prefix:
                assert [bytes(view) for view in prefix.views] == DATA
            other = keys_of(client.namespace(IDENTITY), 3, first=5000)
            assert client.put_many(other, DATA) == [Outcome.STORED] * 3
            assert client.failures == {}
        assert between.count >= 3
    with pool.pin(other) as there:
        assert [bytes(view) for view in there.views] == DATA
    assert pool.check() == []


def test_a_link_on_which_nothing_comes_back_is_a_miss_in_time(pool: maru.Pool, server: RpcServer) -> None:
    keys = stored_by_engines(pool)
    with relay(server.url) as link, connected(link.address, 1.0) as client:
        for line in client.channel._free:
            line.drop()
        link.link.stalls_after.extend([0] * 100)
        begun_s = time.monotonic()
        assert client.get(keys[:16]) is None
        assert time.monotonic() - begun_s < 1.0 + LATE_S


def test_who_asks_and_does_not_read_keeps_chunks_no_longer_than_two_leases(pool: maru.Pool) -> None:
    """Its session ends after a lease; the bytes on their way to it a lease after it took the last of them."""
    limits = Limits(lease_s=2.0, guard_s=0.5)
    keys = stored_by_engines(pool)
    with served(pool, limits) as server, relay(server.url, Link(stalls_after=[1 << 20])) as link:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        stranger = context.socket(zmq.DEALER)
        stranger.linger = 0
        stranger.connect(link.url)
        stranger.send(wire.encode(wire.Hello(1, (1, 1), "test", bytes(16), "greedy", "boot")))
        assert stranger.poll(5000)
        stranger.recv()
        stranger.send_multipart([wire.encode(wire.Pin(2, 1 << 40)), keys])
        assert stranger.poll(5000)
        leased = wire.decode_answer(stranger.recv_multipart()[0])
        assert isinstance(leased, wire.Leased)
        for number in range(60):
            stranger.send(wire.encode(wire.Read(3 + number, leased.lease, number % 3, 0, 1 << 20)))
        assert until(lambda: server.counts.requests.get("Read", 0) >= 40)
        assert any(row["pins"] for row in pool.stats()["processes"])
        assert until(lambda: not any(row["pins"] for row in pool.stats()["processes"]), 6.0)
        assert not server.control.sessions
        stranger.close()
        context.term()
