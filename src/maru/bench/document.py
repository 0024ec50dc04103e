"""One run of one figure as data: what was measured, on what, every sample, and the JSON file that holds it.

Holds:      the document and its summaries: medians, quartiles, the 99th percentile.
Promises:   every sample that was taken is in the file, outliers too; a file of another format, or one that is no such
            document, is a named error.
Leaves:     taking samples to `session`, drawing to `picture` and `page`.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from maru.bench.measure import quantile
from maru.errors import MaruError

FORMAT = 1

Better = Literal["lower", "higher", ""]
"""Which way a measure is good; "" for neither."""
DISTURBED_SHARE = 0.1
"""A step during which others took more of the machine than this is disturbed."""
Place = float | str
"""Where a sample stands on its measure's horizontal axis: a number, or the name of a group."""


class NotADocument(MaruError):
    """A file is no benchmark document that this version reads."""

    hint = "documents are written by `maru bench FIGURE`; measure again, or use the version that wrote the file"


class Measure(msgspec.Struct, frozen=True):
    """One quantity of a figure, and so one panel of its picture."""

    name: str
    title: str
    unit: str
    """"s", "tokens/s", "GB/s", "share", "USD", ...; times are always in seconds."""
    x_title: str
    x_unit: str = ""
    better: Better = "lower"
    kind: Literal["curve", "bars", "timeline"] = "curve"
    """A curve over numbers, bars in named groups, or a line over the seconds of a run."""
    log_x: bool = False
    log_y: bool = False
    note: str = ""
    """How it is defined, where the title does not say it."""


class System(msgspec.Struct, frozen=True):
    """Something that was measured, or was to be."""

    name: str
    title: str
    configuration: str = ""
    version: str = ""
    absent: str = ""
    """Why there are no samples of it; "" when it took part."""


class Sample(msgspec.Struct, frozen=True):
    measure: str
    system: str
    x: Place
    value: float
    round: int


class Disturbance(msgspec.Struct, frozen=True):
    """What else the machine did during one step, as shares of all its cores' time."""

    step: str
    seconds: float
    other_share: float
    """Busy with processes that are not the run's."""
    stolen_share: float
    """Taken by the machine's host."""


class Checks(msgspec.Struct):
    """What was compared inside the run."""

    compared: int = 0
    wrong: int = 0
    what: str = ""

    @property
    def are_good(self) -> bool:
        return self.wrong == 0


class Document(msgspec.Struct, kw_only=True):
    """One run. `samples` are in the order in which they were taken."""

    format: int = FORMAT
    figure: str
    title: str
    question: str
    engine: str
    model: str
    is_quick: bool
    command: str
    taken: str
    seconds: float = 0.0
    machine: dict[str, Any] = msgspec.field(default_factory=dict)
    versions: dict[str, str] = msgspec.field(default_factory=dict)
    settings: dict[str, Any] = msgspec.field(default_factory=dict)
    systems: list[System] = msgspec.field(default_factory=list)
    measures: list[Measure] = msgspec.field(default_factory=list)
    samples: list[Sample] = msgspec.field(default_factory=list)
    disturbances: list[Disturbance] = msgspec.field(default_factory=list)
    checks: Checks = msgspec.field(default_factory=Checks)
    remarks: list[str] = msgspec.field(default_factory=list)

    @property
    def present(self) -> list[System]:
        return [system for system in self.systems if not system.absent]

    def places(self, measure: str) -> list[Place]:
        """Where this measure has samples: numbers in their order, names as they came."""
        found = dict.fromkeys(sample.x for sample in self.samples if sample.measure == measure)
        return sorted(found) if all(not isinstance(x, str) for x in found) else list(found)

    def values(self, measure: str, system: str, x: Place) -> list[float]:
        return [
            sample.value
            for sample in self.samples
            if sample.measure == measure and sample.system == system and sample.x == x
        ]


class Summary(msgspec.Struct, frozen=True):
    """The samples of one system at one place."""

    measure: str
    system: str
    x: Place
    n: int
    median: float
    p25: float
    p75: float
    p95: float
    p99: float
    mean: float


def summary_of(measure: str, system: str, x: Place, values: Sequence[float]) -> Summary:
    return Summary(
        measure, system, x, len(values), statistics.median(values), quantile(values, 0.25), quantile(values, 0.75),
        quantile(values, 0.95), quantile(values, 0.99), statistics.fmean(values),
    )  # fmt: skip


def summaries(document: Document) -> list[Summary]:
    """Of every measure, system and place that has samples, in the order of the document's own lists."""
    groups: dict[tuple[str, str, Place], list[float]] = {}
    for sample in document.samples:
        groups.setdefault((sample.measure, sample.system, sample.x), []).append(sample.value)
    found = []
    for measure in document.measures:
        for x in document.places(measure.name):
            for system in document.systems:
                if values := groups.get((measure.name, system.name, x)):
                    found.append(summary_of(measure.name, system.name, x, values))
    return found


def read(path: Path) -> Document:
    """Raises NotADocument, OSError."""
    try:
        document = msgspec.json.decode(path.read_bytes(), type=Document)
    except msgspec.DecodeError as error:
        raise NotADocument(f"{path}: {error}") from None
    if document.format != FORMAT:
        raise NotADocument(f"{path} is of format {document.format}; this version reads {FORMAT}")
    return document


def write(path: Path, document: Document) -> None:
    """Whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_bytes(msgspec.json.format(msgspec.json.encode(document), indent=1) + b"\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def as_json(document: Document) -> dict[str, Any]:
    """For `--json`: the document with its summaries."""
    plain: dict[str, Any] = msgspec.to_builtins(document)
    return plain | {"summaries": msgspec.to_builtins(summaries(document))}
