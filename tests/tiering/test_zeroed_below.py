"""What a zeroed namespace has below the pool is overwritten there before it goes, whoever lets it go and why."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from ladder_kit import CHUNKS, FLUSH_S, Clock, Prefix, fresh_pool, ladder_over, make_impatient

from maru.pool import POLICIES, Pool
from maru.testing.faulty_tier import FOR_EVER, Fault, FaultyTier, MemoryTier, Plan
from maru.tier.codec import open_codec
from maru.tier.contract import Capabilities, Tier
from maru.tier.opening import open_tier, parse_tier_url
from maru.tiering.generations import LOOK_AGAIN_S
from maru.tiering.place import Loaded, Place, Which
from maru.tiering.tiered import TieredPool
from tiering.conftest import IDENTITY, PREFIX_CHUNKS, Story, keys_in, prefix_of, put
from tiering.test_policy import is_below, names_below
from tiering.test_remover import wait_for

ZEROED = POLICIES["zeroed"]
CLOSED = replace(IDENTITY, tenant="closed")
DIGEST, POOL, KEY = bytes(range(16)), b"p" * 16, b"k" * 16
DATA = b"some KV" * 1000


def copies_of(story: Story, packed: bytes) -> list[Path]:
    """Second names of objects' files: what they show is what lies where the objects lay."""
    beside = story.folder.parent / "copies"
    beside.mkdir(exist_ok=True)
    copies = []
    for key in keys_in(packed):
        for path in story.folder.rglob(key.hex()):
            copies.append(beside / f"{path.parent.parent.name}-{path.name}")
            os.link(path, copies[-1])
    return copies


def is_zeros(copy: Path) -> bool:
    data = copy.read_bytes()
    return len(data) > 0 and not any(data)


def wait_until(pool: TieredPool, is_so: Callable[[], bool]) -> None:
    ends = time.monotonic() + FLUSH_S
    while not is_so():
        assert time.monotonic() < ends
        pool.ladder.flush(0.02)


@pytest.mark.parametrize("is_zeroed", [False, True])
def test_a_chunk_that_is_removed_by_its_key_is_overwritten(story: Story, is_zeroed: bool) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(CLOSED, policy=["zeroed"] if is_zeroed else [])
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    copies = copies_of(story, packed)
    assert len(copies) == PREFIX_CHUNKS
    for key in reversed(keys_in(packed)):
        assert pool.remove(key)
    wait_for(pool.ladder, "removed", PREFIX_CHUNKS)
    assert not names_below(story) & set(keys_in(packed))
    assert list(map(is_zeros, copies)) == [is_zeroed] * PREFIX_CHUNKS


