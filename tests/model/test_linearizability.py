"""What processes and threads are answered, together, is what one dict would have answered in some order.

The histories are real (maru.testing.history), the judge is linearizability.py. A judge that accepts everything would
pass too, so it is shown histories that no dict could have, and pools whose rules are broken by a mutant.

MARU_HISTORY_ROUNDS=200 runs longer, MARU_HISTORY_SEED=7 makes other calls. Both are in the message of a failure.
"""

from __future__ import annotations

import os
import sys

import pytest
from linearizability import judge

import maru
from maru.testing.history import DIED, WRONG, Call, Traffic, record

ROUNDS = int(os.environ.get("MARU_HISTORY_ROUNDS", "3"))
SEED = int(os.environ.get("MARU_HISTORY_SEED", "1"))

ROOMY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=32&populate=off"  # All of FEW_KEYS fits: nothing is evicted.
FEW_KEYS = Traffic(calls=200, keys=3, size_max=9_000)
MANY_KEYS = Traffic(calls=200, keys=60, size_max=60_000)  # Twice what fits.


def again(rounds: int) -> str:
    return f"again with: MARU_HISTORY_SEED={SEED} MARU_HISTORY_ROUNDS={rounds} {' '.join(sys.orig_argv)}"


@pytest.fixture
def url(pool_url: str) -> str:
    place = pool_url.partition("?")[0]
    maru.Pool.create(place + ROOMY).close()
    return place


@pytest.mark.crash
@pytest.mark.parametrize("traffic", [FEW_KEYS, MANY_KEYS], ids=["all of it fits", "twice what fits"])
def test_every_history_has_an_order_that_explains_it(traffic: Traffic, url: str) -> None:
    calls = record(url, SEED, ROUNDS, traffic)
    wrong = judge(calls, space_can_run_out=traffic is MANY_KEYS)
    assert wrong is None, f"{wrong}\n{again(ROUNDS)}"
    answers = {(call.kind, call.answer) for call in calls}
    assert answers >= {("store", "STORED"), ("store", "EXISTS"), ("get", "HIT"), ("get", "MISS"), ("remove", "REMOVED")}
    with maru.Pool.attach(url) as pool:
        assert pool.check() == []
        assert (pool.stats()["counters"]["evicted"] > 0) == (traffic is MANY_KEYS)


@pytest.mark.crash
@pytest.mark.parametrize(
    "mutant", ["no_recheck_after_pin", "no_pin_recheck_after_evicting", "evicting_treated_as_absent"]
)
def test_a_broken_rule_makes_a_history_without_an_order(mutant: str, url: str) -> None:
    for attempt in range(10):
        calls = record(url, SEED + attempt, 1, FEW_KEYS, mutants=(mutant,), kill=False)
        if judge(calls, space_can_run_out=False) is not None:
            return
    pytest.fail(f"no history showed it; {again(10)}")


# ---- the judge ----


def call(kind: str, answer: str, called: int, returned: int, content: str | None = None, let_go: int = 0) -> Call:
    return Call(0, kind, called, returned, max(returned, let_go), answer, content)


A, B = "content a", "content b"

