"""What a run leaves: the JSON file, the picture beside it, the report of its folder; and the table for the terminal."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from maru.bench import document as documents
from maru.bench.document import Document, NotADocument
from maru.bench.drawing.page import page
from maru.bench.drawing.picture import draw
from maru.bench.drawing.scales import shown
from maru.bench.figures import NAMES
from maru.bench.standings import place_text, standings

REPORT = "report.html"


def keep(document: Document, path: Path) -> dict[str, Path]:
    """Write everything; returns what lies where."""
    documents.write(path, document)
    picture = path.with_suffix(".png")
    picture.write_bytes(draw(document))
    return {"every sample": path, "picture": picture, "report": write_report(path.parent)}


def write_report(folder: Path) -> Path:
    """One page of all documents in a folder. Raises NotADocument when there are none."""
    found = [document for _, document in files_in(folder)]
    if not found:
        raise NotADocument(f"no benchmark documents in {folder}")
    report = folder / REPORT
    partial = report.with_name(REPORT + ".partial")
    partial.write_text(page(found), encoding="utf-8")
    partial.replace(report)
    return report


def files_in(folder: Path) -> list[tuple[Path, Document]]:
    """All documents of a folder, in the order of the figures; other JSON files are passed over."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append((path, documents.read(path)))
        except NotADocument:
            continue
    order = list(NAMES)
    return sorted(found, key=lambda one: order.index(one[1].figure) if one[1].figure in order else len(order))


def show(out: Console, document: Document) -> None:
    """The table that a person sees at the end of a run."""
    out.print(f"\n[bold]{escape(document.title)}[/bold]   {document.engine} {document.model}", highlight=False)
    titles = {system.name: system.title for system in document.systems}
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("", "at", "system"):
        table.add_column(title)
    for title in ("median", "quartiles", "p99", "n"):
        table.add_column(title, justify="right")
    last = ""
    for row in standings(document):
        one, unit, title = row.summary, row.measure.unit, row.measure.title
        median = f"[bold]{shown(one.median, unit)}[/bold]" if row.is_best else shown(one.median, unit)
        table.add_row(
            escape(title if last != title else ""), escape(place_text(row.measure, one.x)),
            escape(titles.get(one.system, one.system)), median,
            f"{shown(one.p25, unit)} – {shown(one.p75, unit)}" if one.n > 1 else "",
            shown(one.p99, unit) if one.n > 1 else "", str(one.n),
        )  # fmt: skip
        last = title
    out.print(table)
    for system in document.systems:
        if system.absent:
            out.print(f"{system.title}: {system.absent}", style="dim", markup=False)
    for line in document.remarks:
        out.print(f"Note: {line}", style="dim", markup=False)
    checks = document.checks
    if checks.compared:
        colour = "green" if checks.are_good else "bold red"
        what = f" ({checks.what})" if checks.what else ""
        out.print(f"[{colour}]{checks.compared:,} compared, {checks.wrong:,} wrong[/{colour}]{escape(what)}")
