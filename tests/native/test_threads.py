"""Many threads on one mapping: no data race, no bad access, no wrong byte, nothing left behind.

ThreadSanitizer is blind across two mappings and across processes; there the crash and model tests look.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from builds import FAILED_STATUS, build_drivers, calm_addresses, sanitizer_environment, why_not

pytestmark = [pytest.mark.native, pytest.mark.timeout(900)]

OPERATIONS = {"thread": 15_000, "address,undefined": 60_000}


def run_threads(folder: Path, sanitize: str, seed: int, mutant: str | None = None) -> subprocess.CompletedProcess[str]:
    reason = why_not(sanitize)
    if reason:
        pytest.skip(reason)
    command = [
        *calm_addresses(), str(build_drivers(sanitize) / "threads"), str(folder), str(seed),
        str(OPERATIONS[sanitize]), *([mutant] if mutant else []),
    ]  # fmt: skip
    return subprocess.run(command, env=sanitizer_environment(), capture_output=True, text=True, check=False)


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("sanitize", OPERATIONS)
def test_threads_on_one_mapping_do_not_race(pool_folder: Path, sanitize: str, seed: int) -> None:
    done = run_threads(pool_folder, sanitize, seed)
    assert done.returncode == 0, done.stdout + done.stderr[:20_000]


@pytest.mark.parametrize("mutant", ["no_pin_recheck_after_evicting", "no_recheck_after_pin"])
def test_a_pin_or_an_evictor_that_does_not_look_again_is_seen(pool_folder: Path, mutant: str) -> None:
    """Either half of the argument of pins.h, left out, is a race. Which run meets it is chance: one of several must."""
    told = []
    for seed in range(1, 7):
        done = run_threads(pool_folder, "thread", seed, mutant)
        if "data race" in done.stderr or "wrong byte" in done.stderr:
            assert done.returncode in (1, FAILED_STATUS)
            return
        told.append(done.stdout + done.stderr[:2_000])
        for file in pool_folder.iterdir():
            file.unlink()
    pytest.fail("\n".join(told))


@pytest.mark.parametrize("mutant", ["extent_reused_at_revoke", "last_part_not_awaited"])
def test_bytes_published_too_early_are_seen(pool_folder: Path, mutant: str) -> None:
    done = run_threads(pool_folder, "address,undefined", 1, mutant)
    assert done.returncode == 1, done.stdout + done.stderr[:20_000]
    assert "wrong byte" in done.stderr
