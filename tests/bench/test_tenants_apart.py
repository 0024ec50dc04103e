"""`python -m maru.bench.tenants_apart`: it asks what it says it asks, and would see a difference."""

from __future__ import annotations

import random

import pytest

from maru.bench import tenants_apart
from maru.bench.daemons import why_no_daemon


@pytest.mark.skipif(bool(why_no_daemon()), reason=why_no_daemon())
def test_every_question_is_timed_for_the_others_keys_and_for_nobodys() -> None:
    told = tenants_apart.table(rounds=3, seed=1)
    questions, *figures = [list(column.cells) for column in told.columns]
    assert questions == ["exists, one key", "lookup, 64 keys", "find, 64 keys", "get, one key"]
    assert all(cell for column in figures for cell in column)


def test_each_round_asks_once_about_each_and_in_no_fixed_order() -> None:
    asked: list[bytes] = []
    times = tenants_apart.seconds(asked.append, [b"r", b"n"], 50, random.Random(1))
    assert [len(one) for one in times] == [50, 50]
    rounds = [tuple(asked[at : at + 2]) for at in range(0, 100, 2)]
    assert set(rounds) == {(b"r", b"n"), (b"n", b"r")}


def test_an_answer_that_takes_longer_would_be_seen() -> None:
    assert tenants_apart.share_longer([2.0, 3.0, 2.0, 1.0], [1.0, 1.0, 1.0, 2.0]) == 0.75
