"""Loads and stores between the pool and an engine's blocks, on streams of their own, in the order that keeps bytes.

Holds:      one stream a direction, and what each copy that is not done holds on to.
Promises:   a load begins when the engine's earlier kernels are through with the blocks, and its later ones begin when
            the load is done; what it reads stays pinned until then. A store reads what the kernels before it wrote; no
            kernel of the next step writes those blocks before it has; it is sealed only when its bytes have arrived. A
            store that is late is never sealed, and its memory is nobody else's while the device may write it.
Leaves:     which chunks and blocks to the engine's door; keys, pins and reservations to the pool.

No CUDA callback is used: whoever calls `poll`, and a thread of our own, look at events. Not inside the capture of a
CUDA graph. Not run on a GPU.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeAlias

from maru.engine.device_copy.bounce import BounceRing
from maru.engine.device_copy.driver import Copy, Device, DeviceError, DeviceLate, DeviceLost
from maru.engine.device_copy.registration import Registration, stay_near

DEADLINE_S = 30.0
POLL_S = 0.002
_CLOSE_STEP_S = 0.001

Row: TypeAlias = tuple[int, int, int]
"""(offset in the pool's data as PinnedPrefix.extents() and Draft.offset count, address on the device, bytes)."""

_log = logging.getLogger("maru.gpu")

_KEPT: list[object] = []
"""What copies hold that no device will ever finish: pins and reservations, until the process ends."""


@dataclass
class CopyCounters:
    """What a copier did. A load or store is one call, whatever its number of rows."""

    loads: int = 0
    bytes_loaded: int = 0
    bytes_loaded_remote: int = 0
    """Of these: on another NUMA node than the device."""
    loads_late: int = 0
    stores: int = 0
    bytes_stored: int = 0
    bytes_stored_remote: int = 0
    stores_given_up: int = 0
    bytes_bounced: int = 0
    copies_failed: int = 0
    callbacks_failed: int = 0
    kept: int = 0
    """Loads and stores whose pins and memory stay until the process ends."""


@dataclass
class _Pending:
    """A copy whose event is not done."""

    event: int
    deadline: float
    size_bytes: int
    remote_bytes: int
    keep: object = None
    done: Callable[[bool], object] | None = None
    is_late: bool = True
    """Past its deadline, or not all of it was enqueued: so until it was."""


class DeviceCopier:
    """Copies of one worker process. Thread-safe; meant to be driven by the thread that launches kernels."""

    def __init__(
        self,
        device: Device,
        registration: Registration,
        deadline_s: float = DEADLINE_S,
        poll_s: float | None = POLL_S,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        """`poll_s`: how often a thread of our own looks at copies that are not done; None for no such thread.

        Raises DeviceError.
        """
        self._device = device
        self._registration = registration
        self._deadline_s = deadline_s
        self._clock = clock
        self._pause = pause
        self._lock = threading.RLock()
        self._loads: deque[_Pending] = deque()
        self._stores: deque[_Pending] = deque()
        self._spare_events: list[int] = []
        self._told: set[str] = set()
        self._is_closed = False
        self.counters = CopyCounters()
        self._ring = BounceRing(device, clock, pause)
        with device.bound():
            self._load_stream = device.create_stream()
            self._store_stream = device.create_stream()
            self._order = device.create_event()
        self._poll_s = poll_s
        self._awake = threading.Event()
        self._poller: threading.Thread | None = None

    @property
    def pending(self) -> int:
        """Loads and stores whose events are not done."""
        return len(self._loads) + len(self._stores)

    def load(self, rows: Iterable[Row], keep: object, compute_stream: int) -> None:
        """Enqueue copies pool → device; what is given to `compute_stream` from now on waits for them.

        They begin when all that was given to it before is done. `keep`, for example the PinnedPrefix and its views, is
        held until they are done. Raises DeviceError (some blocks may have been written: let the engine compute them;
        `compute_stream` waits for what was enqueued), DeviceLost, ValueError for rows outside the pool.
        """
        rows = list(rows)
        direct, detour = self._sort(rows, is_load=True)
        remote = self._registration.remote.bytes_of(rows)
        with self._lock, self._device.bound():
            self._need_open()
            self._device.record(self._order, compute_stream)
            self._device.wait(self._load_stream, self._order)
            copy = self._expect(direct, detour, remote, keep=keep)
            try:
                self._device.copy_to_device(direct, self._load_stream)
                self._ring.load(detour, self._load_stream, copy.deadline)
                copy.is_late = False
            except DeviceError:
                self.counters.copies_failed += 1
                raise
            finally:
                self._follow(copy, self._load_stream, self._loads)
                self._device.wait(compute_stream, copy.event)
            self.counters.loads += 1
            self.counters.bytes_loaded += copy.size_bytes
            self.counters.bytes_loaded_remote += remote

    def store(self, rows: Iterable[Row], done: Callable[[bool], object], compute_stream: int) -> None:
        """Enqueue copies device → pool, after all that was given to `compute_stream` before.

        Reserve the memory with device=True. `done(True)` is called once the bytes have arrived: seal there. When they
        came after the deadline, or not all of them did, `done(False)` is called instead, once the device is through
        with the memory: discard there. It is not called at all when the device never gets through; then the
        reservation stays this process's, and rests after its end. It is called from `poll`, in this thread or the
        poller's, in the order of the stores.

        Raises DeviceError (`done(False)` follows), DeviceLost, ValueError for rows outside the pool.
        """
        rows = list(rows)
        direct, detour = self._sort(rows, is_load=False)
        remote = self._registration.remote.bytes_of(rows)
        with self._lock, self._device.bound():
            self._need_open()
            self._device.record(self._order, compute_stream)
            self._device.wait(self._store_stream, self._order)
            copy = self._expect(direct, detour, remote, done=done)
            try:
                self._device.copy_to_host(direct, self._store_stream)
                self._ring.store(detour, self._store_stream, copy.deadline)
                copy.is_late = False
            except DeviceError:
                self.counters.copies_failed += 1
                raise
            finally:
                self._follow(copy, self._store_stream, self._stores)
            self.counters.stores += 1

    def before_next_step(self, compute_stream: int) -> None:
        """What is given to `compute_stream` from now on waits for all stores so far: it may overwrite their blocks.

        Call it once before the first kernel of each step. Raises DeviceError, DeviceLost: then none of them is sealed.
        """
        with self._lock:
            if not self._stores:
                return
            try:
                with self._device.bound():
                    self._device.wait(compute_stream, self._stores[-1].event)
            except DeviceError:
                # The next step may overwrite what these still read: whatever arrives is not what was computed.
                self.counters.stores_given_up += sum(not copy.is_late for copy in self._stores)
                for copy in self._stores:
                    copy.is_late = True
                raise

    def poll(self) -> int:
        """Let go of what is done, give up what is late. Returns how many are not done. Raises nothing."""
        finished: list[_Pending] = []
        try:
            with self._lock:
                if self.pending:
                    with self._device.bound():
                        finished += self._take_done(self._loads)
                        finished += self._take_done(self._stores)
        except DeviceLost as error:
            self._keep_all(error)
        except DeviceError as error:
            self._tell_once(error)
        self._note_late()
        for copy in finished:
            self._finish(copy)
        return self.pending

    def close(self, deadline_s: float) -> bool:
        """Wait for all copies, then give streams and events back. False when some are not done: what they hold stays
        until the process ends, said once. The registration must stay open as well then. A second time does nothing.
        """
        if self._is_closed:
            return not self.counters.kept
        self._is_closed = True
        self._awake.set()
        if self._poller is not None:
            self._poller.join(deadline_s)
        deadline = self._clock() + deadline_s
        while self.poll() and self._clock() < deadline:
            self._pause(_CLOSE_STEP_S)
        if self.pending:
            self._keep_all(DeviceError("copies were not done when the copier was closed"))
        if self.counters.kept or self._device.is_lost:
            return False
        with self._lock, self._device.bound():
            self._ring.close()
            for event in (*self._spare_events, self._order):
                self._device.destroy_event(event)
            self._spare_events.clear()
            for stream in (self._load_stream, self._store_stream):
                self._device.destroy_stream(stream)
        return True

    # Enqueuing

    def _need_open(self) -> None:
        if self._is_closed:
            raise DeviceError("the copier was closed")

    def _sort(self, rows: Iterable[Row], is_load: bool) -> tuple[list[Copy], list[Copy]]:
        """Copies of registered memory, none of which crosses a piece's edge, and those that take the detour."""
        base = self._registration.address
        direct: list[Copy] = []
        detour: list[Copy] = []
        covers = self._registration.covers
        for offset, address, size in rows:
            if covers(offset, size):  # As good as always: a chunk lies in one piece.
                direct.append((address, base + offset, size) if is_load else (base + offset, address, size))
                continue
            for part in self._registration.cut(offset, size):
                host, there = base + part.offset, address + part.offset - offset
                copies = direct if part.is_registered else detour
                copies.append((there, host, part.size_bytes) if is_load else (host, there, part.size_bytes))
        return direct, detour

    def _expect(
        self,
        direct: list[Copy],
        detour: list[Copy],
        remote_bytes: int,
        keep: object = None,
        done: Callable[[bool], object] | None = None,
    ) -> _Pending:
        bounced = sum(copy[2] for copy in detour)
        self.counters.bytes_bounced += bounced
        size = sum(copy[2] for copy in direct) + bounced
        event = self._spare_events.pop() if self._spare_events else self._device.create_event()
        return _Pending(event, self._clock() + self._deadline_s, size, remote_bytes, keep, done)

    def _follow(self, copy: _Pending, stream: int, waiting: deque[_Pending]) -> None:
        """From here on `poll` looks after it. A copy whose end nobody can learn keeps what it holds."""
        try:
            self._device.record(copy.event, stream)
        except DeviceError:
            self._keep(copy)
            raise
        waiting.append(copy)
        if self._poll_s is not None:
            if self._poller is None:
                self._poller = threading.Thread(target=self._poll_often, name="maru-copies", daemon=True)
                self._poller.start()
            self._awake.set()

    # Finishing

    def _take_done(self, waiting: deque[_Pending]) -> list[_Pending]:
        """A stream works in order: the first that is not done ends the search."""
        done = []
        while waiting and self._device.is_done(waiting[0].event):
            done.append(waiting.popleft())
            self._spare_events.append(done[-1].event)
        return done

    def _note_late(self) -> None:
        now = self._clock()
        with self._lock:
            late = [copy for copy in (*self._loads, *self._stores) if now > copy.deadline and not copy.is_late]
            for copy in late:
                copy.is_late = True
                self.counters.loads_late += copy.done is None
                self.counters.stores_given_up += copy.done is not None
        if late:
            self._tell_once(DeviceLate(f"a copy was not done after {self._deadline_s:g} s"))

    def _finish(self, copy: _Pending) -> None:
        """Not under the lock: what is called may store or load in turn."""
        copy.keep = None
        if copy.done is None:
            return
        if not copy.is_late:
            self.counters.bytes_stored += copy.size_bytes
            self.counters.bytes_stored_remote += copy.remote_bytes
        try:
            copy.done(not copy.is_late)
        except Exception as error:  # A door's mistake must not end the poller: everybody's pins hang on it.
            self.counters.callbacks_failed += 1
            self._tell_once(error)

    def _keep_all(self, error: DeviceError) -> None:
        with self._lock:
            for waiting in (self._loads, self._stores):
                while waiting:
                    self._keep(waiting.popleft())
        self._tell_once(error)

    def _keep(self, copy: _Pending) -> None:
        self.counters.kept += 1
        _KEPT.append(copy)

    def _tell_once(self, error: Exception) -> None:
        kind = f"{type(error).__name__} {getattr(error, 'result', '')}"
        if kind not in self._told:
            self._told.add(kind)
            _log.error("%s (told once)", error)

    def _poll_often(self) -> None:
        stay_near(self._device.numa_node)
        while not self._is_closed:
            self._awake.wait()
            self._awake.clear()
            while not self._is_closed and self.poll():
                self._pause(self._poll_s or POLL_S)
