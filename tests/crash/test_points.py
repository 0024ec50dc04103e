"""A process may die at any named point: what it left is finished or undone, and nobody else notices.

The list of points comes from the code, so a new one is tested the day it is written.
"""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

import maru
from maru.testing import tour
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import crash_points, spawn

pytestmark = pytest.mark.crash

POINTS = crash_points()

# Points that a lone walker does not pass; each has a test of its own below.
NEED_COMPANY = {"clean.slab", "evict.before_revert", "fork.child", "rebuild.index_made", "rebuild.slab"}


def assert_all_is_well(pool: maru.Pool) -> None:
    assert tour.faults_of(pool) == []


@pytest.fixture
def tour_url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + tour.POOL_QUERY


def test_the_tour_passes_every_point(tour_url: str) -> None:
    with spawn(tour.walk_and_tell, tour_url) as walker:
        assert walker.process.stdout is not None
        reached = set(walker.process.stdout.read().split())
        assert walker.wait() == 0
    assert set(POINTS) - reached == NEED_COMPANY


@pytest.mark.parametrize("point", sorted(set(POINTS) - NEED_COMPANY))
def test_a_pool_survives_the_death_of_its_only_process(point: str, tour_url: str) -> None:
    with spawn(tour.walk, tour_url, die_at=point) as walker:
        assert walker.wait() == -signal.SIGKILL
    with maru.Pool.open(tour_url) as pool:
        assert_all_is_well(pool)


# Passed only by whoever is alone: the maker of a pool, or the first to find something to do.
ONLY_ALONE = {p for p in POINTS if p.startswith(("create.", "space."))} | {"reclass.gave_up", "sweep.elected"}
TRIES = 3  # Cleaning up after the dead is work that the housekeeper beside it may do first.


@pytest.mark.parametrize("point", sorted(set(POINTS) - NEED_COMPANY - ONLY_ALONE))
def test_a_reader_does_not_notice_a_death_beside_it(point: str, tour_url: str) -> None:
    with maru.Pool.open(tour_url) as pool:
        key = key_of(0, "mine")
        pool.put(key, bytes_of(key, tour.LARGE))
        view = pool.get(key)
        assert view is not None
        route = tour.walk if point.startswith("destroy.") else tour.see_everything
        codes: list[int] = []
        while -signal.SIGKILL not in codes and len(codes) < TRIES:
            with spawn(route, tour_url, die_at=point) as walker:
                codes.append(walker.wait())
        assert codes[-1] == -signal.SIGKILL
        assert is_right(key, view)
        if point.startswith("destroy."):
            assert pool.get(key) is None  # The walker destroyed it: misses, not errors.
            return
        assert_all_is_well(pool)
        assert is_right(key, view)


def reclass_and_die(url: str) -> None:
    """Fill the pool with one size, then ask for another."""
    with maru.Pool.open(url) as pool:
        for n in range(100):
            tour.store(pool, n, tour.LARGE, "large")
        tour.store(pool, 0, tour.SMALL, "small")


def clean_up(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.reap()


def test_a_cleaner_may_die_while_it_mends_a_slab(tour_url: str) -> None:
    with spawn(reclass_and_die, tour_url, die_at="reclass.chunk_claimed") as first:
        assert first.wait() == -signal.SIGKILL
    with spawn(clean_up, tour_url, die_at="clean.slab") as second:
        assert second.wait() == -signal.SIGKILL
    with maru.Pool.attach(tour_url) as pool:
        assert_all_is_well(pool)


def fork_once(url: str) -> None:
    with maru.Pool.open(url) as pool:
        pool.put(key_of(0, "tour"), bytes_of(key_of(0, "tour"), tour.SMALL))
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), pool.lookup(key_of(0, "tour")), flush=True)


def test_a_child_may_die_at_its_birth(tour_url: str) -> None:
    with spawn(fork_once, tour_url, die_at="fork.child") as parent:
        assert parent.line() == f"{-signal.SIGKILL} 1"
        assert parent.wait() == 0
    with maru.Pool.attach(tour_url) as pool:
        assert_all_is_well(pool)


def read_one(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        view = pool.get(key_of(0, "tour"))
        print("hit" if view is not None and is_right(key_of(0, "tour"), view) else "miss", flush=True)


@pytest.mark.parametrize("evictor_dies", [False, True])
def test_an_evictor_gives_way_to_a_reader_that_was_first(tour_url: str, evictor_dies: bool) -> None:
    with maru.Pool.open(tour_url) as pool:
        tour.store(pool, 0, tour.SMALL)
        with spawn(remove_in_two_steps, tour_url, "evict.before_mark", evictor_dies) as evictor:
            evictor.wait_stopped()  # It has seen no pin, and is about to mark the chunk.
            view = pool.get(key_of(0, "tour"))
            assert view is not None
            evictor.resume()
            if evictor_dies:
                assert evictor.wait() == -signal.SIGKILL  # It saw the pin, and died before it could put the chunk back.
                pool.reap()
            else:
                assert evictor.line() == "False"
        assert is_right(key_of(0, "tour"), view)
        assert pool.exists(key_of(0, "tour"))
        assert_all_is_well(pool)


def test_a_reader_gives_way_to_an_evictor_that_was_first(tour_url: str) -> None:
    with maru.Pool.open(tour_url) as pool:
        tour.store(pool, 0, tour.SMALL)
        with spawn(read_one, tour_url, die_at="pin.before", action="stop") as reader:
            reader.wait_stopped()  # It has read SEALED, and pins as soon as it goes on.
            with spawn(remove_in_two_steps, tour_url, "evict.marked", False) as evictor:
                evictor.wait_stopped()  # It has written EVICTING.
                reader.resume()
                assert reader.line() == "miss"
                evictor.resume()
                assert evictor.line() == "True"
        assert_all_is_well(pool)


def remove_in_two_steps(url: str, stop_at: str, dies_before_revert: bool) -> None:
    from maru.native import core

    with maru.Pool.attach(url) as pool:
        core.arm_crash_point(stop_at, "stop")
        if dies_before_revert:
            core.arm_crash_point("evict.before_revert", "kill")
        print(pool.remove(key_of(0, "tour")), flush=True)


def rebuild(url: str) -> None:
    maru.Pool.rebuild(url)


@pytest.mark.parametrize("point", ["create.before_magic", "rebuild.index_made", "rebuild.slab"])
def test_a_rebuilder_that_dies_leaves_the_segments_to_the_next(point: str, tour_url: str) -> None:
    with maru.Pool.create(tour_url) as pool:
        for n in range(20):
            tour.store(pool, n, tour.LARGE, "large")
        folder = pool.stats()["folder"]
    (Path(folder) / "index").unlink()
    with spawn(rebuild, tour_url, die_at=point) as first:
        assert first.wait() == -signal.SIGKILL
    assert maru.Pool.rebuild(tour_url)["chunks"] == 20
    with maru.Pool.attach(tour_url) as pool:
        assert pool.lookup(key_of(19, "large")) == 1
        assert_all_is_well(pool)
