"""What people see of `maru doctor`: a line a fact, and below it what to do where it is not good."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text

from maru.doctor.line import Line, worst

_BADGES = {"ok": ("ok", "green"), "improve": ("could be better", "yellow"), "bad": ("bad", "red")}
_SUMMARY = {
    "ok": "Everything is as Maru likes it.",
    "improve": "Maru works here; the lines in yellow would make it better.",
    "bad": "Maru does not work well here; the lines in red say why.",
}


def show_lines(console: Console, lines: list[Line]) -> None:
    """Names of pools come from the file system and mount options from others: only printable characters pass."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column()
    table.add_column(overflow="fold")
    section = ""
    for line in lines:
        if line.section != section:
            section = line.section
            table.add_row("", Text(section, style="bold"), "")
        badge, style = _BADGES[line.verdict]
        table.add_row(Text(badge, style=style), _plain(line.name), _plain(line.text))
        if line.advice:
            table.add_row("", "", Text.assemble(("do  ", "dim"), _plain(line.advice)))
    console.print(table)
    verdict = worst(lines)
    console.print(Text(_SUMMARY[verdict], style=_BADGES[verdict][1]))


def _plain(text: str) -> Text:
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))
