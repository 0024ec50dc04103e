"""What a person sees of the benchmark, and the JSON file that holds every sample of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from maru.bench.measure import Row, Target
from maru.config import format_size

PLAIN_WIDTH = 144  # Wide enough for the table wherever no terminal says how wide it is.
WIDE = 120
_STEPS = 1000

Show = Callable[[str, int, int], None]
"""Told while a group runs: its title, rounds done, rounds in all."""


def console() -> Console:
    found = Console(highlight=False)
    return found if found.is_terminal else Console(highlight=False, width=PLAIN_WIDTH)


def three_digits(value: float) -> str:
    """ "0.412", "4.12", "41.2", "412"; nothing is rounded to fewer than three digits."""
    if value <= 0:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def duration(seconds: float) -> str:
    for factor, unit in ((1.0, "s"), (1e3, "ms"), (1e6, "µs")):
        if seconds * factor >= 1:
            return f"{three_digits(seconds * factor)} {unit}"
    return f"{three_digits(seconds * 1e9)} ns"


def shown(row: Row, value: float) -> str:
    """A value of this row, with its unit."""
    if row.is_rate:
        return f"{three_digits(value)} /s"
    return f"{three_digits(value / 1e9)} GB/s" if row.bytes_each else duration(value)


def target_text(target: Target | None) -> str:
    if target is None:
        return ""
    if target.seconds_max is not None:
        return f"≤ {duration(target.seconds_max)}"
    return f"ratio ≥ {target.ratio_min}" if target.ratio_min is not None else f"ratio ≤ {target.ratio_max}"


def verdict(row: Row) -> str:
    return {None: "", True: "[green]yes[/green]", False: "[bold red]no[/bold red]"}[row.is_met]


def shown_spread(row: Row) -> str:
    """The two percentiles, with one unit where they share it."""
    low, high = (shown(row, value) for value in row.spread)
    unit = high.rpartition(" ")[2]
    return f"{low.removesuffix(unit).rstrip()} - {high}"


def tables(groups: Mapping[str, list[Row]], width: int, absent: Mapping[str, list[str]] | None = None) -> Group:
    """A title and a table for each group, for so many columns of text.

    A narrow table leaves out what each ratio compares with. `absent`: by title, what is said of rows without figures.
    """
    parts: list[RenderableType] = []
    for title, rows in groups.items():
        parts += [Text(f"\n{title}", style="bold"), table(rows, width >= WIDE)]
        parts += [Text(reason, style="dim") for reason in (absent or {}).get(title, [])]
    return Group(*parts)


def table(rows: list[Row], is_wide: bool) -> Table:
    """One group. Columns have widths of their own, so that all groups line up."""
    out = Table(box=None, pad_edge=False, header_style="dim", expand=True)
    out.add_column("row", ratio=1)
    out.add_column("median", justify="right", width=10)
    out.add_column("p10 - p90", justify="right", width=20)
    if is_wide:
        out.add_column("compared with", ratio=1)
    out.add_column("ratio", justify="right", width=6)
    out.add_column("target", width=12)
    out.add_column("met", width=3)
    for row in rows:
        ratio = row.ratio
        out.add_row(
            escape(row.name),
            shown(row, row.median),
            shown_spread(row),
            *([escape(row.reference)] if is_wide else []),
            "" if ratio is None else three_digits(ratio),
            target_text(row.target),
            verdict(row),
        )
    return out


def machine_lines(facts: Mapping[str, Any]) -> list[str]:
    """The facts that a reader of the table needs at once; the file has all of them."""
    pool, load = facts["pool"], facts["load_average"]
    huge = pool["huge_mapped_bytes"]
    return [
        f"{facts['cpu']}{' (virtual machine)' if facts['virtual_machine'] else ''}, {facts['cores_usable']} of "
        f"{facts['cores']} cores, last-level cache {format_size(facts['last_level_cache_bytes'])}, memory "
        f"{format_size(facts['memory_bytes'])}, load {load[0]:.2f}",
        f"{facts['kernel']}, {facts['python']}, numpy {facts['numpy']}, maru {facts['maru']}, commit {facts['commit']}",
        f"copy {facts['copy_path']}, hash {facts['hash_path']}, medium {pool['medium']} ({pool['filesystem']}), pages "
        f"of {format_size(pool['page_bytes'])}, {format_size(huge) if huge else 'none'} of it mapped by huge pages",
    ]


def remarks(facts: Mapping[str, Any], note: str) -> list[str]:
    """What makes the figures less than they could be."""
    found = [note] if note else []
    if facts["load_average"][0] > 0.5:
        found.append(f"the machine was busy when this began (load {facts['load_average'][0]:.2f})")
    if facts["core"].endswith("_testing"):
        found.append("this is the test build of the core, with crash points; unset MARU_CORE for the product")
    return found


def row_json(row: Row) -> dict[str, Any]:
    low, high = row.spread
    return {
        "name": row.name,
        "unit": "1/s" if row.is_rate else "bytes/s" if row.bytes_each else "s",
        "bytes_each": row.bytes_each,
        "median": row.median,
        "p10": low,
        "p90": high,
        "reference": row.reference,
        "ratio": row.ratio,
        "target": asdict(row.target) if row.target else None,
        "met": row.is_met,
        "samples_s": list(row.seconds),
        "reference_samples_s": list(row.reference_seconds),
    }


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write the file, and the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def progress_bar(out: Console, group_count: int) -> Iterator[Show]:
    """One bar over all groups on a terminal; elsewhere nothing moves, and a line says when a group begins."""
    if not out.is_terminal:
        begun: set[str] = set()

        def say(title: str, _done: int, _total: int) -> None:
            if title not in begun:
                begun.add(title)
                out.print(f"… {title}", markup=False)

        yield say
        return
    columns = (BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=out, transient=True, auto_refresh=False) as progress:
        task = progress.add_task("", total=group_count * _STEPS)
        titles: list[str] = []

        def show(title: str, done: int, total: int) -> None:
            if title not in titles:
                titles.append(title)
            at = (len(titles) - 1) * _STEPS + done * _STEPS // total
            # Drawn by this call and by no thread of its own: a thread would draw in the middle of a sample.
            if done == 0 or at >= progress.tasks[0].completed + _STEPS / 20:
                progress.update(task, description=title, completed=at, refresh=True)

        yield show
