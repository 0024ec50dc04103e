"""Segments that are added while clients are connected: nobody connects again, and nothing that is there is a miss."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from serving import IDENTITY, LIMITS, Clock, Talker, bytes_for, keys_of, remote, served, until

import maru
from maru import Outcome, wire
from maru.client import reach, segments
from maru.client.remote import RemotePool
from maru.daemon.control import Control
from maru.daemon.pool_figures import LOOK_AGE_S
from maru.daemon.server import RpcServer
from maru.errors import PoolMismatch
from pools import with_force_gone

SLAB = 512 << 10
SIZE = 60_000
CHUNKS = 40
"""More than the pool's own two slabs hold: the others lie in the segment that came."""


@pytest.fixture
def url(pool_url: str) -> Iterator[str]:
    plain = pool_url.partition("?")[0]
    yield f"{plain}?size={2 * SLAB}&slab_bytes={SLAB}&slots=2048&processes=16&gate=off&spare={8 * SLAB}"
    with_force_gone(plain)


@pytest.fixture
def pool(url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(url) as made:
        assert made.wait_ready(20)
        yield made


@pytest.fixture
def server(pool: maru.Pool) -> Iterator[RpcServer]:
    with served(pool) as found:
        yield found


@pytest.fixture
def client(server: RpcServer) -> Iterator[RemotePool]:
    with remote(server, "mapped", memory_bytes=64 << 20) as found:
        yield found


def data_of(count: int) -> list[bytes]:
    return [bytes_for(n, SIZE) for n in range(count)]


def add_to(pool: maru.Pool, place: Path, client: RemotePool) -> None:
    """And let everybody but the client look, as they do by themselves."""
    maru.Pool.add_segment(pool.config.url, str(place))
    pool.reap()
    client.renew()
    # The daemon's own look at the pool's size may have been a moment ago.
    assert until(lambda: client.renew() or len(client.channel.segments()) == 2)


def stored(pool: maru.Pool) -> bytes:
    """Keys of chunks in both segments, stored by a process of the daemon's host."""
    here = pool.namespace(IDENTITY)
    keys = keys_of(here, CHUNKS)
    assert set(pool.put_many(keys, data_of(CHUNKS), here)) == {Outcome.STORED}
    return keys


@contextmanager
def not_on_this_host() -> Iterator[None]:
    """No segment that comes now is to be mapped by a client."""

    def refuse(*_: object) -> None:
        raise PoolMismatch("no such device")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segments, "_map_segment", refuse)
        yield


def over_the_wire(server: RpcServer) -> int:
    """Requests that moved bytes."""
    return sum(server.counts.requests.get(name, 0) for name in ("Read", "Fetch", "Write"))


def everything_read(client: RemotePool, keys: bytes) -> list[bytes]:
    """By every way that a client has to read; all of them say the same."""
    with client.pin(keys) as prefix:
        found = [bytes(view) for view in prefix.views]
        one = memoryview(bytearray(SIZE))
        prefix.read_into(CHUNKS - 1, one)
        assert bytes(one) == found[-1]
    buffers = [bytearray(SIZE) for _ in range(CHUNKS)]
    assert client.read_into(keys, buffers) == CHUNKS
    assert [bytes(buffer) for buffer in buffers] == found
    return found


def test_a_client_maps_a_segment_that_came_when_it_is_told_of_bytes_there(
    pool: maru.Pool, server: RpcServer, client: RemotePool, tmp_path: Path
) -> None:
    add_to(pool, tmp_path / "more", client)
    keys = stored(pool)
    assert everything_read(client, keys) == data_of(CHUNKS)
    assert over_the_wire(server) == 0
    assert client.failures == {}


def test_a_client_stores_in_a_segment_that_came(
    pool: maru.Pool, server: RpcServer, client: RemotePool, tmp_path: Path
) -> None:
    add_to(pool, tmp_path / "more", client)
    there = client.namespace(IDENTITY)
    keys = keys_of(there, CHUNKS)
    for first in range(0, CHUNKS, 10):  # A quarter of the pool is what one client may have under way.
        run, before = keys[16 * first : 16 * (first + 10)], keys[16 * (first - 1) : 16 * first] if first else None
        assert set(client.put_many(run, data_of(CHUNKS)[first : first + 10], there, before)) == {Outcome.STORED}
    with pool.pin(keys) as prefix:
        assert [bytes(view) for view in prefix.views] == data_of(CHUNKS)
    assert over_the_wire(server) == 0
    assert pool.check() == []


