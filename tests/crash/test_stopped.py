"""A stopped process stops nobody, and when it wakes it writes into nothing that is no longer its own."""

from __future__ import annotations

import pytest

import maru
from maru import Outcome
from maru.testing import tour
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import crash_points, spawn

pytestmark = pytest.mark.crash

# Before it is attached a process holds the creation lock; whoever wants to attach meanwhile waits, at most 5 s.
NOT_YET_ATTACHED = ("create.", "attach.", "claim.byte", "claim.attached", "claim.live", "destroy.")
# Reached only in company: see test_points.py.
ELSEWHERE = {"clean.slab", "evict.before_revert", "fork.child", "rebuild.index_made", "rebuild.slab"}
POINTS = [p for p in crash_points() if not p.startswith(NOT_YET_ATTACHED) and p not in ELSEWHERE]

ALLOWED = {Outcome.STORED, Outcome.EXISTS, Outcome.IN_FLIGHT, Outcome.BUSY, Outcome.FULL}


def go_on(pool: maru.Pool, family: str) -> int:
    """Store and read, mixed sizes; returns how many were stored."""
    stored = 0
    for n in range(60):
        size = (tour.SMALL, tour.TINY, tour.LARGE)[n % 3]
        key = key_of(n, family)
        outcome = pool.put(key, bytes_of(key, size))
        assert outcome in ALLOWED
        stored += outcome == Outcome.STORED
        view = pool.get(key)
        assert view is None or is_right(key, view)
    return stored


# Passed only by whoever comes first, so there the sleeper makes the pool and the others come later.
FIRST_COMER = {"reclass.gave_up", "space.after_fallocate", "space.before_fallocate", "space.elected", "sweep.elected"}
TRIES = 3  # Cleaning up after the dead is work that the housekeeper beside it may do first.


@pytest.mark.parametrize("point", sorted(set(POINTS) - FIRST_COMER))
def test_others_go_on_while_one_is_stopped(point: str, pool_url: str) -> None:
    url = pool_url.partition("?")[0] + tour.POOL_QUERY
    with maru.Pool.create(url) as pool:
        key = key_of(0, "mine")
        pool.put(key, bytes_of(key, tour.SMALL))
        mine = pool.get(key)
        assert mine is not None
        for _ in range(TRIES):
            if sleeps_through(pool, url, point):
                break
        else:
            pytest.fail(f"nobody ever stopped at {point}")
        go_on(pool, "afterwards")
        assert is_right(key, mine)
        pool.reap()
        assert pool.check() == []


def sleeps_through(pool: maru.Pool, url: str, point: str) -> bool:
    """Others go on while a process is stopped at `point`; False when it came by no such point."""
    with spawn(tour.see_everything, url, die_at=point, action="stop") as sleeper:
        try:
            sleeper.wait_stopped()
        except ChildProcessError:
            assert sleeper.wait() == 0
            return False
        assert go_on(pool, "while it sleeps") > 0
        sleeper.resume()
        go_on(pool, "while it wakes")
        assert sleeper.wait() == 0
    return True


@pytest.mark.parametrize("point", sorted(FIRST_COMER))
def test_newcomers_go_on_while_the_first_is_stopped(point: str, pool_url: str) -> None:
    url = pool_url.partition("?")[0] + tour.POOL_QUERY
    with spawn(tour.see_everything, url, True, die_at=point, action="stop") as sleeper:
        sleeper.wait_stopped()
        with maru.Pool.attach(url) as pool:
            go_on(pool, "while it sleeps")
            sleeper.resume()
            go_on(pool, "while it wakes")
            assert sleeper.wait() == 0
            assert go_on(pool, "afterwards") > 0
            pool.reap()
            assert pool.check() == []
