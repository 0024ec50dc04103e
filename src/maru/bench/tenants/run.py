"""`python -m maru.bench tenants`: measure, show, write the JSON file and the picture beside it."""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
from rich.table import Table

from maru.bench import ground, machine, report
from maru.bench.daemons import why_no_daemon
from maru.bench.tenants import cost, neighbours
from maru.bench.tenants.timing import KINDS, timing

DEFAULT_JSON = Path("bench-results") / "tenants.json"
SAMPLES, SAMPLES_QUICK = 10_000, 400
ROUNDS, ROUNDS_QUICK = 5, 2


def main(arguments: Sequence[str]) -> None:
    """Measure, show the tables, write the JSON file."""
    parser = argparse.ArgumentParser(prog="python -m maru.bench tenants", description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a few seconds, for a first look; figures are rough")
    options = parser.parse_args(arguments)
    if reason := why_no_daemon():
        sys.exit(reason)
    out, begun = report.console(), time.monotonic()
    try:
        plan = ground.make_plan(options.quick)
        with ground.bench_pool("facts", 16 * ground.MIB) as pool:
            facts = machine.machine_facts(pool)
        with report.progress_bar(out, 3) as show:
            timed = timing(SAMPLES_QUICK if options.quick else SAMPLES, partial(show, "answers by the clock"))
            rows = cost.cost_rows(plan, partial(show, "what it costs"))
            figure = neighbours.neighbours(
                ROUNDS_QUICK if options.quick else ROUNDS,
                partial(show, "a noisy neighbour"),
                machine=facts,
                is_quick=options.quick,
                taken=datetime.now(UTC).isoformat(timespec="seconds"),
            )
    except ground.TooSmall as error:
        sys.exit(str(error))
    for line in report.machine_lines(facts):
        out.print(line, markup=False)
    out.print(_timing_table(timed))
    out.print(report.tables({"what it costs": rows}, out.width))
    for line in figure.remarks:
        out.print(line, markup=False)
    document = {
        "quick": options.quick,
        "machine": facts,
        "timing": timed,
        "cost": [report.row_json(row) for row in rows],
        "neighbours": msgspec.to_builtins(figure),
    }
    report.write_json(options.json, document)
    picture = ""
    if importlib.util.find_spec("matplotlib") is not None:
        from maru.bench.drawing.picture import draw

        path = options.json.with_suffix(".png")
        path.write_bytes(draw(figure))
        picture = f"; the picture: {path}"
    out.print(f"\n{time.monotonic() - begun:.0f} s; every sample: {options.json}{picture}", markup=False)


def _timing_table(timed: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", title="does the time of an answer tell of a key?")
    for title in ("", "against absent keys", "median", "absent", "larger", "z", "p", "guessed right"):
        table.add_column(title, justify="left" if title in ("", "against absent keys") else "right")
    for way, told in timed.items():
        for kind, found in told["against"].items():
            table.add_row(
                way,
                KINDS[kind],
                report.duration(found["median_s"]),
                report.duration(told["median_absent_s"]),
                f"{found['larger_share']:.3f}",
                f"{found['z']:.2f}",
                f"{found['p']:.3g}",
                f"{found['guessed_right']:.3f}",
            )
    return table
