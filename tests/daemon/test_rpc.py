"""One API over three ways: clients of a daemon, with real sockets, against the pool itself."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq
from serving import IDENTITY, LIMITS, address_of, bytes_for, keys_of, remote, roomy, served

import maru
from maru import Outcome, wire
from maru.client import holds
from maru.client.remote import RemotePool
from maru.credentials import Client
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.errors import (
    BadKey,
    BadSize,
    BadUrl,
    ChunkTooLarge,
    LeaseEnded,
    NoDaemon,
    NotAttached,
    NotProtected,
    NotReserved,
    PoolMismatch,
    VersionSkew,
)

SIZES = [20_000, 20_000, 5, 3_000_000, 3_000_000, 20_000]
WAYS = ("wire", "mapped")


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    with roomy(pool_url) as fresh:
        yield fresh


@pytest.fixture(params=WAYS)
def client(request: pytest.FixtureRequest, pool: maru.Pool) -> Iterator[RemotePool]:
    with served(pool) as server, remote(server, request.param) as found:
        yield found


def holds_nothing(pool: maru.Pool) -> bool:
    figures = pool.stats()
    return not any(row["pins"] for row in figures["processes"]) and figures["chunks"]["reserved"] == 0


def test_a_prefix_is_read_into_buffers_by_the_same_call_from_everywhere(pool: maru.Pool, client: RemotePool) -> None:
    there = client.namespace(IDENTITY)
    keys = keys_of(there, len(SIZES) + 1)
    data = [bytes_for(n, size) for n, size in enumerate(SIZES)]
    client.put_many(keys[:-16], data, there)
    for source in (pool, client):
        buffers = [bytearray(size) for size in [*SIZES, 7]]
        assert source.read_into(keys, buffers) == len(SIZES)
        assert [bytes(buffer) for buffer in buffers[:-1]] == data
        assert source.read_into(keys[-16:] + keys[:16], [bytearray(7), bytearray(SIZES[0])]) == 0
        with pytest.raises(BadSize, match="chunk 1 has 20000 bytes, its buffer 4"):
            source.read_into(keys[:32], [bytearray(SIZES[0]), bytearray(4)])
        with pytest.raises(ValueError, match="2 keys and 1 buffers"):
            source.read_into(keys[:32], [bytearray(SIZES[0])])
    assert client.failures == {}
    assert holds_nothing(pool)


def test_what_one_stores_the_other_reads(pool: maru.Pool, client: RemotePool) -> None:
    here, there = pool.namespace(IDENTITY), client.namespace(IDENTITY)
    keys = keys_of(there, len(SIZES))
    assert keys == keys_of(here, len(SIZES))
    data = [bytes_for(n, size) for n, size in enumerate(SIZES)]
    assert client.put_many(keys, data, there) == [Outcome.STORED] * len(SIZES)
    with pool.pin(keys) as prefix:
        assert [bytes(view) for view in prefix.views] == data
    with client.pin(keys) as remote_prefix:
        assert len(remote_prefix) == len(SIZES)
        assert remote_prefix.sizes == SIZES
        assert remote_prefix.nbytes == sum(SIZES)
        assert [bytes(view) for view in remote_prefix.views] == data
        assert remote_prefix.held
        buffer = memoryview(bytearray(SIZES[3]))
        remote_prefix.read_into(3, buffer)
        assert bytes(buffer) == data[3]
    assert client.failures == {}
    assert pool.check() == []


def test_the_calls_answer_as_the_pools_own_do(pool: maru.Pool, client: RemotePool) -> None:
    keys = keys_of(client.namespace(IDENTITY), 4)
    assert (client.lookup(keys), client.exists(keys[:16]), client.get(keys[:16]), len(client.pin(keys))) == (
        0,
        False,
        None,
        0,
    )
    with client.pin(keys) as nothing:
        assert (nothing.views, nothing.nbytes) == ([], 0)
    assert client.put(keys[:16], b"one") is Outcome.STORED
    assert client.put(keys[:16], b"one") is Outcome.EXISTS
    assert client.put(keys[16:32], b"two", parent=keys[:16]) is Outcome.STORED
    assert client.lookup(keys) == 2
    view = client.get(keys[16:32])
    assert view is not None
    assert bytes(view) == b"two"
    assert view.readonly
    with pool.reserve(keys[32:48], 100) as taken:
        assert client.reserve(keys[32:48], 100).outcome is Outcome.IN_FLIGHT
        taken.discard()
    assert client.remove(keys[16:32]) is True
    assert client.remove(keys[16:32]) is False
    assert client.stats()["uuid"] == pool.stats()["uuid"]
    assert holds_nothing(pool)


def test_a_reservation_is_published_by_seal_alone(pool: maru.Pool, client: RemotePool) -> None:
    with client.reserve(bytes(16), 1000) as reservation:
        reservation.buffer[:] = b"x" * 1000
        assert not pool.exists(bytes(16))
        assert reservation.seal() is Outcome.STORED
    assert pool.exists(bytes(16))
    with client.reserve(bytes(range(16)), 1000) as given_up:
        given_up.buffer[:] = b"y" * 1000
    assert not pool.exists(bytes(range(16)))
    assert holds_nothing(pool)


def test_memory_that_nobody_wrote_is_not_published(pool: maru.Pool, client: RemotePool) -> None:
    with client.reserve_many(bytes(range(32)), 500) as batch:
        assert batch.seal() == [Outcome.LOST] * 2
    assert pool.lookup(bytes(range(32))) == 0
    assert holds_nothing(pool)
    with pytest.raises(NotReserved):
        batch.seal()


def test_drafts_taken_in_advance_make_a_store_one_message(pool: maru.Pool, client: RemotePool) -> None:
    namespace = client.namespace(IDENTITY)
    keys = keys_of(namespace, 4)
    data = [bytes_for(n) for n in range(4)]
    with client.allocate(20_000, 5) as drafts:
        assert len(drafts) == 5
        assert drafts.put_many(keys[:32], data[:2], namespace) == [Outcome.STORED] * 2
        assert drafts.put_many(keys[32:], data[2:], namespace, keys[16:32]) == [Outcome.STORED] * 2
        assert len(drafts) == 1
        assert drafts.put_many(keys[:32], data[:2], namespace) == [Outcome.EXISTS, Outcome.FULL]
        assert len(drafts) == 0
        with pytest.raises(ValueError, match="20000 bytes"):
            drafts.put_many(keys[:16], [b"short"])
    with pool.pin(keys) as prefix:
        assert [bytes(view) for view in prefix.views] == data
    assert pool.stats()["chunks"]["leaves"] == 1
    client.allocate(20_000, 3).discard()
    assert client.failures == {}
    client.close()
    assert pool.check() == []


def test_what_is_held_cannot_be_evicted_or_removed(pool: maru.Pool, client: RemotePool) -> None:
    client.put(bytes(16), b"x" * 1000)
    prefix = client.pin(bytes(16))
    assert pool.remove(bytes(16)) is False
    prefix.release()
    with pytest.raises(LeaseEnded):
        prefix.read_into(0, memoryview(bytearray(1000)))
    assert pool.remove(bytes(16)) is True


def test_waiting_ends_when_somebody_seals(pool: maru.Pool, client: RemotePool) -> None:
    assert client.wait(bytes(16), 5.0) is False  # Nobody writes it.
    reservation = pool.reserve(bytes(16), 100)
    done: list[bool] = []
    waiter = threading.Thread(target=lambda: done.append(client.wait(bytes(16), 20.0)))
    waiter.start()
    reservation.seal()
    waiter.join(20)
    assert done == [True]


def test_many_threads_share_one_client(pool: maru.Pool, client: RemotePool) -> None:
    wrong: list[str] = []

    def work(number: int) -> None:
        keys = keys_of(client.namespace(IDENTITY), 8, first=number * 1000)
        data = [bytes_for(number + n, 30_000) for n in range(8)]
        for _ in range(5):
            client.put_many(keys, data)
            with client.pin(keys) as prefix:
                if [bytes(view) for view in prefix.views] != data[: len(prefix)]:
                    wrong.append(f"thread {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert wrong == []
    assert client.failures == {}
    assert pool.check() == []


def test_mistakes_of_the_caller_are_errors_and_no_misses(client: RemotePool) -> None:
    with pytest.raises(BadKey):
        client.lookup(b"short")
    with pytest.raises(BadKey):
        client.get(bytes(32))
    with pytest.raises(ChunkTooLarge):
        client.reserve(bytes(16), 1 << 30)
    with pytest.raises(ValueError, match="1 keys and 2 buffers"):
        client.put_many(bytes(16), [b"a", b"b"])
    client.close()
    with pytest.raises(NotAttached):
        client.lookup(bytes(16))


def test_a_client_that_fetches_holds_no_more_at_once_than_it_has_memory_for(pool: maru.Pool) -> None:
    with served(pool) as server, remote(server, "wire", memory_bytes=50_000) as client:
        keys = keys_of(client.namespace(IDENTITY), 4)
        client.put_many(keys, [bytes_for(n) for n in range(4)])
        with client.pin(keys) as prefix:
            assert [bytes(view) for view in prefix.views] == [bytes_for(n) for n in range(2)]


def test_on_the_same_host_a_client_is_given_the_pool_itself(pool: maru.Pool) -> None:
    with served(pool) as server:
        found = maru.connect(address_of(server))
        assert isinstance(found, maru.Pool)
        assert found.stats()["uuid"] == pool.stats()["uuid"]
        assert server.control.sessions == {}  # It speaks with the daemon no more.
        found.close()


def test_closing_a_client_gives_everything_back(pool: maru.Pool, client: RemotePool) -> None:
    client.put(bytes(16), b"x" * 1000)
    client.pin(bytes(16))
    client.reserve_many(bytes(range(64)), 1000)
    client.close()
    assert holds_nothing(pool)


def test_bytes_in_place_that_changed_are_never_given_out(pool: maru.Pool) -> None:
    with served(pool) as server, remote(server, "mapped") as client:
        client.put(bytes(16), bytes_for(1))
        with client.pin(bytes(16)) as prefix:
            assert client.memory is not None
            offset, size, _ = prefix._extents[0]
            client.memory._writable(offset, size)[0] ^= 1  # A stray write of somebody's.
            assert prefix.views == []
            with pytest.raises(LeaseEnded, match="not those"):
                prefix.read_into(0, memoryview(bytearray(size)))
        assert client.failures["bytes_refused"] == 2


@pytest.mark.parametrize("way", WAYS)
def test_what_was_copied_while_the_lease_ended_is_not_to_be_used(
    pool: maru.Pool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(pool) as server, remote(server, way) as client:
        client.put(bytes(16), bytes_for(1))
        buffer = memoryview(bytearray(20_000))

        def lapse(*_: object) -> None:
            client.channel.held_until_s = 0.0

        with client.pin(bytes(16)) as prefix:
            if way == "wire":
                monkeypatch.setattr(client, "fetch", lapse)
            else:
                copy = holds.copy_of_others
                monkeypatch.setattr(holds, "copy_of_others", lambda *args: (copy(*args), lapse())[0])
            for read in (lambda: prefix.read_into(0, buffer), lambda: prefix.read_many([(0, buffer)])):
                client.channel.held_until_s = float("inf")
                with pytest.raises(LeaseEnded):
                    read()


def test_nobody_there_is_said_within_the_deadline() -> None:
    silent = socket.create_server(("127.0.0.1", 0))  # Accepts, and says nothing.
    with silent, pytest.raises(NoDaemon, match=r"in 0\.2 s"):
        maru.connect(f"maru://127.0.0.1:{silent.getsockname()[1]}", deadline=0.2)


def test_memory_that_cannot_be_mapped_here_is_fetched(pool: maru.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(pool) as server:
        server.control._figures.told["segments"][0]["path"] = "/dev/null"
        with pytest.raises(PoolMismatch, match="not to be mapped here"):
            maru.connect(address_of(server), mode="mapped")
        monkeypatch.setattr("maru.client.ways.BOOT_ID", Path("/proc/version"))
        with maru.connect(address_of(server)) as found:
            assert isinstance(found, RemotePool)
            assert found.kind == "wire"


class Newer(Control):
    """A daemon of a time when nobody speaks today's protocol any more."""

    def greet(self, client: Client | None, hello: wire.Hello) -> object:  # type: ignore[override]
        hello.protocols = (0, 0)
        return super().greet(client, hello)


