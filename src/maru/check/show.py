"""What people see of a check: one line for a sound pool, and a table of findings for any other."""

from __future__ import annotations

from collections import Counter

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maru.check.finding import ADVICE, Report, Severity

LISTED_MAX = 8
"""Findings of one kind that are listed; the rest is counted. --json has all of them."""
_STYLES = {"error": "red", "leftover": "yellow", "note": "dim"}


def show_report(console: Console, report: Report) -> None:
    """Text from shared memory passes through as printable characters only."""
    figures = report.figures
    console.print(_verdict(report), soft_wrap=True)
    looked = (
        f"{figures['slots']:,} slots ({figures['sealed']:,} sealed), {figures['units']:,} units in "
        f"{figures['slabs']:,} slabs, {figures['processes_alive']} processes alive; {report.seconds:.1f} s"
    )
    if "bytes_verified" in figures:
        looked += f"; {figures['bytes_verified']:,} bytes hashed"
    console.print(Text(looked, style="dim"), soft_wrap=True)
    if not report.findings:
        return
    table = Table(box=None, header_style="dim", pad_edge=False)
    for title in ("", "what", "where"):
        table.add_column(title, overflow="fold")
    listed: Counter[str] = Counter()
    for finding in report.findings:
        listed[finding.code] += 1
        if listed[finding.code] <= LISTED_MAX:
            badge = Text(finding.severity, style=_STYLES[finding.severity])
            table.add_row(badge, _plain(f"{finding.what} [{finding.code}]"), _plain(finding.where))
    console.print(table)
    for code, count in listed.items():
        if count > LISTED_MAX:
            console.print(Text(f"… and {count - LISTED_MAX:,} more [{code}]; --json lists them", style="dim"))
    if report.unlisted_count:
        console.print(Text(f"… and about {report.unlisted_count:,} more that were not kept", style="dim"))
    _show_advice(console, report)


def _show_advice(console: Console, report: Report) -> None:
    """What to do, once for each kind of finding."""
    codes: dict[str, list[str]] = {}
    for finding in report.findings:
        known = codes.setdefault(finding.advice, [])
        if finding.code not in known:
            known.append(finding.code)
    for advice, of_codes in codes.items():
        if advice != "none":
            console.print(Text.assemble(("do  ", "dim"), ADVICE[advice], (f"  [{', '.join(of_codes)}]", "dim")))


def _verdict(report: Report) -> Text:
    name = _plain(report.folder)
    if report.is_sound:
        return Text.assemble(name, "  ", ("sound", "green"))
    kinds: tuple[Severity, ...] = ("error", "leftover", "note")
    counts = [(report.count(kind), kind) for kind in kinds]
    told = ", ".join(f"{count:,} {kind}{'s' if count > 1 else ''}" for count, kind in counts if count)
    return Text.assemble(name, "  ", (told, "red" if report.count("error") else "yellow"))


def _plain(text: str) -> Text:
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))
