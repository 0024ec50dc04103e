"""Memory that a GPU may reach: the pool's mapping, registered with LMCache's device in pieces, in the background.

Holds:      which bytes of the pool's data are registered so far.
Promises:   a tensor handed to a device lies in registered memory or is not handed out; a piece that the driver refuses
            is tried smaller, then left out, and said once; nothing is registered on a machine without a device, nor in
            a process that never touched one (LMCache makes a backend in schedulers too).
Leaves:     how a driver registers to LMCache's own device specification.

LMCache's kernels read and write host memory by its device address and raise for memory without one. Sealed chunks are
read through the writable mapping then, since drivers do not take read-only ones everywhere.

Not run on a GPU: tested with a device that only takes notes. The rules follow what others learnt: pieces of 8 GiB,
since one registration of 512 GiB fails; edges on slabs, since no copy may span two pieces; nothing of it on the path of
a request.
"""

from __future__ import annotations

import bisect
import ctypes
import logging
import threading
from typing import Any, Protocol

import torch

PIECE_BYTES = 8 << 30
PIECE_BYTES_MIN = 64 << 20
CLOSE_DEADLINE_S = 30.0
_PORTABLE_AND_MAPPED = 3

_log = logging.getLogger("maru.lmcache")


class Device(Protocol):
    """What LMCache's DeviceSpec offers."""

    def pin_memory(self, ptr: int, size: int, flags: int = 0) -> bool: ...

    def unpin_memory(self, ptr: int) -> bool: ...


def device_of_lmcache() -> Device | None:
    """The device that LMCache found, None when that is the CPU."""
    from lmcache import torch_device_type
    from lmcache.v1.platform import current_device_spec

    device: Device | None = None if torch_device_type == "cpu" else current_device_spec
    return device


def is_in_use() -> bool:
    """Has this process touched the device? A scheduler has not, and must not be made to."""
    return bool(getattr(_torch_module(), "is_initialized", lambda: True)())


def _torch_module() -> Any:
    """torch.cuda, torch.xpu, ..., or torch.cpu."""
    from lmcache import torch_device_type

    return getattr(torch, torch_device_type, torch.cpu)


class Registration:
    """The pool's data as one device sees it. Thread-safe."""

    def __init__(self, device: Device, address: int, size_bytes: int, slab_bytes: int) -> None:
        """`address`: of the writable mapping. Registers nothing before `begin`."""
        self._device = device
        self._address = address
        self._size_bytes = size_bytes
        self._slab_bytes = slab_bytes
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None
        self._closing = False

    @property
    def address(self) -> int:
        return self._address

    def begin(self) -> None:
        """Start registering, once."""
        with self._lock:
            if self._worker is None and not self._closing:
                # A thread begins on the first device: registering there would leave a context on somebody else's GPU.
                place = _torch_module().current_device()
                self._worker = threading.Thread(
                    target=self._register_all, args=(place,), name="maru-register", daemon=True
                )
                self._worker.start()

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything was tried."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout_s)
        return worker is not None and not worker.is_alive()

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Does one registered piece hold all of these bytes of the pool's data?"""
        with self._lock:
            at = bisect.bisect_right(self._starts, offset) - 1
            return at >= 0 and offset + size_bytes <= self._ends[at]

    def tensor_at(self, offset: int, size_bytes: int, keep: object) -> torch.Tensor:
        """A flat tensor of bytes at this place of the registered mapping. It, and all made of it, keep `keep` alive."""
        memory = (ctypes.c_ubyte * size_bytes).from_address(self._address + offset)
        memory.keep = keep  # type: ignore[attr-defined]
        return torch.frombuffer(memory, dtype=torch.uint8)

    def close(self) -> bool:
        """Unregister. False when the driver refused: the mapping must then stay, for its device may still use it."""
        with self._lock:
            self._closing = True
            worker = self._worker
        if worker is not None:
            worker.join(CLOSE_DEADLINE_S)
            if worker.is_alive():
                return False  # A driver that hangs: what it holds must stay where it is.
        with self._lock:
            starts, self._starts, self._ends = self._starts, [], []
        refused = [start for start in starts if not self._device.unpin_memory(self._address + start)]
        return not refused

    def _register_all(self, place: Any) -> None:
        _torch_module().set_device(place)
        piece_bytes = max(self._slab_bytes, PIECE_BYTES // self._slab_bytes * self._slab_bytes)
        smallest = max(self._slab_bytes, PIECE_BYTES_MIN)
        at, refused = 0, 0
        while at < self._size_bytes:
            if self._closing:
                return
            size = min(piece_bytes, self._size_bytes - at)
            if self._device.pin_memory(self._address + at, size, _PORTABLE_AND_MAPPED):
                with self._lock:
                    self._starts.append(at)
                    self._ends.append(at + size)
            elif piece_bytes // 2 >= smallest:
                piece_bytes = piece_bytes // 2 // self._slab_bytes * self._slab_bytes
                continue
            else:
                refused += size
            at += size
        told = _log.warning if refused else _log.info
        told("registered %d of %d bytes of the pool with the device", self._size_bytes - refused, self._size_bytes)
