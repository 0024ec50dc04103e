"""What requests mean in the pool, without sockets and with a clock of the test's own."""

from __future__ import annotations

import os

import pytest
from serving import IDENTITY, LIMITS, Clock, Talker, bytes_for, client_named, keys_of

import maru
from maru import Outcome, wire
from maru.daemon.control import Control
from maru.daemon.sessions import Limits
from maru.errors import BadKey, BadMessage, LeaseEnded, MaruError, PoolBusy, VersionSkew
from maru.native import core

SIZE = 20_000


def put_prefix(pool: maru.Pool, chunks: int = 4) -> bytes:
    namespace = pool.namespace(IDENTITY)
    keys = keys_of(namespace, chunks)
    assert set(pool.put_many(keys, [bytes_for(n, SIZE) for n in range(chunks)], namespace)) == {Outcome.STORED}
    return keys


def pins_of(pool: maru.Pool) -> int:
    return sum(row["pins"] for row in pool.stats()["processes"])


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def control(pool: maru.Pool, clock: Clock) -> Control:
    return Control(pool, LIMITS, os.urandom(16), "test", clock)


def test_a_lookup_counts_the_leading_chunks(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool)
    talker = Talker(control)
    assert talker.ask(wire.Lookup(0), keys + bytes(16))[0] == wire.Done(1, 4)
    assert talker.ask(wire.Lookup(0), bytes(16) + keys)[0] == wire.Done(2, 0)


def test_a_leased_chunk_is_read_in_pieces_with_their_checksums(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool)
    talker = Talker(control)
    leased, extents = talker.ask(wire.Pin(0, 1 << 30), keys)
    assert leased.count == 4
    assert [int.from_bytes(extents[at * 24 + 8 : at * 24 + 16], "little") for at in range(4)] == [SIZE] * 4
    piece, body = talker.ask(wire.Read(0, leased.lease, 2, 100, 5000))
    assert body == bytes_for(2, SIZE)[100:5100]
    assert piece.checksum == core.xxh3_64(body)


def test_leased_chunks_that_follow_each_other_come_in_one_answer(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool)
    talker = Talker(control)
    leased, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
    answer, bodies = control.answer(talker.session, wire.Fetch(9, leased.lease, 1, 3), b"")
    assert [bytes(body) for body in bodies] == [bytes_for(n, SIZE) for n in (1, 2, 3)]
    assert answer == wire.Pieces(9, [core.xxh3_64(body) for body in bodies])


@pytest.mark.parametrize(("first", "count"), [(-1, 2), (0, 0), (0, -1), (0, 5), (4, 1), (1 << 62, 1), (2, 1 << 62)])
def test_chunks_that_are_not_leased_cannot_be_fetched(
    pool: maru.Pool, control: Control, first: int, count: int
) -> None:
    keys = put_prefix(pool)
    talker = Talker(control)
    leased, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
    with pytest.raises(LeaseEnded):
        talker.ask(wire.Fetch(0, leased.lease, first, count))


