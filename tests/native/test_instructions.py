"""The hot calls take no more instructions than the baseline says, within 3 percent.

A baseline belongs to one compiler, one C library and one kind of processor: elsewhere the test skips and says so.
`make instructions` counts again and writes the baseline.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from counting import (
    BASELINE_FILE,
    TOLERANCE,
    Count,
    count_instructions,
    fewest,
    grown,
    read_baseline,
    why_not_comparable,
)

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]


@pytest.fixture
def counted(pool_folder: Path) -> Count:
    reason = why_not_comparable(read_baseline())
    if reason:
        pytest.skip(reason)
    try:
        first = count_instructions(pool_folder)
        if not grown(read_baseline(), first):
            return first
        # The kernel's clock takes some steps more now and then. What has really grown has grown twice.
        with tempfile.TemporaryDirectory(prefix=f"{pool_folder.name}-again-", dir=pool_folder.parent) as folder:
            return fewest(first, count_instructions(Path(folder)))
    except PermissionError as denied:
        pytest.skip(str(denied))


def test_no_hot_call_takes_more_instructions_than_its_baseline(counted: Count) -> None:
    baseline = read_baseline()
    for name, now in counted.instructions.items():
        print(f"{name}: {baseline.instructions.get(name)} -> {now}")
    assert counted.instructions.keys() == baseline.instructions.keys(), "make instructions writes a new baseline"
    assert grown(baseline, counted) == [], f"more than {TOLERANCE:.0%}; if that is worth it: make instructions"


def test_of_two_counts_the_fewer_count() -> None:
    one, two = (Count("c", "l", "m", {"get": get, "put": put}) for get, put in ((1, 5), (3, 4)))
    assert fewest(one, two).instructions == {"get": 1, "put": 4}


def test_a_call_that_grew_is_named_with_both_figures() -> None:
    before = Count("c", "l", "m", {"get": 1000, "put": 1000, "lookup": 1000})
    after = Count("c", "l", "m", {"get": 1031, "put": 1030, "lookup": 500})
    assert grown(before, after) == ["get: 1000 -> 1031"]


def test_the_baseline_is_there() -> None:
    assert BASELINE_FILE.is_file()
    assert len(read_baseline().instructions) == 6
