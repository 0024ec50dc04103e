"""A document as one PNG picture: a panel for each measure, one legend, and what was measured on what at its foot.

Promises:   1,600 pixels wide and as high as it takes; no text smaller than 9 points, none cut off, none over another; a
            quick run and a wrong answer can be seen on the picture itself.
Leaves:     what is in a panel to `panels` and `plots`, the looks of the systems to `colours`.
"""

from __future__ import annotations

import io
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.gridspec import GridSpec
from matplotlib.legend_handler import HandlerTuple
from matplotlib.lines import Line2D

from maru.bench.document import Document
from maru.bench.drawing.lettering import (
    ALARM,
    DPI,
    INK,
    LEGEND_PT,
    QUIET,
    SMALL_PT,
    TITLE_PT,
    baselines_in,
    height_in,
    lines_of,
    literal,
    shortened,
    width_in,
)
from maru.bench.drawing.panels import Panel, heading_in, is_events, panels_of
from maru.bench.drawing.plots import Plot, legend_handles

WIDTH_IN = 12.8
MARGIN_IN = 0.22
_BADGE = "quick run"
_QUESTION_PT = 12.0
_LEGEND_TITLE_IN = 5.0
"""A system's title in the legend is at most so long."""
_LEGEND_COLUMNS_MAX = 8
_BLOCK_GAP_IN = 0.1
_BADGE_COLOUR, _BADGE_INK = "#FFE3A3", "#5C3D00"


