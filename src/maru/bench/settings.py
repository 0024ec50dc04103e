"""What a person chose for a run: the options that all figures have, and the settings of each.

Promises:   a value that cannot be meant is refused by its name, before anything starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maru.errors import MaruError

if TYPE_CHECKING:
    from maru.bench.figures.base import Figure


class BadSetting(MaruError):
    """A setting that this figure does not have, or a value that it cannot take."""

    hint = "`maru bench FIGURE --help` lists the figure's settings"


@dataclass(frozen=True)
class Options:
    """What a person chose. None: the figure's own default."""

    engine: str | None = None
    systems: tuple[str, ...] | None = None
    model: str | None = None
    contexts: tuple[int, ...] | None = None
    rounds: int | None = None
    capacity_bytes: int | None = None
    is_quick: bool = False
    is_resumed: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    cache_dir: Path = Path(".cache")
    path: Path = Path("bench-results")
    """The folder, or the JSON file, that results go to."""
    command: str = ""


def engine_of(figure: Figure, options: Options) -> str:
    """The one that was chosen, or the figure's first. Raises BadSetting."""
    if not figure.engines:
        return ""
    engine = options.engine or figure.engines[0]
    if engine not in figure.engines:
        raise BadSetting(f"{figure.name} is measured on {', '.join(figure.engines)}, not on {engine!r}")
    return engine


def settings_of(figure: Figure, options: Options) -> dict[str, Any]:
    """Every setting of the figure: as it was chosen, or by default. Raises BadSetting."""
    known = {knob.name: knob for knob in figure.knobs}
    if unknown := set(options.settings) - set(known):
        raise BadSetting(
            f"{figure.name} has no setting {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}"
        )
    found: dict[str, Any] = {}
    for name, knob in known.items():
        found[name] = knob.quick if options.is_quick else knob.full
        if name in options.settings:
            found[name] = _value_of(figure, name, knob.full, options.settings[name])
    return found


def _value_of(figure: Figure, name: str, like: Any, text: str) -> Any:
    """The text as the type of `like`; a tuple is numbers or words with commas between. Raises BadSetting.

    Numbers are above 0, unless the default is 0 and so means something; a list has something in it, likewise.
    """
    try:
        if not isinstance(like, tuple):
            return _checked(type(like)(text), like)
        kind = type(like[0]) if like else str
        found = tuple(_checked(kind(part.strip()), like[0] if like else "") for part in text.split(",") if part.strip())
        if like and not found:
            raise ValueError("it needs something to measure")
        return found
    except ValueError as error:
        raise BadSetting(f"{figure.name}: {name}={text}: {error}") from None


def _checked(value: Any, like: Any) -> Any:
    """Raises ValueError for a number that cannot be meant."""
    if isinstance(value, int | float):
        if not math.isfinite(value):
            raise ValueError("not a finite number")
        if value < 0 or (value == 0 and like):
            raise ValueError("it has to be above 0" if like else "it cannot be below 0")
    return value
