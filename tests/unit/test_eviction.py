"""Space is made from what nobody reads and nothing continues; never from what somebody pins."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of

# 8 MiB in slabs of 512 KiB: each holds one chunk of 400,000 bytes.
LARGE = 400_000
ROOM = 16


def store(pool: maru.Pool, number: int, size: int = LARGE, parent: bytes | None = None) -> Outcome:
    key = key_of(number)
    return pool.put(key, bytes_of(key, size), parent=parent)


def present(pool: maru.Pool, count: int) -> list[int]:
    return [n for n in range(count) if pool.exists(key_of(n))]


def test_a_full_pool_evicts_and_goes_on(pool: maru.Pool) -> None:
    for n in range(100):
        assert store(pool, n) == Outcome.STORED
        assert pool.exists(key_of(n))
    assert len(present(pool, 100)) == ROOM
    assert pool.stats()["counters"]["evicted"] == 100 - ROOM
    assert pool.check() == []


def test_a_pinned_chunk_is_never_evicted(pool: maru.Pool) -> None:
    store(pool, 0)
    view = pool.get(key_of(0))
    assert view is not None
    for n in range(1, 200):
        assert store(pool, n) == Outcome.STORED
    assert is_right(key_of(0), view)
    assert pool.exists(key_of(0))


def test_full_is_answered_when_everything_is_pinned(pool: maru.Pool) -> None:
    for n in range(ROOM):
        store(pool, n)
    views = [pool.get(key_of(n)) for n in range(ROOM)]
    assert store(pool, 50) == Outcome.FULL
    assert pool.put(key_of(51), b"a smaller one") == Outcome.FULL
    assert pool.allocate(LARGE) is None
    assert pool.stats()["counters"]["full"] == 3
    del views
    assert store(pool, 50) == Outcome.STORED


def test_a_long_index_full_of_pins_is_not_searched_again_at_once(pool_url: str) -> None:
    with maru.Pool.create(f"{pool_url.partition('?')[0]}?size=8MiB&slots=4000000") as pool:
        number = 0
        while store(pool, number) == Outcome.STORED and pool.stats()["counters"]["evicted"] == 0:
            number += 1
        views = [view for n in range(number + 1) if (view := pool.get(key_of(n))) is not None]
        before = pool.stats()["eviction"]["slots_looked_at"]
        assert [store(pool, 1000 + n) for n in range(20)] == [Outcome.FULL] * 20
        # A turn looks at each of them once, and the index is long enough to be remembered for 32 ms.
        assert pool.stats()["eviction"]["slots_looked_at"] - before < 10 * len(views)
        del views
        deadline = time.monotonic() + 20
        while store(pool, 2000) != Outcome.STORED:
            assert time.monotonic() < deadline, "what was remembered of the pins was never forgotten"


def test_a_prefix_leaves_from_its_tail_up(pool: maru.Pool) -> None:
    keys = b"".join(key_of(n) for n in range(ROOM))
    pool.put_many(keys, [bytes_of(key_of(n), LARGE) for n in range(ROOM)])
    for extra in range(1, 6):
        assert store(pool, 100 + extra) == Outcome.STORED
    survivors = present(pool, ROOM)
    # What is left of the chain is a usable prefix: its beginning, without holes.
    assert survivors == list(range(len(survivors)))
    assert pool.lookup(keys) == len(survivors) >= ROOM - 5
    assert pool.stats()["counters"]["evicted_parents"] == 0


def test_the_parent_of_what_is_being_stored_stays(pool: maru.Pool) -> None:
    chain = [key_of(n) for n in range(60)]
    pool.put_many(b"".join(chain), [bytes_of(key, LARGE) for key in chain])
    # A chain longer than the pool: its beginning stays, since every later chunk continues it.
    assert pool.exists(chain[0])
    assert pool.check() == []


def test_a_chunk_that_was_read_outlives_one_that_was_not(pool: maru.Pool) -> None:
    for n in range(ROOM):
        store(pool, n)
    for _ in range(600):  # References are the clock: two epochs of them.
        assert pool.get(key_of(3)) is not None
        assert pool.get(key_of(9)) is not None
    for n in range(100, 100 + ROOM - 2):
        assert store(pool, n) == Outcome.STORED
        assert pool.get(key_of(3)) is not None
        assert pool.get(key_of(9)) is not None
    assert present(pool, ROOM) == [3, 9]


def test_slabs_change_their_chunk_size_when_the_mix_changes(pool: maru.Pool) -> None:
    for n in range(ROOM):
        store(pool, n)
    small = [1000 + n for n in range(400)]
    for n in small:
        assert store(pool, n, size=20_000) == Outcome.STORED
    assert pool.stats()["counters"]["reclassed"] > 0
    assert sum(pool.exists(key_of(n)) for n in small) > 100  # More than one slab's worth of them.
    for n in range(200, 200 + ROOM):
        assert store(pool, n) == Outcome.STORED
    assert pool.check() == []


def test_an_empty_slab_is_reused_before_anything_is_evicted(pool: maru.Pool) -> None:
    for n in range(ROOM):
        store(pool, n)
    for n in range(ROOM // 2):
        assert pool.remove(key_of(n))
    for n in range(100, 200):
        assert store(pool, n, size=20_000) == Outcome.STORED
    assert present(pool, ROOM) == list(range(ROOM // 2, ROOM))
    assert pool.stats()["counters"]["evicted"] == 0


def test_more_sizes_than_there_are_rows_of_hints_still_work(pool: maru.Pool) -> None:
    for n in range(300):
        assert store(pool, n, size=4096 * (1 + n % 100)) == Outcome.STORED
    assert pool.check() == []


def test_keys_that_are_counted_fill_the_pool_like_any_other(pool: maru.Pool) -> None:
    views = []
    for n in range(400):
        key = n.to_bytes(16, "big")
        assert pool.put(key, bytes_of(key, 8_000)) == Outcome.STORED
        views.append(pool.get(key))
    assert all(view is not None for view in views)


def test_running_out_of_slots_evicts_like_running_out_of_bytes(pool_url: str) -> None:
    with maru.Pool.create(pool_url.partition("?")[0] + "?size=8MiB&slots=60") as pool:
        for n in range(500):
            assert store(pool, n, size=100) == Outcome.STORED
        assert pool.stats()["chunks"]["sealed"] <= 60
        assert pool.check() == []


@pytest.mark.parametrize("segments", [2, 6])
def test_a_prefix_is_striped_over_all_segments(tmp_path: Path, pool_url: str, segments: int) -> None:
    paths = ",".join(f"{tmp_path}/segment{n}" for n in range(segments))
    url = f"{pool_url.partition('?')[0]}?size=24MiB&slab_bytes=512KiB&medium=file&data={paths}"
    with maru.Pool.create(url) as pool:
        assert pool.wait_ready(20)
        keys = b"".join(key_of(n) for n in range(12))
        pool.put_many(keys, [bytes_of(key_of(n), LARGE) for n in range(12)])
        with pool.pin(keys) as prefix:
            assert all(is_right(key_of(n), view) for n, view in enumerate(prefix.views))
            span = pool.stats()["segments"][0]["bytes"]
            used = {int.from_bytes(prefix.extents()[16 * n : 16 * n + 8], "little") // span for n in range(12)}
        assert used == set(range(segments))
        assert pool.check() == []
