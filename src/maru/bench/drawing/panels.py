"""The panels of a picture: which samples each shows, as what, in which units, and how much room it wants.

Holds:      one panel for each measure that has samples; marks of events for the timelines.
Promises:   a panel's places, summaries and units are worked out once; names of groups are in lines that fit.
Leaves:     drawing to `plots`, the page around the panels to `picture`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from maru.bench.document import Document, Measure, Place, Sample, Summary, summary_of
from maru.bench.drawing.lettering import PANEL_PT, SMALL_PT, TICK_PT, height_in, lines_of, printable, width_in
from maru.bench.drawing.scales import Scale, plain, scale_for

EVENTS = "-events"
"""A measure of this ending is no panel: its samples are marks, at their seconds, on every timeline."""
GROUPS_UPRIGHT_MAX = 7
BARS_UPRIGHT_MAX = 30
BAR_IN, BAR_IN_MIN, GROUP_GAP_IN = 0.175, 0.1, 0.14
BARS_IN_MAX = 14.0
"""Horizontal bars get thinner where they would be longer than this together."""
HEIGHT_IN = {1: 4.6, 2: 3.9, 3: 3.5}
"""Of a panel, by the number of columns."""
NAMES_SHARE = 0.36
"""Of a panel's width, for the names of its groups beside horizontal bars."""
FURNITURE_IN = 1.0
"""Roughly what an axis' ticks and title take from the panel's width, and from its height."""
_NAME_LINES_MAX = 4
_NAME_LINES_UPRIGHT_MAX = 3


@dataclass
class Panel:
    """A measure with its samples. `width_in` is given by whoever arranges the panels."""

    measure: Measure
    samples: list[Sample]
    systems: list[str]
    """Those that have samples here, in the document's order."""
    events: list[Sample] = field(default_factory=list)
    width_in: float = 5.0

    @cached_property
    def places(self) -> list[Place]:
        """Numbers in their order, names as they came."""
        found = dict.fromkeys(sample.x for sample in self.samples)
        return list(found) if self.has_names else sorted(found)

    @cached_property
    def has_names(self) -> bool:
        return any(isinstance(sample.x, str) for sample in self.samples)

    @cached_property
    def kind(self) -> str:
        """A curve through one place is drawn as bars: there is nothing to connect."""
        if self.measure.kind == "timeline" and not self.has_names:
            return "timeline"
        return "curve" if self.measure.kind == "curve" and len(self.places) > 1 else "bars"

    @cached_property
    def values(self) -> dict[tuple[str, Place], list[float]]:
        """The samples of a system at a place."""
        found: dict[tuple[str, Place], list[float]] = {}
        for sample in self.samples:
            found.setdefault((sample.system, sample.x), []).append(sample.value)
        return found

    def summaries_of(self, system: str) -> list[Summary]:
        name = self.measure.name
        return [summary_of(name, system, x, self.values[system, x]) for x in self.places if (system, x) in self.values]

    # Units

    @cached_property
    def is_log(self) -> bool:
        """Is the axis of values logarithmic? Not where there is something below zero, or nothing above."""
        values = [sample.value for sample in self.samples]
        return self.measure.log_y and min(values) >= 0 and max(values) > 0

    @cached_property
    def value_scale(self) -> Scale:
        return scale_for(self.measure.unit, [sample.value for sample in self.samples], is_log=self.is_log)

    @cached_property
    def place_scale(self) -> Scale:
        return scale_for(self.measure.x_unit, [x for x in self.places if not isinstance(x, str)])

    def place_text(self, place: Place) -> str:
        return printable(place) if isinstance(place, str) else plain(self.place_scale.of(place))

    # Room

    @cached_property
    def is_lying(self) -> bool:
        """Are its bars horizontal? So they are where there are many, or where names would not fit under them."""
        if self.kind != "bars":
            return False
        groups, room = len(self.places), self._upright_name_in
        words = [word for place in self.places for word in self.place_text(place).split()]
        return (
            groups > GROUPS_UPRIGHT_MAX
            or groups * len(self.systems) > BARS_UPRIGHT_MAX
            or max(width_in(word, TICK_PT) for word in words or [""]) > room
            or max(len(lines_of(self.place_text(x), room, TICK_PT)) for x in self.places) > _NAME_LINES_UPRIGHT_MAX
        )

    @property
    def _upright_name_in(self) -> float:
        return (self.width_in - FURNITURE_IN) / len(self.places) * 0.95

    @cached_property
    def names(self) -> list[str]:
        """Of its places: names in lines that fit, numbers whole."""
        if not self.has_names:
            return [self.place_text(x) for x in self.places]
        room = self.width_in * NAMES_SHARE if self.is_lying else self._upright_name_in
        found = [lines_of(self.place_text(x), room, TICK_PT, lines_max=_NAME_LINES_MAX) for x in self.places]
        return ["\n".join(lines) for lines in found]

    @cached_property
    def group_gap(self) -> float:
        """Between groups of bars, as a share of what one group and the gap take together."""
        if self.is_lying:
            return GROUP_GAP_IN / (GROUP_GAP_IN + len(self.systems) * self._bar_in)
        return 0.35 if len(self.systems) == 1 else 0.2

    @property
    def _bar_in(self) -> float:
        return max(BAR_IN_MIN, min(BAR_IN, BARS_IN_MAX / (len(self.places) * len(self.systems))))

    def height_in(self, columns: int) -> float:
        """How high it wants to be, with its furniture."""
        height = HEIGHT_IN[columns]
        if self.is_lying:
            bars_in = len(self.systems) * self._bar_in + GROUP_GAP_IN
            name_in = max(height_in(name.count("\n") + 1, TICK_PT) for name in self.names) + 0.06
            height = max(height * 0.75, len(self.places) * max(bars_in, name_in) + FURNITURE_IN)
        return height + heading_in(*self.heading((self.width_in - FURNITURE_IN) * 0.9)) - height_in(1, PANEL_PT)

    def heading(self, room_in: float) -> tuple[list[str], list[str]]:
        """The lines of its title, and of the note under it."""
        title = lines_of(self.measure.title, room_in, PANEL_PT, is_bold=True, lines_max=3)
        return title, lines_of(self.measure.note, room_in, SMALL_PT, lines_max=3)


def heading_in(title: list[str], note: list[str]) -> float:
    """How high they are together."""
    return height_in(len(title), PANEL_PT) + height_in(len(note), SMALL_PT)


def panels_of(document: Document) -> list[Panel]:
    """One for each measure that has samples, in the document's order; events go to the timelines."""
    order = dict.fromkeys(system.name for system in document.systems)
    by_measure: dict[str, list[Sample]] = {}
    for sample in document.samples:
        by_measure.setdefault(sample.measure, []).append(sample)
        order.setdefault(sample.system)
    found: list[Panel] = []
    for measure in document.measures:
        if samples := by_measure.get(measure.name):
            here = {sample.system for sample in samples}
            found.append(Panel(measure, samples, [name for name in order if name in here]))
    events = [panel for panel in found if is_events(panel.measure)]
    timelines = [panel for panel in found if panel.kind == "timeline" and panel not in events]
    if not timelines:
        return found
    for panel in timelines:
        panel.events = [event for one in events for event in one.samples if not isinstance(event.x, str)]
    return [panel for panel in found if panel not in events]


def is_events(measure: Measure) -> bool:
    return measure.kind == "timeline" and measure.name.endswith(EVENTS)
