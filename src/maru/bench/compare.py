"""Two runs of one figure side by side: what became better, what worse, and why they may not be comparable.

Holds:      a change for every measure, system and place that both runs have; its table and its JSON.
Promises:   different is only what differs by more than its spread: the quartile ranges do not overlap. What the runs do
            not share, machine, engine, settings, quickness, is said and never hidden by a ratio.
Leaves:     reading files to `document`, printing to the command line.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import msgspec
from rich.markup import escape
from rich.table import Table

from maru.bench.document import Document, Measure, Place, Summary
from maru.bench.drawing.scales import scale_for
from maru.bench.report import three_digits
from maru.bench.standings import overlap, place_text, standings
from maru.errors import MaruError

Verdict = Literal["better", "worse", "same", "different"]
"""Of B beside A; "different" where the measure does not say which way is better."""
SAMPLES_MIN = 3
"""With fewer, quartiles say next to nothing about the spread."""
_STYLES: dict[str, str] = {"better": "green", "worse": "bold red", "same": "dim", "different": "yellow"}
_MACHINE = ("cpu", "cores_usable", "memory_bytes", "virtual_machine", "kernel", "core")


class DifferentFigures(MaruError):
    """Two documents are of different figures: none of their measures is the same quantity."""

    hint = "compare two runs of one figure"


class Change(msgspec.Struct, frozen=True):
    """One system at one place, in both runs."""

    measure: Measure
    system: str
    title: str
    """The system's."""
    x: Place
    a: Summary
    b: Summary
    verdict: Verdict

    @property
    def ratio(self) -> float | None:
        """B's median by A's; None where A's is nothing."""
        return self.b.median / self.a.median if self.a.median else None


def compare(a: Document, b: Document) -> list[Change]:
    """In the order of A's tables. Raises DifferentFigures."""
    if a.figure != b.figure:
        raise DifferentFigures(f"{a.figure} beside {b.figure}")
    after = {_key(one.summary): one.summary for one in standings(b)}
    titles = {system.name: system.title for system in a.systems}
    return [
        Change(
            one.measure, one.summary.system, titles.get(one.summary.system, one.summary.system), one.summary.x,
            one.summary, found, _verdict(one.measure, one.summary, found),
        )
        for one in standings(a) if (found := after.get(_key(one.summary)))
    ]  # fmt: skip


def _key(summary: Summary) -> tuple[str, str, Place]:
    return summary.measure, summary.system, summary.x


def _verdict(measure: Measure, a: Summary, b: Summary) -> Verdict:
    if overlap(a, b):
        return "same"
    if not measure.better:
        return "different"
    return "better" if (b.median < a.median) == (measure.better == "lower") else "worse"


def differences(a: Document, b: Document) -> list[str]:
    """Why figures of the two may not be comparable, a sentence each; empty when nothing speaks against it."""
    found = [
        f"not comparable because the {name} differs: {left} and {right}"
        for name, left, right in (("engine", a.engine, b.engine), ("model", a.model, b.model))
        if left != right
    ]
    if a.is_quick != b.is_quick:
        found.append(f"not comparable because {'A' if a.is_quick else 'B'} is a quick run and the other is not")
    for what, left, right in (("machine", _machine(a), _machine(b)), ("setting", _settings(a), _settings(b))):
        found += [
            f"not comparable because the {what} differs: {name} is {left.get(name)} and {right.get(name)}"
            for name in {**left, **right} if left.get(name) != right.get(name)
        ]  # fmt: skip
    for name, document in (("A", a), ("B", b)):
        if not document.checks.are_good:
            found.append(f"not comparable because {document.checks.wrong:,} answers of {name} were wrong")
    return found + _missing(a, b)


def _machine(document: Document) -> dict[str, Any]:
    return {name: document.machine[name] for name in _MACHINE if name in document.machine}


def _settings(document: Document) -> dict[str, Any]:
    """Without what is said of the runs anyway, and the choice of systems, which `_missing` tells."""
    return {name: value for name, value in document.settings.items() if name not in ("model", "quick", "systems")}


def _missing(a: Document, b: Document) -> list[str]:
    """What only one of them has, and where there are too few samples."""
    rows = {name: {_key(one.summary): one.summary for one in standings(of)} for name, of in (("A", a), ("B", b))}
    found = []
    for name, other in (("A", "B"), ("B", "A")):
        for system in dict.fromkeys(key[1] for key in rows[name]):
            own = {key for key in rows[name] if key[1] == system}
            if missing := own - set(rows[other]):
                places = "" if len(missing) == len(own) else f" at {len(missing)} of its {len(own)} places"
                found.append(f"{system} was measured{places} only in {name}")
    shared = set(rows["A"]) & set(rows["B"])
    few = [key for key in shared if min(rows["A"][key].n, rows["B"][key].n) < SAMPLES_MIN]
    if few:
        found.append(
            f"{len(few)} of {len(shared)} places have fewer than {SAMPLES_MIN} samples: so few say nothing about their "
            "spread, and any difference looks like one"
        )
    return found


def table(changes: Sequence[Change]) -> Table:
    """For a terminal."""
    out = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("measure", "place", "system"):
        out.add_column(name)
    for name in ("A", "B", "quartiles of A", "quartiles of B", "n", "B / A"):
        out.add_column(name, justify="right")
    out.add_column("")
    for change in changes:
        a, b = change.a, change.b
        scale = scale_for(change.measure.unit, [a.median, b.median])
        style = _STYLES[change.verdict]
        out.add_row(
            escape(change.measure.title), escape(place_text(change.measure, change.x)), escape(change.title),
            f"{scale.text(a.median)} {scale.unit}", f"{scale.text(b.median)} {scale.unit}",
            f"{scale.text(a.p25)} – {scale.text(a.p75)}", f"{scale.text(b.p25)} – {scale.text(b.p75)}",
            f"{a.n}" if a.n == b.n else f"{a.n}, {b.n}", _ratio_text(change.ratio),
            f"[{style}]{change.verdict}[/{style}]",
        )  # fmt: skip
    return out


def _ratio_text(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    return ("−" if ratio < 0 else "") + three_digits(abs(ratio))


def as_json(a: Document, b: Document) -> dict[str, Any]:
    """For `--json`. Raises DifferentFigures."""
    runs = {
        name: {"taken": run.taken, "commit": run.versions.get("commit", ""), "quick": run.is_quick}
        for name, run in (("a", a), ("b", b))
    }
    changes = [
        {
            "measure": change.measure.name, "unit": change.measure.unit, "better": change.measure.better,
            "system": change.system, "x": change.x, "ratio": change.ratio, "verdict": change.verdict,
            "a": _numbers(change.a), "b": _numbers(change.b),
        }
        for change in compare(a, b)
    ]  # fmt: skip
    return {"figure": a.figure, **runs, "warnings": differences(a, b), "changes": changes}


def _numbers(summary: Summary) -> dict[str, float]:
    return {name: getattr(summary, name) for name in ("n", "median", "p25", "p75", "p99", "mean")}
