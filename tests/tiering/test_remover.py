"""A chunk that somebody removes is gone below too, and does not come up again."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from ladder_kit import CHUNKS, FLUSH_S, IDENTITY, Prefix, bring, fresh_pool, ladder_over, make_impatient

from maru.pool import Pool
from maru.testing.faulty_tier import FOR_EVER, Fault, FaultyTier, Plan
from maru.tiering.ladder import Ladder, LadderSettings
from tiering.conftest import IDENTITY as IDENTITY_OF_STORY
from tiering.conftest import Story, here, keys_in, prefix_of, put

ONLY_READS = LadderSettings(demotes=False)
PREFIX = Prefix("removed-")


def wait_for(ladder: Ladder, figure: str, count: int) -> None:
    ends = time.monotonic() + FLUSH_S
    while ladder.stats()["remover"][figure] != count:
        assert time.monotonic() < ends, ladder.stats()["remover"]
        ladder.flush(0.02)


def files_of(story: Story, packed: bytes) -> int:
    return sum(len(list(story.folder.rglob(key.hex()))) for key in keys_in(packed))


def test_a_chunk_that_is_removed_comes_up_in_no_pool(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY_OF_STORY)
    packed, other = prefix_of(namespace, 1), prefix_of(namespace, 2)
    for one in (packed, other):
        put(pool, namespace, one)
    assert pool.ladder.flush(FLUSH_S)
    for key in reversed(keys_in(packed)):
        assert pool.remove(key)
    wait_for(pool.ladder, "removed", len(keys_in(packed)))
    assert pool.lookup(packed) == here(pool, packed) == 0
    assert files_of(story, packed) == 0
    assert files_of(story, other) == len(keys_in(other))


def test_what_lies_only_below_is_removed_there(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY_OF_STORY)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    with Pool.attach(story.url) as plain:
        for key in reversed(keys_in(packed)):
            assert plain.remove(key)
    assert files_of(story, packed) == len(keys_in(packed))
    assert not pool.remove(packed[:16])
    wait_for(pool.ladder, "removed", 1)
    assert files_of(story, packed[:16]) == 0


def test_a_chunk_that_somebody_reads_stays_below_too(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY_OF_STORY)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    with pool.pin(packed):
        assert not pool.remove(packed[-16:])
    assert pool.ladder.stats()["remover"] == {"removed": 0, "pending": 0, "given_up": 0}
    assert files_of(story, packed) == len(keys_in(packed))


@pytest.fixture
def pool(pool_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pool]:
    make_impatient(monkeypatch)
    monkeypatch.setattr("maru.tiering.remover.AGAIN_S", 0.01)
    with fresh_pool(pool_url) as pool:
        yield pool


@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.RAISES, Fault.FAILS_LATE])
def test_a_place_that_is_down_is_asked_again_until_it_has_removed(
    fault: Fault, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = FaultyTier()
    with ladder_over(monkeypatch, pool, tier) as ladder:
        namespace = pool.namespace(IDENTITY)
        PREFIX.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        tier.plan = Plan(fault, kind="remove", times=FOR_EVER)
        PREFIX.remove(pool)
        ladder.remove(PREFIX.keys, namespace)
        wait_for(ladder, "pending", CHUNKS)
        assert ladder.stats()["remover"]["removed"] == 0
        tier.heal()
        wait_for(ladder, "removed", CHUNKS)
        assert ladder.stats()["remover"] == {"removed": CHUNKS, "pending": 0, "given_up": 0}
        assert bring(pool, ladder, namespace, PREFIX) == 0


def test_what_a_place_never_removes_is_given_up_and_counted(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.tiering.remover.TRIES", 3)
    tier = FaultyTier()
    with ladder_over(monkeypatch, pool, tier) as ladder:
        namespace = pool.namespace(IDENTITY)
        PREFIX.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        tier.plan = Plan(Fault.FAILS, kind="remove", times=FOR_EVER)
        PREFIX.remove(pool)
        ladder.remove(PREFIX.keys, namespace)
        wait_for(ladder, "given_up", CHUNKS)
        assert ladder.stats()["remover"] == {"removed": 0, "pending": 0, "given_up": CHUNKS}
        tier.heal()
        assert bring(pool, ladder, namespace, PREFIX) == CHUNKS


def test_who_has_not_the_right_to_write_takes_it_from_nobody(story: Story) -> None:
    writer = story.handle(story.tier + "&write=through")
    namespace = writer.namespace(IDENTITY_OF_STORY)
    packed = prefix_of(namespace, 1)
    put(writer, namespace, packed)
    assert writer.ladder.flush(FLUSH_S)
    writer.close()  # Nobody has the right now: whoever asked to remove could take it, and keep it.
    reader = story.handle(settings=ONLY_READS)
    reader.namespace(IDENTITY_OF_STORY)
    assert reader.remove(packed[-16:])
    following = story.handle(story.tier + "&write=through")
    put(following, following.namespace(IDENTITY_OF_STORY), prefix_of(following.namespace(IDENTITY_OF_STORY), 2))
    assert following.ladder.flush(FLUSH_S)
    assert following.ladder.stats()["places"][0]["stored"] == len(keys_in(packed))
    assert files_of(story, packed[-16:]) == 1
    assert reader.ladder.stats()["remover"] == {"removed": 0, "pending": 1, "given_up": 0}
