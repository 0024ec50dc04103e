"""`python -m maru.bench lmcache-copies`: what LMCache's two copying doors cost, beside LMCache's own stores.

The L2 adapters of its MP server and its remote backends copy between LMCache's buffers and a store in /dev/shm. Each is
compared with a streaming copy of the same bytes between ordinary memory, in the same round. Needs LMCache and no
engine: the environment that `make engines` makes has it.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Any

from maru.bench import ground, machine, report

DEFAULT_JSON = Path("bench-results") / "lmcache-copies.json"
ROUNDS = 9
CHUNKS_MIB = "4,16"
BATCH_MIB = 256

# LMCache reads these when it is imported.
_VARIABLES = {"LMCACHE_LOG_LEVEL": "ERROR", "LMCACHE_TRACK_USAGE": "false"}


def parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m maru.bench lmcache-copies", description="Measure what LMCache copies into stores and out."
    )
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    parser.add_argument("--chunk-mib", default=CHUNKS_MIB, help="sizes of chunks; default: %(default)s")
    parser.add_argument("--batch-mib", type=int, default=BATCH_MIB, help="what a sample moves; default: %(default)s")
    options = parser.parse_args(words)
    if options.rounds < 1:
        parser.error("--rounds: at least one")
    try:
        options.chunk_mib = [int(text) for text in options.chunk_mib.split(",")]
    except ValueError:
        parser.error(f"--chunk-mib: {options.chunk_mib!r} is not numbers with commas between them")
    return options


class Ending:
    """Ctrl-C, or SIGTERM: the first raises KeyboardInterrupt, and the others are left out until all is cleared up."""

    def __init__(self) -> None:
        self._was_asked_for = False

    def watch(self) -> None:
        """From here on the two signals are ours."""
        self._handle(self._end)

    def hold_back(self) -> None:
        """From here on nothing cuts the clearing up short."""
        self._handle(signal.SIG_IGN)

    def let_go(self) -> None:
        """The two signals end the process again."""
        self._handle(signal.SIG_DFL)

    def insisting(self, show: report.Show) -> report.Show:
        """`show`, which then raises KeyboardInterrupt if one was raised before and is lost.

        Python drops what is raised in a weak reference's callback, and LMCache's objects have such callbacks. Progress
        is told after every round, so a run goes on for a round at most.
        """

        def show_or_end(title: str, done: int, total: int) -> None:
            if self._was_asked_for:
                raise KeyboardInterrupt
            show(title, done, total)

        return show_or_end

    def _end(self, _signal: int, _frame: FrameType | None) -> None:
        self.hold_back()
        self._was_asked_for = True
        raise KeyboardInterrupt

    @staticmethod
    def _handle(handler: Any) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, handler)


def main(words: Sequence[str]) -> None:
    """Measure, show the tables, write the JSON file."""
    options = parse(words)
    if importlib.util.find_spec("lmcache") is None:
        sys.exit("LMCache is not installed here: `make bench-lmcache` installs and measures")
    for name, value in _VARIABLES.items():
        os.environ.setdefault(name, value)
    from maru.bench.engines import lmcache_copy_figures as figures
    from maru.bench.engines.lmcache_copy_lanes import CopyFailed

    out, begun = report.console(), time.monotonic()
    try:
        sizes = figures.Sizes(options.batch_mib * ground.MIB, tuple(size * ground.MIB for size in options.chunk_mib))
    except ValueError as error:
        sys.exit(str(error))
    ending = Ending()
    ending.watch()
    try:
        with figures.make_place(sizes) as place:
            try:
                facts = machine.machine_facts(place.pool)
                with report.progress_bar(out, sizes.group_count) as show:
                    groups = figures.measure(place, sizes, options.rounds, ending.insisting(show))
            finally:
                ending.hold_back()
    except (ground.TooSmall, CopyFailed) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")
    finally:
        ending.let_go()

    for line in report.machine_lines(facts):
        out.print(line, markup=False)
    remarks = report.remarks(facts, "")
    for line in remarks:
        out.print(f"Note: {line}", markup=False)
    absent = {group.title: group.absent for group in groups}
    out.print(report.tables({group.title: group.rows for group in groups}, out.width, absent))
    document = {
        "rounds": options.rounds,
        "batch_bytes": sizes.batch_bytes,
        "room_bytes": sizes.room_bytes,
        "remarks": remarks,
        "versions": {name: version(name) for name in ("lmcache", "torch")},
        "machine": facts,
        "groups": {
            group.title: {"rows": [report.row_json(row) for row in group.rows], "absent": group.absent}
            for group in groups
        },
    }
    report.write_json(options.json, document)
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}", markup=False)
