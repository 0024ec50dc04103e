"""A pool whose bytes somebody changed is refused, or serves misses and right bytes: it never harms a process.

`make fuzz` does the same for longer, with seeds of the day; a case that failed there becomes a seed here.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from builds import why_not
from fuzz import Report, driver, run_cases
from mutations import Image, make_plan

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

SEED, CASES = 1, 2_000

# (seed, case): each did harm once.
OLD_HARM = [
    (856170255, 198),  # A slab's count of free chunks at its limit: one more overflowed.
    (2198576841, 156),  # A reservation's namespace number changed before the seal: read far outside the table.
    (1, 1021),  # More real bytes than a slab has: the housekeeper touched the address space behind it for ever.
    (2925297034, 19),  # A file that is called a device: the housekeeper waited for space that nobody makes.
]


@pytest.fixture(autouse=True)
def _needs_sanitizers() -> None:
    reason = why_not("address,undefined")
    if reason:
        pytest.skip(reason)


def run_and_tell(seed: int, numbers: range, errors: Path) -> Report:
    report = Report()
    run_cases(seed, numbers, report, errors)
    told = "\n".join(harm.told() for harm in report.harm)
    assert report.harm == [], f"{told}\n{errors.read_text()[:8000]}"
    return report


def test_a_changed_pool_harms_nobody(tmp_path: Path) -> None:
    report = run_and_tell(SEED, range(CASES), tmp_path / "said")
    assert report.ends["ok"] > CASES / 2
    assert report.ends["refused"] > CASES / 50


@pytest.mark.parametrize(("seed", "case"), OLD_HARM)
def test_what_did_harm_once_does_none(tmp_path: Path, seed: int, case: int) -> None:
    run_and_tell(seed, range(case, case + 1), tmp_path / "said")


def test_wrong_bytes_would_be_noticed(tmp_path: Path) -> None:
    """One flipped byte of a chunk, in a plan that excuses nobody."""
    with driver("boundary", 120, tmp_path / "said") as (process, image):
        data = next(section for section in image.sections if section.name == "data")
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"7 0 none s:{data.base}:1:^:1\n")
        process.stdin.flush()
        assert process.stdout.readline().split(maxsplit=2)[2] == "wrong\n"


def test_a_case_is_the_same_whenever_it_is_planned(tmp_path: Path) -> None:
    lines = []
    for _ in range(2):
        with driver("always", 120, tmp_path / "said") as (_process, image):
            lines.append([make_plan(image, 5, number, verifies=True).line() for number in range(100)])
    assert lines[0] == lines[1]


def test_every_table_of_the_pool_is_changed(tmp_path: Path) -> None:
    with driver("boundary", 120, tmp_path / "said") as (_process, image):
        assert isinstance(image, Image)
        plans = [make_plan(image, SEED, number, verifies=False) for number in range(CASES)]
    touched = {mutation.section.name for plan in plans for mutation in plan.mutations}
    assert touched == {section.name for section in image.sections}
