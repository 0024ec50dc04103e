"""What is of no use to anybody goes from the places below, and nothing else does, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ladder_kit import Clock

from maru.testing.faulty_tier import FOR_EVER, Fault, FaultyTier, MemoryTier, Plan
from maru.tier.codec import open_codec
from maru.tier.contract import Capabilities, Tier, name_of
from maru.tier.envelope import HEADER_BYTES, ChunkFacts, expiry_of, wrap
from maru.tier.opening import open_tier, parse_tier_url
from maru.tiering.generations import LOOK_AGAIN_S
from maru.tiering.place import Loaded, Place, Which
from maru.tiering.sweeper import EXPIRED_EVERY_S, FIRST_S, Sweeper

DIGEST, OTHER = bytes(range(16)), bytes(range(50, 66))
POOL = b"p" * 16
HOUR = 3600.0
DATA = b"some KV" * 1000


def key(number: int) -> bytes:
    return (number + 1).to_bytes(16, "big")  # Of zeros alone is a marker.


class Swept(MemoryTier):
    """Memory that may be swept, as a disk may."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(False, False, True, 1 << 40, may_be_swept=True)


def place_over(tier: Tier, clock: Clock | None = None) -> Place:
    return Place(tier, open_codec("none", 2), None, POOL, 10.0, clock=clock or Clock())


async def keep(place: Place, number: int, ttl_s: float | None, epoch: int = 0, digest: bytes = DIGEST) -> None:
    assert await place.store(Which(key(number), digest, epoch), None, memoryview(DATA), ttl_s)


async def is_whole(place: Place, number: int, epoch: int = 0, digest: bytes = DIGEST) -> bool:
    room = bytearray()

    async def begin(facts: ChunkFacts) -> memoryview:
        room.extend(bytes(facts.size_bytes))
        return memoryview(room)

    return await place.load(Which(key(number), digest, epoch), begin) is Loaded.WHOLE and room == DATA