def draw(document: Document) -> bytes:
    """The picture as a PNG file."""
    out = io.BytesIO()
    # Neither the date nor matplotlib's version is in the file: equal documents give equal bytes.
    figure_of(document).savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def figure_of(document: Document) -> Any:
    """The picture as matplotlib's Figure, laid out and ready to be saved."""
    panels = panels_of(document)
    rows, columns = _arranged(panels)
    figure = Figure(figsize=(WIDTH_IN, 4.0), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    legend = _legend(figure, document, panels)
    head, foot = _Head(document), _foot_lines(document, panels)
    legend_in = legend.get_window_extent().height / DPI + _BLOCK_GAP_IN if legend else 0.0
    head_in = MARGIN_IN + head.height_in + legend_in
    foot_in = MARGIN_IN + height_in(len(foot), SMALL_PT) + _BLOCK_GAP_IN
    row_heights = [max(panel.height_in(columns) for panel, _ in row) for row in rows]
    height = head_in + sum(row_heights or [1.0]) + foot_in
    figure.set_size_inches(WIDTH_IN, height)
    head.write(figure)
    if legend:
        legend.set_loc("upper left")
        legend.set_bbox_to_anchor((MARGIN_IN / WIDTH_IN, 1.0 - (MARGIN_IN + head.height_in) / height))
    _write(figure, foot, height - MARGIN_IN - height_in(len(foot), SMALL_PT), SMALL_PT, QUIET)
    if not panels:
        _write(figure, ["Nothing was measured."], head_in + 0.3, _QUESTION_PT, INK)
        return figure

    figure.set_layout_engine(
        "constrained", rect=(0.01, foot_in / height, 0.98, 1.0 - (head_in + foot_in) / height),
        w_pad=0.09, h_pad=0.1, wspace=0.02, hspace=0.02,
    )  # fmt: skip
    grid = GridSpec(len(rows), columns, figure=figure, height_ratios=row_heights)
    plots = [
        [
            Plot(panel, figure.add_subplot(grid[number, column] if span == 1 else grid[number, :]))
            for column, (panel, span) in enumerate(row)
        ]
        for number, row in enumerate(rows)
    ]
    # Once for the size of the axes, which lines are broken for; then twice more, for lines take room from the axes.
    for _ in range(2):
        figure.draw_without_rendering()
        for row_plots in plots:
            highest = max(heading_in(*plot.heading) for plot in row_plots)
            for plot in row_plots:
                plot.letter(highest)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")
    for row_plots in plots:
        for plot in row_plots:
            plot.thin()
    return figure


def _arranged(panels: list[Panel]) -> tuple[list[list[tuple[Panel, int]]], int]:
    """Rows of (panel, columns it spans), and the number of columns. A timeline has a row for itself."""
    narrow = sum(panel.kind != "timeline" for panel in panels)
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(narrow, 3)
    rows: list[list[tuple[Panel, int]]] = []
    is_open = False
    for panel in panels:
        span = columns if panel.kind == "timeline" else 1
        panel.width_in = WIDTH_IN * span / columns
        if span < columns and is_open and len(rows[-1]) < columns:
            rows[-1].append((panel, 1))
        else:
            rows.append([(panel, span)])
            is_open = span < columns
    return rows, columns


class _Head:
    """Title, question, whether the run was quick, and whether an answer was wrong."""

    def __init__(self, document: Document) -> None:
        room = WIDTH_IN - 2 * MARGIN_IN
        self._is_quick = document.is_quick
        badge = width_in(_BADGE, LEGEND_PT, is_bold=True) + 0.5 if document.is_quick else 0.0
        checks = document.checks
        wrong = "" if checks.are_good else f"WRONG: {checks.wrong:,} of {checks.compared:,} comparisons ({checks.what})"
        self._blocks = [
            (lines_of(wrong, room - badge, _QUESTION_PT, is_bold=True), _QUESTION_PT, ALARM, True),
            (lines_of(document.title, room - badge, TITLE_PT, is_bold=True, lines_max=3), TITLE_PT, INK, True),
            (lines_of(document.question, room, _QUESTION_PT, lines_max=4), _QUESTION_PT, QUIET, False),
        ]

    @property
    def height_in(self) -> float:
        return sum(height_in(len(lines), size) + 0.04 for lines, size, _, _ in self._blocks if lines) + _BLOCK_GAP_IN

    def write(self, figure: Any) -> None:
        top = MARGIN_IN
        for lines, size, colour, is_bold in self._blocks:
            if lines:
                _write(figure, lines, top, size, colour, is_bold=is_bold)
                top += height_in(len(lines), size) + 0.04
        if self._is_quick:
            figure.text(
                1.0 - (MARGIN_IN + 0.1) / WIDTH_IN, 1.0 - (MARGIN_IN + 0.05) / figure.get_figheight(), _BADGE,
                ha="right", va="top", size=LEGEND_PT, weight="bold", color=_BADGE_INK,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": _BADGE_COLOUR, "edgecolor": "none"},
            ).set_in_layout(False)  # fmt: skip


def _write(figure: Any, lines: list[str], top_in: float, size: float, colour: str, *, is_bold: bool = False) -> None:
    """At the left margin, the first line's top so far below the picture's."""
    height = figure.get_figheight()
    for line, below in zip(lines, baselines_in(len(lines), size), strict=True):
        figure.text(
            MARGIN_IN / WIDTH_IN, 1.0 - (top_in + below) / height, literal(line), size=size, color=colour,
            weight="bold" if is_bold else "normal",
        ).set_in_layout(False)  # fmt: skip


def _legend(figure: Any, document: Document, panels: list[Panel]) -> Any:
    """Every system that has samples, in as many columns as fit; None where there are no panels."""
    if not panels:
        return None
    titles = {system.name: system.title for system in document.systems}
    kinds: dict[str, set[str]] = {name: set() for name in titles}
    for panel in panels:
        for name in panel.systems:
            kinds.setdefault(name, set()).add(panel.kind)
    shown = {name: found for name, found in kinds.items() if found}
    handles: list[Any] = [legend_handles(name, found) for name, found in shown.items()]
    labels = [literal(shortened(titles.get(name, name), _LEGEND_TITLE_IN, LEGEND_PT)) for name in shown]
    if any(panel.events for panel in panels):
        events = next(measure for measure in document.measures if is_events(measure))
        handles.append((Line2D([], [], color=QUIET, marker="v", markersize=7, linestyle=(0, (2, 2)), linewidth=1.1),))
        labels.append(literal(shortened(events.title, _LEGEND_TITLE_IN, LEGEND_PT)))
    legend = None
    for columns in range(min(_LEGEND_COLUMNS_MAX, len(handles)), 0, -1):
        if legend:
            legend.remove()
        legend = figure.legend(
            handles, labels, ncols=columns, fontsize=LEGEND_PT, labelcolor=INK, frameon=False, loc="upper left",
            borderpad=0, borderaxespad=0, handlelength=2.4 * max(map(len, handles)), columnspacing=1.8,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
        )  # fmt: skip
        legend.set_in_layout(False)
        figure.draw_without_rendering()
        if legend.get_window_extent().width <= (WIDTH_IN - 2 * MARGIN_IN) * DPI:
            break
    return legend


def _foot_lines(document: Document, panels: list[Panel]) -> list[str]:
    """How to read it, what it was measured on, and who is not in it."""
    machine, versions = document.machine, document.versions
    facts = [
        str(machine.get("cpu", "")),
        f"{machine['cores_usable']} of {machine['cores']} cores" if {"cores", "cores_usable"} <= set(machine) else "",
        f"engine {document.engine}" if document.engine else "",
        f"model {document.model}" if document.model not in ("", "none") else "",
        "quick run" if document.is_quick else "full run",
        f"commit {short_commit(versions['commit'])}" if versions.get("commit") else "",
        document.taken[:10],
    ]
    absent = [f"{system.title} ({system.absent})" for system in document.systems if system.absent]
    texts = [
        _reading(panels),
        " · ".join(fact for fact in facts if fact),
        f"Not measured: {'; '.join(absent)}." if absent else "",
    ]
    return [line for text in texts for line in lines_of(text, WIDTH_IN - 2 * MARGIN_IN, SMALL_PT, lines_max=6)]


def _reading(panels: list[Panel]) -> str:
    """What lines, bands and bars are, and of how many samples."""
    kinds = {panel.kind for panel in panels if panel.kind != "timeline"}
    counts = [len(values) for panel in panels if panel.kind != "timeline" for values in panel.values.values()]
    if not counts:
        return ""
    least, most = min(counts), max(counts)
    if most == 1:
        return "One sample at every place."
    many = f"{least}" if least == most else f"{least} to {most}"
    marks = {"curve": "lines with quartiles as bands", "bars": "bars with quartiles as whiskers"}
    told = " and ".join(marks[kind] for kind in ("curve", "bars") if kind in kinds)
    return f"Medians of {many} samples: {told}; single samples as dots."


def short_commit(commit: str) -> str:
    """The first ten letters, and whether there were changes beside it."""
    name, plus, changes = commit.partition("+")
    return name[:10] + plus + changes
