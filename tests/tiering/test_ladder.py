"""What leaves a pool comes back from below, byte for byte, and what must not come back does not."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from maru.errors import BadUrl
from maru.native import core
from maru.pool import Outcome, Pool
from maru.tiering.ladder import LadderSettings
from maru.tiering.prefill import Prefill
from maru.tiering.tiered import TieredPool
from tiering.conftest import (
    CHUNK_BYTES,
    CHUNK_TOKENS,
    IDENTITY,
    PREFIX_CHUNKS,
    Story,
    are_right,
    here,
    keys_in,
    prefix_of,
    put,
)

FLUSH_S = 20.0
PREFIXES = 20
"""Twice what the pool holds, and some."""
ONLY_READS = LadderSettings(demotes=False)


def fill(pool: TieredPool, prefixes: int = PREFIXES) -> list[bytes]:
    """More than there is room for; each is below before the next comes."""
    namespace = pool.namespace(IDENTITY)
    packed = [prefix_of(namespace, number) for number in range(prefixes)]
    for one in packed:
        put(pool, namespace, one)
        assert pool.ladder.flush(FLUSH_S)
    return packed


def test_a_prefix_that_was_evicted_is_found_and_read_again(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    packed = fill(pool)
    assert here(pool, packed[0]) < PREFIX_CHUNKS
    assert pool.lookup(packed[0]) == PREFIX_CHUNKS
    assert are_right(pool, packed[0]) == PREFIX_CHUNKS
    assert here(pool, packed[0]) == PREFIX_CHUNKS
    assert pool.ladder.stats()["demoter"]["dropped"] == 0


def test_what_is_neither_here_nor_below_was_counted(story: Story) -> None:
    pool = story.handle()
    namespace = pool.namespace(IDENTITY)
    keys = [key for one in fill(pool) for key in keys_in(one)]
    gone = [key for key in keys if not here(pool, key) and not pool.ladder.leading(key, namespace)]
    assert len(gone) == pool.ladder.stats()["demoter"]["dropped"] < len(keys) // 5


def test_only_the_coldest_have_a_copy_as_long_as_there_is_room(story: Story) -> None:
    pool = story.handle()
    namespace = pool.namespace(IDENTITY)
    put(pool, namespace, prefix_of(namespace, 1))
    assert pool.ladder.flush(FLUSH_S)
    assert pool.ladder.stats()["places"][0]["stored"] == 0


def test_with_write_through_everything_has_a_copy_soon(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY)
    put(pool, namespace, prefix_of(namespace, 1))
    assert pool.ladder.flush(FLUSH_S)
    assert pool.ladder.stats()["places"][0]["stored"] == PREFIX_CHUNKS


def test_copying_down_makes_nothing_wanted(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    fill(pool)
    counters = pool.stats()["counters"]
    assert (counters["hit_keys"], counters["pinned"]) == (0, 0)


def test_another_pool_finds_what_this_one_left(story: Story, tmp_path: Path) -> None:
    first = story.handle(story.tier + "&write=through")
    packed = fill(first, 3)
    first.close()
    other = Story(f"maru:///tiering-other-{tmp_path.name[-32:]}?size=4MiB&slab_bytes=512KiB", story.folder)
    try:
        pool = other.handle()
        pool.namespace(IDENTITY)
        assert [are_right(pool, one) for one in packed] == [PREFIX_CHUNKS] * 3
    finally:
        other.end()


@pytest.mark.parametrize("codec", ["none", "zstd", "blosc2"])
def test_every_codec_gives_back_what_it_was_given(story: Story, codec: str) -> None:
    pool = story.handle(f"{story.tier}&codec={codec}&write=through")
    packed = fill(pool)
    assert [are_right(pool, one) for one in packed] == [PREFIX_CHUNKS] * PREFIXES


def test_what_is_encrypted_is_read_with_the_key_and_not_without(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIER_KEY", "11" * 32)
    sealed = story.tier + "&write=through&encrypt=tenant&keys=env:TIER_KEY"
    pool = story.handle(sealed)
    packed = fill(pool)
    gone = next(one for one in packed if here(pool, one) == 0)
    pool.close()
    monkeypatch.setenv("TIER_KEY", "22" * 32)
    stranger = story.handle(sealed, settings=ONLY_READS)
    stranger.namespace(IDENTITY)
    assert are_right(stranger, gone) == 0
    stranger.close()


def test_a_chunk_comes_up_once_for_many_that_ask(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    packed = fill(pool)
    handles = [story.handle(settings=ONLY_READS) for _ in range(4)]
    read: list[int] = []

    def ask(one: TieredPool) -> None:
        one.namespace(IDENTITY)
        read.append(are_right(one, packed[0]))

    threads = [threading.Thread(target=ask, args=(one,)) for one in handles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert read == [PREFIX_CHUNKS] * 4
    came = sum(one.ladder.stats()["places"][0]["loaded"] for one in handles)
    assert came == PREFIX_CHUNKS


def test_what_a_bump_ended_does_not_come_back_from_below(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY)
    packed = fill(pool)
    namespace.bump()
    assert [pool.lookup(one) for one in packed] == [0] * PREFIXES
    assert [are_right(pool, one) for one in packed] == [0] * PREFIXES
    put(pool, namespace, packed[0])
    assert pool.ladder.flush(FLUSH_S)
    assert core.PoolCore.remove(pool, keys_in(packed[0])[-1])
    assert are_right(pool, packed[0]) == PREFIX_CHUNKS


def test_what_has_run_out_does_not_come_back_from_below(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed, ttl=3600.0)
    assert pool.ladder.flush(FLUSH_S)
    for key in reversed(keys_in(packed)):
        assert core.PoolCore.remove(pool, key)
    assert are_right(pool, packed) == PREFIX_CHUNKS
    for key in reversed(keys_in(packed)):
        assert core.PoolCore.remove(pool, key)
    now = time.time_ns()
    real = time.time_ns
    monkeypatch.setattr("maru.tiering.place.time.time_ns", lambda: now + 3601 * 10**9)
    assert are_right(pool, packed) == 0
    monkeypatch.setattr("maru.tiering.place.time.time_ns", real)
    put(pool, namespace, packed[:16], ttl=3600.0)  # What is stored anew has a copy of its own again.
    assert pool.ladder.flush(FLUSH_S)
    assert core.PoolCore.remove(pool, packed[:16])
    assert are_right(pool, packed[:16]) == 1


def test_a_place_that_is_quicker_to_recompute_is_left_alone(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    packed = fill(pool)
    at_once = Prefill(CHUNK_TOKENS, 1e15)
    quick = story.handle(settings=LadderSettings(demotes=False, prefill=at_once))
    quick.namespace(IDENTITY)
    gone = [one for one in packed if here(pool, one) == 0]
    quick.bring(gone[0])  # Measures, since nothing is known yet.
    assert quick.lookup(gone[1]) <= 1  # One chunk may be loaded to measure again.
    assert quick.lookup(gone[2]) == 0
    assert quick.ladder.stats()["decision"]["computes"] >= 2


def test_one_process_copies_down_and_the_next_goes_on_when_it_ends(story: Story) -> None:
    first, second = story.handle(), story.handle()
    assert first.ladder.flush(FLUSH_S)
    assert not second.ladder.stats()["demoter"]["is_ours"]
    first.close()
    fill(second)
    assert second.ladder.stats()["demoter"]["is_ours"]


def test_what_lies_below_already_is_not_copied_again(story: Story) -> None:
    first = story.handle(story.tier + "&write=through")
    fill(first, 3)
    first.close()
    second = story.handle(story.tier + "&write=through")
    assert second.ladder.flush(FLUSH_S)
    assert second.ladder.stats()["places"][0]["stored"] == 0


def test_whoever_must_not_wait_begins_and_looks_again(story: Story) -> None:
    packed = fill(story.handle(story.tier + "&write=through"))
    pool = story.handle(settings=ONLY_READS, is_explicit=True)
    pool.namespace(IDENTITY)
    gone = next(one for one in packed if here(pool, one) < PREFIX_CHUNKS)
    assert pool.lookup(gone) == here(pool, gone)
    under_way = pool.begin(gone)
    assert under_way is not None
    under_way.result(FLUSH_S)
    assert are_right(pool, gone) == PREFIX_CHUNKS
    assert pool.begin(gone) is None


def test_a_folder_that_is_not_there_costs_misses_and_nothing_else(story: Story) -> None:
    pool = story.handle("file:///nowhere/at/all?size=1GiB")
    namespace = pool.namespace(IDENTITY)
    packed = prefix_of(namespace, 1)
    assert are_right(pool, packed) == 0
    put(pool, namespace, packed)
    assert are_right(pool, packed) == PREFIX_CHUNKS


def test_objects_that_were_changed_below_are_misses_and_go(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    packed = fill(pool)
    gone = next(one for one in packed if here(pool, one) == 0)
    for key in keys_in(gone):
        (object_file,) = story.folder.rglob(key.hex())
        content = bytearray(object_file.read_bytes())
        content[len(content) // 2] ^= 1
        object_file.write_bytes(content)
    assert are_right(pool, gone) == 0
    assert pool.ladder.stats()["places"][0]["torn"] >= 1


def test_what_has_no_copy_when_it_leaves_is_counted(story: Story) -> None:
    pool = story.handle("file:///nowhere/at/all?size=1GiB")
    namespace = pool.namespace(IDENTITY)
    put(pool, namespace, prefix_of(namespace, 0))
    scan = core.LeavingScan(pool)
    assert len(scan.look(1 << 40, 64)) == PREFIX_CHUNKS * 96
    for number in range(1, PREFIXES):
        put(pool, namespace, prefix_of(namespace, number))
    scan.look(1 << 40, 64)
    assert scan.residents()[2] >= 1


@pytest.mark.parametrize(
    "url", ["file:///tmp?size=never", "ftp://host/x", "file:///tmp?codec=gzip", "", "file://host/x"]
)
def test_a_bad_url_is_refused_at_the_start(story: Story, url: str) -> None:
    with pytest.raises(BadUrl):
        story.handle(url)


def test_a_pool_that_was_destroyed_ends_its_ladder(story: Story) -> None:
    pool = story.handle()
    namespace = pool.namespace(IDENTITY)
    packed = prefix_of(namespace, 1)
    Pool.destroy(story.url, force=True)
    assert are_right(pool, packed) == 0
    assert pool.put(packed[:16], bytes(CHUNK_BYTES), namespace) is not Outcome.STORED
    pool.close()
    Pool.create(story.url).close()