def test_what_a_bump_ended_is_overwritten_in_the_background(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.tiering.generations.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr("maru.tiering.sweeper.ENDED_EVERY_S", 0.01)
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(CLOSED, policy=["zeroed"])
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    copies = copies_of(story, packed)
    namespace.bump()
    wait_until(pool, lambda: all(map(is_zeros, copies)))


def test_what_went_down_before_the_namespace_was_zeroed_comes_up_no_more_and_goes(
    story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru.tiering.generations.LOOK_AGAIN_S", 0.0)
    monkeypatch.setattr("maru.tiering.sweeper.ENDED_EVERY_S", 0.01)
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(CLOSED)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    assert is_below(pool, namespace, packed)
    with Pool.attach(story.url) as another:
        another.namespace(CLOSED, policy=["zeroed"])
    assert not is_below(pool, namespace, packed)
    wait_until(pool, lambda: not names_below(story) & set(keys_in(packed)))


def place_over(tier: Tier, clock: Clock) -> Place:
    return Place(tier, open_codec("none", 2), None, POOL, 10.0, clock=clock)


async def keep(place: Place, epoch: int = 0, ttl_s: float | None = None, policy: int = ZEROED) -> bool:
    return await place.store(Which(KEY, DIGEST, epoch, policy=policy), None, memoryview(DATA), ttl_s)


async def is_whole(place: Place, epoch: int = 0, policy: int = ZEROED) -> bool:
    room = bytearray(len(DATA))

    async def begin(_: object) -> memoryview:
        return memoryview(room)

    return await place.load(Which(KEY, DIGEST, epoch, policy=policy), begin) is Loaded.WHOLE and room == DATA


def test_every_way_a_place_lets_go_of_an_object_asks_for_its_overwriting() -> None:
    async def story() -> None:
        for way in ("remove", "bump", "forget", "torn"):
            tier, clock = MemoryTier(), Clock()
            place = place_over(tier, clock)
            assert await keep(place)
            [name] = [one for one in tier.objects if one.endswith(KEY.hex())]
            if way == "remove":
                assert await place.remove(Which(KEY, DIGEST, 0, policy=ZEROED))
            elif way == "bump":
                assert await place.settle(DIGEST, 1, ZEROED)
                clock.now_s += LOOK_AGAIN_S + 1
                await place.sweep_ended()
            elif way == "forget":
                assert await place.forget(DIGEST)
            else:
                tier.objects[name] = (tier.objects[name][0][:-1], 0.0)
                assert not await is_whole(place)
            assert tier.overwritten == [name], way

    asyncio.run(story())


def test_what_has_run_out_on_a_disk_is_overwritten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        tier = open_tier(parse_tier_url(f"file://{tmp_path}/below"))
        place = place_over(tier, Clock())
        assert await keep(place, ttl_s=60.0)
        [path] = (tmp_path / "below").rglob(KEY.hex())
        os.link(path, tmp_path / "copy")
        now_ns = time.time_ns
        monkeypatch.setattr("maru.tiering.place.time.time_ns", lambda: now_ns() + int(3600e9))
        await place.sweep_expired(pause_s=0)
        assert not path.exists()
        assert is_zeros(tmp_path / "copy")
        await tier.close()

    asyncio.run(story())


def test_a_place_that_cannot_overwrite_gets_nothing_of_it_and_is_not_asked_for_it() -> None:
    class Plain(MemoryTier):
        @property
        def capabilities(self) -> Capabilities:
            return Capabilities(False, False, True, 1 << 40)

    async def story() -> None:
        tier = Plain()
        place = place_over(tier, Clock())
        assert not await keep(place)
        assert tier.objects == {}
        assert await keep(place, policy=0)
        assert await is_whole(place, policy=0)
        assert not await is_whole(place)

    asyncio.run(story())


def test_pools_that_do_not_agree_on_it_do_not_share_what_lies_below() -> None:
    async def story() -> None:
        tier = MemoryTier()
        zeroed, plain = place_over(tier, Clock()), place_over(tier, Clock())
        assert await keep(zeroed)
        assert await is_whole(zeroed)
        assert not await is_whole(plain, policy=0)

    asyncio.run(story())


@pytest.fixture
def pool(pool_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    make_impatient(monkeypatch)
    monkeypatch.setattr("maru.tiering.remover.AGAIN_S", 0.01)
    with fresh_pool(pool_url) as pool:
        yield pool


@pytest.mark.parametrize("is_given_up", [False, True])
def test_what_is_not_known_to_be_overwritten_is_told(
    is_given_up: bool, pool: Pool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    if is_given_up:
        monkeypatch.setattr("maru.tiering.remover.TRIES", 3)
    tier, prefix = FaultyTier(), Prefix("zeroed-")
    with caplog.at_level(logging.WARNING, "maru"), ladder_over(monkeypatch, pool, tier) as ladder:
        namespace = pool.namespace(IDENTITY, policy=["zeroed"])
        prefix.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        tier.plan = Plan(Fault.FAILS, kind="remove", times=FOR_EVER)
        prefix.remove(pool)
        ladder.remove(prefix.keys, namespace)
        wait_for(ladder, "given_up" if is_given_up else "pending", CHUNKS)
    told = [line for line in caplog.messages if "not known to be overwritten" in line]
    assert len(told) == CHUNKS
    assert all(any(key.hex() in line for line in told) for key in prefix.each)


def test_a_process_that_ends_before_the_sweep_tells_what_it_leaves(caplog: pytest.LogCaptureFixture) -> None:
    async def story() -> None:
        for policy in (0, ZEROED):
            place = place_over(MemoryTier(), Clock())
            assert await keep(place, policy=policy)
            assert await place.settle(DIGEST, 1, policy)
            await place.close()

    with caplog.at_level(logging.WARNING, "maru"):
        asyncio.run(story())
    assert len([line for line in caplog.messages if "may not be overwritten yet" in line]) == 1
