"""Load or compute: never slower than always the one or always the other, but for what it costs to find out."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ladder_kit import Clock

from maru.tiering.breaker import Speed
from maru.tiering.decision import PROBE_S, Decision
from maru.tiering.prefill import STEPS_MIN, Prefill, PrefillClock

CHUNK_BYTES = 16 << 20
CHUNK_TOKENS = 256
AT_ONCE = 4
NEWEST_SHARE = 0.2
"""Of one measurement in an average."""
ROUNDING = 1e-9


@dataclass(frozen=True)
class Link:
    """A place as it really is."""

    first_s: float
    stream_bytes_per_s: float

    @property
    def chunk_s(self) -> float:
        """Of one chunk, while AT_ONCE come."""
        return CHUNK_BYTES / self.stream_bytes_per_s

    def load_s(self, chunks: int) -> float:
        return self.first_s + chunks * self.chunk_s / AT_ONCE

    def measure(self, speed: Speed, chunks: int) -> None:
        for _ in range(chunks):
            speed.saw(self.first_s, self.chunk_s, CHUNK_BYTES)


class Engine:
    """Asks for prefixes, does as it is told, and counts seconds."""

    def __init__(self, prefill: Prefill) -> None:
        self.prefill, self.clock, self.speed = prefill, Clock(), Speed()
        self.decision = Decision(prefill, self.clock)

    def takes_s(self, link: Link, chunks: int) -> float:
        if self.decision.should_load(chunks, CHUNK_BYTES, self.speed, AT_ONCE):
            link.measure(self.speed, chunks)
            took_s = link.load_s(chunks)
        else:
            if self.decision.may_probe():
                link.measure(self.speed, 1)
            took_s = self.prefill.seconds_for(chunks)
        self.clock.now_s += took_s
        return took_s


links = st.builds(Link, st.floats(0.0, 2.0), st.floats(1e6, 1e11))
prefills = st.builds(Prefill, st.just(CHUNK_TOKENS), st.floats(10.0, 1e6))
lengths = st.lists(st.integers(1, 500), min_size=1, max_size=50)


@settings(max_examples=300, deadline=None)
@given(links, prefills, lengths)
def test_with_a_measured_place_it_is_never_slower_than_always_the_one_or_the_other(
    link: Link, prefill: Prefill, prefixes: list[int]
) -> None:
    engine = Engine(prefill)
    link.measure(engine.speed, 1)
    took_s = sum(engine.takes_s(link, chunks) for chunks in prefixes)
    assert took_s <= sum(map(link.load_s, prefixes)) * (1 + ROUNDING)
    assert took_s <= sum(map(prefill.seconds_for, prefixes)) * (1 + ROUNDING)
    best_s = sum(min(link.load_s(chunks), prefill.seconds_for(chunks)) for chunks in prefixes)
    assert took_s == pytest.approx(best_s)


@settings(max_examples=300, deadline=None)
@given(links, prefills, lengths)
def test_a_place_that_nobody_measured_costs_one_prefix_to_find_out(
    link: Link, prefill: Prefill, prefixes: list[int]
) -> None:
    engine = Engine(prefill)
    took_s = sum(engine.takes_s(link, chunks) for chunks in prefixes)
    assert took_s <= sum(map(link.load_s, prefixes)) * (1 + ROUNDING)
    assert took_s <= (sum(map(prefill.seconds_for, prefixes)) + link.load_s(prefixes[0])) * (1 + ROUNDING)


def measurements_until(before: Link, after: Link, is_right: object, chunks: int, prefill: Prefill) -> int:
    """How many it takes until the averages tell the truth about a prefix of so many chunks."""
    speed = Speed()
    before.measure(speed, 1)
    for number in range(1, 400):
        after.measure(speed, 1)
        load_s = speed.seconds_for(chunks * CHUNK_BYTES, AT_ONCE)
        assert load_s is not None
        if (load_s <= prefill.seconds_for(chunks)) is is_right:
            return number
    return 400


@settings(max_examples=200, deadline=None)
@given(st.floats(0.001, 0.5), st.floats(2.0, 1e4), st.integers(1, 100))
def test_a_place_that_becomes_slow_costs_a_few_prefixes(first_s: float, times_slower: float, chunks: int) -> None:
    prefill = Prefill(CHUNK_TOKENS, 10_000.0)
    quick = Link(first_s / 1000, 1e11)
    # Clearly slower than computing, by two and more.
    slow_chunk_s = times_slower * prefill.seconds_for(1) * AT_ONCE
    slow = Link(first_s, CHUNK_BYTES / slow_chunk_s)
    engine = Engine(prefill)
    for _ in range(20):
        assert engine.takes_s(quick, chunks) == quick.load_s(chunks)
    rounds = 300
    took_s = sum(engine.takes_s(slow, chunks) for _ in range(rounds))
    measured = measurements_until(quick, slow, False, chunks, prefill)
    wrong = math.ceil(measured / chunks)
    assert took_s <= rounds * prefill.seconds_for(chunks) + wrong * slow.load_s(chunks)
    assert wrong <= math.log(1e11 / slow.stream_bytes_per_s) / -math.log(1 - NEWEST_SHARE) + 2


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0, 1e4), st.integers(1, 100))
def test_a_place_that_becomes_quick_is_found_out_by_probes(times_quicker: float, chunks: int) -> None:
    prefill = Prefill(CHUNK_TOKENS, 10_000.0)
    slow = Link(0.0, CHUNK_BYTES / (10 * prefill.seconds_for(1) * AT_ONCE))
    quick = Link(0.0, CHUNK_BYTES / (prefill.seconds_for(1) / times_quicker * AT_ONCE))
    engine = Engine(prefill)
    engine.takes_s(slow, chunks)
    assert engine.takes_s(slow, chunks) == prefill.seconds_for(chunks)
    measured = measurements_until(slow, quick, True, chunks, prefill)
    until_s = engine.clock.now_s + (measured + 1) * PROBE_S
    while engine.clock.now_s < until_s:
        engine.takes_s(quick, chunks)
        engine.clock.now_s += PROBE_S / 3  # Prefixes do not come all the time.
    assert engine.takes_s(quick, chunks) == quick.load_s(chunks)


def test_without_a_prefill_rate_or_a_size_it_loads() -> None:
    speed = Speed()
    speed.saw(100.0, 100.0, 1)
    assert Decision(None).should_load(10, CHUNK_BYTES, speed, AT_ONCE)
    assert Decision(Prefill(CHUNK_TOKENS, 1e9)).should_load(10, 0, speed, AT_ONCE)
    assert not Decision(Prefill(CHUNK_TOKENS, 1e9)).should_load(10, CHUNK_BYTES, speed, AT_ONCE)


def test_probes_come_now_and_then() -> None:
    clock = Clock()
    decision = Decision(Prefill(CHUNK_TOKENS, 1.0), clock)
    probes = 0
    for _ in range(1000):
        probes += decision.may_probe()
        clock.now_s += 1.0
    assert probes == math.ceil(1000 / PROBE_S)


def test_what_was_decided_is_counted() -> None:
    speed = Speed()
    speed.saw(1.0, 0.0, CHUNK_BYTES)
    decision = Decision(Prefill(CHUNK_TOKENS, CHUNK_TOKENS))
    assert [decision.should_load(chunks, 1, speed, 1) for chunks in (2, 3, 4)] == [True] * 3
    assert Prefill(CHUNK_TOKENS, 2 * CHUNK_TOKENS).seconds_for(3) == 1.5
    decision.prefill = Prefill(CHUNK_TOKENS, 100 * CHUNK_TOKENS)
    assert not decision.should_load(4, 1, speed, 1)
    assert (decision.loads, decision.computes) == (3, 1)


def test_what_would_come_after_the_deadline_is_no_reason_to_load() -> None:
    speed = Speed()
    speed.saw(9.9, 0.2, CHUNK_BYTES)
    decision = Decision(Prefill(CHUNK_TOKENS, CHUNK_TOKENS / 0.5))  # Half a second a chunk.
    assert decision.should_load(100, CHUNK_BYTES, speed, 1)
    assert not decision.should_load(100, CHUNK_BYTES, speed, 1, deadline_s=10.0)  # Not one of them comes.
    assert not decision.should_load(100, CHUNK_BYTES, speed, 1, deadline_s=12.0)  # Ten, for five seconds of computing.
    assert decision.should_load(100, CHUNK_BYTES, speed, 1, deadline_s=20.0)  # Fifty.


def test_far_back_in_a_prompt_loading_is_worth_more() -> None:
    speed = Speed()
    speed.saw(0.0, 0.5, CHUNK_BYTES)
    decision = Decision(Prefill(CHUNK_TOKENS, CHUNK_TOKENS / 0.3, double_at=4000.0))
    assert not decision.should_load(4, CHUNK_BYTES, speed, 1)
    assert decision.should_load(4, CHUNK_BYTES, speed, 1, before=16)


def test_a_rate_that_is_measured_counts_from_the_moment_it_is_there() -> None:
    speed, clock = Speed(), Clock()
    speed.saw(0.0, 0.5, CHUNK_BYTES)
    prefill = PrefillClock(CHUNK_TOKENS, clock)
    decision = Decision(prefill)
    assert decision.stats() == {
        "loads": 0, "computes": 0, "prefill_tokens_per_s": None, "prefill_double_at": None, "prefill_is": "none",
    }  # fmt: skip
    assert decision.should_load(4, CHUNK_BYTES, speed, 1)
    for _ in range(1 + STEPS_MIN):
        number = prefill.began(4 * CHUNK_TOKENS)
        clock.now_s += 0.5
        prefill.ended(number)
    assert not decision.should_load(4, CHUNK_BYTES, speed, 1)
    assert decision.stats() == {
        "loads": 1, "computes": 1, "prefill_tokens_per_s": pytest.approx(8 * CHUNK_TOKENS), "prefill_double_at": None,
        "prefill_is": "measured",
    }  # fmt: skip
    decision.prefill = Prefill(CHUNK_TOKENS, 1.0)
    assert decision.stats()["prefill_is"] == "told"
