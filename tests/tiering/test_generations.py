"""What a bump ended does not come back from below: not to that pool nor another, whatever became of the marker."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_kit import (
    CHUNKS,
    FLUSH_S,
    IDENTITY,
    Clock,
    Prefix,
    assert_nothing_is_held,
    bring,
    fresh_pool,
    ladder_over,
    make_impatient,
)

from maru.errors import NoSuchObject, TierFailed, TornObject
from maru.testing.faulty_tier import FOR_EVER, Fault, FaultyTier, MemoryTier, Plan
from maru.tier.codec import open_codec
from maru.tier.contract import name_of
from maru.tier.envelope import ChunkFacts
from maru.tiering.breaker import FAILURES_MAX, REST_S
from maru.tiering.generations import LOOK_AGAIN_S, POOLS_MAX, Generations, Marker
from maru.tiering.ladder import LadderSettings
from maru.tiering.place import Loaded, Place, Which

DIGEST = bytes(range(16))
KEY = bytes(range(100, 116))
MARKER = name_of(DIGEST, bytes(16))
A, B, C = (bytes([n]) * 16 for n in (1, 2, 3))
_Answer = TypeVar("_Answer")


def run(doing: Coroutine[Any, Any, _Answer]) -> _Answer:
    return asyncio.run(doing)


class Below:
    """One place, as several pools see it."""

    def __init__(self) -> None:
        self.memory, self.clock = MemoryTier(), Clock()
        self.tier = FaultyTier(self.memory)

    def place_of(self, pool: bytes) -> Place:
        return Place(self.tier, open_codec("none", 2), None, pool, 10.0, clock=self.clock)

    def look_again(self) -> None:
        self.clock.now_s += LOOK_AGAIN_S + 0.001


@pytest.fixture
def below() -> Below:
    return Below()


def keep(place: Place, epoch: int, data: bytes, key: bytes = KEY) -> bool:
    return run(place.store(Which(key, DIGEST, epoch), None, memoryview(data), None))


def get(place: Place, epoch: int, key: bytes = KEY) -> bytes | Loaded:
    """The bytes, or why there are none."""
    room = bytearray()

    async def begin(facts: ChunkFacts) -> memoryview:
        room.extend(bytes(facts.size_bytes))
        return memoryview(room)

    loaded = run(place.load(Which(key, DIGEST, epoch), begin))
    return bytes(room) if loaded is Loaded.WHOLE else loaded


def is_there(place: Place, epoch: int, key: bytes = KEY) -> bool:
    return run(place.contains([Which(key, DIGEST, epoch)]))[0]


def test_pools_whose_epochs_never_ended_share_everything(below: Below) -> None:
    assert keep(below.place_of(A), 0, b"old")
    assert get(below.place_of(B), 0) == b"old"
    assert Marker.read(below.memory.objects[MARKER][0]).pools == {}


def test_a_marker_that_was_lost_takes_its_objects_along(below: Below) -> None:
    assert keep(below.place_of(A), 0, b"old")
    del below.memory.objects[MARKER]
    for pool in (A, B):
        assert get(below.place_of(pool), 0) is Loaded.ABSENT
    assert keep(below.place_of(B), 0, b"new", key=B)
    assert get(below.place_of(A), 0) is Loaded.ABSENT
    assert get(below.place_of(A), 0, key=B) == b"new"


def test_readers_write_no_marker(below: Below) -> None:
    for epoch in (0, 1):
        assert not is_there(below.place_of(A), epoch)
        assert get(below.place_of(A), epoch) is Loaded.ABSENT
    assert below.memory.objects == {}


def test_a_bump_after_which_nothing_is_stored_ends_what_was_there(below: Below) -> None:
    place = below.place_of(A)
    assert keep(place, 0, b"old")
    assert run(place.settle(DIGEST, 1))
    assert get(below.place_of(B), 0) is Loaded.ABSENT
    assert run(place.settle(DIGEST, 0))  # It is over, which is all that was asked for.


def test_nothing_of_before_comes_up_for_the_pool_that_bumped(below: Below) -> None:
    place = below.place_of(A)
    assert keep(place, 0, b"old")
    for one in (place, below.place_of(A)):  # This process, and another one.
        assert not is_there(one, 1)
        assert get(one, 1) is Loaded.ABSENT
    assert keep(place, 1, b"new")
    assert get(below.place_of(A), 1) == b"new"
    assert get(below.place_of(A), 2) is Loaded.ABSENT


def test_nothing_of_before_comes_up_for_another_pool_when_it_looks_again(below: Below) -> None:
    first, other = below.place_of(A), below.place_of(B)
    assert keep(other, 0, b"old")
    assert run(first.settle(DIGEST, 1))
    assert get(other, 0) == b"old"
    below.look_again()
    assert not is_there(other, 0)
    assert get(other, 0) is Loaded.ABSENT
    assert get(below.place_of(C), 0) is Loaded.ABSENT
    assert keep(first, 1, b"new")
    assert get(other, 0) == b"new"


def test_what_is_copied_too_late_is_not_taken_for_something_of_after_the_bump(below: Below) -> None:
    place = below.place_of(A)
    assert keep(place, 0, b"before", key=B)
    assert run(place.settle(DIGEST, 1))
    assert not keep(place, 0, b"before")  # It was held before the bump, and its turn came after it.
    assert get(place, 1) is Loaded.ABSENT
    assert get(place, 0, key=B) is Loaded.ABSENT
    assert run(place.contains([Which(KEY, DIGEST, 1), Which(KEY, DIGEST, 0)])) == [False, False]
    assert place.state() == "up"


def test_pools_with_epochs_of_their_own_do_not_invalidate_each_other_in_turn(below: Below) -> None:
    first, other = below.place_of(A), below.place_of(B)
    for _ in range(3):  # Until each has seen the other's.
        run(first.settle(DIGEST, 3))
        run(other.settle(DIGEST, 5))
        below.look_again()
    written = below.tier.operations["store"]
    assert written <= 3
    assert keep(first, 3, b"new")
    for _ in range(20):
        assert get(first, 3) == get(other, 5) == b"new"
        below.look_again()
    assert below.tier.operations["store"] == written + 1


@pytest.mark.parametrize("is_torn", [False, True])
def test_many_who_ask_at_once_write_one_marker_and_agree(below: Below, is_torn: bool) -> None:
    if is_torn:
        below.memory.objects[MARKER] = (b"torn", 0.0)
    generations = Generations(below.tier, A, below.clock)

    async def ask() -> set[bytes]:
        return set(await asyncio.gather(*(generations.folder_to_store(DIGEST, 1) for _ in range(8))))

    assert len(run(ask())) == 1
    assert below.tier.operations["load"] == 1
    assert run(Generations(below.tier, A, below.clock).folder(DIGEST, 1)) in run(ask())


def test_who_goes_away_while_asking_does_not_hold_up_the_others(below: Below) -> None:
    generations = Generations(below.tier, A, below.clock)

    async def ask() -> bytes:
        below.tier.plan = Plan(Fault.HANGS)
        first, second = (asyncio.ensure_future(generations.folder_to_store(DIGEST, 1)) for _ in range(2))
        for _ in range(5):
            await asyncio.sleep(0)
        first.cancel()
        async with asyncio.timeout(10):
            return await second

    assert run(ask()) == run(generations.folder(DIGEST, 1))


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_torn_marker_is_replaced_and_what_lay_under_it_is_not_found(below: Below, epoch: int) -> None:
    first = below.place_of(A)
    assert keep(first, 1, b"old")
    data, stored_at = below.memory.objects[MARKER]
    below.memory.objects[MARKER] = (data[:-1] + bytes([data[-1] ^ 1]), stored_at)
    below.look_again()
    other = below.place_of(B)
    assert get(other, epoch) is Loaded.ABSENT
    assert keep(other, epoch, b"new")
    assert get(first, 1) in (b"new", Loaded.ABSENT)  # A pool that has an epoch of its own makes a new one.
    assert Marker.read(below.memory.objects[MARKER][0]).generation


def test_each_damaged_byte_of_a_marker_is_seen() -> None:
    packed = Marker(bytes(range(16)), {A: 1, B: 1 << 60}).packed()
    assert Marker.read(packed) == Marker(bytes(range(16)), {A: 1, B: 1 << 60})
    for at in range(len(packed)):
        with pytest.raises(TornObject):
            Marker.read(packed[:at] + bytes([packed[at] ^ 0x10]) + packed[at + 1 :])
        with pytest.raises(TornObject):
            Marker.read(packed[:at])
    with pytest.raises(TornObject):
        Marker.read(packed + b"\0")


def test_a_marker_names_a_bounded_number_of_pools_the_latest(below: Below) -> None:
    pools = [number.to_bytes(16, "big") for number in range(1, POOLS_MAX + 20)]
    for pool in pools:
        run(Generations(below.tier, pool, below.clock).folder_to_store(DIGEST, 1))
    assert list(Marker.read(below.memory.objects[MARKER][0]).pools) == pools[-POOLS_MAX:]


def test_what_is_stored_after_a_namespace_was_forgotten_has_a_marker_of_its_own(below: Below) -> None:
    place = below.place_of(A)
    assert keep(place, 0, b"before")
    assert run(place.forget(DIGEST))
    assert keep(place, 0, b"after")
    below.look_again()
    assert get(place, 0) == b"after"


@pytest.mark.parametrize("plan", [
    Plan(Fault.FAILS, kind="store", times=FOR_EVER), Plan(Fault.IS_FULL, times=FOR_EVER),
    Plan(Fault.FAILS, kind="load", times=FOR_EVER),
])  # fmt: skip
def test_without_a_marker_nothing_is_loaded_or_stored(below: Below, plan: Plan) -> None:
    assert keep(below.place_of(A), 0, b"old")
    below.tier.plan = plan
    before = dict(below.memory.objects)
    for epoch in (1, 2):
        place = below.place_of(A)
        assert not is_there(place, epoch)
        assert get(place, epoch) in (Loaded.FAILED, Loaded.ABSENT)
        assert not keep(place, epoch, b"new")
    assert below.memory.objects == before
    with pytest.raises(TierFailed):
        run(Generations(below.tier, A, below.clock).folder_to_store(DIGEST, 1))
    below.tier.heal()
    place = below.place_of(A)
    assert get(place, 2) is Loaded.ABSENT
    assert keep(place, 2, b"new")
    assert get(place, 2) == b"new"


def test_a_marker_that_cannot_be_looked_at_again_ends_what_it_gave(below: Below) -> None:
    place = below.place_of(A)
    assert keep(place, 1, b"new")
    below.tier.plan = Plan(Fault.FAILS, kind="load", times=FOR_EVER)
    below.look_again()
    assert not is_there(place, 1)
    below.tier.heal()
    below.clock.now_s += FAILURES_MAX * REST_S
    assert get(place, 1) == b"new"


def test_an_epoch_that_is_over_has_no_folder(below: Below) -> None:
    generations = Generations(below.tier, A, below.clock)
    folder = run(generations.folder_to_store(DIGEST, 2))
    with pytest.raises(NoSuchObject):
        run(generations.folder(DIGEST, 1))
    assert run(generations.folder(DIGEST, 2)) == folder


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["bump", "keep", "late", "get", "wait"]), st.integers(0, 2)), max_size=40))
def test_no_pool_ever_loads_what_it_stored_before_its_bump(acts: list[tuple[str, int]]) -> None:
    below = Below()
    pools = (A, B, C)
    places = [below.place_of(pool) for pool in pools]
    epochs = [0, 0, 0]
    for act, who in acts:
        if act == "bump":
            epochs[who] += 1
        elif act == "keep":
            keep(places[who], epochs[who], f"{who} {epochs[who]}".encode())
        elif act == "late":
            epoch = max(0, epochs[who] - 1)
            keep(places[who], epoch, f"{who} {epoch}".encode())
        elif act == "get":
            got = get(places[who], epochs[who])
            if isinstance(got, bytes):
                by, epoch = map(int, got.split())
                assert by != who or epoch == epochs[who]
        else:
            below.look_again()


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    make_impatient(monkeypatch)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("step", ["reserved", "loaded"])
def test_a_bump_while_chunks_come_up_leaves_none_of_them(
    step: str, pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bumped: list[int] = []

    def at(reached: str) -> None:
        if reached == step and not bumped:
            bumped.append(namespace.bump())

    prefix = Prefix("bumped-")
    with fresh_pool(pool_url) as pool:
        namespace = pool.namespace(IDENTITY)
        with ladder_over(monkeypatch, pool, FaultyTier(), settings=LadderSettings(at=at)) as ladder:
            prefix.put(pool, namespace)
            assert ladder.flush(FLUSH_S)
            prefix.remove(pool)
            assert bring(pool, ladder, namespace, prefix) == 0
            assert bumped == [1]
            assert prefix.read(pool) == 0
            assert bring(pool, ladder, namespace, prefix) == 0
            assert ladder.leading(prefix.keys, namespace) == 0
            assert pool.stats()["counters"]["stored"] == CHUNKS
        assert_nothing_is_held(pool)


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("step", ["looked", "held", "stored"])
def test_a_bump_while_chunks_go_down_leaves_none_of_them_to_come_up(
    step: str, pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bumped: list[int] = []

    def at(reached: str) -> None:
        if reached == step and pool.exists(prefix.each[-1]) and not bumped:
            bumped.append(namespace.bump())

    prefix, after = Prefix("bumped-"), Prefix("after-")
    with fresh_pool(pool_url) as pool:
        namespace = pool.namespace(IDENTITY)
        with ladder_over(monkeypatch, pool, FaultyTier(), settings=LadderSettings(at=at)) as ladder:
            prefix.put(pool, namespace)
            assert ladder.flush(FLUSH_S)
            assert bumped == [1]
            assert bring(pool, ladder, namespace, prefix) == 0
            after.put(pool, namespace)
            assert ladder.flush(FLUSH_S)
            after.remove(pool)
            assert bring(pool, ladder, namespace, prefix) == 0
            assert bring(pool, ladder, namespace, after) == CHUNKS
            assert after.read(pool) == CHUNKS
        assert_nothing_is_held(pool)
