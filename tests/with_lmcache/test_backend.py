"""LMCache's own MaruBackend, unmodified: two processes on one pool, every method that LMCache calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from peer import CHUNK_TOKENS, Layout, Peer

import maru

MAKE = Callable[..., Peer]


@pytest.fixture
def make_peer(pool_name: str) -> Iterator[MAKE]:
    """Backends on one pool, each in a process of its own."""
    made: list[Peer] = []

    def make(layout: Layout | None = None) -> Peer:
        made.append(Peer.take(f"maru:///{pool_name}", layout))
        return made[-1]

    yield make
    for peer in made:
        peer.give_back()


@pytest.fixture
def two(make_peer: MAKE) -> tuple[Peer, Peer]:
    return make_peer(), make_peer()


def stats_of(name: str) -> dict[str, object]:
    with maru.Pool.attach(f"maru:///{name}") as pool:
        assert pool.check() == []
        return pool.stats()


FULL = f"{CHUNK_TOKENS} tokens"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float8_e4m3fn"])
def test_what_one_process_stores_another_reads_bit_by_bit(make_peer: MAKE, dtype: str) -> None:
    writer, reader = make_peer(Layout(dtype=dtype)), make_peer(Layout(dtype=dtype))
    assert writer.put([1, 2, 3, 4], [CHUNK_TOKENS, CHUNK_TOKENS, CHUNK_TOKENS, 7]) == [True] * 4
    wanted = [FULL, FULL, FULL, "7 tokens"]
    for peer in (writer, reader):
        for how in ("batched", "single", "non_blocking"):
            assert peer.get([1, 2, 3, 4], how=how) == wanted


@pytest.mark.parametrize("how", ["batched", "single"])
def test_both_ways_of_putting_store(two: tuple[Peer, Peer], how: str) -> None:
    writer, reader = two
    writer.put([1, 2], how=how)
    assert reader.get([1, 2]) == [FULL, FULL]


def test_lookups_count_the_leading_chunks_that_are_there(two: tuple[Peer, Peer]) -> None:
    writer, reader = two
    writer.put([1, 2, 4])
    assert [reader.contains(n) for n in (1, 2, 3, 4)] == [True, True, False, True]
    assert reader.batched_contains([1, 2, 3, 4]) == 2
    assert reader.batched_async_contains([1, 2, 3, 4]) == 2
    assert reader.batched_async_contains([3, 4]) == 0


def test_a_batch_of_gets_has_one_answer_a_key_and_stops_nowhere(two: tuple[Peer, Peer]) -> None:
    writer, reader = two
    writer.put([1, 3])
    assert reader.get([1, 2, 3]) == [FULL, None, FULL]
    assert reader.get([1, 2, 3], how="non_blocking") == [FULL]  # LMCache itself stops at the first miss.


def test_a_pinned_lookup_pins_the_leading_run_and_unpins_are_answered(two: tuple[Peer, Peer], pool_name: str) -> None:
    writer, reader = two
    writer.put([1, 2, 4])
    assert reader.batched_contains([1, 2, 3, 4], pin=True) == 2
    assert reader.pins() == (0, 2)
    assert reader.contains(4, pin=True)
    assert reader.batched_async_contains([1], pin=True) == 1
    assert reader.pins() == (0, 4)
    assert [row["key_pins"] for row in stats_of(pool_name)["processes"] if row["key_pins"]] == [4]  # type: ignore
    assert [writer.remove(n) for n in (1, 2, 4)] == [False, False, False]
    reader.batched_unpin([1, 2])
    assert [reader.unpin(n) for n in (1, 4)] == [True, True]
    assert [reader.unpin(n) for n in (1, 2, 4)] == [False, False, False]
    assert reader.pins() == (0, 0)
    assert [writer.remove(n) for n in (1, 2, 4)] == [True, True, True]


def test_pin_is_asked_and_taken_in_one(two: tuple[Peer, Peer]) -> None:
    writer, reader = two
    writer.put([1])
    assert reader.pin(1)
    assert not reader.pin(2)
    assert reader.pins() == (0, 1)


def test_a_removed_chunk_is_gone_everywhere_and_can_be_stored_again(two: tuple[Peer, Peer]) -> None:
    writer, reader = two
    writer.put([1])
    assert reader.remove(1)
    assert not writer.remove(1)
    assert not writer.contains(1)
    writer.put([1])
    assert reader.get([1]) == [FULL]


def test_a_held_object_keeps_its_chunk_and_bytes_whatever_others_do(make_peer: MAKE) -> None:
    writer, reader = make_peer(), make_peer()
    writer.put([1, 2])
    assert reader.get([1, 2], hold=True) == [FULL, FULL]
    assert reader.pins() == (2, 0)
    assert not writer.remove(1)
    for start in range(10, 4000, 16):  # Far more than the pool holds.
        assert writer.put(list(range(start, start + 16))) == [True] * 16
    writer.kill()
    assert reader.judge_held([1, 2]) == [FULL, FULL]
    assert reader.drop_held() == 2
    assert reader.pins() == (0, 0)


def test_storing_a_second_time_gives_the_memory_back(two: tuple[Peer, Peer], pool_name: str) -> None:
    writer, second = two
    writer.put(list(range(16)))
    before = stats_of(pool_name)
    second.put(list(range(16)))
    writer.put(list(range(16)))
    after = stats_of(pool_name)
    assert after["used_bytes"] == before["used_bytes"]
    assert after["counters"]["discarded"] >= before["counters"]["discarded"] + 32  # type: ignore[index]


def test_what_was_allocated_and_never_stored_comes_back(two: tuple[Peer, Peer], pool_name: str) -> None:
    writer, other = two
    everything = writer.allocate_and_hold(10_000)
    assert everything > 100
    assert other.allocate_and_hold(1) == 0  # All of it is somebody's.
    assert writer.drop_held() == everything
    assert other.allocate_and_hold(100, batched=True) == 100
    other.drop_held()
    assert stats_of(pool_name)["used_bytes"] == 0


def test_a_batch_is_allocated_whole_or_not_at_all(two: tuple[Peer, Peer]) -> None:
    writer, other = two
    assert writer.allocate_and_hold(10_000, batched=True) == 0
    assert other.allocate_and_hold(100, batched=True) == 100


def test_a_dead_process_leaves_what_it_published_and_nothing_else(two: tuple[Peer, Peer], pool_name: str) -> None:
    writer, other = two
    writer.put([1, 2, 3])
    writer.batched_contains([1, 2, 3], pin=True)
    held = writer.allocate_and_hold(10_000)
    writer.kill()
    assert other.get([1, 2, 3]) == [FULL] * 3
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        pool.reap()
    assert [other.remove(n) for n in (1, 2, 3)] == [True] * 3
    assert other.allocate_and_hold(10_000) == held + 3


def test_a_full_pool_goes_on_and_keeps_what_is_pinned(two: tuple[Peer, Peer], pool_name: str) -> None:
    writer, reader = two
    writer.put(list(range(8)))
    assert reader.batched_contains(list(range(8)), pin=True) == 8
    for start in range(100, 4000, 16):
        assert writer.put(list(range(start, start + 16))) == [True] * 16
    assert reader.get(list(range(8))) == [FULL] * 8
    assert writer.get(list(range(start, start + 16))) == [FULL] * 16
    figures = stats_of(pool_name)
    assert figures["counters"]["evicted"] > 1000  # type: ignore[index]
    assert figures["used_bytes"] > 0.9 * figures["size_bytes"]  # type: ignore[operator]


def test_only_rank_zero_stores_a_latent_cache_and_every_rank_reads_it(make_peer: MAKE, pool_name: str) -> None:
    ranks = [make_peer(Layout(use_mla=True, world_size=2, worker_id=rank)) for rank in (0, 1)]
    ranks[1].put([1, 2])
    assert ranks[0].batched_contains([1, 2]) == 0
    ranks[0].put([1, 2, 3], [CHUNK_TOKENS, CHUNK_TOKENS, 5])
    for rank in ranks:
        assert rank.get([1, 2, 3]) == [FULL, FULL, "5 tokens"]
    assert stats_of(pool_name)["chunks"]["sealed"] == 3  # type: ignore[index]


def test_ranks_of_a_tensor_parallel_engine_do_not_read_each_others_slices(make_peer: MAKE) -> None:
    ranks = [make_peer(Layout(world_size=2, worker_id=rank)) for rank in (0, 1)]
    ranks[0].put([1])
    assert ranks[1].get([1]) == [None]


def test_closing_leaves_what_was_stored_and_ends_every_pin(two: tuple[Peer, Peer], pool_name: str) -> None:
    writer, reader = two
    writer.put([1, 2])
    reader.batched_contains([1, 2], pin=True)
    assert reader.close()
    assert [row["key_pins"] for row in stats_of(pool_name)["processes"]].count(2) == 0  # type: ignore
    assert writer.close()
    assert stats_of(pool_name)["chunks"]["sealed"] == 2  # type: ignore[index]


def test_another_chunk_size_under_the_same_key_is_a_miss_not_a_part_of_it(make_peer: MAKE) -> None:
    whole, half = make_peer(Layout()), make_peer(Layout(chunk_tokens=CHUNK_TOKENS // 2))
    whole.put([1])
    assert half.get([1]) == [None]
