"""A panel's samples in one set of axes: curves, bars in groups, or lines over the seconds of a run.

Promises:   medians with quartiles, and every single sample faintly beside them, outliers too; one unit a panel, said on
            the axis; zeros are seen on logarithmic axes, on a tick of their own; labels that would touch are left out.
Leaves:     what is around the axes, and their place, to `picture`.
"""

from __future__ import annotations

from typing import Any

from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.patheffects import withStroke
from matplotlib.transforms import blended_transform_factory

from maru.bench.document import Summary
from maru.bench.drawing.colours import Look, look_of
from maru.bench.drawing.lettering import (
    AXIS_PT,
    DPI,
    FRAME,
    GRID,
    INK,
    PANEL_PT,
    POINTS_PER_INCH,
    QUIET,
    SMALL_PT,
    TICK_PT,
    baselines_in,
    height_in,
    lines_of,
    literal,
)
from maru.bench.drawing.panels import Panel
from maru.bench.drawing.scales import axis_title, linear_ticks, log_ticks, noun_of, plain

_OURS_ABOVE = 100  # Ours is drawn over the others.
_MARKERS_MAX = 40
"""A line through more points has no markers."""
_LABEL_GAP_IN = 0.045


class Plot:
    """A panel in its axes."""

    def __init__(self, panel: Panel, axes: Any) -> None:
        self.panel, self.axes = panel, axes
        self._bars: list[tuple[Any, Any]] = []
        """Each bar with the value that is written at it."""
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        for side in ("left", "bottom"):
            axes.spines[side].set_color(FRAME)
        axes.tick_params(labelsize=TICK_PT, color=FRAME, labelcolor=INK, length=3)
        axes.set_axisbelow(True)
        self._heading: list[Any] = []
        self._scale_values()
        {"bars": self._draw_bars, "curve": self._draw_curves, "timeline": self._draw_timeline}[panel.kind]()

    def _scale_values(self) -> None:
        """Limits and ticks of the axis that values are on. On a logarithmic one, zeros stand below the least value."""
        panel, axes = self.panel, self.axes
        values = [panel.value_scale.of(sample.value) for sample in panel.samples]
        low, high = min(values), max(values)
        # Bars have their values written beyond their ends.
        room = (0.2 if panel.is_lying else 0.12) if panel.kind == "bars" else 0.06
        kind: dict[str, Any] = {"value": "linear"}
        if panel.is_log:
            least = min(value for value in values if value > 0)
            bottom = least / max(1.15, (high / least) ** 0.08)
            top = high * max(1.15, (high / least) ** room)
            if panel.kind == "bars":
                bottom /= 1.6  # The smallest bar is to be seen too.
            ticks, kind = log_ticks(bottom, top), {"value": "log"}
            if low == 0:
                kind = {"value": "symlog", "linthresh": least, "linscale": 0.4}
                bottom, ticks = 0.0, [0.0, *(tick for tick in log_ticks(least, top) if tick >= least)]
        else:
            bottom = 0.0 if low >= 0 else low - (high - low) * room
            top = max(high, 0.0) + (max(high, 0.0) - bottom) * room
            is_flat = top == bottom
            top = bottom + 1.0 if is_flat else top
            ticks = (
                [bottom]
                if is_flat
                else [tick for tick in linear_ticks(bottom, top) if panel.measure.unit != "share" or tick <= 100.0]
            )
        axis = axes.xaxis if panel.is_lying else axes.yaxis
        (axes.set_xscale if panel.is_lying else axes.set_yscale)(**kind)
        (axes.set_xlim if panel.is_lying else axes.set_ylim)(bottom, top)
        axis.set_ticks([], minor=True)
        axis.set_ticks(ticks, [plain(tick) for tick in ticks])
        axis.grid(visible=True, color=GRID, linewidth=0.8)
        self._floor = bottom if panel.is_log else 0.0

    # Curves

    def _draw_curves(self) -> None:
        panel, scale = self.panel, self.panel.value_scale
        at = {place: number if panel.has_names else float(place) for number, place in enumerate(panel.places)}
        for layer, system in enumerate(panel.systems):
            look, found = look_of(system), panel.summaries_of(system)
            xs = [at[one.x] for one in found]
            if any(one.n > 1 for one in found):
                low, high = [scale.of(one.p25) for one in found], [scale.of(one.p75) for one in found]
                self.axes.fill_between(xs, low, high, color=look.colour, alpha=0.18, linewidth=0, zorder=5)
                singles = [
                    (at[x], scale.of(value)) for x in panel.places for value in panel.values.get((system, x), ())
                ]
                self.axes.scatter(
                    *zip(*singles, strict=True), s=9, color=look.colour, alpha=0.35, linewidths=0, zorder=6
                )
            self.axes.plot(
                xs, [scale.of(one.median) for one in found], color=look.colour, linestyle=look.dash,
                linewidth=2.6 if look.is_ours else 1.7, zorder=_layer(layer, look),
                **(_marker(look) if len(xs) <= _MARKERS_MAX else {}),
            )  # fmt: skip
        self._place_ticks(list(at.values()))

    def _place_ticks(self, xs: list[float]) -> None:
        """Ticks where something was measured."""
        axes, first, last = self.axes, xs[0], xs[-1]
        is_log = self.panel.measure.log_x and not self.panel.has_names and first >= 0
        if is_log and first > 0:
            room = (last / first) ** 0.05
            axes.set_xscale("log")
            axes.set_xlim(first / room, last * room)
        elif is_log:
            axes.set_xscale("symlog", linthresh=xs[1], linscale=0.5)
            axes.set_xlim(-0.15 * xs[1], last * (last / xs[1]) ** 0.05 * 1.05)
        else:
            room = (last - first) * 0.05
            axes.set_xlim(first - room, last + room)
        axes.xaxis.set_ticks([], minor=True)
        axes.xaxis.set_ticks(xs, [literal(name) for name in self.panel.names])

    # Timelines

    def _draw_timeline(self) -> None:
        panel, axes, scale, seconds = self.panel, self.axes, self.panel.value_scale, self.panel.place_scale
        runs: dict[tuple[str, int], list[tuple[float, float]]] = {}
        for one in panel.samples:
            runs.setdefault((one.system, one.round), []).append((seconds.of(float(one.x)), scale.of(one.value)))
        is_repeated = len(runs) > len(panel.systems)
        for (system, _), points in runs.items():
            look = look_of(system)
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(
                xs, ys, color=look.colour, linestyle=look.dash, alpha=0.6 if is_repeated else 1.0,
                linewidth=(2.2 if look.is_ours else 1.5) * (0.6 if is_repeated else 1.0),
                zorder=_layer(panel.systems.index(system), look),
                **(_marker(look) if len(points) <= _MARKERS_MAX else {}),
            )  # fmt: skip
        edge = blended_transform_factory(axes.transData, axes.transAxes)
        for event in panel.events:
            x = seconds.of(float(event.x))
            colour = look_of(event.system).colour if event.system in panel.systems else QUIET
            axes.axvline(x, color=colour, linewidth=1.1, linestyle=(0, (2, 2)), alpha=0.8, zorder=4)
            axes.plot([x], [1.0], marker="v", markersize=7, color=colour, transform=edge, clip_on=False, zorder=6)
        all_xs = [seconds.of(float(one.x)) for one in (*panel.samples, *panel.events)]
        low = min(0.0, *all_xs)
        high = max(*all_xs, low + 1e-9)
        axes.set_xlim(low, low + (high - low) * 1.01)
        ticks = linear_ticks(low, high)
        axes.xaxis.set_ticks(ticks, [plain(tick) for tick in ticks])

    # Bars

    def _draw_bars(self) -> None:
        panel, axes = self.panel, self.axes
        thick = (1.0 - panel.group_gap) / len(panel.systems)
        at = {place: number for number, place in enumerate(panel.places)}
        for number, system in enumerate(panel.systems):
            offset = (number - (len(panel.systems) - 1) / 2) * thick
            for one in panel.summaries_of(system):
                self._draw_bar(one, look_of(system), at[one.x] + offset, thick, panel.values[system, one.x])
        names = [literal(name) for name in panel.names]
        axis = axes.yaxis if panel.is_lying else axes.xaxis
        axis.set_ticks(range(len(names)), names)
        axis.set_tick_params(length=0)
        if panel.is_lying:
            axes.set_ylim(len(names) - 0.45, -0.55)
        else:
            room = 0.6 + 0.25 * max(0, 3 - len(self._bars))  # One bar alone is not as wide as the axes.
            axes.set_xlim(-room, len(names) - 1 + room)

    def _draw_bar(self, one: Summary, look: Look, middle: float, thick: float, values: list[float]) -> None:
        scale, axes, is_lying = self.panel.value_scale, self.axes, self.panel.is_lying
        median, low, high = scale.of(one.median), scale.of(one.p25), scale.of(one.p75)
        style: dict[str, Any] = {
            "facecolor": look.colour, "hatch": look.hatch, "edgecolor": "white", "linewidth": 0.6, "zorder": 10,
        }  # fmt: skip
        if is_lying:
            (bar,) = axes.barh(middle, median - self._floor, thick, left=self._floor, **style)
        else:
            (bar,) = axes.bar(middle, median - self._floor, thick, bottom=self._floor, **style)
        if one.n > 1:
            ours = {"fmt": "none", "ecolor": INK, "elinewidth": 1.1, "capsize": 2.5, "capthick": 1.1, "zorder": 15}
            reach = ([median - low], [high - median])
            singles, middles = [scale.of(value) for value in values], [middle] * one.n
            if is_lying:
                axes.errorbar([median], [middle], xerr=reach, **ours)
            else:
                axes.errorbar([middle], [median], yerr=reach, **ours)
            points = (singles, middles) if is_lying else (middles, singles)
            axes.scatter(*points, s=7, color=INK, alpha=0.35, linewidths=0, zorder=14)
        # Beyond the whisker and the dots, but not so far as an outlier is (by Tukey's rule).
        reached = [scale.of(value) for value in values if value <= 2.5 * one.p75 - 1.5 * one.p25]
        end = max(self._floor, high, *reached)
        text = axes.annotate(
            literal(scale.text(one.median)), (end, middle) if is_lying else (middle, end),
            xytext=(6, 0) if is_lying else (0, 3), textcoords="offset points", fontsize=SMALL_PT, color=INK,
            ha="left" if is_lying else "center", va="center" if is_lying else "bottom", zorder=20,
        )  # fmt: skip
        text.set_in_layout(False)
        text.set_path_effects([withStroke(linewidth=2.0, foreground="white")])  # Over dots and lines of the grid.
        self._bars.append((bar, text))

    # Lettering, once the axes have their size

    @property
    def heading(self) -> tuple[list[str], list[str]]:
        """The lines of title and note that are as wide as the axes are now."""
        return self.panel.heading(self.axes.get_window_extent().width / DPI)

    def letter(self, room_in: float) -> None:
        """Title, note and the axes' titles. `room_in`: for the highest heading in this row, so that titles line up."""
        panel, axes = self.panel, self.axes
        title, note = self.heading
        for text in self._heading:
            text.remove()
        top = room_in + (0.12 if panel.events else 0.04)
        self._heading = self._headed(title, top, size=PANEL_PT, weight="bold", color=INK)
        self._heading += self._headed(note, top - height_in(len(title), PANEL_PT), size=SMALL_PT, color=QUIET)
        better = f", {panel.measure.better} is better" if panel.measure.better else ""
        values = (axis_title(noun_of(panel.measure.unit), panel.value_scale.unit) + better).removeprefix(", ")
        places = axis_title(panel.measure.x_title, "" if panel.has_names else panel.place_scale.unit)
        across, up = (values, places) if panel.is_lying else (places, values)
        box = axes.get_window_extent()
        axes.set_xlabel(_broken(across, box.width / DPI), size=AXIS_PT, color=INK)
        axes.set_ylabel(_broken(up, box.height / DPI), size=AXIS_PT, color=INK)

    def _headed(self, lines: list[str], top_in: float, **style: Any) -> list[Any]:
        """Lines above the axes, the first one's top so far above them."""
        return [
            self.axes.annotate(
                literal(line), (0, 1), (0, POINTS_PER_INCH * (top_in - below)), xycoords="axes fraction",
                textcoords="offset points", **style,
            )
            for line, below in zip(lines, baselines_in(len(lines), style["size"]), strict=True)
        ]  # fmt: skip

    def thin(self) -> None:
        """Leave out what would touch: ticks' labels, and values that have no room at their bars."""
        self._thin_labels(self.axes.xaxis, is_upright=False)
        self._thin_labels(self.axes.yaxis, is_upright=True)
        axes, is_lying = self.axes, self.panel.is_lying
        frame = axes.get_window_extent()
        for bar, text in self._bars:
            bar_box, box = bar.get_window_extent(), text.get_window_extent()
            room = (bar_box.height if is_lying else bar_box.width) + 1.0
            if not is_lying and box.width > room:
                text.set_rotation(90)
                box = text.get_window_extent()
            is_inside = box.x1 <= frame.x1 + 0.1 * DPI and box.y1 <= frame.y1 + 0.05 * DPI
            text.set_visible(is_inside and (box.height if is_lying else box.width) <= room)

    def _thin_labels(self, axis: Any, *, is_upright: bool) -> None:
        gap = _LABEL_GAP_IN * DPI * (0.0 if is_upright else 1.0)
        texts: list[str] = []
        taken: list[tuple[float, float]] = []
        for label in axis.get_majorticklabels():
            box = label.get_window_extent()
            low, high = (box.y0, box.y1) if is_upright else (box.x0 - gap, box.x1 + gap)
            is_free = all(high <= begin or end <= low for begin, end in taken)
            texts.append(label.get_text() if is_free else "")
            if is_free:
                taken.append((low, high))
        axis.set_ticks(axis.get_majorticklocs(), texts)


def _broken(text: str, room_in: float) -> str:
    return literal("\n".join(lines_of(text, room_in, AXIS_PT, lines_max=2)))


def _layer(number: int, look: Look) -> int:
    return 20 + number + (_OURS_ABOVE if look.is_ours else 0)


def _marker(look: Look) -> dict[str, Any]:
    size = 7.0 if look.is_ours else 6.0
    return {"marker": look.marker, "markersize": size, "markeredgecolor": "white", "markeredgewidth": 0.7}


def legend_handles(system: str, kinds: set[str]) -> tuple[Any, ...]:
    """What stands beside a system's title in the legend: a line, a patch, or both, as the panels have them."""
    look = look_of(system)
    width = 2.6 if look.is_ours else 1.7
    line = Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=width, **_marker(look))
    patch = Patch(facecolor=look.colour, hatch=look.hatch, edgecolor="white", linewidth=0.6)
    return tuple([line] * bool(kinds & {"curve", "timeline"}) + [patch] * ("bars" in kinds))
