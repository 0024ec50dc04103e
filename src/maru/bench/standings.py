"""Who stands where: the rows of a figure's tables, with the best of each place.

Promises:   a timeline is one row for a system, over the whole run, whose seconds are nobody else's; events are no rows.
            Best is the best median of a place, and whoever's quartiles reach that one's: what noise decides is no win.
Leaves:     showing rows to `page`, setting two runs side by side to `compare`.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from maru.bench.document import Document, Measure, Place, Summary, summaries, summary_of
from maru.bench.drawing.panels import is_events
from maru.bench.drawing.scales import scale_for, shown

WHOLE_RUN = "whole run"


@dataclass(frozen=True)
class Standing:
    """One system at one place."""

    measure: Measure
    summary: Summary
    is_best: bool


def standings(document: Document) -> list[Standing]:
    """In the order of the document's measures, places and systems."""
    at_places = summaries(document)
    found: list[Standing] = []
    for measure in document.measures:
        if is_events(measure):
            continue
        if measure.kind == "timeline":
            found += _ranked(measure, _over_the_run(document, measure))
            continue
        rows = [row for row in at_places if row.measure == measure.name]
        for _, here in groupby(rows, key=lambda row: row.x):
            found += _ranked(measure, list(here))
    return found


def overlap(a: Summary, b: Summary) -> bool:
    """Do their quartiles reach each other?"""
    return a.p25 <= b.p75 and b.p25 <= a.p75


def place_text(measure: Measure, x: Place) -> str:
    """ "1,024 tokens", "8 GiB", or the name of a group."""
    if isinstance(x, str):
        return x
    scale = scale_for(measure.x_unit, [x])
    return shown(x, measure.x_unit) if scale.unit else scale.text(x)


def _over_the_run(document: Document, measure: Measure) -> list[Summary]:
    values: dict[str, list[float]] = {}
    for sample in document.samples:
        if sample.measure == measure.name:
            values.setdefault(sample.system, []).append(sample.value)
    order = [system.name for system in document.systems if system.name in values]
    return [summary_of(measure.name, name, WHOLE_RUN, values[name]) for name in order]


def _ranked(measure: Measure, rows: list[Summary]) -> list[Standing]:
    if not measure.better or len(rows) < 2:
        return [Standing(measure, row, False) for row in rows]
    choose = min if measure.better == "lower" else max
    best = choose(rows, key=lambda row: row.median)
    ranked = [Standing(measure, row, overlap(row, best)) for row in rows]
    # Where all are as good as the best one, there is nothing to mark.
    is_decided = not all(one.is_best for one in ranked)
    return [Standing(measure, one.summary, one.is_best and is_decided) for one in ranked]
