"""Stopped while making, attaching to or destroying a pool: nobody waits for ever, whoever wakes harms no new pool."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from test_stopped import NOT_YET_ATTACHED, go_on

import maru
from maru.testing import tour
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import Victim, crash_points, spawn

pytestmark = pytest.mark.crash

POINTS = [point for point in crash_points() if point.startswith(NOT_YET_ATTACHED)]
MAKING = [point for point in POINTS if point.startswith("create.")]
DESTROYING = [point for point in POINTS if point.startswith("destroy.")]
ATTACHING = sorted(set(POINTS) - set(MAKING) - set(DESTROYING))
KEY = key_of(0, "mine")


def open_and_tell(url: str) -> None:
    """Open a pool, make it if there is none, and print which it is, or the error's name."""
    try:
        with maru.Pool.open(url) as pool:
            print(pool.stats()["uuid"], flush=True)
    except maru.MaruError as error:
        print(type(error).__name__, flush=True)


def destroy(url: str) -> None:
    maru.Pool.destroy(url, force=True)
    print("destroyed", flush=True)


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + tour.POOL_QUERY


def holds_its_chunk(pool: maru.Pool) -> bool:
    view = pool.get(KEY)
    return view is not None and is_right(KEY, view)


def made_anew_while_it_sleeps(url: str, sleeper: Victim) -> str:
    """By force: the sleeper may hold the lock. What the sleeper says when it wakes; the new pool is none the worse."""
    sleeper.wait_stopped()
    maru.Pool.destroy(url, force=True)
    with maru.Pool.create(url) as pool:
        assert pool.put(KEY, bytes_of(KEY, tour.SMALL)) == maru.Outcome.STORED
        sleeper.resume()
        said = sleeper.line()
        assert sleeper.wait() == 0
        assert holds_its_chunk(pool)
        assert not pool.destroyed
        with maru.Pool.attach(url) as newcomer:
            assert newcomer.stats()["uuid"] == pool.stats()["uuid"]
            assert holds_its_chunk(newcomer)
        assert go_on(pool, "afterwards") > 0
        pool.reap()
        assert pool.check() == []
    return said


@pytest.mark.parametrize(
    ("point", "what"),
    [*((point, open_and_tell) for point in [*MAKING, *ATTACHING]), *((point, destroy) for point in DESTROYING)],
)
def test_a_pool_made_while_one_was_stopped_at_the_door_is_left_alone(
    url: str, point: str, what: Callable[[str], None]
) -> None:
    if point not in MAKING:
        maru.Pool.create(url).close()
    with spawn(what, url, die_at=point, action="stop") as sleeper:
        made_anew_while_it_sleeps(url, sleeper)


@pytest.mark.parametrize("point", ATTACHING)
def test_those_inside_go_on_while_one_is_stopped_at_the_door(url: str, point: str) -> None:
    with maru.Pool.create(url) as pool, spawn(open_and_tell, url, die_at=point, action="stop") as sleeper:
        sleeper.wait_stopped()
        assert go_on(pool, "while it sleeps") > 0
        sleeper.resume()
        assert sleeper.line() == pool.stats()["uuid"]
        assert sleeper.wait() == 0
        pool.reap()
        assert pool.check() == []


@pytest.mark.parametrize("point", ["create.locked", "create.before_magic"])
def test_a_newcomer_waits_for_a_maker_that_is_stopped_a_bounded_time(url: str, point: str) -> None:
    with spawn(open_and_tell, url, die_at=point, action="stop") as maker:
        maker.wait_stopped()
        with pytest.raises(maru.MaruError):
            maru.Pool.open(url)
        maker.resume()
        uuid = maker.line()
        assert maker.wait() == 0
        with maru.Pool.attach(url) as pool:
            assert pool.stats()["uuid"] == uuid