@pytest.mark.parametrize(("count", "size"), [(wire.FETCH_CHUNKS_MAX + 1, 10), (6, wire.PIECE_BYTES // 6 + 1)])
def test_no_answer_is_of_more_chunks_or_bytes_than_was_agreed(
    pool: maru.Pool, control: Control, count: int, size: int
) -> None:
    keys = core.blake3(b"many", 16 * count)
    assert set(pool.put_many(keys, [bytes(size)] * count)) == {Outcome.STORED}
    talker = Talker(control)
    leased, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
    with pytest.raises(BadMessage):
        talker.ask(wire.Fetch(0, leased.lease, 0, count))
    assert len(control.answer(talker.session, wire.Fetch(9, leased.lease, 1, count - 1), b"")[1]) == count - 1


def test_what_is_leased_stays_until_it_is_released(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool, 1)
    talker = Talker(control)
    leased, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
    assert pool.remove(keys) is False
    assert talker.ask(wire.Release(0, [leased.lease]))[0].value == 1
    assert pool.remove(keys) is True


@pytest.mark.parametrize("mapped", [False, True], ids=["wire", "mapped"])
def test_a_silent_client_has_given_back_everything_after_lease_and_guard(
    pool: maru.Pool, control: Control, clock: Clock, mapped: bool
) -> None:
    keys = put_prefix(pool, 2)
    talker = Talker(control, mapped)
    talker.ask(wire.Pin(0, 1 << 30), keys)
    talker.ask(wire.Reserve(0, SIZE), bytes(range(16)))
    talker.ask(wire.Allocate(0, SIZE, 3))
    clock.go(LIMITS.lease_s + LIMITS.guard_s - 0.1)
    assert control.expire() == 0
    assert pool.remove(keys[16:]) is False
    clock.go(0.2)
    assert control.expire() == 1
    assert pins_of(pool) == 0
    assert pool.stats()["chunks"]["reserved"] == 0
    assert pool.remove(keys[16:]) is True
    assert pool.check() == []


def test_a_client_that_is_heard_of_keeps_what_it_holds(pool: maru.Pool, control: Control, clock: Clock) -> None:
    keys = put_prefix(pool, 1)
    talker = Talker(control)
    talker.ask(wire.Pin(0, 1 << 30), keys)
    for _ in range(5):
        clock.go(LIMITS.lease_s)
        talker.ask(wire.Renew(0))
        assert control.expire() == 0
    assert pool.remove(keys) is False


def test_a_request_asked_again_is_answered_again_and_not_done_again(pool: maru.Pool, control: Control) -> None:
    talker = Talker(control)
    request = wire.Reserve(7, SIZE)
    first = control.answer(talker.session, request, bytes(16))
    again = control.answer(talker.session, request, bytes(16))
    assert first == again
    assert pool.stats()["chunks"]["reserved"] == 1
    talker.ask(wire.Write(0, first[0].holds[0], 0, core.xxh3_64(b"x" * SIZE)), b"x" * SIZE)
    seal = wire.Seal(8, first[0].holds)
    assert control.answer(talker.session, seal, b"") == control.answer(talker.session, seal, b"")
    assert control.answer(talker.session, seal, b"")[0].outcomes == [Outcome.STORED.value]


def test_what_is_written_is_published_by_its_seal_alone(pool: maru.Pool, control: Control) -> None:
    key, data = bytes(range(16)), bytes_for(3, SIZE)
    talker = Talker(control)
    reserved, offsets = talker.ask(wire.Reserve(0, SIZE), key)
    assert len(offsets) == 8
    talker.ask(wire.Write(0, reserved.holds[0], 0, core.xxh3_64(data[:8000])), data[:8000])
    talker.ask(wire.Write(0, reserved.holds[0], 8000, core.xxh3_64(data[8000:])), data[8000:])
    assert not pool.exists(key)
    assert talker.ask(wire.Seal(0, reserved.holds))[0].outcomes == [Outcome.STORED.value]
    view = pool.get(key)
    assert view is not None
    assert bytes(view) == data


def test_drafts_are_credits_that_one_message_names(pool: maru.Pool, control: Control) -> None:
    keys = bytes(range(32))
    talker = Talker(control)
    credits, _ = talker.ask(wire.Allocate(0, SIZE, 2))
    for hold in credits.holds:
        talker.ask(wire.Write(0, hold, 0, core.xxh3_64(b"z" * SIZE)), b"z" * SIZE)
    assert talker.ask(wire.Publish(0, credits.holds), keys)[0].outcomes == [Outcome.STORED.value] * 2
    assert pool.lookup(keys) == 2


def test_a_draft_whose_key_is_taken_can_be_given_another(pool: maru.Pool, control: Control) -> None:
    pool.put(bytes(16), b"there" * 100)
    talker = Talker(control)
    credits, _ = talker.ask(wire.Allocate(0, SIZE, 1))
    talker.ask(wire.Write(0, credits.holds[0], 0, core.xxh3_64(b"z" * SIZE)), b"z" * SIZE)
    assert talker.ask(wire.Publish(0, credits.holds), bytes(16))[0].outcomes == [Outcome.EXISTS.value]
    assert talker.ask(wire.Publish(0, credits.holds), bytes(range(16)))[0].outcomes == [Outcome.STORED.value]


def test_a_draft_that_was_refused_a_name_is_still_the_clients(pool: maru.Pool, control: Control) -> None:
    talker = Talker(control)
    credits, _ = talker.ask(wire.Allocate(0, SIZE, 1))
    talker.write(credits.holds[0], b"z" * SIZE)
    with pytest.raises(BadMessage):
        talker.ask(wire.Publish(0, credits.holds, ttl_s=-1.0), bytes(16))
    assert talker.ask(wire.Publish(0, credits.holds), bytes(16))[0].outcomes == [Outcome.STORED.value]


def test_clients_that_map_leave_rows_for_this_hosts_processes(pool: maru.Pool, control: Control, clock: Clock) -> None:
    most = pool.stats()["process_limit"] // 2
    for _ in range(most):
        Talker(control, mapped=True)
    with pytest.raises(PoolBusy, match="process table"):
        Talker(control, mapped=True)
    Talker(control)
    with maru.Pool.attach(pool.config.url):
        pass
    clock.go(60)
    control.expire()
    Talker(control, mapped=True)


def test_what_is_remembered_of_a_client_is_bounded_in_bytes(pool: maru.Pool, clock: Clock) -> None:
    keys = put_prefix(pool, 8)
    control = Control(pool, Limits(answers_bytes=2000), os.urandom(16), "test", clock)
    talker = Talker(control)
    for _ in range(50):
        leased, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
        talker.ask(wire.Release(0, [leased.lease]))
    assert 2 <= len(talker.session._answers) <= 2000 // 200
    talker.ask(wire.Goodbye(0))
    assert len(talker.session._answers) == 0


def test_one_client_cannot_pin_more_than_its_share(pool: maru.Pool, clock: Clock) -> None:
    keys = put_prefix(pool, 8)
    share = 3.5 * SIZE / pool.stats()["size_bytes"]
    control = Control(pool, Limits(pinned_share=share), os.urandom(16), "test", clock)
    talker = Talker(control)
    first, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
    assert first.count == 3
    assert talker.ask(wire.Pin(0, 1 << 30), keys)[0].count == 0
    assert pins_of(pool) == 3
    talker.ask(wire.Release(0, [first.lease]))
    assert talker.ask(wire.Pin(0, 1 << 30), keys)[0].count == 3


def test_one_client_cannot_reserve_more_than_its_share(pool: maru.Pool, clock: Clock) -> None:
    share = 2.5 * SIZE / pool.stats()["size_bytes"]
    control = Control(pool, Limits(reserved_share=share), os.urandom(16), "test", clock)
    talker = Talker(control)
    reserved, _ = talker.ask(wire.Reserve(0, SIZE), bytes(range(64)))
    assert reserved.outcomes == [Outcome.RESERVED.value] * 2 + [Outcome.FULL.value] * 2
    assert talker.ask(wire.Allocate(0, SIZE, 1))[0].outcomes == [Outcome.FULL.value]
    talker.ask(wire.Discard(0, reserved.holds))
    assert talker.ask(wire.Allocate(0, SIZE, 1))[0].outcomes == [Outcome.RESERVED.value]


def test_many_small_chunks_count_as_what_they_take(pool: maru.Pool, clock: Clock) -> None:
    figures, share = pool.stats(), 0.25
    talker = Talker(Control(pool, Limits(reserved_share=share), bytes(16), "test", clock))
    most = share * min(figures["chunks"]["slots"], figures["size_bytes"] // figures["unit_bytes"])
    assert talker.ask(wire.Allocate(0, 1, 5000))[0].outcomes.count(Outcome.RESERVED.value) == most


def test_one_key_gets_no_more_by_opening_more_sessions(pool: maru.Pool, clock: Clock) -> None:
    keys = put_prefix(pool, 4)
    share = 3.5 * SIZE / pool.stats()["size_bytes"]
    control = Control(pool, Limits(pinned_share=share, reserved_share=share), os.urandom(16), "test", clock)
    first, second, other = (Talker(control, client=client_named(user)) for user in ("alice", "alice", "bob"))
    assert first.ask(wire.Pin(0, 1 << 30), keys[:32])[0].count == 2
    assert second.ask(wire.Pin(0, 1 << 30), keys)[0].count == 1
    assert other.ask(wire.Pin(0, 1 << 30), keys)[0].count == 3
    counts = [who.ask(wire.Allocate(0, SIZE, 2))[0].outcomes.count(Outcome.RESERVED.value) for who in (first, second)]
    assert counts == [2, 1]
    assert other.ask(wire.Allocate(0, SIZE, 2))[0].outcomes == [Outcome.RESERVED.value] * 2


def test_one_client_cannot_read_by_anothers_lease(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool, 1)
    leased, _ = Talker(control).ask(wire.Pin(0, 1 << 30), keys)
    with pytest.raises(LeaseEnded):
        Talker(control).ask(wire.Read(0, leased.lease, 0, 0, 100))


def test_a_lease_of_a_forgotten_session_never_means_the_next_ones_chunk(
    pool: maru.Pool, control: Control, clock: Clock
) -> None:
    keys = put_prefix(pool, 2)
    talker = Talker(control)
    before, _ = talker.ask(wire.Pin(0, 1 << 30), keys[:16])
    clock.go(60)
    assert control.expire() == 1
    talker.session, _ = control.greet(None, wire.Hello(0, (1, 1), "test", talker.session.session, "talker", "boot"))
    after, _ = talker.ask(wire.Pin(0, 1 << 30), keys[16:])
    assert after.count == 1
    with pytest.raises(LeaseEnded):
        talker.ask(wire.Read(0, before.lease, 0, 0, 100))


def test_a_greeting_renews_what_a_row_holds(pool: maru.Pool, control: Control) -> None:
    """A client that was away greets first: what it holds must not end before it comes to renew."""
    talker = Talker(control, mapped=True)
    talker.session.pool._renew_lease(0.001)
    hello = wire.Hello(0, (1, 1), "test", talker.session.session, "talker", "boot", True)
    control.greet(None, hello)
    row = next(row for row in pool.stats()["processes"] if row["number"] == talker.session.row_number)
    assert row["lease_ns"] > pool.stats()["now_ns"] + 10**9


def test_a_session_belongs_to_who_began_it(control: Control) -> None:
    hello = wire.Hello(0, (1, 1), "test", bytes(16), "a", "boot")
    control.greet(client_named("alice"), hello)
    with pytest.raises(BadMessage, match="somebody else"):
        control.greet(client_named("bob"), hello)
    assert control.greet(client_named("alice"), hello)[0].user == "alice"


def test_versions_without_a_common_protocol_are_refused_with_both(control: Control) -> None:
    with pytest.raises(VersionSkew, match=r"speaks protocol 1, the client .maru 9. 7 to 9"):
        control.greet(None, wire.Hello(0, (7, 9), "maru 9", bytes(16), "a", "boot"))


def test_there_is_a_limit_to_clients(pool: maru.Pool, clock: Clock) -> None:
    control = Control(pool, Limits(sessions=1), os.urandom(16), "test", clock)
    Talker(control)
    with pytest.raises(PoolBusy):
        Talker(control)
    clock.go(60)
    control.expire()
    Talker(control)


def test_bytes_written_in_place_are_published_only_if_they_read_alike_here(pool: maru.Pool, control: Control) -> None:
    talker = Talker(control, mapped=True)
    reserved, _ = talker.ask(wire.Reserve(0, SIZE), bytes(16))
    assert talker.ask(wire.Seal(0, reserved.holds, [12345]))[0].outcomes == [Outcome.LOST.value]
    assert not pool.exists(bytes(16))
    reserved, _ = talker.ask(wire.Reserve(0, SIZE), bytes(16))
    assert talker.ask(wire.Seal(0, reserved.holds))[0].outcomes == [Outcome.LOST.value]  # No checksum, no chunk.


def test_a_client_that_maps_holds_by_a_row_of_its_own(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool, 2)
    talker = Talker(control, mapped=True)
    talker.ask(wire.Pin(0, 1 << 30), keys)
    assert talker.welcome.row is not None
    row = next(row for row in pool.stats()["processes"] if row["number"] == talker.welcome.row[0])
    assert (row["name"], row["pins"]) == ("talker", 2)
    assert row["lease_ns"] > 0


def test_what_a_row_holds_goes_over_to_the_next_daemon(pool: maru.Pool, control: Control, clock: Clock) -> None:
    keys = put_prefix(pool, 1)
    talker = Talker(control, mapped=True)
    talker.ask(wire.Pin(0, 1 << 30), keys)
    control.leave()
    assert pool.remove(keys) is False
    successor = Control(pool, LIMITS, os.urandom(16), "test", clock)
    assert talker.welcome.row is not None
    again = Talker(successor, mapped=True, rows=[talker.welcome.row])
    assert again.welcome.rows == [talker.welcome.row]
    again.ask(wire.Renew(0, [talker.welcome.row]))
    assert pool.remove(keys) is False
    again.ask(wire.Renew(0, []))  # Nothing of it is read any more.
    assert pool.remove(keys) is True


def test_rows_that_are_not_the_clients_are_not_taken_up(pool: maru.Pool, control: Control) -> None:
    """Naming an ordinary process's row gives nobody its pins."""
    keys = put_prefix(pool, 1)
    view = pool.get(keys)
    own = pool._row()
    talker = Talker(control, mapped=True, rows=[own, (200, 1), (3, 1 << 60)])
    assert talker.welcome.rows == []
    control.leave()
    assert pool.remove(keys) is False
    del view


def test_a_watch_is_answered_when_the_key_is_sealed(pool: maru.Pool, control: Control, clock: Clock) -> None:
    talker = Talker(control)
    reservation = pool.reserve(bytes(16), SIZE)
    control.watch(talker.session, wire.Watch(5, 10.0), bytes(16), b"peer")
    assert list(control.due()) == []
    reservation.seal()
    assert list(control.due()) == [(b"peer", wire.Done(5, 1))]
    assert not control.has_watches


def test_a_watch_ends_when_nobody_writes_or_its_time_is_over(pool: maru.Pool, control: Control, clock: Clock) -> None:
    talker = Talker(control)
    control.watch(talker.session, wire.Watch(5, 10.0), bytes(16), b"peer")
    assert list(control.due()) == [(b"peer", wire.Done(5, 0))]
    held = pool.reserve(bytes(16), SIZE)
    control.watch(talker.session, wire.Watch(6, 10.0), bytes(16), b"peer")
    clock.go(11)
    assert list(control.due()) == [(b"peer", wire.Done(6, wire.STILL_WRITTEN))]
    held.discard()


def test_goodbye_gives_everything_back_at_once(pool: maru.Pool, control: Control) -> None:
    keys = put_prefix(pool, 1)
    talker = Talker(control, mapped=True)
    talker.ask(wire.Pin(0, 1 << 30), keys)
    talker.ask(wire.Goodbye(0))
    assert control.sessions == {}
    assert pool.remove(keys) is True


@pytest.mark.parametrize(
    ("request_", "body", "error"),
    [
        (wire.Lookup(0), b"short", BadKey),
        (wire.Lookup(0), bytes(16 * (wire.KEYS_MAX + 1)), BadKey),
        (wire.Pin(0, -1), bytes(16), BadMessage),
        (wire.Read(0, 1, 0, 0, 10), b"", LeaseEnded),
        (wire.Register(0, b"short", "t"), b"", BadMessage),
        (wire.Register(0, bytes(16), "t" * 64), b"", BadMessage),
        (wire.Register(0, bytes(16), "t", -1.0), b"", BadMessage),
        (wire.Register(0, bytes(16), "t", float("nan")), b"", BadMessage),
        (wire.Reserve(0, 0), bytes(16), BadMessage),
        (wire.Reserve(0, 1 << 40), bytes(16), BadMessage),
        (wire.Reserve(0, 100, namespace=77), bytes(16), BadMessage),
        (wire.Reserve(0, 100, parent=b"x"), bytes(16), BadKey),
        (wire.Reserve(0, 100, deadline_s=1e9), bytes(16), BadMessage),
        (wire.Reserve(0, 100, ttl_s=0.0), bytes(16), BadMessage),
        (wire.Allocate(0, 100, 0), b"", BadMessage),
        (wire.Allocate(0, -5, 1), b"", BadMessage),
        (wire.Write(0, 99, 0, 0), b"x", LeaseEnded),
        (wire.Fill(0, [99], [0]), b"x", LeaseEnded),
        (wire.Fill(0, [], []), b"", LeaseEnded),
        (wire.Publish(0, [1, 2]), bytes(16), BadMessage),
        (wire.Remove(0), bytes(17), BadKey),
    ],
)
def test_what_cannot_be_is_refused_by_name_and_changes_nothing(
    pool: maru.Pool, control: Control, request_: wire.Request, body: bytes, error: type[MaruError]
) -> None:
    talker = Talker(control)
    before = pool.stats()["chunks"]
    with pytest.raises(error):
        talker.ask(request_, body)
    assert pool.stats()["chunks"] == before
    assert pool.check() == []


@pytest.mark.parametrize(
    ("offset", "size"), [(-1, 10), (0, 0), (SIZE - 5, 10), (0, wire.PIECE_BYTES + 1), (1 << 62, 10)]
)
def test_nothing_beyond_a_leased_chunk_can_be_read(pool: maru.Pool, control: Control, offset: int, size: int) -> None:
    keys = put_prefix(pool, 2)
    talker = Talker(control)
    leased, _ = talker.ask(wire.Pin(0, 1 << 30), keys)
    with pytest.raises(BadMessage):
        talker.ask(wire.Read(0, leased.lease, 0, offset, size))


@pytest.mark.parametrize("offset", [-1, SIZE - 5, 1 << 62])
def test_nothing_beyond_a_hold_can_be_written(pool: maru.Pool, control: Control, offset: int) -> None:
    talker = Talker(control)
    reserved, _ = talker.ask(wire.Reserve(0, SIZE), bytes(32))
    with pytest.raises(BadMessage):
        talker.ask(wire.Write(0, reserved.holds[0], offset, core.xxh3_64(b"x" * 10)), b"x" * 10)
    assert pool.check() == []


def test_bytes_that_were_damaged_on_the_way_are_not_written(pool: maru.Pool, control: Control) -> None:
    talker = Talker(control)
    reserved, _ = talker.ask(wire.Reserve(0, SIZE), bytes(16))
    with pytest.raises(BadMessage, match="checksum"):
        talker.ask(wire.Write(0, reserved.holds[0], 0, core.xxh3_64(b"right")), b"wrong")
