"""The parts of the report about one figure: checks, picture, tables, systems, contention, settings, the data.

Promises:   every text that comes from a document is escaped; what was wrong comes first; every number that is drawn
            stands in a table too.
Leaves:     the page around them to `page`, the looks to `page_style`.
"""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Mapping
from itertools import groupby
from typing import Any

import msgspec

from maru.bench.document import DISTURBED_SHARE, Document, Measure
from maru.bench.drawing.colours import look_of
from maru.bench.drawing.picture import draw, short_commit
from maru.bench.drawing.scales import shown
from maru.bench.report import duration
from maru.bench.standings import Standing, place_text, standings

ROWS_OPEN_MAX = 60
"""Longer tables are folded in until somebody wants them."""
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")


def text(value: object) -> str:
    """Escaped, also for attributes; without control characters, which a system's last words may hold."""
    return html.escape(_CONTROL.sub("", str(value)))


def facts(pairs: Mapping[str, object]) -> str:
    """A list of names and values; empty values are left out."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs.items() if value != "")
    return f"<dl>{rows}</dl>"


def quick_mark(document: Document) -> str:
    return ' <span class="mark quick">quick run</span>' if document.is_quick else ""


def wrong_text(document: Document) -> str:
    """What was wrong, "" when nothing was."""
    checks = document.checks
    if checks.are_good:
        return ""
    what = f" ({checks.what})" if checks.what else ""
    return (
        f"{checks.wrong:,} of {checks.compared:,} comparisons were wrong{what}: no figure of this run can be trusted."
    )


def section(document: Document, anchor: str) -> str:
    """All about one figure."""
    wrong = wrong_text(document)
    alarm = f'<p class="alarm" role="alert">{text(wrong)}</p>' if wrong else ""
    return "\n".join([
        f'<section id="{text(anchor)}">',
        alarm,
        f"<h2>{text(document.title)}{quick_mark(document)}</h2>",
        f'<p class="question">{text(document.question)}</p>',
        _picture(document),
        _checks(document),
        _tables(document),
        _systems(document),
        _remarks(document),
        f"<h3>Contention</h3><p>{text(contention(document))}</p>",
        _run(document, anchor),
        "</section>",
    ])  # fmt: skip


def _picture(document: Document) -> str:
    data = base64.b64encode(draw(document)).decode()
    panels = ", ".join(measure.title for measure in document.measures)
    names = ", ".join(system.title for system in document.present)
    alt = f"{document.title}. Panels: {panels}. Systems: {names}. The tables below hold the same figures."
    return f'<figure><img src="data:image/png;base64,{data}" alt="{text(alt)}"/></figure>'


def _checks(document: Document) -> str:
    checks = document.checks
    if not checks.compared:
        return "<p>Nothing was compared in this run.</p>"
    what = f" ({checks.what})" if checks.what else ""
    mark = '<span class="mark wrong">wrong</span>' if checks.wrong else '<span class="mark best">correct</span>'
    return f"<p>{mark} {checks.compared:,} comparisons{text(what)}, {checks.wrong:,} of them wrong.</p>"


def _swatch(name: str) -> str:
    return f'<span class="swatch" style="background:{look_of(name).colour}"></span>'


def _tables(document: Document) -> str:
    rows = standings(document)
    titles = {system.name: system.title for system in document.systems}
    tables = "".join(_table(list(found), titles) for _, found in groupby(rows, key=lambda row: row.measure.name))
    if not tables:
        return "<p>Nothing was measured.</p>"
    legend = "Best is the best median of its place, and every other whose quartiles reach that one's."
    state = ' open=""' if len(rows) <= ROWS_OPEN_MAX else ""
    head = f'<summary>The figures, {len(rows)} rows</summary><p class="quiet">{legend}</p>'
    return f"<details{state}>{head}{tables}</details>"


def _table(rows: list[Standing], titles: dict[str, str]) -> str:
    measure = rows[0].measure
    head = "".join(
        f'<th scope="col"{kind}>{name}</th>'
        for name, kind in (
            (text(measure.x_title or "place"), ""), ("system", ""), ("median", ' class="number"'),
            ("quartiles", ' class="number"'), ("p99", ' class="number"'), ("n", ' class="number"'), ("", ""),
        )
    )  # fmt: skip
    body = "".join(  # A body for each place, so that places can be told apart.
        f"<tbody>{''.join(_row(row, titles.get(row.summary.system, row.summary.system)) for row in here)}</tbody>"
        for _, here in groupby(rows, key=lambda row: row.summary.x)
    )
    caption = f"<caption><b>{text(measure.title)}</b>{_caption_end(measure)}</caption>"
    return _box(f"<table>{caption}<thead><tr>{head}</tr></thead>{body}</table>", measure.title)


def _caption_end(measure: Measure) -> str:
    parts = [measure.note, f"{measure.better} is better" if measure.better else ""]
    told = "; ".join(part for part in parts if part)
    return f' <span class="quiet">{text(told)}</span>' if told else ""


def _row(row: Standing, title: str) -> str:
    summary, unit = row.summary, row.measure.unit
    numbers = (
        shown(summary.median, unit), f"{shown(summary.p25, unit)} – {shown(summary.p75, unit)}",
        shown(summary.p99, unit), f"{summary.n:,}",
    )  # fmt: skip
    cells = "".join(f'<td class="number">{text(number)}</td>' for number in numbers)
    start, mark = ('<tr class="best">', '<span class="mark best">best</span>') if row.is_best else ("<tr>", "")
    return (
        f'{start}<th scope="row">{text(place_text(row.measure, summary.x))}</th>'
        f"<td>{_swatch(summary.system)}{text(title)}</td>{cells}<td>{mark}</td></tr>"
    )


def _box(table: str, label: str) -> str:
    """A box of its own to scroll in, which the keyboard reaches too."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{text(label)}">{table}</div>'


