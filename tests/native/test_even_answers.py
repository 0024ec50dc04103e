"""To a caller who may know of some chunks only, a key that is another's and one that is nobody's take the same
instructions, so that the time of an answer tells no more than its words.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from builds import build_drivers
from counting import DENIED_STATUS, TUNABLES

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

KINDS = {"nobody's", "another's", "written by another"}


@pytest.fixture
def instructions(pool_folder: Path) -> dict[str, dict[str, int]]:
    """By question, by kind of key."""
    command = [str(build_drivers("") / "answers"), str(pool_folder)]
    done = subprocess.run(
        command, env=os.environ | {"GLIBC_TUNABLES": TUNABLES}, capture_output=True, text=True, check=False
    )
    if done.returncode == DENIED_STATUS:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[str, int]] = {}
    for line in done.stdout.splitlines():
        count, _, what = line.partition(" ")
        question, _, kind = what.partition(": ")
        found.setdefault(question, {})[kind] = int(count)
    return found


def test_no_question_takes_other_instructions_for_another_tenants_key_than_for_nobodys(
    instructions: dict[str, dict[str, int]],
) -> None:
    assert len(instructions) == 5
    assert all(counts.keys() == KINDS for counts in instructions.values())
    uneven = {question: counts for question, counts in instructions.items() if len(set(counts.values())) > 1}
    assert uneven == {}
