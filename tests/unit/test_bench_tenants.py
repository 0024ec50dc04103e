"""Rank sums, thresholds that are judged by what they have not seen, and the burst beside a steady tenant."""

from __future__ import annotations

import itertools
import random

import pytest

from maru.bench.measure import silent
from maru.bench.tenants import neighbours
from maru.bench.tenants.rank_sums import Threshold, best_threshold, guessed_right, rank_sums, ranks_of


def test_equal_values_share_the_mean_of_their_ranks() -> None:
    assert ranks_of([30.0, 10.0, 10.0, 20.0]) == ([4.0, 1.5, 1.5, 3.0], [2, 1, 1])


@pytest.mark.parametrize("seed", range(20))
def test_u_counts_the_pairs_in_which_the_first_is_larger(seed: int) -> None:
    lot = random.Random(seed)
    first, second = ([float(lot.randrange(8)) for _ in range(lot.randrange(1, 30))] for _ in range(2))
    pairs = sum((a > b) + (a == b) / 2 for a, b in itertools.product(first, second))
    assert rank_sums(first, second).u == pytest.approx(pairs)
    assert rank_sums(first, second).larger_share == pytest.approx(pairs / len(first) / len(second))
    assert rank_sums(second, first).z == pytest.approx(-rank_sums(first, second).z)


def test_z_and_p_are_those_of_a_known_case() -> None:
    """Worked by hand: U 9 of 64 pairs, no ties: mean 32, variance 8 * 8 * 17 / 12."""
    first, second = [1, 2, 3, 4, 5, 6, 10, 14], [7, 8, 9, 11, 12, 13, 15, 16]
    found = rank_sums(first, second)
    assert (found.u, found.larger_share) == (9, 9 / 64)
    assert found.z == pytest.approx(-23 / (8 * 8 * 17 / 12) ** 0.5)
    assert found.p == pytest.approx(0.0157, abs=2e-4)


def test_times_that_are_all_equal_differ_by_nothing() -> None:
    found = rank_sums([1.0] * 5, [1.0] * 7)
    assert (found.larger_share, found.z, found.p) == (0.5, 0.0, 1.0)


def test_nothing_is_said_of_no_samples() -> None:
    for call in (rank_sums, best_threshold):
        with pytest.raises(ValueError, match="nothing to"):
            call([], [1.0])


@pytest.mark.parametrize("seed", range(20))
def test_no_threshold_guesses_better_than_the_one_that_is_found(seed: int) -> None:
    lot = random.Random(seed)
    first, second = ([float(lot.randrange(9)) for _ in range(lot.randrange(1, 25))] for _ in range(2))
    best = best_threshold(first, second).right_share(first, second)
    others = [Threshold(at, above) for at in range(-1, 10) for above in (True, False)]
    assert best == pytest.approx(max(one.right_share(first, second) for one in others))


def test_times_that_tell_everything_are_guessed_right_whichever_is_longer() -> None:
    short, long = [1.0, 2.0, 1.5, 1.0] * 5, [5.0, 9.0, 7.0, 6.0] * 5
    assert guessed_right(short, long) == guessed_right(long, short) == 1.0


def test_what_was_learned_from_chance_is_judged_by_other_samples() -> None:
    """On its own samples the best threshold finds something in anything."""
    lot = random.Random(3)
    first, second = ([lot.random() for _ in range(40)] for _ in range(2))
    assert best_threshold(first, second).right_share(first, second) > 0.53
    many = [[lot.random() for _ in range(20_000)] for _ in range(2)]
    assert guessed_right(*many) == pytest.approx(0.5, abs=0.02)


def test_a_leak_of_a_tenth_of_the_spread_is_seen() -> None:
    lot = random.Random(4)
    first, second = [lot.gauss(0, 1) for _ in range(5000)], [lot.gauss(0.1, 1) for _ in range(5000)]
    assert rank_sums(second, first).p < 1e-4
    assert guessed_right(first, second) > 0.51


def test_a_share_keeps_the_steady_tenants_hits_and_nothing_else_does() -> None:
    with_shares, without = (neighbours.live_beside_a_burst(has, 0) for has in (True, False))
    assert with_shares.before == without.before == 1.0
    assert (with_shares.in_burst, with_shares.steady_made_way) == (1.0, 0)
    assert without.in_burst < 0.6
    assert without.steady_made_way > 0
    assert with_shares.burst_stored == without.burst_stored == neighbours.BURST * len(neighbours.BURST_TURNS)


def test_the_figure_keeps_every_turn_of_every_run() -> None:
    figure = neighbours.neighbours(1, silent, machine={}, is_quick=True, taken="now")
    assert len(figure.samples) == len(neighbours.SYSTEMS) * neighbours.TURNS
    assert [system.name for system in figure.present] == list(neighbours.SYSTEMS)
