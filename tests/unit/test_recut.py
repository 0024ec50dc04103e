"""Slabs that change their chunk size: bit by bit where there is time, at once where there is none, never for ever."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

import maru
from maru import Outcome
from maru.check import check_pool
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

SMALL, LARGE = 4_000, 60_000
AT_ONCE = 8
"""Chunks that one allocation claims of a slab that is being recut."""


@pytest.fixture
def roomy(pool_url: str) -> Iterator[maru.Pool]:
    """Sixteen slabs of 128 small chunks or eight large ones, no gate, filled with small ones."""
    with maru.Pool.create(f"{pool_url.partition('?')[0]}?size=8MiB&slab_bytes=512KiB&slots=8192&gate=off") as pool:
        number = 0
        while pool.stats()["counters"]["evicted"] == 0:
            assert store(pool, number, SMALL, "small") == Outcome.STORED
            number += 1
        yield pool


def store(pool: maru.Pool, number: int, size: int, family: str) -> Outcome:
    key = key_of(number, family)
    return pool.put(key, bytes_of(key, size))


def sealed(pool: maru.Pool) -> int:
    return int(pool.stats()["chunks"]["sealed"])


def cut_anew(pool: maru.Pool) -> int:
    return int(pool.stats()["counters"]["reclassed"])


def test_a_size_that_comes_late_gets_slabs_and_no_call_empties_a_whole_one(roomy: maru.Pool) -> None:
    assert store(roomy, 0, LARGE, "large") == Outcome.STORED  # It had no slab at all: this call had to.
    steps = []
    for number in range(1, 600):
        before = sealed(roomy)
        assert store(roomy, number, LARGE, "large") == Outcome.STORED
        steps.append(before + 1 - sealed(roomy))
    assert cut_anew(roomy) > 4, "the new size stayed in its first slabs"
    assert max(steps) <= AT_ONCE + 1
    key = key_of(599, "large")
    view = roomy.get(key)
    assert view is not None
    assert is_right(key, view)
    del view
    roomy.reap()
    assert roomy.check() == []


def begin_and_stop(pool: maru.Pool) -> None:
    """Store until a slab is in the middle of being recut, and no further."""
    assert store(pool, 0, LARGE, "large") == Outcome.STORED
    for number in range(1, 600):
        before = sealed(pool)
        assert store(pool, number, LARGE, "large") == Outcome.STORED
        if before + 1 - sealed(pool) == AT_ONCE + 1:
            return
    raise AssertionError("no slab was ever recut bit by bit")


def test_what_was_begun_and_left_is_given_back(roomy: maru.Pool) -> None:
    begin_and_stop(roomy)
    before = sealed(roomy)
    roomy.reap()  # What the housekeeper's next ticks do by themselves.
    for number in range(AT_ONCE):
        assert store(roomy, number, SMALL, "small again") == Outcome.STORED
    assert sealed(roomy) == before + AT_ONCE, "the room that was claimed did not come back"
    assert roomy.check() == []


def test_whoever_has_no_other_room_ends_it_at_once(roomy: maru.Pool) -> None:
    begin_and_stop(roomy)
    held = []
    number = 0
    while (view := roomy.get(key_of(number, "large"))) is not None or number < 600:
        held.append(view)
        number += 1
    before = cut_anew(roomy)
    for more in range(4):
        assert store(roomy, more, LARGE, "more") == Outcome.STORED
    assert cut_anew(roomy) > before
    del held
    assert roomy.check() == []


def test_whoever_leaves_in_the_middle_leaves_nothing_claimed(pool_url: str, roomy: maru.Pool) -> None:
    with maru.Pool.attach(roomy.config.url) as other:
        begin_and_stop(other)
    assert roomy.check() == []
    errors = [one for one in check_pool(roomy.config.folder, pause_s=0).findings if one.severity == "error"]
    assert errors == []
    before = sealed(roomy)
    for number in range(AT_ONCE):
        assert store(roomy, number, SMALL, "small again") == Outcome.STORED
    assert sealed(roomy) == before + AT_ONCE, "the room that was claimed did not come back"


def test_a_stopped_process_in_the_middle_keeps_nobody_from_a_size_that_comes_late(roomy: maru.Pool) -> None:
    with spawn(begin_and_be_stopped, roomy.config.url, die_at="reclass.chunk_claimed", action="stop") as sleeper:
        sleeper.wait_stopped()
        for number in range(300):
            assert store(roomy, number, LARGE, "mine") == Outcome.STORED
        assert sum(roomy.exists(key_of(n, "mine")) for n in range(300)) >= 60
        sleeper.resume()
        assert sleeper.wait() == 0
    roomy.reap()
    assert roomy.check() == []


def begin_and_be_stopped(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        for number in range(100):
            store(pool, number, LARGE, "large")
