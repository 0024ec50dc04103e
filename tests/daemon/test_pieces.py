"""Bytes over the wire: small chunks together, large ones in parts, and never any that differ from their checksum."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from serving import IDENTITY, LIMITS, address_of, bytes_for, keys_of, served

import maru
from maru import Outcome, wire
from maru.client import channel
from maru.client.remote import RemotePool
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.errors import MaruError
from pools import with_force_gone


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    """A pool whose slabs hold chunks of several pieces."""
    url = pool_url.partition("?")[0] + "?size=64MiB&slots=2048&processes=32"
    with maru.Pool.create(url) as fresh:
        assert fresh.wait_ready(20)
        yield fresh
    with_force_gone(url)


def fetching(server: RpcServer) -> RemotePool:
    found = maru.connect(address_of(server), mode="wire")
    assert isinstance(found, RemotePool)
    return found


class Damaging(Control):
    """A daemon whose bytes are changed on their way."""

    def _read(self, session: object, request: object, body: object) -> object:  # type: ignore[override]
        answer, out = super()._read(session, request, body)  # type: ignore[arg-type]
        return answer, b"!" + bytes(out[1:])

    def _fetch(self, session: object, request: object, body: object) -> object:  # type: ignore[override]
        answer, out = super()._fetch(session, request, body)  # type: ignore[arg-type]
        return answer, [*out[:-1], b"!" + bytes(out[-1])[1:]]


class Withholding(Control):
    """A daemon that answers with one body too few."""

    def _fetch(self, session: object, request: object, body: object) -> object:  # type: ignore[override]
        answer, out = super()._fetch(session, request, body)  # type: ignore[arg-type]
        return answer, out[:-1]


@pytest.mark.parametrize("kind", [Damaging, Withholding])
@pytest.mark.parametrize("size", [20_000, 3_000_000], ids=["chunks in one message", "a chunk in several"])
def test_a_prefix_of_which_something_is_amiss_is_not_given_out(pool: maru.Pool, kind: type[Control], size: int) -> None:
    keys = keys_of(pool.namespace(IDENTITY), 3)
    assert set(pool.put_many(keys, [bytes_for(n, size) for n in range(3)])) == {Outcome.STORED}
    server = RpcServer(kind(pool, LIMITS, os.urandom(16), "test"), "tcp://127.0.0.1:0")
    server.start()
    with fetching(server) as client, client.pin(keys) as prefix:
        if kind is Damaging or size < wire.PIECE_BYTES:
            with pytest.raises(MaruError, match="checksum"):
                _ = prefix.views
            assert client.failures["bytes_refused"] == 1
        else:
            assert [bytes(view) for view in prefix.views] == [bytes_for(n, size) for n in range(3)]
    server.stop()


def test_small_chunks_share_messages_and_large_ones_are_cut(pool: maru.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(channel, "QUICK_S", float("inf"))
    monkeypatch.setattr(channel, "PIECE_BYTES_MIN", wire.PIECE_BYTES)  # Of a link that is known to be quick.
    keys = keys_of(pool.namespace(IDENTITY), 100)
    sizes = [1000] * 90 + [400_000, 3_000_000, 400_000, 600_000, 600_000] + [10] * 5
    data = [bytes_for(n, size) for n, size in enumerate(sizes)]
    for n, chunk in enumerate(data):
        assert pool.put(keys[16 * n : 16 * n + 16], chunk) is Outcome.STORED
    with served(pool) as server, fetching(server) as client:
        with client.pin(keys) as prefix:
            assert [bytes(view) for view in prefix.views] == data
            wanted = [(at, memoryview(bytearray(sizes[at]))) for at in (5, 3, 4, 91, 99, 0)]
            prefix.read_many(wanted)
            assert [bytes(buffer) for _, buffer in wanted] == [data[at] for at, _ in wanted]
        asked = server.counts.requests
        # Of the views: 64, 27, 2 and 6; of the six: 5, 3 and 4, 99, 0. The large one in three, twice.
        assert (asked["Fetch"], asked["Read"]) == (4 + 4, 3 + 3)
        assert client.failures == {}


def test_bytes_that_were_damaged_on_the_way_are_never_given_out(pool: maru.Pool) -> None:
    pool.put(bytes(16), bytes_for(1))
    server = RpcServer(Damaging(pool, LIMITS, os.urandom(16), "test"), "tcp://127.0.0.1:0")
    server.start()
    with fetching(server) as client:
        assert client.get(bytes(16)) is None
        assert client.failures["bytes_refused"] == 1
        with client.pin(bytes(16)) as prefix, pytest.raises(MaruError, match="checksum"):
            _ = prefix.views
    server.stop()
