"""Load or compute: which of the two gives an engine its prefix sooner.

    load(n)    = seconds to the first byte + n x chunk bytes / (bytes a second x chunks at once)
    compute(n) = n x chunk tokens / tokens a second of the engine's prefill, and more the further back they lie

The one is a straight line and the other bends upwards, so the best is all or nothing: all that comes within the
deadline, for what does not come is computed. Without a measured load, or without a prefill rate, loading is
tried: that is what a place below is for, and it measures. Chosen against too often, a place would never be measured
again; so one chunk is loaded now and then without anybody waiting for it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

from maru.tiering.breaker import Speed
from maru.tiering.prefill import Prefill, PrefillClock

PROBE_S = 30.0
"""At most so often one chunk is loaded only to measure."""


class Decision:
    """One a ladder."""

    def __init__(self, prefill: Prefill | PrefillClock | None, clock: Callable[[], float] = time.monotonic) -> None:
        """`prefill`: told, or measured as time goes by; None: whatever is below is loaded."""
        self.prefill = prefill
        self._clock = clock
        self._probed_s = float("-inf")
        self.loads = self.computes = 0

    def should_load(
        self,
        chunks: int,
        chunk_bytes: int,
        speed: Speed,
        at_once: int,
        before: int = 0,
        deadline_s: float = math.inf,
    ) -> bool:
        """`chunk_bytes`: 0 when nobody knows yet. `before`: chunks of the prefix before these."""
        prefill = self.known()
        load_s = speed.seconds_for(chunks * chunk_bytes, at_once) if chunk_bytes else None
        is_load = prefill is None or load_s is None
        if prefill is not None and load_s is not None:
            come = chunks if load_s <= deadline_s else _coming(chunk_bytes, speed, at_once, deadline_s)
            load_s = min(load_s, deadline_s)
            is_load = come > 0 and load_s <= prefill.seconds_for(come, before)
        if is_load:
            self.loads += 1
        else:
            self.computes += 1
        return is_load

    def known(self) -> Prefill | None:
        """What computing costs, as far as anybody knows by now."""
        return self.prefill.measured if isinstance(self.prefill, PrefillClock) else self.prefill

    def stats(self) -> dict[str, Any]:
        """Counts of prefixes, and what is known of prefill (as in Prefill) with its origin: "told", "measured", or
        "none" yet."""
        prefill = self.known()
        origin = "measured" if isinstance(self.prefill, PrefillClock) else "told"
        return {
            "loads": self.loads,
            "computes": self.computes,
            "prefill_tokens_per_s": prefill.tokens_per_s if prefill else None,
            "prefill_double_at": prefill.double_at if prefill and math.isfinite(prefill.double_at) else None,
            "prefill_is": origin if prefill else "none",
        }

    def may_probe(self) -> bool:
        """After a decision to compute: load one chunk all the same, to measure?"""
        now = self._clock()
        if now - self._probed_s < PROBE_S:
            return False
        self._probed_s = now
        return True


def _coming(chunk_bytes: int, speed: Speed, at_once: int, deadline_s: float) -> int:
    """How many chunks come in so many seconds."""
    if speed.first_s is None or speed.bytes_per_s is None:
        return 0
    return int(max(0.0, deadline_s - speed.first_s) * speed.bytes_per_s * at_once / chunk_bytes)
