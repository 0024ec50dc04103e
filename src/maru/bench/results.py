"""What a run leaves: the JSON file, the picture beside it, the report of its folder; and the table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from maru.bench import document as documents
from maru.bench.document import Document, Measure, NotADocument
from maru.bench.report import duration, three_digits

REPORT = "report.html"


def keep(document: Document, path: Path) -> dict[str, Path]:
    """Write everything; returns what lies where."""
    documents.write(path, document)
    return {"every sample": path}


def documents_in(folder: Path) -> list[Document]:
    """All of a folder, in the order of their names; other JSON files are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(documents.read(path))
        except NotADocument:
            continue
    return found


def value_text(measure: Measure, value: float) -> str:
    """A value with its unit."""
    if measure.unit == "s":
        return duration(value)
    if measure.unit == "share":
        return f"{value:.1%}"
    return f"{three_digits(value)} {measure.unit}".rstrip()


def show(out: Console, document: Document) -> None:
    """The table that a person sees at the end of a run."""
    out.print(f"\n[bold]{document.title}[/bold]   {document.engine} {document.model}", highlight=False)
    titles = {system.name: system.title for system in document.systems}
    measures = {measure.name: measure for measure in document.measures}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "at", "system"):
        table.add_column(title)
    for title in ("median", "quartiles", "p99", "n"):
        table.add_column(title, justify="right")
    last = ""
    for one in documents.summaries(document):
        measure = measures[one.measure]
        if measure.kind == "timeline":
            continue
        place = one.x if isinstance(one.x, str) else f"{one.x:,} {measure.x_unit}".rstrip()
        quartiles = f"{value_text(measure, one.p25)} – {value_text(measure, one.p75)}"
        table.add_row(
            measure.title if last != measure.title else "", place, titles[one.system], value_text(measure, one.median),
            quartiles if one.n > 1 else "", value_text(measure, one.p99) if one.n > 1 else "", str(one.n),
        )  # fmt: skip
        last = measure.title
    out.print(table)
    for system in document.systems:
        if system.absent:
            out.print(f"{system.title}: {system.absent}", style="dim", markup=False)
    for line in document.remarks:
        out.print(f"Note: {line}", style="dim", markup=False)
    checks = document.checks
    if checks.compared:
        colour = "green" if checks.are_good else "bold red"
        out.print(f"[{colour}]{checks.compared} compared, {checks.wrong} wrong[/{colour}] ({checks.what})")
