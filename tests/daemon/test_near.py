"""A pool of this host in front of another's: what LMCache's doors stand on when the pool is elsewhere.

The daemon here is of the same host; asked to come by wire, a client treats it as another's.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import IDENTITY, address_of, bytes_for, keys_of, served, until

import maru
from maru import MaruConfig, MaruHandler, Outcome
from maru.address import read_address
from maru.audit import Wanted, entries_in
from maru.client.listener import Listener
from maru.client.near import NearPool
from maru.client.opening import open_pool, settled
from maru.client.remote import RemotePool
from maru.config import parse_url, shared_memory_root
from maru.daemon.server import RpcServer
from maru.errors import NoDaemon, PoolBusy
from maru.string_keys import lmcache_namespace
from maru_lmcache.copying import PoolCopies
from pools import with_force_gone

WAYS = ("wire", "mapped")
CHUNK = 20_000


@pytest.fixture
def far(pool_url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(pool_url) as fresh:
        assert fresh.wait_ready(20)
        yield fresh


@pytest.fixture
def server(far: maru.Pool) -> Iterator[RpcServer]:
    with served(far) as found:
        yield found


@pytest.fixture(autouse=True)
def near_pools_go() -> Iterator[None]:
    """Near pools are named after the daemon's port: they go with the test."""
    yield
    for folder in shared_memory_root().glob("near-*"):
        with_force_gone(f"maru:///{folder.name}")


def address(server: RpcServer, way: str) -> str:
    return f"{address_of(server)}?mode={way}&pool_size=8M"


def near_pool(server: RpcServer, way: str, deadline_s: float = 5.0) -> NearPool:
    """As if the daemon were elsewhere: a loopback address leads to this host's default pool."""
    parsed = read_address(address(server, way))
    url = parsed.url.replace("default", f"near-{server.url.rpartition(':')[2]}")
    found = open_pool(replace(parsed, url=url, needs_daemon=True), deadline_s)
    assert isinstance(found, NearPool)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_what_the_far_pool_has_is_read_here(far: maru.Pool, server: RpcServer, way: str) -> None:
    namespace = far.namespace(IDENTITY)
    keys = keys_of(namespace, 5)
    far.put_many(keys[:64], [bytes_for(n, CHUNK) for n in range(4)], namespace)
    with near_pool(server, way, deadline_s=0.5) as near:
        near.namespace(IDENTITY)
        assert near.lookup(keys) == 4
        assert near.find(keys) == [True] * 4 + [False]
        assert (near.exists(keys[:16]), near.exists(keys[64:])) == (True, False)
        with near.pin(keys) as prefix:
            assert [bytes(view) for view in prefix.views] == [bytes_for(n, CHUNK) for n in range(4)]
        assert near.brought == 4
        buffers = [bytearray(CHUNK) for _ in range(5)]
        assert near.read_into(keys, buffers) == 4
        assert bytes(buffers[3]) == bytes_for(3, CHUNK)
        server.stop()  # What came is of this host now.
        with near.pin(keys) as prefix:
            assert len(prefix) == 4
        assert near.check() == []


@pytest.mark.parametrize("way", WAYS)
def test_what_is_stored_here_comes_to_the_far_pool_with_its_parents_and_namespace(
    far: maru.Pool, server: RpcServer, way: str
) -> None:
    with near_pool(server, way) as near:
        namespace = near.namespace(IDENTITY)
        keys = keys_of(namespace, 4)
        assert set(near.put_many(keys, [bytes_for(n, CHUNK) for n in range(4)], namespace)) == {Outcome.STORED}
        assert near.flush(20)
        assert far.lookup(keys) == 4
        with far.pin(keys) as prefix:
            assert [bytes(view) for view in prefix.views] == [bytes_for(n, CHUNK) for n in range(4)]
        figures = far.stats()
        assert figures["chunks"]["leaves"] == 1
        assert next(row["chunks"] for row in figures["namespaces"] if row["digest"] == namespace.digest.hex()) == 4


def test_a_chunk_that_came_from_there_is_not_sent_back(far: maru.Pool, server: RpcServer) -> None:
    namespace = far.namespace(IDENTITY)
    keys = keys_of(namespace, 3)
    far.put_many(keys, [bytes_for(n, CHUNK) for n in range(3)], namespace)
    with near_pool(server, "wire") as near:
        near.namespace(IDENTITY)
        near.bring(keys)
        assert near.flush(20)
        assert near._sender.sent == 0
        assert "Reserve" not in server.counts.requests


