"""Joules, where this machine counts them: GPUs by NVML, CPUs and their memory by RAPL, both through zeus.

Holds:      the counters that there are, a thread that follows their power, and what they said during a window.
Promises:   a machine without counters, and one whose counters may not be read, says so and why. No joule is estimated.
Leaves:     what was done in a window to the figure.

Not run on hardware that counts: tested with counters that a test moves.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

SAMPLE_S = 0.2

Counter = Callable[[], float]
"""Joules since some beginning; they only grow."""


@dataclass(frozen=True)
class Counters:
    """What counts here, by its name ("GPU 0", "CPU 0", "DRAM 0"), and why there is not more."""

    by_name: Mapping[str, Counter]
    missing: Sequence[str] = ()
    gpu_load: Callable[[], float] | None = None
    """How much of all GPUs' time is used right now, in GPUs: 0.5 of one, 1.7 of two."""

    @property
    def are_there(self) -> bool:
        return bool(self.by_name)


def counters_here() -> Counters:
    """Ask zeus for GPUs and CPUs."""
    found: dict[str, Counter] = {}
    missing: list[str] = []
    try:
        from zeus.device import get_cpus, get_gpus
    except ImportError:
        return Counters({}, ["zeus is not installed: pip install 'maru-kvcache[energy]'"])
    try:
        gpus = get_gpus()
        for index in range(len(gpus)):
            found[f"GPU {index}"] = partial(_gpu_joules, gpus, index)
    except Exception as error:  # zeus tells what is missing by errors of each vendor's library.
        missing.append(f"GPUs: {error}")
    try:
        cpus = get_cpus()
        for index in range(len(cpus)):
            found[f"CPU {index}"] = partial(_cpu_joules, cpus, index)
            if cpus.supports_get_dram_energy_consumption(index):
                found[f"DRAM {index}"] = partial(_memory_joules, cpus, index)
    except Exception as error:
        missing.append(f"CPUs: {error}")
    return Counters(found, missing, _gpu_load() if any(name.startswith("GPU") for name in found) else None)


# zeus counts in millijoules.
def _gpu_joules(gpus: Any, index: int) -> float:
    return float(gpus.get_total_energy_consumption(index)) / 1e3


def _cpu_joules(cpus: Any, index: int) -> float:
    return float(cpus.get_total_energy_consumption(index).cpu_mj) / 1e3


def _memory_joules(cpus: Any, index: int) -> float:
    return float(cpus.get_total_energy_consumption(index).dram_mj) / 1e3


def _gpu_load() -> Callable[[], float] | None:
    """NVML's utilisation, summed over all GPUs."""
    try:
        import pynvml

        pynvml.nvmlInit()
        handles = [pynvml.nvmlDeviceGetHandleByIndex(n) for n in range(pynvml.nvmlDeviceGetCount())]
    except Exception:  # Energy counts without it.
        return None
    return lambda: sum(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100 for handle in handles)


@dataclass
class Window:
    """What was counted between two moments."""

    seconds: float = 0.0
    joules: float = 0.0
    power: list[tuple[float, float]] = field(default_factory=list)
    """(seconds since the window began, watts of everything that counts)."""
    gpu_seconds: float = 0.0
    """Seconds of GPUs' time that were used; 0 where nobody tells."""


class Meter:
    """Windows over counters. One at a time."""

    def __init__(
        self, counters: Counters, clock: Callable[[], float] = time.monotonic, sample_s: float = SAMPLE_S
    ) -> None:
        self._counters, self._clock, self._sample_s = counters, clock, sample_s
        self.idle_watts = 0.0

    def _joules(self) -> float:
        return sum(counter() for counter in self._counters.by_name.values())

    @contextmanager
    def window(self) -> Iterator[Window]:
        """Counts until the block ends; power is followed by a thread of its own."""
        found, over = Window(), threading.Event()
        begun, joules = self._clock(), self._joules()
        follower = threading.Thread(target=self._follow, args=(found, begun, joules, over), daemon=True)
        if self._counters.are_there:
            follower.start()
        try:
            yield found
        finally:
            over.set()
            if self._counters.are_there:
                follower.join()
            found.seconds, found.joules = self._clock() - begun, self._joules() - joules

    def _follow(self, found: Window, begun: float, joules: float, over: threading.Event) -> None:
        before = begun
        while not over.wait(self._sample_s):
            now, seen = self._clock(), self._joules()
            if now > before:
                found.power.append((now - begun, (seen - joules) / (now - before)))
            if self._counters.gpu_load is not None:
                found.gpu_seconds += self._counters.gpu_load() * (now - before)
            before, joules = now, seen

    def active_joules(self, window: Window) -> float:
        """Without what the machine takes when it does nothing."""
        return max(0.0, window.joules - self.idle_watts * window.seconds)
