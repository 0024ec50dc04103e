"""Pins by key: somebody asked that a chunk stay, and has no address of it.

Holds:      one view a pin, in the order they were taken.
Promises:   none is held longer than `age_s`, whether or not anybody calls again; dropping one that is not there is
            False, never an error.
Leaves:     taking a view of a chunk, and telling the pool, to whoever made this.

LMCache pins what a lookup found and unpins it after loading it; on some of its paths it never does. Views that somebody
holds do not belong here: they keep their pins as long as they live.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from itertools import count


class KeyPins:
    """Key -> views, oldest first. Thread-safe; a fork's child begins with none."""

    def __init__(
        self,
        age_s: float,
        tell: Callable[[int, float], None],
        tell_expired: Callable[[int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`tell(count, age of the oldest in seconds)` after every change, `tell_expired(how many)` when time was up."""
        self.age_s = age_s
        self._tell = tell
        self._tell_expired = tell_expired
        self._clock = clock
        self._numbers = count()
        self._closing = threading.Event()
        self._begin()

    def _begin(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self._pins: OrderedDict[int, tuple[bytes, float, memoryview]] = OrderedDict()
        self._of_key: dict[bytes, deque[int]] = {}
        self._watch: threading.Thread | None = None

    def _here(self) -> None:
        """What a fork's child inherits are pins of its parent, and a thread that is not there."""
        if self._pid != os.getpid():
            self._begin()

    def __len__(self) -> int:
        self._here()
        return len(self._pins)

    def add(self, keys: list[bytes], views: list[memoryview]) -> None:
        """One more pin on each key."""
        self._here()
        if not keys:
            return
        with self._lock:
            now = self._clock()
            for key, view in zip(keys, views, strict=True):
                number = next(self._numbers)
                self._pins[number] = (key, now, view)
                self._of_key.setdefault(key, deque()).append(number)
            if self._watch is None and not self._closing.is_set():
                self._watch = threading.Thread(
                    target=_expire_in_time, args=(weakref.ref(self), self._closing), name="maru-key-pins", daemon=True
                )
                self._watch.start()
            self._report()

    def drop(self, key: bytes) -> bool:
        """One pin less on `key`, the oldest. False when it has none."""
        self._here()
        with self._lock:
            numbers = self._of_key.get(key)
            if not numbers:
                return False
            self._forget(numbers[0])
            self._report()
            return True

    def expire(self) -> int:
        """Drop what is older than `age_s`; returns how many."""
        self._here()
        with self._lock:
            too_old = self._clock() - self.age_s
            numbers = []
            for number, (_, taken, _view) in self._pins.items():
                if taken > too_old:
                    break
                numbers.append(number)
            for number in numbers:
                self._forget(number)
            if numbers:
                self._tell_expired(len(numbers))
                self._report()
        return len(numbers)

    def close(self) -> None:
        """Drop all of them, and take no more notice of time."""
        self._here()
        self._closing.set()
        with self._lock:
            self._pins.clear()
            self._of_key.clear()
            self._report()

    def seconds_to_next(self) -> float:
        """How long until the oldest pin is too old; `age_s` when there is none."""
        self._here()
        with self._lock:
            return max(0.0, self.age_s - self._oldest_age_s())

    def _oldest_age_s(self) -> float:
        oldest = next(iter(self._pins.values()), None)
        return self._clock() - oldest[1] if oldest else 0.0

    def _forget(self, number: int) -> None:
        key, _, _ = self._pins.pop(number)
        numbers = self._of_key[key]
        numbers.remove(number)
        if not numbers:
            del self._of_key[key]

    def _report(self) -> None:
        self._tell(len(self._pins), self._oldest_age_s())


def _expire_in_time(pins_ref: weakref.ref[KeyPins], closing: threading.Event) -> None:
    """Wakes when the oldest pin is due. A pin taken while this waits is due later than that, so nobody need wake it."""
    while (pins := pins_ref()) is not None:
        wait_s = pins.seconds_to_next()
        del pins  # While this waits, only its owner keeps it.
        if closing.wait(max(wait_s, 0.001)):
            return
        if (pins := pins_ref()) is not None:
            pins.expire()
            del pins
