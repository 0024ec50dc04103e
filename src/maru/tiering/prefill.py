"""What computing a prefix costs: told, or measured from the steps that an engine takes.

    clock = PrefillClock(chunk_tokens=256)
    number = clock.began(tokens=2048, position=4096, others=3)   # a step was handed to the model
    clock.ended(number)                                          # it is over
    clock.measured                                               # None, or what computing costs

Holds:      what the last steps took that say something about prefill, and a line through them: seconds a token against
            the token's position, for attention looks back at everything before it.
Promises:   nothing here waits or locks; a step that was not mostly prefill, and the first one, which warms the engine
            up, say nothing; one step that was held up changes nothing.
Leaves:     what the numbers are good for to `decision`, and which steps there are to the doors.
"""

from __future__ import annotations

import itertools
import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

TOKENS_MIN = 256
"""A step with fewer tokens of prompts says more about launching a step than about prefill."""
OTHERS_SHARE = 1 / 16
"""Of a step's tokens of prompts: with more tokens of answers beside them it is not counted."""
STEPS_KEPT = 15
STEPS_MIN = 3
"""Below that, the median of them would believe a step that was held up."""
APART_TOKENS = 1024
"""Steps whose positions are nearer to each other say nothing about what a position costs."""
UNDER_WAY_MAX = 64
"""No engine hands out so many steps ahead: somebody forgot to say that they ended."""


@dataclass(frozen=True)
class Prefill:
    """What computing costs: tokens of a chunk, tokens that the engine prefills in a second at the start of a prompt,
    and the position at which a token costs twice as much as there."""

    chunk_tokens: int
    tokens_per_s: float
    double_at: float = math.inf

    def seconds_for(self, chunks: int, before: int = 0) -> float:
        """Of so many chunks, behind `before` others."""
        first, end = before * self.chunk_tokens, (before + chunks) * self.chunk_tokens
        return (end - first + (end * end - first * first) / (2 * self.double_at)) / self.tokens_per_s


class PrefillClock:
    """Of one engine. Told by one thread, read by any."""

    def __init__(self, chunk_tokens: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._chunk_tokens, self._clock = chunk_tokens, clock
        self._number = 0
        self._under_way: dict[int, tuple[int, float, float]] = {}
        """By number: a step's tokens of prompts, their mean position, and when it began."""
        self._ended_s = float("-inf")
        self._is_warm = False
        self._steps: deque[tuple[float, float]] = deque(maxlen=STEPS_KEPT)
        """Mean position, and seconds a token."""
        self.measured: Prefill | None = None
        """None until enough steps were seen."""

    def began(self, tokens: int, position: float = 0.0, others: int = 0, is_pure: bool = True) -> int:
        """A step with so many tokens of prompts, at `position` in them on average, and `others` of answers.

        `is_pure`: it does nothing but compute. Returns its number for ended(); 0 for a step that says nothing.
        """
        if not is_pure or tokens < TOKENS_MIN or others > tokens * OTHERS_SHARE:
            return 0
        self._number += 1
        self._under_way[self._number] = tokens, position, self._clock()
        if len(self._under_way) > UNDER_WAY_MAX:
            del self._under_way[min(self._under_way)]
        return self._number

    def ended(self, number: int = 0) -> None:
        """A step is over, this one, and with it all before it; 0: one that began() did not number.

        Steps may be handed out ahead: the model takes them one by one, so a step begins when the one before it ends.
        """
        now_s = self._clock()
        step = self._under_way.get(number)
        self._under_way = {one: begun for one, begun in self._under_way.items() if one > number}
        if step is not None:
            tokens, position, began_s = step
            took_s = now_s - max(began_s, self._ended_s)
            if took_s > 0 and self._is_warm:
                self._steps.append((position, took_s / tokens))
                self._measure()
            self._is_warm = True
        self._ended_s = now_s

    def _measure(self) -> None:
        """A line through the steps that is not bent by some that were held up: Theil's, of medians."""
        if len(self._steps) < STEPS_MIN:
            return
        slopes = [
            (high_s - low_s) / (high - low)
            for (low, low_s), (high, high_s) in itertools.combinations(sorted(self._steps), 2)
            if high - low >= APART_TOKENS
        ]
        slope = max(0.0, statistics.median(slopes)) if len(slopes) >= STEPS_MIN else 0.0
        token_s = statistics.median(seconds - slope * position for position, seconds in self._steps)
        if token_s <= 0:  # No engine is free at the start: the line leads astray.
            slope, token_s = 0.0, statistics.median(seconds for _, seconds in self._steps)
        double_at = token_s / slope if slope else math.inf
        self.measured = Prefill(self._chunk_tokens, 1 / token_s, double_at)
