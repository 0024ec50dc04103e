"""Load or compute on recorded traces, decided from what is measured on the way: never worse than doing always the one
or always the other, but for what it costs to find out.

A simulation without threads and sleeps: a pool that keeps what was used last, a place below it that has everything that
was ever stored, and an engine that computes in pieces. `Decision`, `Speed` and `PrefillClock` are the real ones, and
know nothing but what they saw. Loading ends at its deadline, as a promotion does, and the rest is computed.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
from ladder_kit import Clock

import maru.bench
from maru.bench.prefix_trace import HALF_TOKENS, PrefixTrace, read_trace
from maru.tiering.breaker import Speed
from maru.tiering.decision import Decision
from maru.tiering.prefill import PrefillClock
from maru.tiering.promoter import LOADS_AT_ONCE

TRACES = Path(maru.bench.__file__).parent / "traces"
NAMES = ("bfcl8", "bfcl32", "bfcllong32", "aiperf8", "rag", "scanmix", "tenants", "ctx_rr", "ctx_think", "phases")
REQUESTS_MAX = 250
POOL_SHARE = 0.1
"""Of the different chunks of a trace."""
CHUNK_TOKENS, CHUNK_BYTES = 256, 8 << 20
PIECE_TOKENS = 2048
DEADLINE_S = 10.0

EXCESS_SHARE = 0.05
"""What may be lost in the long run: while averages lag behind, and by a measured line that is no line."""
FINDING_OUT_S = DEADLINE_S
"""And once: what nobody has measured is loaded to measure it, and that ends at its deadline."""


@dataclass(frozen=True)
class Link:
    """A place below as it really is; bytes a second of all that is loaded at once."""

    first_s: float
    bytes_per_s: float

    def load(self, chunks: int, speed: Speed) -> tuple[float, int]:
        """Seconds, and how many came by the deadline."""
        come = min(chunks, int(max(0.0, DEADLINE_S - self.first_s) * self.bytes_per_s / CHUNK_BYTES))
        for _ in range(come):
            speed.saw(self.first_s, CHUNK_BYTES * LOADS_AT_ONCE / self.bytes_per_s, CHUNK_BYTES)
        return min(DEADLINE_S, self.first_s + chunks * CHUNK_BYTES / self.bytes_per_s), come


QUICK, EVEN, SLOW = Link(0.002, 4e9), Link(0.02, 3e8), Link(0.1, 3e7)
LINKS = {
    "quick": (QUICK,),
    "even": (EVEN,),
    "slow": (SLOW,),
    "becomes slow": (QUICK, SLOW),
    "becomes quick": (SLOW, QUICK),
}


@dataclass(frozen=True)
class Compute:
    """An engine as it really is."""

    tokens_per_s: float
    double_at: float
    """The position at which a token costs twice as much as at the start."""

    def seconds(self, first: int, end: int) -> float:
        return (end - first + (end * end - first * first) / (2 * self.double_at)) / self.tokens_per_s


ENGINES = {
    "a small model on a CPU": Compute(2_000.0, HALF_TOKENS),
    "a GPU": Compute(10_000.0, 30_500.0),
    "attention for nothing": Compute(10_000.0, 1e12),
}


class Always(Decision):
    """Loads, whatever it costs."""

    def known(self) -> None:
        return None


class Never(Decision):
    """Computes, whatever it costs."""

    def should_load(self, *_: object) -> bool:
        return False

    def may_probe(self) -> bool:
        return False


class Backwards(Decision):
    """Broken: takes what is slower."""

    def should_load(self, *asked: object) -> bool:
        return self.known() is None or not super().should_load(*asked)  # type: ignore[arg-type]


class Blind(Decision):
    """Broken: does not look again at a place that it left."""

    def may_probe(self) -> bool:
        return False


class Deaf(Decision):
    """Broken: whatever was measured first counts for ever."""

    first: Speed | None = None

    def should_load(self, chunks: int, chunk_bytes: int, speed: Speed, *rest: object) -> bool:
        if self.first is None and speed.bytes_per_s is not None:
            self.first = Speed()
            self.first.first_s, self.first.bytes_per_s = speed.first_s, speed.bytes_per_s
        return super().should_load(chunks, chunk_bytes, self.first or speed, *rest)  # type: ignore[arg-type]


@cache
def trace_of(name: str) -> PrefixTrace:
    return read_trace(TRACES / f"{name}.pct.xz", CHUNK_TOKENS)


class Run:
    """One trace, served."""

    def __init__(self, engine: Compute, decision: type[Decision]) -> None:
        self.engine, self.clock, self.speed = engine, Clock(), Speed()
        self.prefill = PrefillClock(CHUNK_TOKENS, self.clock)
        self.decision = decision(self.prefill, self.clock)

    def serve(self, trace: PrefixTrace, links: tuple[Link, ...]) -> float:
        """Seconds of all requests; the place is one link after the other."""
        begun_s = self.clock.now_s
        requests = trace.requests[:REQUESTS_MAX]
        room = max(1, int(POOL_SHARE * trace.chunk_count))
        pool: OrderedDict[int, None] = OrderedDict()
        below: set[int] = set()
        for number, chain in enumerate(requests):
            here = _leading(chain, pool)
            there = _leading(chain[here:], below)
            came = self.bring(links[number * len(links) // len(requests)], there, here) if there else 0
            self.compute((here + came) * CHUNK_TOKENS, trace.prompt_tokens[number])
            below.update(chain)
            for chunk in chain:
                pool[chunk] = None
                pool.move_to_end(chunk)
            while len(pool) > room:
                pool.popitem(last=False)
        return self.clock.now_s - begun_s

    def bring(self, link: Link, chunks: int, before: int) -> int:
        known_bytes = CHUNK_BYTES if self.speed.bytes_per_s is not None else 0
        if self.decision.should_load(chunks, known_bytes, self.speed, LOADS_AT_ONCE, before, DEADLINE_S):
            took_s, came = link.load(chunks, self.speed)
            self.clock.now_s += took_s
            return came
        if self.decision.may_probe():
            link.load(1, self.speed)  # Nobody waits for it.
        return 0

    def compute(self, first: int, end: int) -> None:
        while first < end:
            until = min(end, first + PIECE_TOKENS)
            number = self.prefill.began(until - first, (first + until) / 2)
            self.clock.now_s += self.engine.seconds(first, until)
            self.prefill.ended(number)
            first = until


def _leading(chain: tuple[int, ...], held: OrderedDict[int, None] | set[int]) -> int:
    return next((at for at, chunk in enumerate(chain) if chunk not in held), len(chain))


@cache
def seconds_of(name: str, links: str, engine: str, decision: type[Decision]) -> float:
    return Run(ENGINES[engine], decision).serve(trace_of(name), LINKS[links])


def excess_s(name: str, links: str, engine: str, decision: type[Decision]) -> float:
    """Beyond what is allowed; at most 0 for a decision that is right."""
    fixed_s = min(seconds_of(name, links, engine, one) for one in (Always, Never))
    allowed_s = fixed_s * (1 + EXCESS_SHARE) + FINDING_OUT_S * len(LINKS[links])
    return seconds_of(name, links, engine, decision) - allowed_s


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("links", LINKS)
@pytest.mark.parametrize("name", NAMES)
def test_deciding_is_never_worse_than_always_loading_or_always_computing(name: str, links: str, engine: str) -> None:
    assert excess_s(name, links, engine, Decision) <= 0


def test_where_the_place_changes_deciding_is_better_than_either() -> None:
    better = 0
    for name in NAMES:
        decided_s = seconds_of(name, "becomes slow", "a GPU", Decision)
        better += decided_s < 0.95 * min(seconds_of(name, "becomes slow", "a GPU", one) for one in (Always, Never))
    assert better >= len(NAMES) // 2


@pytest.mark.parametrize("broken", [Always, Never, Backwards, Blind, Deaf])
def test_a_broken_decision_is_found_out(broken: type[Decision]) -> None:
    cases = [(name, links, engine) for name in NAMES for links in LINKS for engine in ENGINES]
    assert any(excess_s(*case, broken) > 0 for case in cases)
