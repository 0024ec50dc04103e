"""Counts instructions of the hot calls, and keeps the baseline: tests/data/instructions.json.

    python tests/native/counting.py          count, print, compare
    python tests/native/counting.py --write  count and write the baseline

The counting driver steps through the calls one instruction at a time, so the figures repeat exactly on one machine
and need neither rights nor tools. They depend on the compiler, the C library and the processor's instruction set.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from builds import COMPILER, ROOT, build_drivers

BASELINE_FILE = ROOT / "tests" / "data" / "instructions.json"
TOLERANCE = 0.03
DENIED_STATUS = 2  # Of the driver, when the kernel or a container's filter refuses ptrace.
# The C library copies with AVX2 too, and never by one instruction that repeats itself once a byte.
TUNABLES = "glibc.cpu.hwcaps=-AVX512F,-AVX512VL,-ERMS,-FSRM"


@dataclass(frozen=True)
class Count:
    """Instructions by call, and what they depend on."""

    compiler: str
    c_library: str
    processor: str
    instructions: dict[str, int]


def here() -> tuple[str, str, str]:
    """This compiler, C library and kind of processor."""
    told = subprocess.run([COMPILER, "--version"], capture_output=True, text=True, check=False).stdout
    flags = Path("/proc/cpuinfo").read_text().split() if platform.machine() == "x86_64" else []
    has_avx2 = {"avx2", "fma", "bmi2"} <= set(flags)
    return (
        told.partition("\n")[0].partition(" ")[2],
        " ".join(platform.libc_ver()),
        platform.machine() + (" avx2" if has_avx2 else ""),
    )


def read_baseline() -> Count:
    """The committed figures."""
    return Count(**json.loads(BASELINE_FILE.read_text()))


def why_not_comparable(baseline: Count) -> str | None:
    """Why this machine's figures say nothing about the baseline; None when they do."""
    names = ("compiler", "C library", "processor")
    for name, was, now in zip(names, (baseline.compiler, baseline.c_library, baseline.processor), here(), strict=True):
        if was != now:
            return f"the baseline is of another {name}: {was}, this is {now}"
    return None


def count_instructions(folder: Path) -> Count:
    """Count in a pool in `folder`. Raises PermissionError when nobody may step through a process here."""
    command = [str(build_drivers("") / "instructions"), str(folder)]
    environment = os.environ | {"GLIBC_TUNABLES": TUNABLES}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode == DENIED_STATUS:
        raise PermissionError(done.stderr.strip())
    if done.returncode != 0:
        raise RuntimeError(done.stderr.strip())
    counts = (line.partition(" ") for line in done.stdout.splitlines())
    return Count(*here(), {name: int(count) for count, _, name in counts})


def grown(before: Count, after: Count) -> list[str]:
    """The calls that take more instructions than allowed, with both figures."""
    pairs = ((name, before.instructions.get(name, 0), now) for name, now in after.instructions.items())
    return [f"{name}: {was} -> {now}" for name, was, now in pairs if now > was * (1 + TOLERANCE)]


def fewest(one: Count, two: Count) -> Count:
    """Of two counts of the same build, the smaller figure of each call."""
    return replace(
        one, instructions={name: min(one.instructions[name], two.instructions[name]) for name in one.instructions}
    )


def main(arguments: list[str]) -> int:
    """The command line."""
    place = Path(f"/dev/shm/maru-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"test-{os.getpid()}-count-", dir=place) as folder:
        now = count_instructions(Path(folder))
    before = read_baseline() if BASELINE_FILE.is_file() else now
    for name, count in now.instructions.items():
        print(f"{name:36} {before.instructions.get(name, 0):>10,} -> {count:>10,}")
    if "--write" in arguments:
        BASELINE_FILE.write_text(json.dumps(asdict(now), indent=2) + "\n")
        return 0
    return 1 if grown(before, now) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
