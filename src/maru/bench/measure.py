"""Sampling: contestants are measured in turn, round after round, so that a disturbance of the machine hits them all.

Promises that nothing but the operation is between two readings of the clock, that no garbage collection runs while
samples are taken, and that every sample is kept. A ratio is the median of the ratios within each round: a slow minute
of the machine then slows both sides of it. Knows no pool; the clock is handed in.
"""

from __future__ import annotations

import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

Clock = Callable[[], int]
"""Nanoseconds that only grow."""
Progress = Callable[[int, int], None]
"""Told after each round: rounds done, rounds in all."""

# A sample much shorter than this would be about the clock, a much longer one would hide what happened in it.
SAMPLE_NS_MIN = 500_000
REPEATS_MAX = 1 << 16


def turns(repeats: int) -> Iterator[None]:
    """As many turns of a loop, at the least cost that Python has."""
    return itertools.repeat(None, repeats)


def silent(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


@dataclass(frozen=True)
class Contestant:
    """An operation to measure. `run` gets what `prepare(repeats)` gave, and does the operation `repeats` times.

    `prepare` is not timed. `repeats` of 0 finds the number that makes a sample long enough for the clock.
    """

    name: str
    run: Callable[[Any], object]
    prepare: Callable[[int], Any] = turns
    repeats: int = 0


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Collect now, and not again before the end."""
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def sample_ns(contestant: Contestant, repeats: int, clock: Clock) -> int:
    """Nanoseconds that `repeats` operations take together."""
    prepared = contestant.prepare(repeats)
    run = contestant.run
    start = clock()
    run(prepared)
    return clock() - start


def repeats_wanted(contestant: Contestant, clock: Clock) -> int:
    """How many repeats make a sample of at least SAMPLE_NS_MIN."""
    repeats = 1
    while repeats < REPEATS_MAX and sample_ns(contestant, repeats, clock) < SAMPLE_NS_MIN:
        repeats *= 2
    return repeats


def interleave(
    contestants: Sequence[Contestant],
    rounds: int,
    *,
    clock: Clock = time.perf_counter_ns,
    progress: Progress = silent,
) -> dict[str, tuple[float, ...]]:
    """Seconds per operation of each contestant, one sample a round.

    Every round begins with the next contestant, so that none has the same predecessor's caches for ever. An unmeasured
    round comes first. Raises ValueError for no rounds or a name used twice.
    """
    if rounds < 1 or not contestants:
        raise ValueError(f"{rounds} rounds of {len(contestants)} contestants: there is nothing to measure")
    seconds: dict[str, list[float]] = {contestant.name: [] for contestant in contestants}
    if len(seconds) != len(contestants):
        raise ValueError("two contestants have one name")
    with no_garbage_collection():
        repeats = {one.name: one.repeats or repeats_wanted(one, clock) for one in contestants}
        for one in contestants:
            sample_ns(one, repeats[one.name], clock)
        for number in range(rounds):
            first = number % len(contestants)
            for one in (*contestants[first:], *contestants[:first]):
                taken_ns = sample_ns(one, repeats[one.name], clock)
                seconds[one.name].append(taken_ns * 1e-9 / repeats[one.name])
            progress(number + 1, rounds)
    return {name: tuple(samples) for name, samples in seconds.items()}


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which `share` (0 to 1) of all values lie, between two of them where it must be."""
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


@dataclass(frozen=True)
class Target:
    """What a row should reach: one limit, for its median or for its ratio."""

    seconds_max: float | None = None
    ratio_min: float | None = None
    ratio_max: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. Shown as time, as bandwidth where an operation moves `bytes_each`, or as a rate."""

    name: str
    seconds: tuple[float, ...]
    bytes_each: int = 0
    reference: str = ""
    """Name of the row that it is compared with; "" for none."""
    reference_seconds: tuple[float, ...] = ()
    """That row's samples, of the same rounds."""
    target: Target | None = None
    is_rate: bool = False
    """Shown as how many operations a second."""

    def __post_init__(self) -> None:
        if not self.seconds or min(self.seconds) <= 0:
            raise ValueError(f"{self.name}: every sample takes time")
        if self.reference and len(self.reference_seconds) != len(self.seconds):
            raise ValueError(f"{self.name}: {len(self.seconds)} samples against {len(self.reference_seconds)}")

    @property
    def values(self) -> list[float]:
        """The samples as they are shown: seconds, bytes a second, or operations a second."""
        amount = 1 if self.is_rate else self.bytes_each
        return [amount / one if amount else one for one in self.seconds]

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> tuple[float, float]:
        """The 10th and the 90th percentile of the values."""
        return quantile(self.values, 0.1), quantile(self.values, 0.9)

    @property
    def ratio(self) -> float | None:
        """Median over the rounds of this row by its reference: of times, or of bandwidths or rates."""
        if not self.reference:
            return None
        pairs = zip(self.seconds, self.reference_seconds, strict=True)
        is_more_better = self.bytes_each or self.is_rate
        return statistics.median(theirs / ours if is_more_better else ours / theirs for ours, theirs in pairs)

    @property
    def is_met(self) -> bool | None:
        """Does it reach its target? None without one."""
        if self.target is None:
            return None
        if self.target.seconds_max is not None:
            return statistics.median(self.seconds) <= self.target.seconds_max
        ratio = self.ratio
        if ratio is None:
            return None
        if self.target.ratio_min is not None:
            return ratio >= self.target.ratio_min
        return self.target.ratio_max is not None and ratio <= self.target.ratio_max
