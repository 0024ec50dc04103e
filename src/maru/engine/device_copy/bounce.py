"""A detour through pinned memory for what could not be registered: a ring of a few slots.

Holds:      the slots, and the event that says when the device is through with each.
Promises:   the device touches registered or pinned memory only; a slot is used again when its copy is done. Every wait
            has a deadline, and reaching it is DeviceLate.
Leaves:     the order among streams to copies.

It is the slow way and it blocks its caller: a store waits until the device has computed and copied, slot after slot.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from maru.engine.device_copy.driver import Copy, Device, DeviceLate
from maru.native import core

SLOT_BYTES = 8 << 20
SLOTS = 4
_STEP_S = 0.0002


class BounceRing:
    """Not thread-safe: its owner's lock covers it. Every call needs the device's context."""

    def __init__(
        self,
        device: Device,
        clock: Callable[[], float],
        pause: Callable[[float], object],
        slot_bytes: int = SLOT_BYTES,
        slots: int = SLOTS,
    ) -> None:
        """Allocates nothing before it is needed."""
        self._device = device
        self._clock = clock
        self._pause = pause
        self._slot_bytes = slot_bytes
        self._slots = slots
        self._memory = 0
        self._events: list[int] = []
        self._next = 0

    def load(self, copies: Sequence[Copy], stream: int, deadline: float) -> None:
        """Enqueue copies host → device, (address to, address from, bytes). Raises DeviceLate, DeviceError."""
        for group in self._groups(copies):
            slot, event = self._take(deadline)
            staged, at = [], slot
            for to, source, size in group:
                core.stream_copy(_memory_at(at, size), _memory_at(source, size))
                staged.append((to, at, size))
                at += size
            self._device.copy_to_device(staged, stream)
            self._device.record(event, stream)

    def store(self, copies: Sequence[Copy], stream: int, deadline: float) -> None:
        """Copy device → host, and wait for it. Raises DeviceLate, DeviceError."""
        for group in self._groups(copies):
            slot, event = self._take(deadline)
            staged, at = [], slot
            for _, source, size in group:
                staged.append((at, source, size))
                at += size
            self._device.copy_to_host(staged, stream)
            self._device.record(event, stream)
            self._wait(event, deadline)
            for (to, _, size), (at, _, _) in zip(group, staged, strict=True):
                core.stream_copy(_memory_at(to, size), _memory_at(at, size))

    def close(self) -> None:
        """Only when all copies are done."""
        if self._memory:
            for event in self._events:
                self._device.destroy_event(event)
            self._device.free_pinned(self._memory)
        self._memory, self._events = 0, []

    def _groups(self, copies: Sequence[Copy]) -> Iterator[list[Copy]]:
        """As many copies as fit a slot; a larger one is cut."""
        group: list[Copy] = []
        room = self._slot_bytes
        for to, source, size in copies:
            while size:
                taken = min(size, room)
                group.append((to, source, taken))
                to, source, size, room = to + taken, source + taken, size - taken, room - taken
                if not room:
                    yield group
                    group, room = [], self._slot_bytes
        if group:
            yield group

    def _take(self, deadline: float) -> tuple[int, int]:
        """Address and event of the slot used longest ago, once the device is through with it."""
        if not self._memory:
            self._memory = self._device.allocate_pinned(self._slots * self._slot_bytes)
            self._events = [self._device.create_event() for _ in range(self._slots)]
        number, self._next = self._next, (self._next + 1) % self._slots
        self._wait(self._events[number], deadline)
        return self._memory + number * self._slot_bytes, self._events[number]

    def _wait(self, event: int, deadline: float) -> None:
        while not self._device.is_done(event):
            if self._clock() > deadline:
                raise DeviceLate("a copy through pinned memory was not done at its deadline", result="late")
            self._pause(_STEP_S)


def _memory_at(address: int, size_bytes: int) -> Any:
    return (ctypes.c_ubyte * size_bytes).from_address(address)
