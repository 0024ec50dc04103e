"""A process may die at any step of copying down or bringing up: another one goes on, and nothing is lost or left half.

The steps come from the classes that take them, so a new one is tested the day it is written.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from ladder_kit import CHUNKS, FLUSH_S, IDENTITY, SIZE, Prefix, assert_nothing_is_held, bring, fresh_pool

import maru
from maru.pool import Pool
from maru.testing.content import is_right
from maru.testing.crash import spawn
from maru.tier.envelope import Unwrapping
from maru.tiering.demoter import ELECTION_S, Demoter
from maru.tiering.generations import Marker
from maru.tiering.ladder import Ladder, LadderSettings
from maru.tiering.promoter import Promoter

pytestmark = pytest.mark.crash

SLACK_S = 2.0
FIRST, SECOND = Prefix("first-"), Prefix("second-")


def standing_at(step: str, nth: int) -> Callable[[str], None]:
    """Say that the step was reached for the n-th time, and stand there until killed."""
    times = 0

    def at(reached: str) -> None:
        nonlocal times
        times += reached == step
        if times == nth and reached == step:
            print(step, flush=True)
            threading.Event().wait()

    return at


def copy_down(url: str, tier: str, step: str, nth: int) -> None:
    with Pool.attach(url) as pool, Ladder(pool, [tier], LadderSettings(at=standing_at(step, nth))):
        input()


def bring_up(url: str, tier: str, step: str, nth: int) -> None:
    settings = LadderSettings(demotes=False, at=standing_at(step, nth))
    with Pool.attach(url) as pool, Ladder(pool, [tier], settings) as ladder:
        bring(pool, ladder, pool.namespace(IDENTITY), FIRST)


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    with fresh_pool(pool_url) as pool:
        yield pool


@pytest.fixture
def tier(tmp_path: Path) -> str:
    return f"file://{tmp_path}/below?write=through&direct=0"


def wait_for_right(ladder: Ladder, limit_s: float) -> None:
    ends = time.monotonic() + limit_s
    while not ladder.stats()["demoter"]["is_ours"]:
        assert time.monotonic() < ends, "nobody copies down any more"
        time.sleep(0.01)


def assert_all_come_up_right(pool: Pool, ladder: Ladder, *prefixes: Prefix) -> None:
    namespace = pool.namespace(IDENTITY)
    for prefix in prefixes:
        prefix.remove(pool)
    for prefix in prefixes:
        assert bring(pool, ladder, namespace, prefix) == CHUNKS
        assert prefix.read(pool) == CHUNKS


def assert_only_whole_objects(folder: Path) -> int:
    """How many objects lie there, each of which was read to its end; nothing else does."""
    assert list((folder / ".part").iterdir()) == []
    objects = [path for path in folder.glob("*/*/*") if path.is_file() and not path.parts[-3].startswith(".")]
    markers = [path for path in objects if path.name == bytes(16).hex()]
    for path in markers:
        Marker.read(path.read_bytes())
        objects.remove(path)
    for path in objects:
        key, digest = bytes.fromhex(path.name), bytes.fromhex(path.parts[-3])
        unwrapping, out = Unwrapping(key, digest), memoryview(bytearray(SIZE))
        unwrapping.feed(path.read_bytes())
        unwrapping.begin(out)
        unwrapping.finish()
        assert is_right(key, out)
    return len(objects)


@pytest.mark.parametrize(
    ("step", "nth"), [(step, nth) for step in Demoter.STEPS for nth in (1, 2) if (step, nth) != ("right_taken", 2)]
)
def test_another_process_goes_on_copying(step: str, nth: int, pool: Pool, tier: str, tmp_path: Path) -> None:
    FIRST.put(pool, pool.namespace(IDENTITY))
    with spawn(copy_down, pool.config.url, tier, step, nth) as victim:
        assert victim.line() == step
        with Ladder(pool, [tier]) as ladder:
            assert not ladder.flush(0.1)
            assert not ladder.stats()["demoter"]["is_ours"]
            victim.kill()
            wait_for_right(ladder, ELECTION_S + SLACK_S)
            pool.reap()
            SECOND.put(pool, pool.namespace(IDENTITY))
            assert ladder.flush(FLUSH_S)
            assert_all_come_up_right(pool, ladder, FIRST, SECOND)
            assert ladder.stats()["demoter"]["dropped"] == 0
    assert_nothing_is_held(pool)
    assert assert_only_whole_objects(tmp_path / "below") == 2 * CHUNKS


@pytest.mark.parametrize("nth", [1, 2])
@pytest.mark.parametrize("step", Promoter.STEPS)
def test_what_a_dead_process_was_bringing_comes_up_for_another(
    step: str, nth: int, pool: Pool, tier: str, tmp_path: Path
) -> None:
    namespace = pool.namespace(IDENTITY)
    with Ladder(pool, [tier]) as ladder:
        FIRST.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        FIRST.remove(pool)
        with spawn(bring_up, pool.config.url, tier, step, nth) as victim:
            assert victim.line() == step
            victim.kill()
        pool.reap()
        FIRST.read(pool)
        assert_nothing_is_held(pool)
        assert bring(pool, ladder, namespace, FIRST) == CHUNKS
        assert FIRST.read(pool) == CHUNKS
        SECOND.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        assert_all_come_up_right(pool, ladder, FIRST, SECOND)
    assert_nothing_is_held(pool)
    assert assert_only_whole_objects(tmp_path / "below") == 2 * CHUNKS


def test_a_process_that_waits_for_a_dead_one_does_not_wait_long(pool: Pool, tier: str) -> None:
    namespace = pool.namespace(IDENTITY)
    with Ladder(pool, [tier], LadderSettings(promote_deadline_s=60.0)) as ladder:
        FIRST.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        FIRST.remove(pool)
        with spawn(bring_up, pool.config.url, tier, "loaded", 1) as victim:
            assert victim.line() == "loaded"
            waiting = ladder.begin(FIRST.keys, namespace)
            assert waiting is not None
            victim.kill()
            pool.reap()
            assert waiting.result(10.0) >= 0
        assert bring(pool, ladder, namespace, FIRST) == CHUNKS
        assert FIRST.read(pool) == CHUNKS
    assert_nothing_is_held(pool)


def test_a_ladder_tells_of_each_step_that_it_names(pool: Pool, tier: str) -> None:
    told: set[str] = set()
    with Ladder(pool, [tier], LadderSettings(at=told.add)) as ladder:
        FIRST.put(pool, pool.namespace(IDENTITY))
        assert ladder.flush(FLUSH_S)
        assert_all_come_up_right(pool, ladder, FIRST)
    assert told == {*Demoter.STEPS, *Promoter.STEPS}
