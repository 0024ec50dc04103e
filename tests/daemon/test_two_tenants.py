"""Two tenants, one daemon, real keys: what one of them has is to the other what is not there at all.

Each promise is told twice: what the stranger gets, and that the owner does get it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from serving import LIMITS, Clock, Talker, address_of, bytes_for, client_named, client_of, guarded, keys_of

import maru
from maru import Outcome, wire
from maru.client.remote import RemoteNamespace, RemotePool
from maru.credentials import generate_client, generate_server
from maru.daemon.control import Control
from maru.daemon.sessions import Limits
from maru.errors import BadMessage, Forbidden, LeaseEnded, MaruError, NamespaceTableFull, SessionUnknown
from maru.native import core

SIZE = 20_000
ABSENT = bytes(range(100, 116))
RED, BLUE = (maru.Identity(model="m", kv_layout="l", tenant=tenant) for tenant in ("red", "blue"))


@dataclass
class Two:
    """Red stored `keys`; blue wants to know."""

    control: Control
    red: RemotePool
    blue: RemotePool
    red_space: RemoteNamespace
    blue_space: RemoteNamespace
    keys: bytes

    @property
    def first(self) -> bytes:
        return self.keys[:16]

    def of_red(self, request: wire.Request, body: bytes = b"") -> object:
        return said_of(self.red, request, body)

    def of_blue(self, request: wire.Request, body: bytes = b"") -> object:
        return said_of(self.blue, request, body)


def said_of(client: RemotePool, request: wire.Request, body: bytes) -> object:
    """An answer without its number, or the refusal without numbers in it."""
    try:
        answer, out = client.channel.call(request, body)
    except MaruError as error:
        return type(error), re.sub(r"\d+", "N", error.message)
    answer.number = 0
    return answer, bytes(out)


@pytest.fixture
def two(pool: maru.Pool, tmp_path: Path) -> Iterator[Two]:
    folder = tmp_path / "keys"
    generate_server(folder)
    (_, red_key), (_, blue_key) = generate_client(folder, "r", "red"), generate_client(folder, "b", "blue")
    control = Control(pool, LIMITS, os.urandom(16), "test")
    with (
        guarded(pool, folder, control) as server,
        client_of(server, red_key) as red,
        client_of(server, blue_key) as blue,
    ):
        red_space, blue_space = red.namespace(RED), blue.namespace(BLUE)
        keys = keys_of(red_space, 3)
        outcomes = red.put_many(keys, [bytes_for(n, SIZE) for n in range(3)], red_space)
        assert outcomes == [Outcome.STORED] * 3
        yield Two(control, red, blue, red_space, blue_space, keys)


def test_only_its_own_tenant_reads_a_chunk(two: Two) -> None:
    assert two.blue.get(two.first) is None
    with two.blue.pin(two.keys) as prefix:
        assert len(prefix) == 0
    buffers = [bytearray(SIZE)] * 3
    assert two.blue.read_into(two.keys, buffers) == 0
    assert not any(buffers[0])
    view = two.red.get(two.first)
    assert view is not None
    assert bytes(view) == bytes_for(0, SIZE)


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: wire.Lookup(0),
        lambda: wire.Find(0),
        lambda: wire.Pin(0, 1 << 30),
        lambda: wire.Watch(0, 0.0),
        lambda: wire.Remove(0),
    ],
    ids=["lookup", "find", "pin", "watch", "remove"],
)
def test_what_is_anothers_is_answered_as_what_is_not_there(two: Two, request_of: Callable[[], wire.Request]) -> None:
    assert two.of_blue(request_of(), two.first) == two.of_blue(request_of(), ABSENT)
    assert two.of_red(request_of(), two.first) != two.of_red(request_of(), ABSENT)


def test_what_another_tenant_is_writing_is_not_there_either(two: Two) -> None:
    with two.red.reserve(ABSENT, SIZE, two.red_space) as writing:
        assert writing.outcome is Outcome.RESERVED
        assert two.of_blue(wire.Watch(0, 0.0), ABSENT) == (wire.Done(0, 0), b"")
        assert two.of_red(wire.Watch(0, 0.0), ABSENT) == (wire.Done(0, wire.STILL_WRITTEN), b"")


def test_a_chunk_is_not_removed_by_another_tenant(two: Two) -> None:
    assert two.blue.remove(two.first) is False
    assert two.red.exists(two.first)
    assert two.red.remove(two.first) is True


def test_a_key_that_another_tenant_has_gets_no_room(two: Two) -> None:
    """There is one place for a key. What is told is what a key with full buckets is told, never that it is there."""
    with two.blue.reserve(two.first, SIZE, two.blue_space) as taken:
        assert taken.outcome is Outcome.FULL
    with two.red.reserve(two.first, SIZE, two.red_space) as taken:
        assert taken.outcome is Outcome.EXISTS
    with two.red.reserve(ABSENT, SIZE, two.red_space):
        assert two.blue.reserve(ABSENT, SIZE, two.blue_space).outcome is Outcome.FULL
        assert two.red.reserve(ABSENT, SIZE, two.red_space).outcome is Outcome.IN_FLIGHT
    with two.blue.reserve(ABSENT, SIZE, two.blue_space) as taken:
        assert taken.outcome is Outcome.RESERVED


def test_a_draft_is_not_told_that_its_name_is_anothers(two: Two) -> None:
    for client, space, told in (
        (two.blue, two.blue_space, Outcome.FULL),
        (two.red, two.red_space, Outcome.EXISTS),
    ):
        drafts = client.allocate(SIZE, 1)
        assert drafts.put_many(two.first, [bytes_for(9, SIZE)], space) == [told]
    drafts = two.blue.allocate(SIZE, 1)
    assert drafts.put_many(ABSENT, [bytes_for(9, SIZE)], two.blue_space) == [Outcome.STORED]


def test_a_number_that_is_anothers_namespace_is_a_number_that_nobody_has(two: Two) -> None:
    unknown = two.of_blue(wire.Reserve(0, SIZE, 999), ABSENT)
    assert two.of_blue(wire.Reserve(0, SIZE, two.red_space.id), ABSENT) == unknown
    assert unknown == (BadMessage, "namespace N was not registered with this daemon")
    assert two.of_blue(wire.Publish(0, [], [], two.red_space.id), b"") == unknown
    assert isinstance(two.of_red(wire.Reserve(0, SIZE, two.red_space.id), ABSENT)[0], wire.Reserved)  # type: ignore[index]


def test_what_is_stored_under_no_namespace_is_the_default_tenants(two: Two, pool: maru.Pool) -> None:
    pool.put(ABSENT, b"x" * SIZE)
    assert not two.blue.exists(ABSENT)
    assert two.of_blue(wire.Reserve(0, SIZE), bytes(16))[0] is Forbidden  # type: ignore[index]
    talker = Talker(two.control, client=client_named("anybody"))
    assert talker.ask(wire.Lookup(0), ABSENT)[0].value == 1
    assert talker.ask(wire.Reserve(0, SIZE), bytes(16))[0].outcomes == [Outcome.RESERVED.value]


def test_a_client_cannot_say_that_it_is_another_tenant(two: Two) -> None:
    with pytest.raises(Forbidden, match="of tenant 'blue'"):
        two.blue.namespace(RED)
    assert two.of_blue(wire.Register(0, b"d" * 16, "default"), b"")[0] is Forbidden  # type: ignore[index]
    number = two.blue.channel.register(two.blue_space.digest, "", None)[0]
    assert number == two.blue_space.id


def test_a_digest_leads_nobody_into_another_tenants_namespace(two: Two) -> None:
    for said in ("", "blue"):
        refused = two.of_blue(wire.Register(0, two.red_space.digest, said), b"")
        assert refused == (Forbidden, "that namespace is not this client's")
    assert two.red.channel.register(two.red_space.digest, "red", None)[0] == two.red_space.id


def test_a_refused_registration_changes_nothing_of_the_namespace(two: Two, pool: maru.Pool) -> None:
    space = pool._register_namespace(two.red_space.digest, "red", 60.0)
    assert two.of_blue(wire.Register(0, two.red_space.digest, "blue", 1.0))[0] is Forbidden  # type: ignore[index]
    assert space.ttl == pytest.approx(60)
    two.red.channel.register(two.red_space.digest, "red", 1.0)
    assert space.ttl == pytest.approx(1)


def test_a_request_number_of_another_session_brings_nothing_of_its_answer(two: Two) -> None:
    asked = wire.Pin(7_000_000, 1 << 30)
    red, blue = (session_of(two.control, name) for name in ("r", "b"))
    answer, extents = two.control.answer(red, asked, two.keys)
    assert answer.count == 3
    assert two.control.answer(red, asked, two.keys) == (answer, extents)
    stranger, nothing = two.control.answer(blue, asked, two.keys)
    assert (stranger.lease, stranger.count, nothing) == (0, 0, b"")


def test_another_clients_session_is_not_taken_over(two: Two) -> None:
    greeting = wire.Hello(1, (1, 1), "test", two.red.channel.session, "b", "boot")
    refused = said_of(two.blue, greeting, b"")
    assert refused == (BadMessage, "this session is somebody else's, or of another kind")
    assert isinstance(two.of_red(greeting)[0], wire.Welcome)  # type: ignore[index]


def test_leases_of_another_session_lead_to_no_bytes(two: Two) -> None:
    lease = two.red.channel.call(wire.Pin(0, 1 << 30), two.keys)[0].lease
    assert two.of_blue(wire.Read(0, lease, 0, 0, 100))[0] is LeaseEnded  # type: ignore[index]
    assert two.of_blue(wire.Fetch(0, lease, 0, 1))[0] is LeaseEnded  # type: ignore[index]
    assert two.of_blue(wire.Release(0, [lease])) == (wire.Done(0, 0), b"")
    assert two.of_red(wire.Read(0, lease, 0, 0, 100))[1] == bytes_for(0, SIZE)[:100]  # type: ignore[index]
    assert two.of_red(wire.Release(0, [lease])) == (wire.Done(0, 1), b"")


def test_holds_of_another_session_are_neither_written_nor_ended(two: Two) -> None:
    data = bytes_for(5, SIZE)
    (hold,) = two.red.channel.call(wire.Reserve(0, SIZE, two.red_space.id), ABSENT)[0].holds
    write = wire.Write(0, hold, 0, core.xxh3_64(data))
    assert two.of_blue(write, data)[0] is LeaseEnded  # type: ignore[index]
    assert two.of_red(write, data) == (wire.Done(0, SIZE), b"")
    lost = (wire.Outcomes(0, [Outcome.LOST.value]), b"")
    assert two.of_blue(wire.Seal(0, [hold])) == lost
    assert two.of_blue(wire.Publish(0, [hold], [], two.blue_space.id), bytes(16)) == lost
    assert two.of_blue(wire.Discard(0, [hold])) == (wire.Done(0, 0), b"")
    assert two.of_red(wire.Seal(0, [hold])) == (wire.Outcomes(0, [Outcome.STORED.value]), b"")


def test_figures_are_of_ones_own_tenant(two: Two) -> None:
    told = {name: json.dumps(client.stats()) for name, client in (("red", two.red), ("blue", two.blue))}
    for secret in ("red", two.red_space.digest.hex()):
        assert secret not in told["blue"]
        assert secret in told["red"]
    blue, red = two.blue.stats(), two.red.stats()
    assert (red["chunks"]["sealed"], red["chunk_bytes"]) == (3, 3 * SIZE)
    assert (blue["chunks"]["sealed"], blue["chunk_bytes"]) == (0, 0)
    assert not {"counters", "processes", "oldest_pins", "reservations", "used_bytes", "eviction"} & blue.keys()
    assert blue["size_bytes"] == red["size_bytes"] == two.blue.welcome.size_bytes


def test_a_chunk_of_another_tenant_is_nobodys_parent(two: Two, pool: maru.Pool) -> None:
    last = two.keys[32:]
    leaves = pool.stats()["chunks"]["leaves"]
    two.blue.put(ABSENT, b"y" * SIZE, two.blue_space, parent=last)
    assert pool.stats()["chunks"]["leaves"] == leaves + 1
    two.blue.allocate(SIZE, 1).put_many(bytes([1] * 16), [b"y" * SIZE], two.blue_space, parent=last)
    assert pool.stats()["chunks"]["leaves"] == leaves + 2
    two.red.put(bytes(16), b"y" * SIZE, two.red_space, parent=last)
    assert pool.stats()["chunks"]["leaves"] == leaves + 2  # One more, and `last` is none any more.


def session_of(control: Control, user: str) -> object:
    return next(session for session in control.sessions.values() if session.user == user)


# ---- without sockets ------------------------------------------------------------------------------------------


def test_what_a_client_misses_comes_up_in_its_own_namespaces_alone(pool: maru.Pool) -> None:
    risen: list[tuple[bytes, int]] = []
    control = Control(pool, LIMITS, bytes(16), "test", begin_rise=lambda keys, space, _: risen.append((keys, space.id)))
    red, blue, idle = (Talker(control, client=client_named(name, name)) for name in ("red", "blue", "idle"))
    numbers = [who.ask(wire.Register(0, bytes([n] * 16), ""))[0].value for n, who in enumerate((red, blue))]
    space = pool._register_namespace(bytes(16), "red", None)
    pool.put(ABSENT, b"x" * SIZE, space)
    onlooker = Talker(control, client=client_named("onlooker", "blue", "lookup"))
    onlooker.ask(wire.Register(0, bytes([1] * 16), ""))
    for who in (red, idle, onlooker):
        who.ask(wire.Lookup(0), ABSENT)
    assert risen == []
    blue.ask(wire.Lookup(0), ABSENT)
    assert risen == [(ABSENT, numbers[1])]


def test_the_bytes_that_lay_there_before_are_not_published(pool: maru.Pool) -> None:
    """Memory is handed out as it was left. Whoever could seal it unwritten could read what was another's."""
    control = Control(pool, LIMITS, bytes(16), "test")
    red, blue = (Talker(control, client=client_named(name, name)) for name in ("red", "blue"))
    spaces = [who.ask(wire.Register(0, bytes([n] * 16), ""))[0].value for n, who in enumerate((red, blue))]
    secret = b"red's own words " * (SIZE // 16)
    (hold,) = red.ask(wire.Reserve(0, SIZE, spaces[0]), ABSENT)[0].holds
    place = red.session.holds[hold].held.offset
    red.write(hold, secret)
    assert red.ask(wire.Seal(0, [hold]))[0].outcomes == [Outcome.STORED.value]
    assert red.ask(wire.Remove(0), ABSENT)[0].value == 1

    def handed_out() -> int:
        """A hold of blue's in that very memory, with what red wrote still in it."""
        for _ in range(200):
            (hold,) = blue.ask(wire.Reserve(0, SIZE, spaces[1]), os.urandom(16))[0].holds
            held = blue.session.holds[hold].held
            if held.offset == place:
                assert bytes(memoryview(held.buffer)) == secret  # type: ignore[arg-type]
                return hold
        raise AssertionError("the memory did not come back")

    hold = handed_out()
    for offset in (0, 10_000):
        blue.write(hold, bytes(9_999), offset)  # All but two bytes.
    assert blue.ask(wire.Seal(0, [hold]))[0].outcomes == [Outcome.LOST.value]
    assert blue.ask(wire.Stats(0))[1].count(b'"sealed":0') == 1
    whole = blue.ask(wire.Reserve(0, SIZE, spaces[1]), bytes(16))[0].holds[0]
    for offset in (10_000, 0):
        blue.write(whole, bytes(10_000), offset)
    assert blue.ask(wire.Seal(0, [whole]))[0].outcomes == [Outcome.STORED.value]


def test_a_draft_that_was_not_written_whole_gets_no_name(pool: maru.Pool) -> None:
    talker = Talker(Control(pool, LIMITS, bytes(16), "test"))
    part, whole = talker.ask(wire.Allocate(0, SIZE, 2))[0].holds
    talker.write(part, bytes(SIZE - 1), 1)
    talker.write(whole, bytes(SIZE))
    outcomes = talker.ask(wire.Publish(0, [part, whole]), bytes(range(32)))[0].outcomes
    assert outcomes == [Outcome.LOST.value, Outcome.STORED.value]


def test_a_piece_that_came_damaged_counts_as_not_written(pool: maru.Pool) -> None:
    talker = Talker(Control(pool, LIMITS, bytes(16), "test"))
    damaged, mended = talker.ask(wire.Allocate(0, SIZE, 2))[0].holds
    for hold in (damaged, mended):
        talker.write(hold, bytes(SIZE))
        with pytest.raises(BadMessage):
            talker.ask(wire.Write(0, hold, 100, 1), b"damaged")
    talker.write(mended, bytes(SIZE))
    outcomes = talker.ask(wire.Publish(0, [damaged, mended]), bytes(range(32)))[0].outcomes
    assert outcomes == [Outcome.LOST.value, Outcome.STORED.value]


def test_the_table_of_namespaces_is_not_filled_by_one_tenant(pool: maru.Pool) -> None:
    share = 4.5 / pool.stats()["namespace_limit"]
    control = Control(pool, Limits(namespaces_share=share), bytes(16), "test")
    red, blue = (Talker(control, client=client_named(name, name)) for name in ("red", "blue"))
    for n in range(4):
        red.ask(wire.Register(0, bytes([n] * 16), ""))
    with pytest.raises(NamespaceTableFull, match="this tenant has 4 namespaces"):
        red.ask(wire.Register(0, bytes([4] * 16), ""))
    red.ask(wire.Register(0, bytes([3] * 16), ""))  # One that is there needs no room.
    blue.ask(wire.Register(0, bytes([5] * 16), ""))


def test_a_namespace_of_this_hosts_own_processes_is_seen_within_a_second(pool: maru.Pool) -> None:
    clock = Clock()
    control = Control(pool, LIMITS, bytes(16), "test", clock)
    red, blue = (Talker(control, client=client_named(name, name)) for name in ("red", "blue"))
    assert red.ask(wire.Lookup(0), ABSENT)[0].value == 0
    pool.put(ABSENT, b"x" * SIZE, pool.namespace(RED))
    clock.go(1.1)
    assert red.ask(wire.Lookup(0), ABSENT)[0].value == 1
    assert blue.ask(wire.Lookup(0), ABSENT)[0].value == 0


def test_only_a_client_that_may_maps_the_pool(pool: maru.Pool) -> None:
    control = Control(pool, LIMITS, bytes(16), "test")
    with pytest.raises(Forbidden, match="may not map"):
        Talker(control, mapped=True, client=client_named("a", "red", may_map=False))
    assert Talker(control, mapped=True, client=client_named("b", "red", may_map=True)).session.is_mapped


def test_a_client_that_may_not_map_gets_its_bytes_over_the_wire(pool: maru.Pool, tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    generate_server(folder)
    with guarded(pool, folder) as server:
        server.control._host = "of another machine"
        for name, may_map, kind in (("a", True, "mapped"), ("b", None, "wire")):
            _, key = generate_client(folder, name, "blue", may_map=may_map)
            with maru.connect(address_of(server), key=str(key)) as client:
                assert isinstance(client, RemotePool)
                assert client.kind == kind
                assert client.put(bytes([len(kind)] * 16), b"x" * SIZE, client.namespace(BLUE)) is Outcome.STORED
        with pytest.raises(Forbidden, match="may not map"):
            maru.connect(address_of(server), mode="mapped", key=str(key))


# ---- grants ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", ["lookup", "read", "write"])
def test_each_grant_allows_its_own_and_what_comes_before(pool: maru.Pool, level: str) -> None:
    control = Control(pool, LIMITS, bytes(16), "test")
    pool.put(ABSENT, b"x" * SIZE, pool._register_namespace(bytes(16), "red", None))
    talker = Talker(control, client=client_named("a", "red", level))
    number = talker.ask(wire.Register(0, bytes(16), "red"))[0].value
    may_read, may_write = level != "lookup", level == "write"
    assert talker.ask(wire.Lookup(0), ABSENT)[0].value == 1
    assert talker.ask(wire.Find(0), ABSENT)[1] == b"\1"
    leased = talker.ask(wire.Pin(0, 1 << 30), ABSENT)[0]
    assert leased.count == int(may_read)
    if may_read:
        assert talker.ask(wire.Read(0, leased.lease, 0, 0, 10))[1] == b"x" * 10
        talker.ask(wire.Release(0, [leased.lease]))
    for request, body in ((wire.Reserve(0, SIZE, number), bytes(16)), (wire.Allocate(0, SIZE, 1), b"")):
        if may_write:
            assert talker.ask(request, body)[0].outcomes == [Outcome.RESERVED.value]
        else:
            with pytest.raises(Forbidden, match="may not write"):
                talker.ask(request, body)
    assert talker.ask(wire.Remove(0), ABSENT)[0].value == int(may_write)


def test_a_grant_is_for_the_namespaces_it_names(pool: maru.Pool) -> None:
    control = Control(pool, LIMITS, bytes(16), "test")
    digests = [bytes([n] * 16) for n in (0xAA, 0xBB, 0xCC)]
    for n, digest in enumerate(digests):
        pool.put(bytes([n] * 16), b"x" * SIZE, pool._register_namespace(digest, "red", None))
    talker = Talker(control, client=client_named("a", "red", "write=aaaa", "lookup=b"))
    numbers = [talker.ask(wire.Register(0, digest, ""))[0].value for digest in digests[:2]]
    with pytest.raises(Forbidden):
        talker.ask(wire.Register(0, digests[2], ""))
    assert talker.ask(wire.Find(0), b"".join(bytes([n] * 16) for n in range(3)))[1] == b"\1\1\0"
    pinned = [talker.ask(wire.Pin(0, 1 << 30), bytes([n] * 16))[0].count for n in range(3)]
    assert pinned == [1, 0, 0]
    assert talker.ask(wire.Reserve(0, SIZE, numbers[0]), ABSENT)[0].outcomes == [Outcome.RESERVED.value]
    with pytest.raises(Forbidden):
        talker.ask(wire.Reserve(0, SIZE, numbers[1]), bytes([9] * 16))
    assert talker.ask(wire.Remove(0), bytes([1] * 16))[0].value == 0


def test_who_may_not_write_changes_no_namespaces_time_to_live(pool: maru.Pool) -> None:
    control = Control(pool, LIMITS, bytes(16), "test")
    reader, writer = (Talker(control, client=client_named(level, "red", level)) for level in ("read", "write"))
    space = pool._register_namespace(bytes(16), "red", 60.0)
    reader.ask(wire.Register(0, bytes(16), "", 1.0))
    assert space.ttl == pytest.approx(60)
    writer.ask(wire.Register(0, bytes(16), "", 1.0))
    assert space.ttl == pytest.approx(1)


def test_what_a_client_may_is_as_its_record_says_now(pool: maru.Pool) -> None:
    """A session is of one record: when that changes the client begins anew, and holds nothing of before."""
    control = Control(pool, LIMITS, bytes(16), "test")
    talker = Talker(control, client=client_named("a", "red"))
    talker.ask(wire.Register(0, bytes(16), ""))
    talker.ask(wire.Allocate(0, SIZE, 1))
    less = client_named("a", "red", "lookup")
    hello = wire.Hello(0, (1, 1), "test", talker.session.session, "talker", "boot")
    again, _ = control.greet(less, hello)
    assert again is not talker.session
    assert (again.client, again.holds) == (less, {})
    assert control.greet(less, hello)[0] is again


def test_memory_without_a_name_is_on_its_own_tenants_account(pool: maru.Pool) -> None:
    control = Control(pool, LIMITS, bytes(16), "test")
    red, blue = (Talker(control, client=client_named(name, name)) for name in ("red", "blue"))
    with pytest.raises(Forbidden, match="register a namespace first"):
        blue.ask(wire.Allocate(0, SIZE, 1))
    for who, digest in ((red, bytes([1] * 16)), (blue, bytes([2] * 16))):
        who.ask(wire.Register(0, digest, ""))
        who.ask(wire.Allocate(0, SIZE, 2))
    used = {row["name"]: row["used_bytes"] for row in pool.stats()["tenants"]}
    assert used["red"] == used["blue"] >= 2 * SIZE
    assert used["default"] == 0


def test_a_client_is_told_of_its_own_tenants_account_only(two: Two) -> None:
    assert [row["name"] for row in two.blue.stats()["tenants"]] == ["blue"]
    assert [row["name"] for row in two.red.stats()["tenants"]] == ["red"]


def test_rules_for_content_are_asked_for_over_the_wire_by_who_may_write(pool: maru.Pool) -> None:
    control = Control(pool, LIMITS, bytes(16), "test")
    reads, writes = (Talker(control, client=client_named(may, "red", may)) for may in ("read", "write"))
    reads.ask(wire.Register(0, bytes([1] * 16), "", None, 1))
    number = writes.ask(wire.Register(0, bytes([1] * 16), "", None, 2))[0].value
    row = next(row for row in pool.stats()["namespaces"] if row["id"] == number)
    assert row["policy"] == ["memory-only"]
    with pytest.raises(BadMessage, match="no set of rules"):
        writes.ask(wire.Register(0, bytes([1] * 16), "", None, 1 << 20))


def test_a_changed_record_ends_the_session_on_the_connection_that_stands(two: Two) -> None:
    session = session_of(two.control, "b")
    session.client = client_named("b", "blue", "lookup")  # type: ignore[attr-defined]
    refused = []
    for line in two.blue.channel._free:
        line._send(wire.Lookup(5), b"")
        refused.append(line._receive(2e9)[0])
    assert [(answer.error) for answer in refused] == [SessionUnknown.__name__] * len(refused) != []
    assert two.blue.lookup(two.first) == 0
    assert two.blue.failures == {}
