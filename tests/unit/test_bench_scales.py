"""Numbers for people: one unit that suits a panel, ticks without exponents, values with three digits."""

from __future__ import annotations

import pytest

from maru.bench.drawing.scales import axis_title, linear_ticks, log_ticks, noun_of, plain, scale_for, shown


@pytest.mark.parametrize(
    ("unit", "values", "expected"),
    [
        ("s", [3e-7, 9e-5], "µs"), ("s", [0.002, 0.4], "ms"), ("s", [0.002, 4.0], "s"), ("s", [], "s"),
        ("s", [0.0], "s"),
        ("bytes", [3e9], "GB"), ("bytes", [float(1 << 33), float(3 << 30)], "GiB"), ("bytes/s", [7e9], "GB/s"),
        ("GB/s", [0.3], "MB/s"), ("share", [0.2], "%"), ("J/token", [0.004], "mJ/token"),
        ("tokens", [7936.0], "tokens"),
        ("tokens/s", [2e6], "million tokens/s"), ("", [3.0], ""), ("s", [-0.004], "ms"),
    ],
)  # fmt: skip
def test_a_panel_has_the_unit_that_suits_its_values(unit: str, values: list[float], expected: str) -> None:
    assert scale_for(unit, values).unit == expected


def test_a_logarithmic_axis_has_the_unit_of_its_middle() -> None:
    assert scale_for("s", [1e-4, 1.0], is_log=True).unit == "ms"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123456, "s", "12.3 ms"), (0.4567, "share", "45.7%"), (1.0, "share", "100%"),
        (3.2e9, "bytes/s", "3.20 GB/s"),
        (0.0, "s", "0 s"), (1024.0, "tokens", "1,024 tokens"), (-0.5, "J", "−500 mJ"), (7.0, "", "7"),
    ],
)  # fmt: skip
def test_a_value_is_shown_with_three_digits_and_its_unit(value: float, unit: str, text: str) -> None:
    assert shown(value, unit) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1024.0, "1,024"),
        (0.1 + 0.2, "0.3"),
        (0.05, "0.05"),
        (0.0, "0"),
        (-3.0, "−3"),
        (-0.25, "−0.25"),
        (5e-7, "0.0000005"),
    ],
)
def test_a_tick_is_plain(value: float, text: str) -> None:
    assert plain(value) == text


@pytest.mark.parametrize(
    ("low", "high"), [(1.0, 1e9), (0.9, 1.1), (3.0, 700.0), (1e-7, 2e-7), (20.0, 2000.0), (5.0, 5.0)]
)
def test_logarithmic_ticks_are_few_round_and_inside(low: float, high: float) -> None:
    ticks = log_ticks(low, high)
    assert 1 <= len(ticks) <= 8
    assert ticks == sorted(ticks)
    assert all(low * 0.99 <= tick <= high * 1.01 for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(0.0, 95.0), (0.0, 1.0), (-4.0, 4.2), (0.0, 3e-6), (0.0, 7.1)])
def test_linear_ticks_are_few_and_have_the_zero(low: float, high: float) -> None:
    ticks = linear_ticks(low, high)
    assert 3 <= len(ticks) <= 9
    assert 0.0 in ticks


def test_an_axis_says_what_is_counted_and_in_which_unit() -> None:
    assert axis_title(noun_of("s"), "ms") == "time (ms)"
    assert axis_title("context", "tokens") == "context (tokens)"
    assert axis_title("", "hits") == axis_title("hits", "hits") == axis_title("hits", "") == "hits"
