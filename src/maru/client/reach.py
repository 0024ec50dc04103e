"""Which of the pool's bytes are reached in place from here, also after segments were added to the living pool.

Holds:      the mapped memory, and when the daemon was asked for the pool's segments last.
Promises:   bytes that are told of in a segment unknown here make this client ask, at most once in ASK_PAUSE_S, and map
            what is to be mapped. What is not goes over the wire; nobody waits for somebody else's asking.
Leaves:     mapping to `segments`, the wire to `pieces`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from typing import Protocol

from maru import wire
from maru.coherence import Memory

ASK_PAUSE_S = 1.0
"""A device that this host does not have (yet) is looked for so often."""


class Mapped(Memory, Protocol):
    """The pool's memory, mapped here."""

    def reaches(self, offset: int, size: int) -> bool:
        """Do these bytes lie in a segment that is mapped here?"""

    def learn(self, segments: Iterable[wire.Segment]) -> None:
        """Map those that are not mapped yet, as far as they are here."""

    def close(self) -> None: ...


class Reach:
    """One client's way to the pool's bytes in place. Thread-safe."""

    def __init__(self, memory: Mapped | None, ask: Callable[[], Iterable[wire.Segment]]) -> None:
        """`memory`: None where nothing is mapped. `ask`: for the pool's segments; raises as Channel.call."""
        self._memory = memory
        self._ask = ask
        self._asked_s = float("-inf")
        self._asking = threading.Lock()

    def at(self, offset: int, size: int) -> Mapped | None:
        """The memory to reach these bytes by; None: they have to go over the wire. Raises as `ask`."""
        memory = self._memory
        if memory is None or memory.reaches(offset, size):
            return memory
        if self._asking.acquire(blocking=False):
            try:
                if time.monotonic() - self._asked_s >= ASK_PAUSE_S:
                    self._asked_s = time.monotonic()
                    memory.learn(self._ask())
            finally:
                self._asking.release()
        return memory if memory.reaches(offset, size) else None
