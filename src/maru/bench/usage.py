"""What a measurement used besides time: CPU seconds of processes, bytes on the network, and what others took meanwhile.

Everything is read from /proc, and CPU time from the kernel's clock of each process, which has no ticks. Figures of
processes count those that they started, those of their sessions, and those that have ended and were waited for: a
server that forks workers is seen whole, also when one of them is given to init. One that is given to init and has begun
a session of its own is not seen.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1.0 / os.sysconf("SC_CLK_TCK")
_PROC = Path("/proc")


def _fields_of(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat after the name, which may hold anything; None when the process is gone."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


def family(pids: Iterable[int]) -> set[int]:
    """These processes, all that they started and all of the sessions that they began, as far as they live."""
    parents: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _fields_of(int(entry.name))):
            for parent in {int(fields[1]), int(fields[3])}:
                parents.setdefault(parent, []).append(int(entry.name))
    found: set[int] = set()
    waiting = [pid for pid in pids if _fields_of(pid) is not None]
    while waiting:
        pid = waiting.pop()
        if pid not in found:
            found.add(pid)
            waiting += parents.get(pid, [])
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, of all they started, and of what those waited for."""
    total = 0.0
    for pid in family(pids):
        if fields := _fields_of(pid):
            with suppress(OSError):  # It ended just now.
                total += time.clock_gettime(_cpu_clock_of(pid)) + sum(map(int, fields[13:15])) * _TICK_S
    return total


def _cpu_clock_of(pid: int) -> int:
    """The clock of a process's CPU time, as clock_getcpuclockid(3) makes it: the complement, and 2 for all threads."""
    return ~pid << 3 | 2


def memory_bytes(pids: Iterable[int]) -> int:
    """Memory that these processes and all they started have to themselves or share a part of (PSS)."""
    total = 0
    for pid in family(pids):
        try:
            found = re.search(r"^Pss:\s+(\d+) kB$", (_PROC / str(pid) / "smaps_rollup").read_text(), re.M)
        except OSError:
            continue
        total += int(found[1]) * 1024 if found else 0
    return total


def network_bytes() -> int:
    """Bytes that the interfaces of this machine have received, the loopback's among them."""
    total = 0
    for line in (_PROC / "net" / "dev").read_text().splitlines()[2:]:
        total += int(line.partition(":")[2].split()[0])
    return total


@dataclass(frozen=True)
class Reading:
    """The machine's clocks at one moment, in seconds; CPU times over all cores."""

    wall: float
    all: float
    busy: float
    stolen: float
    ours: float


def reading() -> Reading:
    """Now. What is ours are this process and all it started."""
    ticks = [int(text) for text in (_PROC / "stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, idle, wait, hard, soft, stolen = ticks[:8]
    busy = user + nice + system + hard + soft
    return Reading(
        time.monotonic(), (busy + idle + wait + stolen) * _TICK_S, busy * _TICK_S, stolen * _TICK_S,
        cpu_seconds([os.getpid()]),
    )  # fmt: skip


def shares(before: Reading, after: Reading) -> tuple[float, float]:
    """(busy with others, stolen) between two readings, as shares of all cores' time."""
    whole = after.all - before.all
    if whole <= 0:
        return 0.0, 0.0
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return min(1.0, max(0.0, others / whole)), min(1.0, max(0.0, (after.stolen - before.stolen) / whole))