def test_memory_of_another_pool_is_not_mapped(pool: maru.Pool) -> None:
    with served(pool) as server:
        server.control._figures.told["uuid"] = "0" * 32
        with pytest.raises(PoolMismatch, match="another segment"):
            maru.connect(address_of(server), mode="mapped")


def test_a_daemon_with_no_protocol_in_common_is_refused_clearly(pool: maru.Pool) -> None:
    server = RpcServer(Newer(pool, LIMITS, os.urandom(16), "maru 9"), "tcp://127.0.0.1:0")
    server.start()
    with pytest.raises(VersionSkew, match=r"this daemon \(maru 9\) speaks protocol 1"):
        maru.connect(address_of(server), mode="wire")
    server.stop()


@pytest.mark.parametrize("url", ["tcp://0.0.0.0:0", "tcp://10.1.2.3:7", "tcp://[::]:0"])
def test_a_daemon_without_keys_serves_this_host_alone(pool: maru.Pool, url: str) -> None:
    with pytest.raises(NotProtected):
        RpcServer(Control(pool, LIMITS, bytes(16), "test"), url)


@pytest.mark.parametrize("url", ["http://127.0.0.1:1", "tcp://", "127.0.0.1:6555", "tcp://127.0.0.1:99999999"])
def test_an_address_that_is_none_is_refused(pool: maru.Pool, url: str) -> None:
    with pytest.raises(BadUrl):
        RpcServer(Control(pool, LIMITS, bytes(16), "test"), url).start()


