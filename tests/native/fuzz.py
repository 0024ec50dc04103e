"""Runs planned mutations of a pool's files against living processes, and says which of them did harm.

    python tests/native/fuzz.py --minutes 10              random seeds, each printed
    python tests/native/fuzz.py --seed 7 --cases 3000     what the tests do
    python tests/native/fuzz.py --seed 7 --case 1234      one case again, with what the process said

Harm is a death by signal, a report of a sanitizer, a life longer than 10 s, or bytes under a key that are not that
key's although the change had nothing to do with them. Exit status 1 when there was any; what processes said is then in
build/hostile.log, and the cases of a long run are kept in build/hostile.cases.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from builds import build_drivers, calm_addresses, sanitizer_environment
from mutations import Image, Plan, make_plan

BATCH_CASES = 500
POOLS = ("boundary", "always")  # Checksum policies; the cases take turns.
SLOT_COUNT = 120


@dataclass
class Harm:
    """A case that failed."""

    seed: int
    plan: Plan
    end: str
    slot_count: int

    def told(self) -> str:
        again = f"fuzz.py --seed {self.seed} --case {self.plan.number}"
        if self.slot_count != SLOT_COUNT:
            again += f" --slots {self.slot_count}"
        return f"{self.end}: {self.plan.told()}\n    again: python tests/native/{again}"


@dataclass
class Report:
    """What became of the cases."""

    ends: Counter[str] = field(default_factory=Counter)
    harm: list[Harm] = field(default_factory=list)
    slowest_ms: tuple[int, str] = (0, "")

    def add(self, seed: int, plan: Plan, end: str, took_ms: int, slot_count: int) -> None:
        self.ends[end] += 1
        self.slowest_ms = max(self.slowest_ms, (took_ms, f"case {plan.number} of seed {seed}"))
        if end not in ("ok", "refused"):
            self.harm.append(Harm(seed, plan, end, slot_count))


@contextmanager
def driver(policy: str, slot_count: int, errors: Path) -> Iterator[tuple[subprocess.Popen[str], Image]]:
    """The C++ side with a sound pool of its own, and that pool's image."""
    place = Path(f"/dev/shm/maru-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"test-{os.getpid()}-hostile-", dir=place))
    program = build_drivers("address,undefined") / "hostile"
    command = [*calm_addresses(), str(program), str(folder), policy, str(slot_count)]
    try:
        with errors.open("ab") as said, subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=said, text=True,
            env=sanitizer_environment(),
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for line in process.stdout:
                if line.strip() == "ready":
                    break
            yield process, Image(folder)
            assert process.stdin is not None
            process.stdin.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def run_cases(seed: int, numbers: range, report: Report, errors: Path, slot_count: int = SLOT_COUNT) -> None:
    """Carry out these cases of the seed, each pool's in a thread of its own."""

    def run_turn(turn: int) -> None:
        mine = [number for number in numbers if number % len(POOLS) == turn]
        if mine:
            _run_on_one_pool(POOLS[turn], seed, mine, report, errors, slot_count)

    build_drivers("address,undefined")
    with ThreadPoolExecutor(len(POOLS)) as pools:
        list(pools.map(run_turn, range(len(POOLS))))


def _run_on_one_pool(policy: str, seed: int, numbers: list[int], report: Report, errors: Path, slot_count: int) -> None:
    with driver(policy, slot_count, errors) as (process, image):
        assert process.stdin is not None
        assert process.stdout is not None
        for number in numbers:
            plan = make_plan(image, seed, number, verifies=policy == "always")
            process.stdin.write(plan.line() + "\n")
            process.stdin.flush()
            answer = process.stdout.readline().strip().split(" ", 2)
            if answer[0] != str(number):
                raise RuntimeError(f"the driver ended at case {number} of seed {seed}; see {errors}")
            report.add(seed, plan, answer[2], int(answer[1]), slot_count)


def main(arguments: list[str]) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--case", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--slots", type=int, default=SLOT_COUNT)
    parser.add_argument("--errors", type=Path, default=Path("build/hostile.log"))
    options = parser.parse_args(arguments)
    options.errors.parent.mkdir(parents=True, exist_ok=True)
    options.errors.unlink(missing_ok=True)
    report, seed = Report(), 1 if options.seed is None else options.seed
    if options.case is not None:
        run_cases(seed, range(options.case, options.case + 1), report, options.errors, options.slots)
        print(options.errors.read_text())
    elif options.minutes is None:
        run_cases(seed, range(options.cases), report, options.errors, options.slots)
    else:
        end = time.monotonic() + options.minutes * 60
        while time.monotonic() < end:
            seed = int.from_bytes(os.urandom(4), "little")
            before = len(report.harm)
            run_cases(seed, range(BATCH_CASES), report, options.errors, options.slots)
            print(f"seed {seed}: {dict(report.ends)}", flush=True)
            for harm in report.harm[before:]:
                print(harm.told(), flush=True)
                with options.errors.with_suffix(".cases").open("a") as cases:
                    cases.write(harm.told() + "\n")
    for harm in report.harm if options.minutes is None else []:
        print(harm.told())
    print(dict(report.ends), "slowest:", *report.slowest_ms)
    return 1 if report.harm else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
