"""Load or compute: which of the two gives an engine its prefix sooner.

    load(n)    = seconds to the first byte + n x chunk bytes / (bytes a second x chunks at once)
    compute(n) = n x chunk tokens / tokens a second of the engine's prefill

Both are straight lines, so the best is all or nothing. Without a measured load, or without a prefill rate, loading is
tried: that is what a place below is for, and it measures. Chosen against too often, a place would never be measured
again; so one chunk is loaded now and then without anybody waiting for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from maru.tiering.breaker import Speed

PROBE_S = 30.0
"""At most so often one chunk is loaded only to measure."""


@dataclass(frozen=True)
class Prefill:
    """What computing costs: tokens of a chunk, and tokens that the engine prefills in a second."""

    chunk_tokens: int
    tokens_per_s: float

    def seconds_for(self, chunks: int) -> float:
        return chunks * self.chunk_tokens / self.tokens_per_s


class Decision:
    """One a ladder."""

    def __init__(self, prefill: Prefill | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.prefill = prefill
        self._clock = clock
        self._probed_s = float("-inf")
        self.loads = self.computes = 0

    def should_load(self, chunks: int, chunk_bytes: int, speed: Speed, at_once: int) -> bool:
        """`chunk_bytes`: 0 when nobody knows yet."""
        load_s = speed.seconds_for(chunks * chunk_bytes, at_once) if chunk_bytes else None
        is_load = self.prefill is None or load_s is None or load_s <= self.prefill.seconds_for(chunks)
        if is_load:
            self.loads += 1
        else:
            self.computes += 1
        return is_load

    def may_probe(self) -> bool:
        """After a decision to compute: load one chunk all the same, to measure?"""
        now = self._clock()
        if now - self._probed_s < PROBE_S:
            return False
        self._probed_s = now
        return True