async def names_in(tier: Tier) -> set[str]:
    """Of chunks; markers are none."""
    return {one.name async for one in tier.list() if not one.name.endswith("0" * 32)}


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Hours that the clock on the wall is ahead."""
    ahead = [0.0]
    now_ns = time.time_ns
    monkeypatch.setattr("maru.tiering.place.time.time_ns", lambda: now_ns() + int(ahead[0] * HOUR * 1e9))
    return ahead


@pytest.mark.parametrize("kind", ["memory", "disk"])
def test_what_has_run_out_goes_and_what_is_good_stays(kind: str, later: list[float], tmp_path: Path) -> None:
    async def story() -> None:
        tier = Swept() if kind == "memory" else open_tier(parse_tier_url(f"file://{tmp_path}/below"))
        place = place_over(tier)
        for number, ttl_s in enumerate((HOUR, None, 3 * HOUR, HOUR, None)):
            await keep(place, number, ttl_s)
        await place.sweep_expired(pause_s=0)
        assert place.figures["swept"] == 0
        later[0] = 2
        await place.sweep_expired(pause_s=0)
        assert place.figures["swept"] == 2
        assert len(await names_in(tier)) == 3
        assert [await is_whole(place, number) for number in range(5)] == [False, True, True, False, True]
        await tier.close()

    asyncio.run(story())


def test_what_was_before_a_bump_goes_and_what_came_after_stays() -> None:
    async def story() -> None:
        tier, clock = MemoryTier(), Clock()  # Not to be swept for what has run out, but what was ended is known.
        place = place_over(tier, clock)
        for number in range(3):
            await keep(place, number, None)
            await keep(place, number, None, digest=OTHER)
        before = await names_in(tier)
        assert await place.settle(DIGEST, 1)
        await keep(place, 7, None, epoch=1)
        await place.sweep_ended()
        assert place.figures["swept"] == 0, "another pool may still store there"
        clock.now_s += LOOK_AGAIN_S + 1
        await place.sweep_ended()
        assert place.figures["swept"] == 3
        assert len(await names_in(tier) & before) == 3
        assert await is_whole(place, 7, epoch=1)
        assert all([await is_whole(place, number, digest=OTHER) for number in range(3)])
        await place.sweep_ended()
        assert place.figures["swept"] == 3

    asyncio.run(story())


@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([None, HOUR, 5 * HOUR]), st.booleans()), max_size=12))
def test_whatever_was_stored_and_ended_only_what_counts_stays(story: list[tuple[int, float | None, bool]]) -> None:
    """A plain ledger beside it: for each chunk of the present epoch, until when it is good."""

    async def tell() -> None:
        tier, ledger, epoch, clock = Swept(), dict[int, float](), 0, Clock()
        place = place_over(tier, clock)
        await keep(place, 99, None, digest=OTHER)
        for number, ttl_s, is_bump in story:
            if is_bump:
                epoch += 1
                ledger.clear()
                assert await place.settle(DIGEST, epoch)
            await keep(place, number, ttl_s, epoch)
            ledger[number] = float("inf") if ttl_s is None else ttl_s
        now_ns = time.time_ns
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("maru.tiering.place.time.time_ns", lambda: now_ns() + int(2 * HOUR * 1e9))
            clock.now_s += LOOK_AGAIN_S + 1
            await place.sweep_ended()
            await place.sweep_expired(pause_s=0)
            good = {number for number, until_s in ledger.items() if until_s > 2 * HOUR}
            assert len(await names_in(tier)) == len(good) + 1
            assert {number for number in range(6) if await is_whole(place, number, epoch)} == good

    asyncio.run(tell())


@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.FAILS_LATE, Fault.RAISES, Fault.FLIPS, Fault.CUTS, Fault.FORGETS])
def test_whatever_fails_on_the_way_nothing_that_counts_goes(fault: Fault, later: list[float]) -> None:
    async def story(nth: int) -> bool:
        memory = Swept()
        sound = place_over(memory)
        for number in range(4):
            await keep(sound, number, HOUR if number % 2 else None)
        assert await sound.settle(OTHER, 1)
        later[0] = 2
        tier = FaultyTier(memory, Plan(fault, nth=nth, times=1))
        place = place_over(tier)
        place.figures["stored"] = 1
        await place.sweep_expired(pause_s=0)
        later[0] = 0
        assert {number for number in range(4) if await is_whole(sound, number)} >= {0, 2}
        return bool(tier.struck)

    nth = 1
    while asyncio.run(story(nth)):
        nth += 1
        assert nth < 50


def test_a_place_that_removes_nothing_is_asked_again_later(later: list[float]) -> None:
    async def story() -> None:
        memory, clock = MemoryTier(), Clock()
        tier = FaultyTier(memory)
        place = place_over(tier, clock)
        await keep(place, 1, None)
        assert await place.settle(DIGEST, 1)
        clock.now_s += LOOK_AGAIN_S + 1
        tier.plan = Plan(Fault.FAILS, nth=1, times=FOR_EVER)
        await place.sweep_ended()
        assert (place.figures["swept"], len(await names_in(memory))) == (0, 1)
        tier.heal()
        await place.sweep_ended()
        assert (place.figures["swept"], len(await names_in(memory))) == (1, 0)

    asyncio.run(story())


def test_only_whoever_copies_down_sweeps_and_not_all_the_time(later: list[float]) -> None:
    async def story() -> None:
        place, clock, rights = place_over(Swept()), Clock(), [False]
        await keep(place, 1, HOUR)
        later[0] = 2
        sweeper = Sweeper([place], lambda: rights[0], clock)
        clock.now_s += FIRST_S
        await sweeper.turn()
        assert place.figures["swept"] == 0
        rights[0] = True
        await sweeper.turn()
        assert place.figures["swept"] == 1
        later[0] = 0
        await keep(place, 2, HOUR)
        later[0] = 4
        await sweeper.turn()
        assert place.figures["swept"] == 1
        clock.now_s += EXPIRED_EVERY_S
        await sweeper.turn()
        assert place.figures["swept"] == 2

    asyncio.run(story())


def test_of_what_is_no_object_nothing_is_known() -> None:
    facts = ChunkFacts(key(1), DIGEST, len(DATA), None, 12345)
    whole = b"".join(bytes(part) for part in wrap(facts, DATA, open_codec("none", 2)))
    assert expiry_of(whole) == expiry_of(whole[:HEADER_BYTES]) == 12345
    assert expiry_of(whole[: HEADER_BYTES - 1]) is None
    assert expiry_of(os.urandom(HEADER_BYTES)) is None
    for place in range(HEADER_BYTES):
        broken = bytearray(whole[:HEADER_BYTES])
        broken[place] ^= 1
        assert expiry_of(bytes(broken)) is None, place
    assert name_of(DIGEST, bytes(16)).endswith("0" * 32)
