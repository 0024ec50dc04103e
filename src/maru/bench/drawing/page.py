"""The report: one HTML file that holds every figure, its picture, its tables and its data.

Promises:   one file that needs no network and no script, can be read on a phone, in light and in dark; wrong answers
            come first.
Leaves:     what is said about one figure to `page_sections`, the looks to `page_style`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from maru.bench.document import Document
from maru.bench.drawing.page_sections import facts, quick_mark, section, text, wrong_text
from maru.bench.drawing.page_style import STYLE
from maru.bench.drawing.picture import short_commit
from maru.config import format_size

TITLE = "Maru, measured"


def page(documents: Sequence[Document]) -> str:
    """The whole file. Pictures are drawn now: seconds for a dozen figures."""
    anchors = _anchors(documents)
    sections = [section(document, anchor) for document, anchor in zip(documents, anchors, strict=True)]
    return "\n".join([
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8"/>',
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>',
        '<link rel="icon" href="data:,"/>',
        f"<title>{TITLE}</title><style>{STYLE}</style></head><body><main>",
        _head(documents),
        _contents(documents, anchors),
        *sections,
        "</main></body></html>",
        "",
    ])  # fmt: skip


def _anchors(documents: Sequence[Document]) -> list[str]:
    """Figure and engine, with a number where that is not enough."""
    found: list[str] = []
    for document in documents:
        words = (document.figure, document.engine)
        name = "-".join(re.sub(r"[^\w]+", "-", word).strip("-") for word in words if word) or "figure"
        number = 1 + sum(other == name or other.startswith(f"{name}--") for other in found)
        found.append(name if number == 1 else f"{name}--{number}")
    return found


def _head(documents: Sequence[Document]) -> str:
    """On what all this was measured; wrong answers before anything else."""
    alarms = "".join(
        f'<p class="alarm" role="alert">{text(document.title)}: {text(wrong_text(document))}</p>'
        for document in documents if wrong_text(document)
    )  # fmt: skip
    machines: dict[tuple[object, ...], list[Document]] = {}
    for document in documents:
        machines.setdefault(tuple(_machine(document).values()), []).append(document)
    told = ""
    for found in machines.values():
        heading = f"<h3>{text(', '.join(dict.fromkeys(one.title for one in found)))}</h3>" if len(machines) > 1 else ""
        told += heading + facts({**_machine(found[0]), "measured": _days(found), **_versions(found)})
    return f"<header>{alarms}<h1>{TITLE}</h1>{told}</header>"


def _machine(document: Document) -> dict[str, object]:
    machine: dict[str, Any] = document.machine
    found: dict[str, object] = {"machine": machine.get("cpu", "unknown")}
    if {"cores", "cores_usable"} <= set(machine):
        virtual = ", a virtual machine" if machine.get("virtual_machine") else ""
        found["cores"] = f"{machine['cores_usable']} of {machine['cores']}{virtual}"
    if "memory_bytes" in machine:
        found["memory"] = format_size(machine["memory_bytes"])
    if "last_level_cache_bytes" in machine:
        found["last-level cache"] = format_size(machine["last_level_cache_bytes"])
    return found | {name: machine[name] for name in ("kernel", "python") if name in machine}


def _days(documents: Sequence[Document]) -> str:
    days = sorted({document.taken[:10] for document in documents})
    return days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"


def _versions(documents: Sequence[Document]) -> dict[str, object]:
    """Every version that took part; more than one where the runs differ."""
    found: dict[str, dict[str, None]] = {}
    for document in documents:
        for name, version in document.versions.items():
            found.setdefault(name, {})[short_commit(version) if name == "commit" else version] = None
    return {name: ", ".join(versions) for name, versions in found.items()}


def _contents(documents: Sequence[Document], anchors: Sequence[str]) -> str:
    items = ""
    for document, anchor in zip(documents, anchors, strict=True):
        engine = f' <span class="quiet">{text(document.engine)}</span>' if document.engine else ""
        wrong = "" if document.checks.are_good else ' <span class="mark wrong">wrong answers</span>'
        link = f'<a href="#{text(anchor)}">{text(document.title)}</a>'
        items += f"<li>{link}{engine}{quick_mark(document)}{wrong}</li>"
    return f'<nav aria-label="Figures"><h3>Figures</h3><ol>{items}</ol></nav>'
