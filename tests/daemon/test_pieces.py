"""Bytes over the wire: small chunks together, large ones in parts, and never any that differ from their checksum."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest
from serving import IDENTITY, LIMITS, Talker, address_of, bytes_for, keys_of, roomy, served, until

import maru
from maru import Outcome, wire
from maru.client import channel, pieces
from maru.client.remote import RemotePool
from maru.daemon.checksums import Checksums
from maru.daemon.control import Control
from maru.daemon.pool_memory import PoolMemory
from maru.daemon.server import RpcServer
from maru.errors import BadMessage, LeaseEnded, MaruError
from maru.native import core


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    with roomy(pool_url) as fresh:
        yield fresh


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


@pytest.mark.parametrize("size", [20_000, 3_000_000])
def test_bytes_that_changed_in_the_pool_since_they_were_sent_are_never_given_out(
    pool: maru.Pool, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "PIECE_BYTES_MIN", wire.PIECE_BYTES)  # Of a link that is known to be quick.
    pool.put(bytes(16), bytes_for(1, size))
    with pool.pin(bytes(16)) as held, served(pool) as server, fetching(server) as client:
        assert client.get(bytes(16)) == bytes_for(1, size)
        offset = int.from_bytes(held.extents()[:8], "little")
        PoolMemory(pool).view(offset, size)[size // 2] ^= 1  # A stray write of somebody's.
        assert client.get(bytes(16)) is None
        assert client.failures["bytes_refused"] == 1


def test_other_bytes_under_the_same_key_are_given_out_as_they_are(pool: maru.Pool) -> None:
    with served(pool) as server, fetching(server) as client:
        for number in range(3):
            assert pool.put(bytes(16), bytes_for(number)) is Outcome.STORED
            assert client.get(bytes(16)) == bytes_for(number)
            assert pool.remove(bytes(16)) or until(lambda: pool.remove(bytes(16)))
        assert client.failures == {}


class Flushing(PoolMemory):
    """Remembers what was flushed."""

    def __init__(self, pool: maru.Pool) -> None:
        super().__init__(pool)
        self.flushed: list[int] = []

    def flush(self, offset: int, size: int) -> None:
        self.flushed.append(size)
        super().flush(offset, size)


def test_what_was_sent_to_one_host_is_flushed_before_another_reads_it_in_place(pool: maru.Pool) -> None:
    memory = Flushing(pool)
    control = Control(pool, LIMITS, bytes(16), "test", memory=memory)
    pool.put(bytes(16), bytes_for(1))
    far, mapped = Talker(control), Talker(control, mapped=True)
    leased, _ = far.ask(wire.Pin(0, 1 << 30), bytes(16))
    control.answer(far.session, wire.Fetch(9, leased.lease, 0, 1), b"")
    assert memory.flushed == []
    for _ in range(2):
        mapped.ask(wire.Pin(0, 1 << 30), bytes(16))
        assert memory.flushed == [20_000]


def test_a_checksum_is_computed_once_as_long_as_it_is_remembered() -> None:
    computed: list[int] = []

    def compute() -> int:
        computed.append(1)
        return len(computed)

    sums = Checksums(limit=2)
    assert [sums.of(name, compute) for name in (b"a", b"b", b"a", b"b")] == [1, 2, 1, 2]
    assert [sums.of(name, compute) for name in (b"c", b"b", b"a")] == [3, 2, 4]


def test_chunks_that_lie_side_by_side_travel_as_one_body(pool: maru.Pool) -> None:
    size = pool.stats()["unit_bytes"] * 2  # No gap after any of them.
    keys = keys_of(pool.namespace(IDENTITY), 6)
    data = [bytes_for(n, size) for n in range(6)]
    assert set(pool.put_many(keys, data)) == {Outcome.STORED}
    control = Control(pool, LIMITS, os.urandom(16), "test")
    talker = Talker(control)
    leased, extents = talker.ask(wire.Pin(0, 1 << 30), keys)
    assert isinstance(leased, wire.Leased)
    places = memoryview(extents).cast("Q")[::3].tolist()
    runs = 1 + sum(after != before + size for before, after in itertools.pairwise(places))
    answer, bodies = control.answer(talker.session, wire.Fetch(9, leased.lease, 0, 6, True), b"")
    assert isinstance(answer, wire.Pieces)
    assert len(answer.checksums) == 6
    assert len(bodies) == runs < 6
    assert b"".join(bytes(body) for body in bodies) == b"".join(data)
    assert len(control.answer(talker.session, wire.Fetch(10, leased.lease, 0, 6), b"")[1]) == 6


def test_a_body_on_its_way_holds_every_chunk_that_is_in_it(pool: maru.Pool) -> None:
    size = pool.stats()["unit_bytes"]
    keys = keys_of(pool.namespace(IDENTITY), 4)
    pool.put_many(keys, [bytes_for(n, size) for n in range(4)])
    with pool.pin(keys) as prefix:
        spans = prefix._spans(0, 4)
        with pytest.raises(IndexError):
            prefix._spans(1, 4)
    assert not any(pool.remove(keys[at : at + 16]) for at in range(0, 64, 16))
    assert b"".join(bytes(span) for span in spans) == b"".join(bytes_for(n, size) for n in range(4))
    with pytest.raises(TypeError):
        spans[0][0] = 1  # type: ignore[index]
    del spans
    assert all(pool.remove(keys[at : at + 16]) for at in range(0, 64, 16))


class Lengthening(Control):
    """A daemon whose last body is longer than what was asked for."""

    def _fetch(self, session: object, request: object, body: object) -> object:  # type: ignore[override]
        answer, out = super()._fetch(session, request, body)  # type: ignore[arg-type]
        return answer, [*out[:-1], bytes(out[-1]) + b"!"]


def test_more_bytes_than_were_asked_for_are_not_taken(pool: maru.Pool) -> None:
    keys = keys_of(pool.namespace(IDENTITY), 2)
    pool.put_many(keys, [bytes_for(n) for n in range(2)])
    server = RpcServer(Lengthening(pool, LIMITS, os.urandom(16), "test"), "tcp://127.0.0.1:0")
    server.start()
    with fetching(server) as client, client.pin(keys) as prefix, pytest.raises(MaruError, match="checksum"):
        _ = prefix.views
    server.stop()


def test_small_chunks_that_are_stored_share_messages(pool: maru.Pool) -> None:
    sizes = [20_000] * 7 + [400_000, 3_000_000] + [10_000] * 70
    data = [bytes_for(n, size) for n, size in enumerate(sizes)]
    with served(pool) as server, fetching(server) as client:
        namespace = client.namespace(IDENTITY)
        keys = keys_of(namespace, len(sizes))
        for first, end in ((0, 7), (7, 8), (8, 9), (9, 79)):
            stored = client.put_many(keys[first * 16 : end * 16], data[first:end], namespace)
            assert set(stored) == {Outcome.STORED}
        counts = server.counts.requests
        assert counts["Write"] + counts["Fill"] < 77
    with pool.pin(keys) as prefix:
        assert [bytes(view) for view in prefix.views] == data


def test_memory_for_a_message_is_used_again_only_when_it_was_answered(pool: maru.Pool) -> None:
    with served(pool) as server, fetching(server) as client:
        client.channel.piece_bytes = wire.PIECE_BYTES
        data = [(hold, memoryview(bytes_for(hold, 100_000))) for hold in range(60)]
        rooms = pieces._Rooms()
        waiting: list[tuple[wire.Request, memoryview, bytes]] = []
        for request, body in pieces._filled(client.channel, data, rooms):
            waiting.append((request, memoryview(body), bytes(body)))
            if len(waiting) == channel.WINDOW:
                asked, sent, meant = waiting.pop(0)
                assert sent == meant
                rooms.answered(asked)
        assert all(sent == meant for _, sent, meant in waiting)


@pytest.mark.parametrize(
    ("holds", "sums", "length", "error"),
    [
        ([0, 1], [True, True], 40_000, None),
        ([0, 1], [True, False], 40_000, BadMessage),
        ([0, 1], [True], 40_000, LeaseEnded),
        ([0, 9], [True, True], 40_000, LeaseEnded),
        ([0, 1], [True, True], 39_999, BadMessage),
        ([0, 1], [True, True], 40_001, BadMessage),
        ([0] * (wire.FETCH_CHUNKS_MAX + 1), [True] * (wire.FETCH_CHUNKS_MAX + 1), 20_000 * 65, LeaseEnded),
    ],
    ids=["right", "damaged", "a checksum too few", "not held", "a byte too few", "a byte too many", "too many"],
)
def test_what_fills_several_chunks_must_be_exactly_their_bytes(
    pool: maru.Pool, holds: list[int], sums: list[bool], length: int, error: type[MaruError] | None
) -> None:
    keys, data = keys_of(pool.namespace(IDENTITY), 2), [bytes_for(n) for n in range(2)]
    talker = Talker(Control(pool, LIMITS, os.urandom(16), "test"))
    reserved, _ = talker.ask(wire.Reserve(0, 20_000), keys)
    assert isinstance(reserved, wire.Reserved)
    named = [(*reserved.holds, *range(1000, 1010))[hold] for hold in holds]
    body = b"".join([*data, *data * 40])[:length]
    checksums = [core.xxh3_64(data[n % 2]) if is_right else 7 for n, is_right in enumerate(sums)]
    request = wire.Fill(0, named, checksums)
    if error is None:
        talker.ask(request, body)
    else:
        with pytest.raises(error):
            talker.ask(request, body)
    outcomes, _ = talker.ask(wire.Seal(0, reserved.holds))
    assert isinstance(outcomes, wire.Outcomes)
    assert (outcomes.outcomes == [Outcome.STORED.value] * 2) == (error is None)
    assert pool.check() == []