def test_an_address_that_is_taken_is_said(pool: maru.Pool) -> None:
    with served(pool) as server:
        second = RpcServer(Control(pool, LIMITS, bytes(16), "test"), server.url)
        with pytest.raises(BadUrl, match="Address already in use"):
            second.start()


@pytest.mark.parametrize(
    "url", ["maru://host", "maru://:1", "maru://host:1?mode=fast", "maru://host:1?colour=red", "redis://a:1"]
)
def test_an_address_of_no_daemon_is_refused(url: str) -> None:
    with pytest.raises(BadUrl):
        maru.connect(url, deadline=0.1)


def test_frames_that_are_no_messages_are_refused_and_others_served(pool: maru.Pool) -> None:
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    with served(pool) as server, remote(server, "wire") as client:
        stranger = context.socket(zmq.DEALER)
        stranger.linger = 0
        stranger.connect(server.url)
        stranger.send(b"\xc1 nonsense")
        assert stranger.poll(5000)
        refused = wire.decode_answer(stranger.recv())
        assert isinstance(refused, wire.Refused)
        assert refused.error == "BadMessage"
        stranger.send_multipart([b"a", b"b", b"c", b"d"])
        stranger.send(wire.encode(wire.Lookup(3)))
        assert stranger.poll(5000)
        assert wire.decode_answer(stranger.recv()).error == "SessionUnknown"  # type: ignore[union-attr]
        assert client.lookup(bytes(16)) == 0
        assert client.failures == {}
        stranger.close()
    context.term()
