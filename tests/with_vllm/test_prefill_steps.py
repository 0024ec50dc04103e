"""Which of vLLM's steps tell how fast it prefills: the scheduler's side numbers them, a worker says when they end."""

from __future__ import annotations

from array import array

import pytest
from requests_of_vllm import Request, blocks_of, step

import maru
from maru.engine.vllm.connector import _prefill
from maru.engine.vllm.fit import Shape
from maru.engine.vllm.plan import Done, Plan
from maru.engine.vllm.scheduler import SchedulerSide, _computed_in
from maru.errors import BadUrl
from maru.tiering.prefill import STEPS_MIN, Prefill, PrefillClock

SHAPE = Shape(block_tokens=128, blocks_per_chunk=2, layer_names=("a",))
CHUNK = SHAPE.chunk_tokens
TOKENS = list(range(4 * CHUNK))
PIECE = 512
TOKENS_PER_S = 2000.0


class Side:
    """A scheduler's side whose steps take as long as their tokens do."""

    def __init__(self, pool: maru.Pool) -> None:
        self.now_s = 1000.0
        self.prefill = PrefillClock(CHUNK, lambda: self.now_s)
        self.namespace = pool.namespace(maru.Identity(model="m", kv_layout="test"))
        self.side = SchedulerSide(pool, self.namespace, SHAPE, 1, _must_not_fail, prefill=self.prefill)

    def run(self, output: object, tokens: int, tokens_per_s: float = TOKENS_PER_S) -> Plan:
        plan = self.side.plan(output)
        self.now_s += tokens / tokens_per_s
        self.side.done(Done(timed_step=plan.timed_step))
        return plan


def _must_not_fail(what: str, error: Exception) -> None:
    raise AssertionError(f"{what}: {error}")


@pytest.fixture
def side(pool: maru.Pool) -> Side:
    return Side(pool)


def test_new_prompts_and_those_that_go_on_are_timed_and_give_a_rate(side: Side) -> None:
    assert side.run(step(new={"r": ([1], 0, PIECE)}), PIECE, tokens_per_s=1.0).timed_step == 1
    for number in range(STEPS_MIN):
        assert side.prefill.measured is None
        plan = side.run(step(cached={"r": ([], PIECE * (number + 1), PIECE)}), PIECE)
        assert plan.timed_step == number + 2
    assert side.prefill.measured is not None
    assert side.prefill.measured.chunk_tokens == CHUNK
    assert side.prefill.measured.tokens_per_s == pytest.approx(TOKENS_PER_S)


def test_the_position_of_a_step_is_that_of_its_tokens_on_average() -> None:
    both = step(new={"a": ([1], 1000, 300)}, cached={"b": ([], 4000, 100), "c": ([], 9000, 7)}, answering={"c"})
    assert _computed_in(both) == (400, (300 * 1150 + 100 * 4050) / 400, 7)
    assert _computed_in(step(cached={"c": ([], 9000, 7)}, answering={"c"})) == (0, 0.0, 7)


def test_answers_and_what_is_computed_again_after_a_preemption_are_not_prefill(side: Side) -> None:
    assert side.run(step(cached={"r": ([], PIECE, 1)}, answering={"r"}), 1).timed_step == 0
    again = step(cached={"r": ([1], 0, PIECE)}, resumed={"r"}, answering={"r"})
    assert side.run(again, PIECE).timed_step == 0
    both = step(new={"a": ([1], 0, PIECE)}, cached={"r": ([], 0, PIECE)}, answering={"r"})
    assert side.run(both, 2 * PIECE).timed_step == 0


def test_a_step_that_loads_is_not_timed(side: Side, pool: maru.Pool) -> None:
    keys = side.namespace.chunk_keys(array("q", TOKENS), CHUNK)
    pool.put_many(keys[:16], [b"kv"], namespace=side.namespace)
    request = Request("r", TOKENS)
    assert side.side.matched_tokens(request, 0) == CHUNK
    side.side.allocated(request, blocks_of(list(range(8))), CHUNK)
    plan = side.run(step(new={"r": (list(range(8)), CHUNK, 3 * CHUNK)}), 3 * CHUNK)
    assert plan.loads
    assert plan.timed_step == 0


def test_an_empty_step_is_not_timed(side: Side) -> None:
    assert side.run(step(), 0).timed_step == 0


def test_of_several_workers_the_step_is_one() -> None:
    both = Done({"r": 1}, timed_step=7).aggregate(Done({"r": 1}, timed_step=7))
    assert both == Done({"r": 2}, timed_step=7)


def test_the_rate_is_measured_unless_it_is_told_or_switched_off() -> None:
    assert isinstance(_prefill(None, CHUNK), PrefillClock)
    assert _prefill(3000, CHUNK) == Prefill(CHUNK, 3000.0)
    assert _prefill(0, CHUNK) is None


@pytest.mark.parametrize("setting", ["fast", -1, True, float("nan"), float("inf"), [1]])
def test_what_is_no_rate_is_refused_with_what_to_say_instead(setting: object) -> None:
    with pytest.raises(BadUrl, match="leave it out to have it measured, say 0"):
        _prefill(setting, CHUNK)
