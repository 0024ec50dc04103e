"""A chunk that a process removed is told to pools in front, or makes what is told incomplete, wherever that process
died or slept in its removal: the count of removals alone would not show it.
"""

from __future__ import annotations

import os

import pytest

import maru
from maru.daemon.endings import _ARMED_LOOKS, RECORD, _Look
from maru.testing.content import bytes_of, key_of
from maru.testing.crash import crash_points, spawn

pytestmark = pytest.mark.crash

BYTES = 20_000
KEYS = [key_of(n, "removed") for n in range(3)]
ELSEWHERE = {"evict.before_revert", "evict.chosen"}
POINTS = [point for point in crash_points() if point.startswith(("evict.", "free.")) and point not in ELSEWHERE]
LOOKS_MAX = 2 * _ARMED_LOOKS + 2


def remove_one(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        if not pool.remove(KEYS[1]):
            os._exit(1)


def filled(url: str) -> maru.Pool:
    pool = maru.Pool.create(url)
    namespace = pool.namespace(maru.Identity(model="m", kv_layout="l"), policy=["zeroed"])
    for key in KEYS:
        pool.put(key, bytes_of(key, BYTES), namespace)
    return pool


def looked(look: _Look) -> tuple[set[bytes], bool]:
    """(keys that were told to have ended, was everything told) of some looks."""
    answers = [look.again() for _ in range(LOOKS_MAX)]
    return {RECORD.unpack(one)[1] for ended, _ in answers for one in ended}, all(known for _, known in answers)


@pytest.mark.parametrize("point", POINTS)
@pytest.mark.parametrize("seen_meanwhile", [False, True])
def test_who_dies_in_a_removal_leaves_nobody_in_the_belief_that_the_chunk_is_there(
    point: str, seen_meanwhile: bool, pool_url: str
) -> None:
    with filled(pool_url) as pool:
        look = _Look(pool)
        with spawn(remove_one, pool_url, die_at=point, action="stop") as remover:
            remover.wait_stopped()
            told, is_known = looked(look) if seen_meanwhile else (set[bytes](), True)
            remover.kill()
            remover.wait()
        pool.reap()
        told_later, is_known_later = looked(look)
        assert pool.exists(KEYS[1]) or KEYS[1] in told | told_later or not (is_known and is_known_later)
        assert told | told_later <= {KEYS[1]}


@pytest.mark.parametrize("point", POINTS)
def test_who_sleeps_in_a_removal_for_long_is_heard_of_when_it_wakes(point: str, pool_url: str) -> None:
    with filled(pool_url) as pool:
        look = _Look(pool)
        with spawn(remove_one, pool_url, die_at=point, action="stop") as remover:
            remover.wait_stopped()
            told, is_known = looked(look)
            remover.resume()
            assert remover.wait() == 0
        told_later, is_known_later = looked(look)
        assert not pool.exists(KEYS[1])
        assert KEYS[1] in told | told_later or not (is_known and is_known_later)
