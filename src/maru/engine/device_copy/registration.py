"""The pool's writable mapping made reachable for one GPU, in the background.

Holds:      the registering thread, and which bytes are registered so far.
Promises:   nothing of it happens on the path of a request. Only memory that is real is registered, what is used most
            likely first; one process of the host at a time. Each piece is looked up on the device afterwards. Memory
            goes back to the host before its mapping does, or the mapping stays.
Leaves:     the walk in pieces to maru.registered; what is not registered, to bounce; which bytes are remote, to remote.

Sealed chunks too are read through the writable mapping, which no other code of this process touches: drivers do not
take read-only mappings everywhere, and a copy from one that is not registered is slow without a word. Not run on a GPU.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from maru.engine.device_copy.driver import Device, DeviceError, DeviceLost
from maru.engine.device_copy.remote import RemoteRanges
from maru.pool import Pool
from maru.registered import PIECE_BYTES, Part, RegisteredPieces

READY_DEADLINE_S = 600.0
TURN_DEADLINE_S = 120.0
CLOSE_DEADLINE_S = 30.0
_READY_STEP_S = 0.2
_TURN_STEP_S = 0.02
_LOCK_BYTE = 3
"""`device` in docs/pool-format.md. Two processes that pin one mapping at a time make the kernel refuse one of them."""
_OS_PAGE_BYTES = 4096

_log = logging.getLogger("maru.gpu")

_KEPT_MAPPED: list[object] = []
"""Mappings whose memory a driver did not give back. They stay until the process ends."""


@dataclass(frozen=True)
class Progress:
    """Bytes. What is neither registered nor refused has not been tried."""

    registered_bytes: int
    refused_bytes: int
    size_bytes: int


class Registration:
    """The pool's data as one GPU sees it. Thread-safe."""

    def __init__(
        self,
        pool: Pool,
        device: Device,
        pause: Callable[[float], bool] | None = None,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        """Registers nothing before `begin`. `pause` waits so many seconds and says whether to stop."""
        self._pool = pool
        self._device = device
        self._closing = threading.Event()
        self._pause = pause or self._closing.wait
        self._piece_bytes = piece_bytes
        self._mapping: object = pool.pin(b"")  # Nothing is pinned; the mapping stays as long as this lives.
        self.address: int = pool._data_range()[0]
        self.size_bytes: int = pool._data_range()[2]
        figures = pool.stats()
        self._slab_bytes = int(figures["slab_bytes"])
        self.remote = RemoteRanges(figures["segments"], device.numa_node)
        self._pieces = self._plan([])
        self._worker: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def ready(self) -> bool:
        """Has everything been tried?"""
        worker = self._worker
        return worker is not None and not worker.is_alive()

    @property
    def progress(self) -> Progress:
        pieces = self._pieces
        return Progress(pieces.registered_bytes, pieces.refused_bytes, self.size_bytes)

    def begin(self) -> None:
        """Start registering, once."""
        with self._lock:
            if self._worker is None and not self._closing.is_set():
                self._worker = threading.Thread(target=self._register_all, name="maru-register", daemon=True)
                self._worker.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything was tried."""
        if self._worker is not None:
            self._worker.join(timeout_s)
        return self.ready

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Does one registered piece hold all of these bytes of the pool's data?"""
        return size_bytes >= 0 and self._pieces.covers(offset, size_bytes)

    def cut(self, offset: int, size_bytes: int) -> list[Part]:
        """These bytes in parts that no registered piece's edge crosses. ValueError for bytes outside the pool."""
        if offset < 0 or size_bytes < 0 or offset + size_bytes > self.size_bytes:
            raise ValueError(f"{size_bytes} bytes at {offset} are not in a pool of {self.size_bytes}")
        return self._pieces.cut(offset, size_bytes)

    def close(self) -> bool:
        """Unregister, once all copies are done. False when the driver keeps memory: its mapping stays, said once."""
        with self._lock:
            self._closing.set()
            worker = self._worker
        if worker is not None:
            worker.join(CLOSE_DEADLINE_S)
        is_free = (worker is None or not worker.is_alive()) and self._give_back()
        if not is_free and self._mapping is not None:
            _KEPT_MAPPED.append(self._mapping)
            _log.error("the GPU keeps the pool's memory: it stays mapped until this process ends")
        self._mapping = None
        return is_free

    def _give_back(self) -> bool:
        if not self._pieces.registered_bytes:
            return True
        try:
            with self._device.bound():
                return self._pieces.give_back()
        except DeviceError:
            return False

    # In the thread

    def _register_all(self) -> None:
        stay_near(self._device.numa_node)
        if not self._device.registers_host_memory:
            _log.warning("this GPU registers no host memory: every copy takes a detour through pinned memory")
            return
        begun = time.monotonic()
        try:
            self._wait_until_real()
            self._pieces = self._plan(self._real_ranges())
            with self._device.bound():
                self._pieces.walk()
        except DeviceLost as error:
            _log.error("registering ended: %s", error)
            return
        except Exception as error:  # What is registered so far is used, and everything else takes the detour.
            _log.warning("registering ended early: %s", error)
        if self._closing.is_set():
            return
        done = self.progress
        told = _log.info if done.registered_bytes == done.size_bytes else _log.warning
        told(
            "registered %d of %d bytes of the pool with GPU %d in %.1f s",
            done.registered_bytes, done.size_bytes, self._device.ordinal, time.monotonic() - begun,
        )  # fmt: skip

    def _plan(self, ranges: list[tuple[int, int]]) -> RegisteredPieces:
        registrar = _DriverRegistrar(self._device, Path(self._pool.folder) / "lock", self._pause)
        return RegisteredPieces(registrar, self.address, ranges, self._slab_bytes, self._pause, self._piece_bytes)

    def _wait_until_real(self) -> None:
        deadline = time.monotonic() + READY_DEADLINE_S
        while not self._pool.wait_ready(_READY_STEP_S) and time.monotonic() < deadline:
            if self._closing.is_set():
                return

    def _real_ranges(self) -> list[tuple[int, int]]:
        """(offset, bytes) of each segment's slabs that the medium has given.

        Pinning makes memory real: beyond the mark it would take what a limit refused, and be killed for it. Slabs are
        made real in their order, so the mark is one number.
        """
        figures = self._pool.stats()
        real = int(figures["real_bytes"])
        ranges = []
        for segment in figures["segments"]:
            if segment["state"] in ("LOST", "AWAITED"):
                continue
            given = min(int(segment["bytes"]), real)
            real -= given
            ranges.append((int(segment["first_byte"]), given // self._slab_bytes * self._slab_bytes))
        return ranges


class _DriverRegistrar:
    """Registers through the driver, when it is this process's turn."""

    def __init__(self, device: Device, lock_file: Path, pause: Callable[[float], bool]) -> None:
        self._device = device
        self._lock_file = lock_file
        self._pause = pause
        self._patience_s = TURN_DEADLINE_S

    def register(self, address: int, size_bytes: int) -> bool:
        if self._device.is_lost:
            return False
        try:
            with turn(self._lock_file, self._pause, self._patience_s) as is_ours:
                self._patience_s = TURN_DEADLINE_S if is_ours else 0.0  # Whoever sits on it sits on it for long.
                if self._pause(0.0):
                    return False
                self._device.register(address, size_bytes)
        except DeviceError as error:
            _log.info("%s", error.message)
            return False
        if self._is_seen(address, size_bytes):
            return True
        _log.warning("the GPU sees registered memory at another address; %d bytes are not used", size_bytes)
        self.unregister(address)
        return False

    def unregister(self, address: int) -> bool:
        try:
            self._device.unregister(address)
        except DeviceError as error:
            _log.warning("%s", error.message)
            return False
        return True

    def _is_seen(self, address: int, size_bytes: int) -> bool:
        """Copies name the pool's memory by its own address: the device must know its first and last page by it."""
        last = address + (size_bytes - 1) // _OS_PAGE_BYTES * _OS_PAGE_BYTES
        try:
            return all(self._device.device_address(page) == page for page in (address, last))
        except DeviceError as error:
            _log.info("%s", error.message)
            return False


@contextlib.contextmanager
def turn(lock_file: Path, pause: Callable[[float], bool], patience_s: float) -> Iterator[bool]:
    """True: this process registers, no other of the host. Past the deadline it goes on all the same: False."""
    wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, _LOCK_BYTE, 1, 0)
    freed = struct.pack("hhqqi4x", fcntl.F_UNLCK, os.SEEK_SET, _LOCK_BYTE, 1, 0)
    try:
        fd = os.open(lock_file, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:  # The pool was destroyed: there is nobody to take turns with.
        yield True
        return
    try:
        is_ours = False
        for step in range(1 + round(patience_s / _TURN_STEP_S)):
            if step and pause(_TURN_STEP_S):
                break
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_OFD_SETLK, wanted)
                is_ours = True
                break
        else:
            if patience_s:
                _log.warning("another process has been registering memory for %.0f s; not waiting longer", patience_s)
        yield is_ours
    finally:
        with contextlib.suppress(OSError):
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, freed)  # A child that was forked meanwhile has the descriptor too.
        os.close(fd)


def stay_near(node: int | None) -> None:
    """Run the calling thread on the CPUs of a NUMA node, as far as this process may use them."""
    try:
        text = Path(f"/sys/devices/system/node/node{node}/cpulist").read_text()
        near = cpus_in(text) & os.sched_getaffinity(0)
        if near:
            os.sched_setaffinity(0, near)
    except (OSError, ValueError):
        return  # Farther away is slower, not wrong.


def cpus_in(text: str) -> set[int]:
    """{0, 1, 2, 5} from the kernel's "0-2,5". Raises ValueError."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        cpus.update(range(int(first), int(last or first) + 1))
    return cpus
