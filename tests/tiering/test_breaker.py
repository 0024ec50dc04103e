"""Breaker and speed with a clock of our own: how long a place is left alone, who may try, and what is remembered."""

from __future__ import annotations

import pytest
from ladder_kit import Clock

from maru.tiering.breaker import FAILURES_MAX, REST_MAX_S, REST_S, Breaker, Speed


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker(clock)


def fail(breaker: Breaker, times: int = FAILURES_MAX) -> list[bool]:
    return [breaker.failed() for _ in range(times)]


def test_some_failures_in_a_row_are_needed(breaker: Breaker) -> None:
    for _ in range(5):
        assert fail(breaker, FAILURES_MAX - 1) == [False] * (FAILURES_MAX - 1)
        assert breaker.may_ask()
        assert not breaker.is_open
        breaker.went_well()
    assert fail(breaker) == [False] * (FAILURES_MAX - 1) + [True]
    assert breaker.is_open
    assert not breaker.may_ask()


def test_after_its_rest_one_at_a_time_may_try(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now_s += REST_S - 0.001
    assert not breaker.may_ask()
    clock.now_s += 0.002
    assert not breaker.is_open
    assert [breaker.may_ask() for _ in range(5)] == [True, False, False, False, False]
    assert breaker.is_open  # For all others.
    breaker.went_well()
    assert [breaker.may_ask() for _ in range(5)] == [True] * 5


def test_each_try_that_fails_doubles_the_rest_up_to_a_minute(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    rest_s = REST_S
    for _ in range(12):
        clock.now_s += rest_s - 0.001
        assert not breaker.may_ask()
        clock.now_s += 0.002
        assert breaker.may_ask()
        assert not breaker.failed()  # It was told once.
        rest_s = min(2 * rest_s, REST_MAX_S)
    assert rest_s == REST_MAX_S
    clock.now_s += rest_s + 0.001
    assert breaker.may_ask()
    breaker.went_well()
    assert fail(breaker)[-1]
    clock.now_s += REST_S + 0.001
    assert breaker.may_ask()  # It begins with a short one again.


def test_failures_of_what_was_asked_before_the_rest_do_not_make_it_longer(breaker: Breaker, clock: Clock) -> None:
    fail(breaker, FAILURES_MAX + 20)
    clock.now_s += REST_S + 0.001
    assert breaker.may_ask()


def test_who_goes_away_while_trying_leaves_the_try_to_the_next(breaker: Breaker, clock: Clock) -> None:
    fail(breaker)
    clock.now_s += REST_S + 0.001
    assert breaker.may_ask()
    breaker.let_go()
    assert [breaker.may_ask(), breaker.may_ask()] == [True, False]
    breaker.failed()
    assert not breaker.may_ask()


def test_going_away_does_not_make_failures_forgotten(breaker: Breaker) -> None:
    for _ in range(FAILURES_MAX):
        assert breaker.may_ask()
        breaker.let_go()
        breaker.failed()
    assert not breaker.may_ask()


def test_nothing_is_known_of_a_place_that_was_not_measured() -> None:
    assert Speed().seconds_for(1) is None


def test_a_speed_is_a_straight_line_and_several_at_once_share_it() -> None:
    speed = Speed()
    speed.saw(0.5, 2.0, 2000)
    assert speed.seconds_for(0) == 0.5
    assert speed.seconds_for(3000) == pytest.approx(3.5)
    assert speed.seconds_for(3000, 4) == pytest.approx(0.5 + 0.75)


def test_a_speed_forgets() -> None:
    speed = Speed()
    speed.saw(10.0, 1.0, 1)
    for _ in range(60):
        speed.saw(0.1, 1.0, 1000)
    assert speed.first_s == pytest.approx(0.1, abs=0.001)
    assert speed.bytes_per_s == pytest.approx(1000, rel=0.001)


def test_one_measurement_moves_a_speed_only_a_little() -> None:
    speed = Speed()
    speed.saw(0.1, 1.0, 1000)
    speed.saw(100.0, 0.0, 1000)  # Took no time at all, by a coarse clock.
    assert speed.first_s == pytest.approx(0.1 + 0.2 * 99.9)
    assert speed.bytes_per_s is not None
    assert 1000 < speed.bytes_per_s < 1e9
