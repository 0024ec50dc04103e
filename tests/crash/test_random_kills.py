"""Writers, readers and evicting processes are killed at random: no leak, no wrong byte, for the seeds of every run."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = pytest.mark.crash


@pytest.mark.parametrize("seed", [1, 2])
def test_random_kills_leave_no_trace(seed: int) -> None:
    command = [sys.executable, "-m", "maru.testing.stress", "--seconds", "8", "--seed", str(seed)]
    run = subprocess.run(
        command,
        env=dict(os.environ, MARU_CORE="testing"),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert run.returncode == 0, f"run again with: MARU_CORE=testing {' '.join(command[1:])}\n{run.stdout}{run.stderr}"
    tally = json.loads(run.stdout)
    assert tally["faults"] == []
    assert tally["checks"] > 0
    assert tally["verified_reads"] > 0
    assert tally["kills_from_outside"] > 0
    assert tally["kills_at_points"] > 0
