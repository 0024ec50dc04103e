"""Time: the same for every process on one pool, also where containers have clocks of their own."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import maru
from maru import Outcome
from maru.check import check_pool
from maru.check.clock import host_boot_ns
from maru.testing.content import bytes_of, is_right, key_of

AHEAD_S = 1_000_000
SIZE = 5_000

HOURS = 3600

# Attached where the clock is ahead: reads, stores with a time to live, holds a reservation; says what it saw.
STRANGER = f"""
import sys, maru
from maru.testing.content import bytes_of, is_right, key_of
import time
ahead_s = time.clock_gettime(time.CLOCK_BOOTTIME) - float(sys.argv[2])
with maru.Pool.attach(sys.argv[1]) as pool:
    view = pool.get(key_of(0))
    seen = view is not None and is_right(key_of(0), view)
    del view
    stored = pool.put(key_of(1), bytes_of(key_of(1), {SIZE}), ttl={HOURS}).name
    rival = pool.put(key_of(2), bytes_of(key_of(2), {SIZE})).name
    print(round(ahead_s / {AHEAD_S}), seen, stored, rival, flush=True)
"""


def in_another_time(pool: maru.Pool) -> list[str]:
    """What the stranger says. Skips where time namespaces are not permitted."""
    for how in (["unshare", "-T"], ["unshare", "-rT"]):
        command = [*how, f"--boottime={AHEAD_S}", "--fork", sys.executable, "-c", STRANGER, pool.config.url]
        said = subprocess.run(
            [*command, str(time.clock_gettime(time.CLOCK_BOOTTIME))], capture_output=True, text=True, timeout=60
        )
        if said.returncode == 0:
            return said.stdout.split()
    if "unshare" in said.stderr:
        pytest.skip(f"no time namespace is to be had: {said.stderr.strip()}")
    pytest.fail(said.stderr)


def test_a_container_whose_clock_is_days_ahead_sees_the_same_deadlines_and_expiries(pool: maru.Pool) -> None:
    assert pool.put(key_of(0), bytes_of(key_of(0), SIZE), ttl=HOURS) == Outcome.STORED
    with pool.reserve(key_of(2), SIZE, deadline=HOURS) as mine:
        assert mine.outcome is Outcome.RESERVED
        # By its own clock the chunk ran out long ago, and so did our reservation, which it would take over.
        assert in_another_time(pool) == ["1", "True", "STORED", "IN_FLIGHT"]
        mine.buffer[:] = bytes_of(key_of(2), SIZE)
        assert mine.seal() == Outcome.STORED
    for n in (1, 2):
        view = pool.get(key_of(n))
        assert view is not None
        assert is_right(key_of(n), view)
    left = [finding for finding in check_pool(pool.config.folder).findings if finding.severity == "error"]
    assert left == []


def test_the_independent_reader_takes_off_what_a_time_namespace_adds(tmp_path: Path) -> None:
    offsets = tmp_path / "timens_offsets"
    offsets.write_text("monotonic           7         0\nboottime       100000   500\n")
    shift_ns = host_boot_ns() - host_boot_ns(offsets)
    assert 0 <= 100_000 * 10**9 + 500 - shift_ns < 10**9 * 60  # What passed between the two looks.
    assert abs(host_boot_ns(tmp_path / "no such file") - host_boot_ns()) < 10**9 * 60
