"""`python -m maru.bench rivals`: install, measure all stores in one run, show the tables, write the JSON file."""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from maru.bench import ground, machine, report
from maru.bench.rivals import figures, install
from maru.bench.rivals.crew import Crew
from maru.bench.rivals.roster import ENTRIES, OURS
from maru.bench.rivals.work import Job
from maru.config import format_size

DEFAULT_JSON = Path("bench-results") / "rivals.json"
CHUNK_BYTES = 256 << 10
CAPACITY_BYTES = 1 << 30  # Several times what one prefix of such chunks takes.
SOURCE_BYTES_MAX = 256 << 20


def make_job(plan: ground.Plan, stores: int) -> Job:
    """The sizes of a run of so many stores. Raises TooSmall."""
    job = Job(CAPACITY_BYTES, min(plan.source_bytes, SOURCE_BYTES_MAX), ground.PREFIX_CHUNKS, CHUNK_BYTES)
    prefix_bytes = job.prefix_chunks * job.chunk_bytes
    # Of each: the store with some air, what its three processes store from, and where two of them read to.
    each = 2 * job.capacity_bytes + 3 * job.source_bytes + figures.READER_COUNT * prefix_bytes
    available = machine.memory_available_bytes()
    if stores * each > available:
        raise ground.TooSmall(
            f"{stores} stores side by side need {format_size(stores * each)} of memory, of which "
            f"{format_size(available)} are available; measure one at a time with --only"
        )
    return job


def _end(_signal: int, _frame: FrameType | None) -> None:
    sys.exit("ended from outside; nothing was left behind")


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m maru.bench rivals", description="Measure the pool beside what one would use instead."
    )
    others = [name for name in ENTRIES if name != OURS]
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a tenth of the rounds; figures are rough")
    parser.add_argument("--only", choices=others, help="one store beside ours")
    parser.add_argument("--install", choices=[*install.folders(), "all"], help="make a folder for a store, and end")
    return parser.parse_args(words)


def main(words: Sequence[str]) -> None:
    options = parse(words)
    if options.install:
        wanted = install.folders() if options.install == "all" else [options.install]
        reasons = {folder: install.install(folder) for folder in wanted}
        problems = [f"{folder}: {reason}" for folder, reason in reasons.items() if reason]
        sys.exit("\n".join(problems) or None)
    signal.signal(signal.SIGTERM, _end)
    try:
        measure(options)
    except (ground.TooSmall, figures.OursFailed) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")


def measure(options: argparse.Namespace) -> None:
    """Everything but `--install`. Raises TooSmall, OursFailed."""
    out, begun = report.console(), time.monotonic()
    plan = ground.make_plan(options.quick)
    names = [OURS, options.only] if options.only else list(ENTRIES)
    reasons = {name: install.why_not(ENTRIES[name]) for name in names}
    absent = {name: f"{ENTRIES[name].title}: {reason}" for name, reason in reasons.items() if reason}
    present = [name for name in names if name not in absent]
    job = make_job(plan, len(present))
    with ground.bench_pool("facts", 16 * ground.MIB) as pool:
        facts = machine.machine_facts(pool)
    with ExitStack() as stack:
        folder = Path(tempfile.mkdtemp(prefix=f"maru-rivals-{os.getpid()}-", dir=ground.SHM))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        crews = {
            name: stack.enter_context(
                Crew(
                    ENTRIES[name], str(install.interpreter_of(ENTRIES[name])), job, folder / name, figures.READER_COUNT
                )
            )
            for name in present
        }
        groups = contest(figures.Contest(crews, absent, job, plan), out)
        versions = {crew.entry.title: crew.version for crew in crews.values()}
    show(out, facts, plan, groups, versions)
    write(options.json, facts, plan, job, groups, versions)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}", markup=False)


def contest(run: figures.Contest, out: Any) -> list[figures.Group]:
    """All groups, in the order of the tables."""
    steps: list[tuple[str, Any]] = [
        ("Lookup, and single chunks", run.found),
        ("Reading by other processes", run.read),
        ("Reading beside a writer", run.read_beside_writer),
        *((f"put, {format_size(size)}", partial(run.put, size)) for size in figures.PUT_BYTES),
    ]
    groups: list[figures.Group] = []
    with report.progress_bar(out, len(steps) + 1) as show_progress:
        run.start(partial(show_progress, "Starting the stores"))
        for title, measured in steps:
            show_progress(title, 0, 1)
            groups += measured(partial(show_progress, title))
    return groups


def remarks(facts: dict[str, Any], plan: ground.Plan) -> list[str]:
    """What makes the figures less than they could be."""
    found = report.remarks(facts, plan.note)
    processes = figures.READER_COUNT + 1
    if facts["cores_usable"] <= processes:
        found.append(
            f"{facts['cores_usable']} cores for {processes} processes at work at once, and for the stores' own servers "
            "beside them: figures of several processes are as much about that as about the stores"
        )
    return found


def show(
    out: Any, facts: dict[str, Any], plan: ground.Plan, groups: list[figures.Group], versions: dict[str, str]
) -> None:
    """What a person sees."""
    for line in report.machine_lines(facts):
        out.print(line, markup=False)
    for line in remarks(facts, plan):
        out.print(f"Note: {line}", markup=False)
    for title, version in versions.items():
        out.print(f"{title}: {version}", markup=False)
    absent = {group.title: group.absent for group in groups}
    out.print(report.tables({group.title: group.rows for group in groups}, out.width, absent))


def write(
    path: Path,
    facts: dict[str, Any],
    plan: ground.Plan,
    job: Job,
    groups: list[figures.Group],
    versions: dict[str, str],
) -> None:
    """The JSON file."""
    document = {
        "quick": plan.quick,
        "capacity_bytes": job.capacity_bytes,
        "source_bytes": job.source_bytes,
        "remarks": remarks(facts, plan),
        "machine": facts,
        "stores": versions,
        "groups": {
            group.title: {"rows": [report.row_json(row) for row in group.rows], "absent": group.absent}
            for group in groups
        },
    }
    report.write_json(path, document)
