"""Do two lots of times differ? Mann and Whitney's rank sums, and how often somebody would guess right by them.

Knows no pool and no clock: numbers go in, numbers come out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class RankSums:
    """Of two lots of samples."""

    u: float
    """Mann-Whitney U of the first: pairs in which it is the larger, ties as halves."""
    larger_share: float
    """U of all pairs: 0.5 where neither is larger more often."""
    z: float
    p: float
    """That they differ so much by chance, either way. By the normal approximation with ties: for some twenty a side."""


def ranks_of(values: Sequence[float]) -> tuple[list[float], list[int]]:
    """The rank of each value from 1, equal ones sharing the mean of theirs; and how many each group of equals has."""
    order = sorted(range(len(values)), key=values.__getitem__)
    ranks, ties = [0.0] * len(values), []
    first = 0
    while first < len(order):
        end = first
        while end < len(order) and values[order[end]] == values[order[first]]:
            end += 1
        for place in order[first:end]:
            ranks[place] = (first + 1 + end) / 2
        ties.append(end - first)
        first = end
    return ranks, ties


def rank_sums(first: Sequence[float], second: Sequence[float]) -> RankSums:
    """Compare two lots of at least one sample each. Raises ValueError for an empty one."""
    n, m = len(first), len(second)
    if not n or not m:
        raise ValueError(f"{n} samples against {m}: there is nothing to compare")
    ranks, ties = ranks_of([*first, *second])
    u = sum(ranks[:n]) - n * (n + 1) / 2
    total = n + m
    tied = sum(count**3 - count for count in ties)
    variance = n * m / 12 * (total + 1 - tied / (total * (total - 1)))
    z = (u - n * m / 2) / math.sqrt(variance) if variance > 0 else 0.0
    return RankSums(u, u / (n * m), z, math.erfc(abs(z) / math.sqrt(2)))


@dataclass(frozen=True)
class Threshold:
    """A guess: what took longer than `seconds` (or not longer, unless `above`) is of the second lot."""

    seconds: float
    above: bool

    def right_share(self, first: Sequence[float], second: Sequence[float]) -> float:
        """Of guesses that are right where both lots are equally likely: 0.5 is tossing a coin, 1 knows everything."""
        above = sum(one > self.seconds for one in second) / len(second)
        below = sum(one <= self.seconds for one in first) / len(first)
        share = (above + below) / 2
        return share if self.above else 1 - share


def best_threshold(first: Sequence[float], second: Sequence[float]) -> Threshold:
    """The one that guesses best on these samples. Judge it by others: on its own it is always better than chance.

    Raises ValueError for an empty lot.
    """
    if not first or not second:
        raise ValueError(f"{len(first)} samples against {len(second)}: there is nothing to learn from")
    steps = sorted([(one, 1 / len(first)) for one in first] + [(one, -1 / len(second)) for one in second])
    # After the last of equal values: how much more of the first lot than of the second lies at or below this value.
    leads = list(accumulate(step for _, step in steps))
    ends = [n for n in range(len(steps)) if n + 1 == len(steps) or steps[n + 1][0] != steps[n][0]]
    best = max(ends, key=lambda n: abs(leads[n]))
    after = steps[min(best + 1, len(steps) - 1)][0]
    return Threshold((steps[best][0] + after) / 2, leads[best] >= 0)


def guessed_right(first: Sequence[float], second: Sequence[float]) -> float:
    """Share of right guesses with the threshold that every other sample teaches, on those that it has not seen.

    0.5: the times tell nothing. Raises ValueError for fewer than two samples a side.
    """
    return best_threshold(first[::2], second[::2]).right_share(first[1::2], second[1::2])