IMPOSSIBLE = {
    "a read of what was removed before": [
        call("store", "STORED", 0, 1, A), call("remove", "REMOVED", 2, 3), call("get", "HIT", 4, 5, A),
    ],
    "a read of what was replaced": [
        call("store", "STORED", 0, 1, A), call("remove", "REMOVED", 2, 3), call("store", "STORED", 4, 5, B),
        call("get", "HIT", 6, 7, A),
    ],
    "two contents at once": [call("store", "STORED", 0, 5, A), call("store", "STORED", 1, 6, B)],
    "two reads that disagree on the order": [
        call("store", "STORED", 0, 20, A), call("remove", "REMOVED", 0, 20), call("store", "STORED", 0, 20, B),
        call("get", "HIT", 1, 2, A), call("get", "HIT", 3, 4, B), call("get", "HIT", 5, 6, A),
    ],
    "a store that is lost": [call("store", "STORED", 0, 1, A), call("get", "MISS", 2, 3)],
    "a store that only half the readers see": [
        call("store", "STORED", 0, 9, A), call("get", "HIT", 1, 2, A), call("exists", "MISS", 3, 4),
    ],
    "a read before the store began": [call("get", "HIT", 0, 1, A), call("store", "STORED", 2, 3, A)],
    "a hit on what nobody stored": [call("exists", "HIT", 0, 1)],
    "bytes of no store": [call("store", "STORED", 0, 1, A), call("get", "HIT", 2, 3, WRONG)],
    "a store refused for nothing": [call("store", "EXISTS", 0, 1, A)],
    "a writer that was there alone": [call("store", "IN_FLIGHT", 0, 1, A)],
    "a key taken from a writer that was in time": [call("store", "LOST", 0, 5, A), call("store", "STORED", 1, 4, B)],
    "a remove of nothing": [call("remove", "REMOVED", 0, 1)],
    "one chunk removed twice": [
        call("store", "STORED", 0, 1, A), call("remove", "REMOVED", 2, 5), call("remove", "REMOVED", 3, 6),
    ],
    "a remove that failed though nobody read": [call("store", "STORED", 0, 1, A), call("remove", "NOT REMOVED", 2, 3)],
    "what the dead did, undone": [
        call("store", DIED, 0, 9, A), call("get", "HIT", 1, 2, A), call("get", "MISS", 3, 4),
    ],
    "no space where there is enough": [call("store", "FULL", 0, 1, A)],
}  # fmt: skip

POSSIBLE = {
    "nothing": [],
    "one after the other": [
        call("get", "MISS", 0, 1), call("store", "STORED", 2, 3, A), call("get", "HIT", 4, 5, A),
        call("remove", "REMOVED", 6, 7), call("get", "MISS", 8, 9), call("store", "STORED", 10, 11, B),
    ],
    "a read beside a remove and a store": [
        call("store", "STORED", 0, 1, A), call("remove", "REMOVED", 2, 9), call("store", "STORED", 2, 9, B),
        call("get", "HIT", 3, 4, B),
    ],
    "a read of the old beside its remove": [
        call("store", "STORED", 0, 1, A), call("remove", "REMOVED", 2, 9), call("get", "HIT", 3, 4, A),
    ],
    "a remove that finds a reader, and a miss beside it": [
        call("store", "STORED", 0, 1, A), call("get", "HIT", 2, 3, A, let_go=8), call("remove", "NOT REMOVED", 4, 7),
        call("get", "MISS", 5, 6), call("get", "HIT", 9, 10, A),
    ],
    "what the dead may have done": [
        call("store", DIED, 0, 9, A), call("get", "MISS", 1, 2), call("get", "HIT", 3, 4, A),
    ],
    "what the dead may not have done": [call("store", DIED, 0, 9, A), call("get", "MISS", 10, 11)],
}  # fmt: skip


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_no_dict_can_answer_is_refused(name: str) -> None:
    assert judge(IMPOSSIBLE[name], space_can_run_out=False) is not None


@pytest.mark.parametrize("name", POSSIBLE)
def test_what_a_dict_can_answer_is_accepted(name: str) -> None:
    assert judge(POSSIBLE[name], space_can_run_out=False) is None


def test_eviction_excuses_a_miss_and_no_old_content() -> None:
    gone = [call("store", "STORED", 0, 1, A), call("get", "MISS", 2, 3), call("store", "STORED", 4, 5, B)]
    assert judge(gone, space_can_run_out=True) is None
    assert judge([*gone, call("get", "HIT", 6, 7, A)], space_can_run_out=True) is not None


def test_keys_are_judged_apart() -> None:
    other = Call(1, "get", 2, 3, 3, "MISS")
    assert judge([call("store", "STORED", 0, 1, A), other], space_can_run_out=False) is None
