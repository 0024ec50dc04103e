"""A thread that copies, one order after the other, while the engine computes.

Promises:   orders are carried out in the order they were given; `wait` says whether one is done, within its deadline.
Leaves:     keeping both ends of a copy alive until it is done, to who ordered it.
"""

from __future__ import annotations

import contextlib
import os
import queue
import threading

from maru.engine.vllm.blocks import Addresses
from maru.native import core

_Order = tuple[Addresses, Addresses, int]


class CopyLane:
    """Begins its thread with the first order. One giver of orders at a time."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._orders: queue.SimpleQueue[_Order | None] = queue.SimpleQueue()
        self._ordered = 0
        self._done = 0
        self._progress = threading.Condition()
        self._thread: threading.Thread | None = None

    def order(self, targets: Addresses, sources: Addresses, piece_bytes: int) -> int:
        """Copy these pieces, some time soon. Returns the number to wait for."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        self._ordered += 1
        self._orders.put((targets, sources, piece_bytes))
        return self._ordered

    def wait(self, number: int, timeout_s: float) -> bool:
        """Is order `number`, and all before it, done? Waits for it."""
        if self._done >= number:
            return True
        with self._progress:
            return self._progress.wait_for(lambda: self._done >= number, timeout_s)

    def close(self, timeout_s: float) -> bool:
        """Finish what was ordered. False when that took too long: then the memory of the orders must stay."""
        if self._thread is None:
            return True
        self._orders.put(None)
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        _leave_the_engines_core()
        while (order := self._orders.get()) is not None:
            core._copy_pieces(*order)
            with self._progress:
                self._done += 1
                self._progress.notify_all()


def _leave_the_engines_core() -> None:
    """vLLM ties a worker's main thread to one core, and threads inherit that: ask for what its parent process has."""
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
