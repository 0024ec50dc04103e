"""The time that words in a pool are written in: the host's CLOCK_BOOTTIME, also from within a time namespace."""

from __future__ import annotations

import time
from pathlib import Path

OFFSETS = Path("/proc/self/timens_offsets")


def host_boot_ns(offsets: Path = OFFSETS) -> int:
    """Nanoseconds since the host's boot. A kernel without time namespaces has no `offsets`."""
    ahead_ns = 0
    try:
        lines = offsets.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        clock, seconds, nanoseconds = line.split()
        if clock == "boottime":
            ahead_ns = int(seconds) * 10**9 + int(nanoseconds)
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) - ahead_ns
