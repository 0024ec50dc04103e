"""Numbers as people read them: one unit for a panel, plain ticks, values with three digits and their unit.

Holds:      which unit suits a set of values, the places of ticks, and the text of a number.
Promises:   no exponents, no noise of binary fractions; values have three digits, ticks as many as they need.
Leaves:     axes to `panels`, tables to `page` and `compare`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from maru.bench.report import three_digits

_TIMES = ((1.0, "s"), (1e3, "ms"), (1e6, "µs"), (1e9, "ns"))
_BYTES = ((1e-12, "TB"), (1e-9, "GB"), (1e-6, "MB"), (1e-3, "kB"), (1.0, "B"))
_BINARY = ((0.5**40, "TiB"), (0.5**30, "GiB"), (0.5**20, "MiB"))
_LADDERS: dict[str, tuple[tuple[float, str], ...]] = {
    "s": _TIMES,
    "B": _BYTES,
    "bytes": _BYTES,
    "GB": ((1e-3, "TB"), (1.0, "GB"), (1e3, "MB"), (1e6, "kB"), (1e9, "B")),
    "share": ((100.0, "%"),),
    "J": ((1e-3, "kJ"), (1.0, "J"), (1e3, "mJ"), (1e6, "µJ")),
    "W": ((1e-3, "kW"), (1.0, "W"), (1e3, "mW")),
    "USD": ((1.0, "USD"),),
}
"""From the largest unit to the smallest, as factors of the unit that documents hold."""
_NOUNS = {
    "s": "time", "B": "size", "bytes": "size", "share": "share", "J": "energy", "W": "power", "USD": "cost",
    "bytes/s": "bandwidth", "GB/s": "bandwidth", "tokens/s": "throughput", "requests/s": "throughput",
}  # fmt: skip
_MULTIPLES = ((1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0), (1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
_TICKS_MAX = 7


@dataclass(frozen=True)
class Scale:
    """From a document's unit to the one that is shown."""

    factor: float
    unit: str

    def of(self, value: float) -> float:
        return value * self.factor

    def text(self, value: float) -> str:
        """Of a document's value, with three digits and without the unit."""
        shown = value * self.factor
        if shown == round(shown) and abs(shown) < 1e15:
            return plain(shown)
        return ("−" if shown < 0 else "") + three_digits(abs(shown))


def scale_for(unit: str, values: Sequence[float], *, is_log: bool = False) -> Scale:
    """The unit in which the largest of these is at least 1; on a logarithmic axis, the one in their middle."""
    sizes = [abs(value) for value in values if value]
    if not sizes:
        typical = 1.0
    elif is_log:
        typical = math.sqrt(min(sizes) * max(sizes))
    else:
        typical = max(sizes)
    head, slash, tail = unit.partition("/")
    ladder = _LADDERS.get(head)
    if head in ("B", "bytes") and not slash and sizes and all(size % (1 << 20) == 0 for size in sizes):
        ladder = _BINARY
    if ladder is None:
        words = ((1e-6, "million"), (1e-3, "thousand")) if typical >= 1e5 else ()
        ladder = (*((factor, f"{word} {head}".strip()) for factor, word in words), (1.0, head))
    factor, name = next((rung for rung in ladder if typical * rung[0] >= 1), ladder[-1])
    return Scale(factor, name + slash + tail)


def shown(value: float, unit: str) -> str:
    """One value with the unit that suits it: "41.2 ms", "45.0%"."""
    scale = scale_for(unit, [value])
    return scale.text(value) + (scale.unit if scale.unit.startswith("%") else f" {scale.unit}" if scale.unit else "")


def axis_title(noun: str, unit: str) -> str:
    """ "context (tokens)"; one of both where the other is empty or the same."""
    return f"{noun} ({unit})" if noun and unit and noun != unit else noun or unit


def noun_of(unit: str) -> str:
    """What is counted in it: "time" for seconds; "" where the unit says it already."""
    return _NOUNS.get(unit) or _NOUNS.get(unit.partition("/")[0], "")


def plain(value: float) -> str:
    """A tick: "1,024", "0.05", "−3"; four digits at most after the first that counts."""
    if value == round(value):
        text = f"{abs(value):,.0f}"
    else:
        digits = max(0, 3 - math.floor(math.log10(abs(value))))
        text = f"{abs(value):,.{digits}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
    return f"−{text}" if value < 0 and text != "0" else text


def log_ticks(low: float, high: float) -> list[float]:
    """Round numbers between two positive ones, few enough to read: 1, 2 and 5 of each decade, or fewer, or more."""
    first, last = math.floor(math.log10(low)), math.floor(math.log10(high))
    ticks: list[float] = []
    for multiples in _MULTIPLES:
        every = [multiple * 10.0**power for power in range(first, last + 1) for multiple in multiples]
        ticks = [tick for tick in every if low * 0.999 <= tick <= high * 1.001]
        if len(ticks) <= _TICKS_MAX:
            break
    ticks = ticks[:: -(-len(ticks) // _TICKS_MAX) or 1]
    return ticks if len(ticks) >= 3 else linear_ticks(low, high)


def linear_ticks(low: float, high: float) -> list[float]:
    """Three to eight round numbers between two."""
    span = high - low
    if span <= 0:
        return [low]
    step = 10.0 ** math.floor(math.log10(span))
    step = next(step * share for share in (2.0, 1.0, 0.5, 0.2) if span / (step * share) >= 3)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]
