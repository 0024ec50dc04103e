"""Two processes meet two fates on one pool. The pairs come from a seed; `make stress` draws many more."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.crash

PAIRS = 40


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "maru.testing.pairs", *arguments],
        env=dict(os.environ, MARU_CORE="testing"), capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def test_two_deaths_leave_no_more_than_one() -> None:
    ended = run("--pairs", str(PAIRS), "--seed", "1")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    tally = json.loads(ended.stdout)
    assert tally["pairs"] == PAIRS
    assert tally["faults"] == []
    assert tally["both_met"] > PAIRS // 2


def test_a_pair_can_be_replayed_by_name() -> None:
    ended = run("--replay", "stop:seal.before_word,kill:evict.marked")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert json.loads(ended.stdout) == {"seed": 1, "pairs": 2, "both_met": 2, "faults": []}


@pytest.mark.parametrize(
    "name", ["kill:nowhere,kill:evict.marked", "kill:evict.marked", "burn:evict.marked,kill:pin.taken"]
)
def test_a_fate_that_cannot_be_is_refused(name: str) -> None:
    ended = run("--replay", name)
    assert ended.returncode == 2
    assert "error:" in ended.stderr
