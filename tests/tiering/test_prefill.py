"""The engine's prefill rate, measured from its steps: what counts, what does not, and when there is a number."""

from __future__ import annotations

import math

import pytest
from ladder_kit import Clock

from maru.tiering.prefill import (
    APART_TOKENS,
    OTHERS_SHARE,
    STEPS_KEPT,
    STEPS_MIN,
    TOKENS_MIN,
    UNDER_WAY_MAX,
    PrefillClock,
)

CHUNK_TOKENS = 256
TOKENS = 2048


class Engine:
    """Steps one after the other, at a speed."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.prefill = PrefillClock(CHUNK_TOKENS, self.clock)

    def step(
        self, tokens_per_s: float, tokens: int = TOKENS, others: int = 0, is_pure: bool = True, position: float = 0.0
    ) -> None:
        number = self.prefill.began(tokens, position, others, is_pure)
        self.clock.now_s += max(tokens, others) / tokens_per_s
        self.prefill.ended(number)

    def warm(self, tokens_per_s: float) -> None:
        for _ in range(1 + STEPS_MIN):
            self.step(tokens_per_s)

    @property
    def tokens_per_s(self) -> float | None:
        return self.prefill.measured.tokens_per_s if self.prefill.measured else None


def test_the_first_step_does_not_count_and_one_step_is_not_believed() -> None:
    engine = Engine()
    engine.step(1.0)  # It compiles.
    for _ in range(STEPS_MIN):
        assert engine.tokens_per_s is None
        engine.step(5000.0)
    assert engine.tokens_per_s == pytest.approx(5000.0)
    assert engine.prefill.measured is not None
    assert engine.prefill.measured.seconds_for(4) == pytest.approx(4 * CHUNK_TOKENS / 5000.0)


@pytest.mark.parametrize(
    ("tokens", "others", "is_pure"),
    [(TOKENS_MIN - 1, 0, True), (TOKENS, int(TOKENS * OTHERS_SHARE) + 1, True), (TOKENS, 0, False), (0, 64, True)],
    ids=["few tokens", "many answers", "it loads", "answers alone"],
)
def test_steps_that_are_not_mostly_prefill_say_nothing(tokens: int, others: int, is_pure: bool) -> None:
    engine = Engine()
    for _ in range(100):
        engine.step(7.0, tokens, others, is_pure)
    assert engine.tokens_per_s is None
    engine.warm(5000.0)
    for _ in range(100):
        engine.step(7.0, tokens, others, is_pure)
    assert engine.tokens_per_s == pytest.approx(5000.0)


def test_some_answers_beside_a_long_prompt_do_not_matter() -> None:
    engine = Engine()
    for _ in range(1 + STEPS_MIN):
        engine.step(5000.0, TOKENS, int(TOKENS * OTHERS_SHARE))
    assert engine.tokens_per_s == pytest.approx(5000.0)


def test_a_step_that_was_held_up_changes_nothing() -> None:
    engine = Engine()
    engine.warm(5000.0)
    engine.step(0.01)
    assert engine.tokens_per_s == pytest.approx(5000.0)


def test_an_engine_that_became_slower_is_believed_when_most_steps_say_so() -> None:
    engine = Engine()
    for _ in range(1 + STEPS_KEPT):
        engine.step(5000.0)
    for _ in range(STEPS_KEPT // 2):
        engine.step(1000.0)
    assert engine.tokens_per_s == pytest.approx(5000.0)
    engine.step(1000.0)
    assert engine.tokens_per_s == pytest.approx(1000.0)


def test_steps_that_were_handed_out_ahead_are_timed_one_by_one() -> None:
    engine = Engine()
    numbers = [engine.prefill.began(TOKENS) for _ in range(2 + STEPS_MIN)]
    for number in numbers:
        engine.clock.now_s += TOKENS / 5000.0
        engine.prefill.ended(number)
    assert engine.tokens_per_s == pytest.approx(5000.0)


def test_a_step_handed_out_behind_one_that_does_not_count_begins_when_that_ends() -> None:
    engine = Engine()
    for _ in range(1 + STEPS_MIN):
        answers = engine.prefill.began(0, 0.0, 64)
        prompts = engine.prefill.began(TOKENS)
        engine.clock.now_s += 10.0
        engine.prefill.ended(answers)
        engine.clock.now_s += TOKENS / 5000.0
        engine.prefill.ended(prompts)
    assert engine.tokens_per_s == pytest.approx(5000.0)


DOUBLE_AT = 3000.0


def slower_at(position: float) -> float:
    """Tokens a second of an engine that computes 5000 at a prompt's start."""
    return 5000.0 / (1 + position / DOUBLE_AT)


def test_what_a_position_costs_is_found_out_too() -> None:
    engine = Engine()
    engine.step(1.0)
    for position in (1024.0, 3072.0, 9216.0, 1024.0, 5120.0):
        engine.step(slower_at(position), position=position)
    engine.step(1.0, position=4096.0)  # Held up.
    measured = engine.prefill.measured
    assert measured is not None
    assert measured.tokens_per_s == pytest.approx(5000.0)
    assert measured.double_at == pytest.approx(DOUBLE_AT)
    first, end = 2 * CHUNK_TOKENS, 10 * CHUNK_TOKENS
    wanted_s = (end - first + (end**2 - first**2) / (2 * DOUBLE_AT)) / 5000.0
    assert measured.seconds_for(8, before=2) == pytest.approx(wanted_s)
    parts = [measured.seconds_for(1, before) for before in range(10)]
    assert sum(parts) == pytest.approx(measured.seconds_for(10))
    assert parts == sorted(parts)


def test_from_steps_at_one_position_nothing_is_made_up_about_others() -> None:
    engine = Engine()
    for number in range(1 + STEPS_KEPT):
        engine.step(5000.0 + number, position=1024.0 + APART_TOKENS / (2 + number))
    assert engine.prefill.measured is not None
    assert engine.prefill.measured.double_at == math.inf


def test_an_engine_that_seems_to_become_quicker_further_back_is_a_straight_line() -> None:
    engine = Engine()
    engine.step(1.0)
    for number in range(STEPS_KEPT):
        engine.step(1000.0 * (1 + number), position=2048.0 * number)
    assert engine.prefill.measured is not None
    assert engine.prefill.measured.double_at == math.inf
    assert engine.tokens_per_s == pytest.approx(8500.0, rel=0.15)


def test_time_without_work_is_nobodys() -> None:
    engine = Engine()
    for _ in range(1 + STEPS_MIN):
        engine.clock.now_s += 3600.0
        engine.step(5000.0)
    assert engine.tokens_per_s == pytest.approx(5000.0)


def test_ends_without_a_beginning_and_beginnings_without_an_end_do_no_harm() -> None:
    engine = Engine()
    engine.prefill.ended(7)
    for _ in range(1000):
        last = engine.prefill.began(TOKENS)
    assert len(engine.prefill._under_way) == UNDER_WAY_MAX
    engine.clock.now_s += 1.0
    engine.prefill.ended(last)
    engine.prefill.ended(last)
    assert engine.prefill._under_way == {}
    assert engine.tokens_per_s is None
    engine.warm(5000.0)
    assert engine.tokens_per_s == pytest.approx(5000.0)
