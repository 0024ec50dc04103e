"""What a figure is: a question, what can be set about it, and how its samples are taken."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from maru.bench.document import Measure

if TYPE_CHECKING:
    from maru.bench.session import Field, Session
    from maru.bench.systems.contract import Deployment, System


@dataclass(frozen=True)
class Knob:
    """Something that can be set: `--set NAME=VALUE`. The type of `full` is the type of every value."""

    name: str
    full: Any
    quick: Any
    meaning: str


ROOM_FACTOR = 1.5
"""How much more room a cache has than what is to be found in it; what was measured before may go."""
GIB = 1 << 30


def whole_gib(size_bytes: float) -> int:
    """So many bytes, in whole GiB."""
    return math.ceil(size_bytes / GIB) * GIB


Act = Callable[["Session", str, "Deployment", int, int], None]
"""What is done in a step: of a run, for a system's name, with its deployment, at a context length, in a round."""


@dataclass(frozen=True)
class Step:
    """One piece of the work, complete in itself: after an interruption it is done whole or again."""

    key: str
    """Unique in the run, and the same in every run of these settings."""
    system: str
    """Whose it is: when it fails, this system leaves the run. "" for nobody's."""
    act: Callable[[], None]


def steps_by_context(run: Session, field: Field, contexts: Sequence[int], act: Act) -> list[Step]:
    """A step for each round, length and system; every round begins with another system."""
    return [
        Step(f"round {number}, {context} tokens, {name}", name, partial(act, run, name, field[name], context, number))
        for number in range(run.rounds)
        for context in contexts
        for name in run.in_turn(list(field), number)
    ]


class Figure(ABC):
    """One figure. It has no state: everything of a run is the session's."""

    name: str
    title: str
    question: str
    """In one sentence, for whoever reads the report."""
    engines: tuple[str, ...]
    """Which it can be measured on, the one by default first; empty when no engine takes part."""
    knobs: tuple[Knob, ...] = ()

    def systems(self, _run: Session, chosen: Sequence[System]) -> Sequence[System]:
        """Who takes part: those that were chosen, unless the figure compares something else."""
        return chosen

    @abstractmethod
    def measures(self, _run: Session) -> list[Measure]:
        """Its quantities, in the order of its panels."""

    @abstractmethod
    def perform(self, run: Session) -> None:
        """Take every sample."""