def test_a_chunk_that_another_process_brought_does_not_come_back_to_where_it_was_removed(
    far: maru.Pool, server: RpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it is still here when the one that sends sees it, and is gone there by then."""
    monkeypatch.setattr(Listener, "_remove", lambda _: None)
    namespace = far.namespace(IDENTITY)
    keys = keys_of(namespace, 3)
    far.put_many(keys[:32], [bytes_for(n, CHUNK) for n in range(2)], namespace)
    with near_pool(server, "wire") as sending, near_pool(server, "wire") as bringing:
        assert until(lambda: sending._sender.is_caught_up)
        with sending._sender._unsent:  # It sees nothing until all of this is done.
            bringing.namespace(IDENTITY)
            bringing.bring(keys[:32])
            assert far.remove(keys[16:32])
            own = bringing.namespace(IDENTITY)
            bringing.put(keys[32:], b"x" * CHUNK, own)
        assert until(lambda: far.exists(keys[32:]))
        assert sending.flush(20)
        assert maru.Pool.exists(sending, keys[16:32])
        assert not far.exists(keys[16:32])
        assert sending._sender.sent == 1


def test_single_chunks_come_and_go_too(far: maru.Pool, server: RpcServer) -> None:
    far.put(bytes(16), bytes_for(9, CHUNK))
    with near_pool(server, "wire") as near:
        view = near.get(bytes(16))
        assert view is not None
        assert bytes(view) == bytes_for(9, CHUNK)
        assert near.get(bytes(range(16))) is None
        del view
        assert near.remove(bytes(16)) is True
        assert not far.exists(bytes(16))
        assert not near.exists(bytes(16))


def test_without_the_daemon_the_near_pool_works_on_and_sends_later(far: maru.Pool, server: RpcServer) -> None:
    with near_pool(server, "wire", deadline_s=0.3) as near:
        namespace = near.namespace(IDENTITY)
        keys = keys_of(namespace, 3)
        url = server.url
        server.stop()
        assert near.lookup(keys) == 0
        near.put_many(keys, [bytes_for(n, CHUNK) for n in range(3)], namespace)
        with near.pin(keys) as prefix:
            assert len(prefix) == 3
        assert near.flush(0.1) is False
        with served(far, url=url):
            assert until(lambda: far.lookup(keys) == 3)


def test_what_could_not_be_sent_is_sent_later(
    far: maru.Pool, server: RpcServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with near_pool(server, "wire") as near:
        register, asked = near.far.channel.register, []

        def refuse_once(*parts: Any) -> int:
            asked.append(parts)
            if len(asked) == 1:
                raise PoolBusy("not now")
            return register(*parts)

        namespace = near.namespace(IDENTITY)
        monkeypatch.setattr(near.far.channel, "register", refuse_once)
        keys = keys_of(namespace, 2)
        near.put_many(keys, [b"x" * CHUNK] * 2, namespace)
        assert until(lambda: far.lookup(keys) == 2)
        assert len(asked) == 2


def test_another_process_goes_on_sending_when_the_sender_ends(far: maru.Pool, server: RpcServer) -> None:
    first, second = near_pool(server, "wire"), near_pool(server, "wire")
    try:
        assert until(lambda: first._sender.has_right)
        assert not second._sender.has_right
        first.close()
        namespace = second.namespace(IDENTITY)
        keys = keys_of(namespace, 2)
        second.put_many(keys, [b"x" * CHUNK] * 2, namespace)
        assert until(lambda: far.lookup(keys) == 2)
    finally:
        second.close()


def test_many_readers_bring_a_chunk_once(far: maru.Pool, server: RpcServer) -> None:
    namespace = far.namespace(IDENTITY)
    keys = keys_of(namespace, 8)
    data = [bytes_for(n, CHUNK) for n in range(8)]
    far.put_many(keys, data, namespace)
    pools = [near_pool(server, "wire") for _ in range(3)]
    read: list[list[bytes]] = []

    def work(near: NearPool) -> None:
        near.namespace(IDENTITY)
        with near.pin(keys) as prefix:
            read.append([bytes(view) for view in prefix.views])

    threads = [threading.Thread(target=work, args=(near,)) for near in pools]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert read == [data] * 3
    assert sum(near.brought for near in pools) == 8
    for near in pools:
        near.close()


def test_a_near_pool_that_is_destroyed_leaves_nothing(server: RpcServer) -> None:
    near = near_pool(server, "wire")
    assert until(lambda: near._sender.has_right)
    folder = Path(near.folder)
    near.close()
    maru.Pool.destroy(near.config.url)
    assert not folder.exists()


def test_a_daemon_of_this_host_hands_out_its_pool(far: maru.Pool, server: RpcServer) -> None:
    found = open_pool(read_address(address_of(server)))
    assert type(found) is maru.Pool
    assert found.stats()["uuid"] == far.stats()["uuid"]
    found.close()


def test_where_no_daemon_listens_a_loopback_address_is_the_default_pool(
    monkeypatch: pytest.MonkeyPatch, pool_url: str
) -> None:
    name = pool_url.removeprefix("maru:///").partition("?")[0]
    monkeypatch.setattr("maru.address.DEFAULT_POOL_NAME", name)
    found = open_pool(read_address("maru://127.0.0.1:1?pool_size=8M"), deadline_s=0.2)
    assert found.config.name == name
    found.close()


def test_what_is_attached_to_again_is_the_pool_and_not_the_daemon(far: maru.Pool, server: RpcServer) -> None:
    """A pool of this host that was destroyed is looked for by its name: nobody waits for a daemon on the way."""
    address = read_address(address_of(server) + "?populate=off")
    found = open_pool(address)
    again = settled(address, found)
    assert (again.daemon, again.pool.name, again.pool.populate) == ("", far.config.name, False)
    found.close()
    with near_pool(server, "wire") as near:
        assert settled(address, near) == address
    direct = read_address(f"maru:///{far.config.name}?populate=off")
    assert settled(direct, far) == direct


def test_elsewhere_without_a_daemon_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NoDaemon):
        open_pool(read_address("maru://192.0.2.1:6555"), deadline_s=0.2)


def test_an_engine_that_needs_memory_of_its_own_host_is_told(far: maru.Pool, server: RpcServer) -> None:
    with pytest.raises(NoDaemon, match="needs one of its own host"):
        open_pool(read_address(address(server, "wire")), near=False)


def handler(server: RpcServer, way: str) -> MaruHandler:
    """LMCache's MaruBackend writes maru_path: maru://... and hands on tcp://..."""
    found = MaruHandler(
        MaruConfig(
            server_url=address(server, way).replace("maru://", "tcp://"), pool_size=8 << 20, chunk_size_bytes=CHUNK
        )
    )
    assert found.connect()
    return found


@pytest.mark.parametrize("way", ["local", *WAYS])
def test_the_drop_in_handler_stores_and_retrieves_through_a_daemon(
    far: maru.Pool, server: RpcServer, way: str, near_default: Any
) -> None:
    names = [f"chunk-{n}" for n in range(3)]
    with handler(server, way) as one:
        assert one.batch_exists(names) == [False] * 3
        handles = [one.alloc(CHUNK) for _ in names]
        for n, handle in enumerate(handles):
            handle.buf[:] = bytes_for(n, CHUNK)
        assert one.batch_store(names, handles) == [True] * 3
        packed = b"".join(maru.string_keys.pack_keys(lmcache_namespace(far), [name]) for name in names)
        assert until(lambda: far.lookup(packed) == 3)
        del handles, handle  # What is stored is held by its handle.
    near_default()  # As on a host where nothing is yet.
    with handler(server, way) as other:
        assert other.batch_exists([*names, "none"]) == [True] * 3 + [False]
        assert other.batch_pin(names) == [True] * 3
        found = other.batch_retrieve(names)
        assert [bytes(one.view) for one in found if one] == [bytes_for(n, CHUNK) for n in range(3)]
        assert other.batch_unpin(names) == [True] * 3
        assert other.get_stats()
        del found
        assert other.delete(names[2]) is True
        assert not far.exists(packed[32:])


@pytest.fixture
def near_default(monkeypatch: pytest.MonkeyPatch, pool_url: str) -> Iterator[Any]:
    """A loopback address leads to the default pool of this host: give it a name of the test's own."""
    name = f"near-default-{os.getpid()}"
    monkeypatch.setattr("maru.address.DEFAULT_POOL_NAME", name)
    yield lambda: with_force_gone(f"maru:///{name}")
    with_force_gone(f"maru:///{name}")


@pytest.mark.parametrize("way", ["local", *WAYS])
def test_copies_of_the_remote_door_go_through_a_daemon(
    far: maru.Pool, server: RpcServer, way: str, near_default: Any
) -> None:
    copies = PoolCopies(address(server, way), 8 << 20, CHUNK)
    packed = copies.pack(["a", "b"])
    assert copies.store(packed, [memoryview(bytes_for(n, CHUNK)) for n in range(2)], None) == [Outcome.STORED] * 2
    assert until(lambda: far.lookup(packed) == 2)
    copies.close()
    near_default()
    again = PoolCopies(address(server, way), 8 << 20, CHUNK)
    assert again.leading(packed) == 2
    assert [bytes(view) for view in again.views(packed) if view is not None] == [bytes_for(n, CHUNK) for n in range(2)]
    again.close()


def test_what_a_near_pool_sends_away_stands_in_its_audit_log(far: maru.Pool, server: RpcServer, tmp_path: Path) -> None:
    url = f"maru:///near-{server.url.rpartition(':')[2]}?size=8MiB"
    maru.Pool.create(url).close()
    found = maru.connect(address_of(server), mode="wire")
    assert isinstance(found, RemotePool)
    with NearPool(parse_url(f"{url}&audit={tmp_path}/audit"), found) as near:
        namespace = near.namespace(IDENTITY)
        near.put_many(keys_of(namespace, 2), [b"x" * CHUNK] * 2, namespace)
        assert near.flush(20)  # type: ignore[attr-defined]
        digest = namespace.digest.hex()
    [line] = entries_in(tmp_path / "audit", Wanted(what="exported"))
    assert (line["door"], line["namespace"], line["chunks"], line["bytes"]) == ("rpc", digest, 2, 2 * CHUNK)