def test_what_lies_in_a_segment_that_this_host_does_not_have_comes_over_the_wire_until_it_has(
    pool: maru.Pool, server: RpcServer, client: RemotePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "ASK_PAUSE_S", 0.0)
    add_to(pool, tmp_path / "more", client)
    keys = stored(pool)
    with not_on_this_host():
        assert everything_read(client, keys) == data_of(CHUNKS)
        assert over_the_wire(server) > 0
        assert client.put(bytes(16), bytes_for(99, SIZE)) is Outcome.STORED
        assert server.counts.requests["Write"] >= 1
        view = pool.get(bytes(16))
        assert view is not None
        assert bytes(view) == bytes_for(99, SIZE)
    moved = over_the_wire(server)
    assert everything_read(client, keys) == data_of(CHUNKS)
    assert over_the_wire(server) == moved
    assert client.failures == {}
    assert pool.check() == []


def test_the_daemon_is_not_asked_for_every_chunk_of_a_segment_that_is_not_here(
    pool: maru.Pool, server: RpcServer, client: RemotePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reach, "ASK_PAUSE_S", 3600.0)
    add_to(pool, tmp_path / "more", client)
    keys, greetings = stored(pool), server.counts.requests["Hello"]
    with not_on_this_host():
        assert everything_read(client, keys) == data_of(CHUNKS)
    assert server.counts.requests["Hello"] == greetings + 1


def test_no_more_is_fetched_at_once_than_the_client_has_memory_for(
    pool: maru.Pool, client: RemotePool, tmp_path: Path
) -> None:
    add_to(pool, tmp_path / "more", client)
    keys = stored(pool)
    client.memory_bytes = 3 * SIZE
    with not_on_this_host(), client.pin(keys) as prefix:
        far = [at for at, (offset, _, _) in enumerate(prefix._extents) if offset >= 2 * SLAB]
        assert [bytes(view) for view in prefix.views] == data_of(far[3])  # Up to the fourth that is not here.


RACE = """
import sys
sys.path[:0] = sys.argv[2:]
import maru
from serving import IDENTITY, bytes_for, keys_of, remote, served

with maru.Pool.attach(sys.argv[1]) as pool, served(pool) as server, remote(server, "mapped") as client:
    maru.Pool.add_segment(pool.config.url, sys.argv[2])
    with maru.Pool.attach(sys.argv[1]) as other:
        here = other.namespace(IDENTITY)
        keys = keys_of(here, 40)
        other.put_many(keys, [bytes_for(n, 60_000) for n in range(40)], here)
        client.renew()  # Its row maps the segment; the daemon's own attachment does so within a quarter of a second.
        for n in range(40):
            view = client.get(keys[16 * n : 16 * n + 16])
            assert view is None or bytes(view) == bytes_for(n, 60_000)
"""


def test_a_daemon_that_has_not_seen_a_segment_yet_does_not_touch_what_is_not_there(
    pool: maru.Pool, tmp_path: Path
) -> None:
    """It would die of SIGSEGV, and all its clients would lose what they hold."""
    folders = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
    command = [sys.executable, "-c", RACE, pool.config.url, str(tmp_path), *folders]
    subprocess.run(command, check=True, timeout=60)


def test_who_greets_is_told_of_the_segments_that_came_and_what_it_may_take_grows(
    pool: maru.Pool, tmp_path: Path
) -> None:
    clock = Clock()
    control = Control(pool, LIMITS, os.urandom(16), "test", clock)
    early = Talker(control)
    assert (len(early.welcome.segments), early.welcome.size_bytes) == (1, 2 * SLAB)
    maru.Pool.add_segment(pool.config.url, str(tmp_path))
    pool.reap()
    keys = stored(pool)
    assert len(Talker(control).welcome.segments) == 1  # Looked a moment ago.
    leased, _ = early.ask(wire.Pin(0, 1 << 40), keys)
    assert leased.count == SLAB // SIZE  # Half of the two slabs.
    clock.go(LOOK_AGE_S)
    late = Talker(control)
    assert (len(late.welcome.segments), late.welcome.size_bytes) == (2, 10 * SLAB)
    leased, _ = late.ask(wire.Pin(0, 1 << 40), keys)
    assert leased.count == CHUNKS


def test_a_pool_that_awaits_nothing_is_not_looked_at_again(pool_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    with maru.Pool.create(pool_url) as whole:
        control = Control(whole, LIMITS, os.urandom(16), "test", clock)

        def refuse() -> None:
            pytest.fail("it was looked at")

        monkeypatch.setattr(whole, "stats", refuse)
        clock.go(LOOK_AGE_S)
        assert len(Talker(control).welcome.segments) == 1