def _systems(document: Document) -> str:
    rows = "".join(
        f'<tr><th scope="row">{_swatch(system.name)}{text(system.title)}</th><td>{text(system.version)}</td>'
        f'<td class="wide">{text(system.configuration)}</td>'
        f'<td class="wide">{text(f"not measured: {system.absent}" if system.absent else "measured")}</td></tr>'
        for system in document.systems
    )
    head = "".join(f'<th scope="col">{name}</th>' for name in ("system", "version", "configuration", ""))
    return "<h3>Systems</h3>" + _box(f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>", "Systems")


def _remarks(document: Document) -> str:
    if not document.remarks:
        return ""
    return f"<h3>Remarks</h3><ul>{''.join(f'<li>{text(remark)}</li>' for remark in document.remarks)}</ul>"


def contention(document: Document) -> str:
    """What else the machine did while this was measured."""
    steps = document.disturbances
    if not steps:
        return "Nothing was recorded about what else the machine did."
    disturbed = sum(max(step.other_share, step.stolen_share) > DISTURBED_SHARE for step in steps)
    worst = max(steps, key=lambda step: max(step.other_share, step.stolen_share))
    count = f"{disturbed} of {len(steps)} steps were" if disturbed else f"None of {len(steps)} steps was"
    return (
        f"{count} disturbed by more than {DISTURBED_SHARE:.0%} of the machine's time. The worst was “{worst.step}”, "
        f"{duration(worst.seconds)} long: {worst.other_share:.1%} went to other processes, "
        f"{worst.stolen_share:.1%} to the machine's host."
    )


def _run(document: Document, anchor: str) -> str:
    """When and with what it was measured, how to repeat it, and the file."""
    commit = short_commit(document.versions.get("commit", ""))
    run = {
        "taken": document.taken, "took": duration(document.seconds), "engine": document.engine,
        "model": "" if document.model == "none" else document.model, "machine": document.machine.get("cpu", ""),
        "commit": commit,
    }  # fmt: skip
    settings = {name: _plain(value) for name, value in document.settings.items()}
    data = base64.b64encode(msgspec.json.encode(document)).decode()
    command = f"<p>To measure it again:</p><pre><code>{text(document.command)}</code></pre>" if document.command else ""
    return (
        f"<h3>The run</h3>{facts(run)}<details><summary>Settings</summary>{facts(settings)}</details>{command}"
        f'<p><a download="{text(anchor)}.json" href="data:application/json;base64,{data}">Every sample, as JSON</a> '
        f"({len(document.samples):,} samples)</p>"
    )


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "by the figure"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "by the figure" if value is None else str(value)
