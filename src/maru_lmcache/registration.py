"""Memory that a GPU may reach: the pool's mapping, registered with LMCache's device in pieces, in the background.

Holds:      the registering thread, and tensors over registered memory.
Promises:   a tensor handed to a device lies in registered memory or is not handed out; what was left out is said once;
            nothing is registered on a machine without a device, nor in a process that never touched one (LMCache makes
            a backend in schedulers too). The beginning of every segment comes first and can be waited for.
Leaves:     the walk in pieces to maru.registered, how a driver registers to LMCache's own device specification.

LMCache's kernels read and write host memory by its device address and raise for memory without one. Sealed chunks are
read through the writable mapping then, since drivers do not take read-only ones everywhere.

Not run on a GPU: tested with a device that only takes notes.
"""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import torch

from maru.registered import RegisteredPieces

CLOSE_DEADLINE_S = 30.0
FIRST_DEADLINE_S = 5.0
"""A hundred times what the first pieces take. A driver that needs longer hangs, and an engine's start shall not."""
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


class _DeviceSpec:
    """Registers as LMCache does."""

    def __init__(self, device: Device) -> None:
        self._device = device

    def register(self, address: int, size_bytes: int) -> bool:
        return self._device.pin_memory(address, size_bytes, _PORTABLE_AND_MAPPED)

    def unregister(self, address: int) -> bool:
        return self._device.unpin_memory(address)


class Registration:
    """The pool's data as one device sees it. Thread-safe."""

    def __init__(self, device: Device, address: int, ranges: Sequence[tuple[int, int]], slab_bytes: int) -> None:
        """`address`: of the writable mapping; `ranges`: (offset, bytes) of each data segment, counted from there.

        Registers nothing before `begin`.
        """
        self._address = address
        self._closing = threading.Event()
        self._pieces = RegisteredPieces(_DeviceSpec(device), address, ranges, slab_bytes, self._closing.wait)
        self._lock = threading.Lock()
        self._worker: threading.Thread | None = None

    @property
    def address(self) -> int:
        return self._address

    def begin(self) -> None:
        """Start registering, once."""
        with self._lock:
            if self._worker is None and not self._closing.is_set():
                # A thread begins on the first device: registering there would leave a context on somebody else's GPU.
                place = _torch_module().current_device()
                self._worker = threading.Thread(
                    target=self._register_all, args=(place,), name="maru-register", daemon=True
                )
                self._worker.start()

    def wait_for_first(self) -> bool:
        """Wait until the beginning of every segment was tried. False when nothing is registered by then, or by the
        deadline: the thread goes on all the same.
        """
        self._pieces.first_tried.wait(FIRST_DEADLINE_S)
        return self._pieces.registered_bytes > 0

    def wait(self, timeout_s: float) -> bool:
        """Wait until everything was tried."""
        worker = self._worker
        if worker is not None:
            worker.join(timeout_s)
        return worker is not None and not worker.is_alive()

    def covers(self, offset: int, size_bytes: int) -> bool:
        """Does one registered piece hold all of these bytes of the pool's data?"""
        return self._pieces.covers(offset, size_bytes)

    def tensor_at(self, offset: int, size_bytes: int, keep: object) -> torch.Tensor:
        """A flat tensor of bytes at this place of the registered mapping. It, and all made of it, keep `keep` alive."""
        memory = (ctypes.c_ubyte * size_bytes).from_address(self._address + offset)
        memory.keep = keep  # type: ignore[attr-defined]
        return torch.frombuffer(memory, dtype=torch.uint8)

    def close(self) -> bool:
        """Unregister. False when the driver refused: the mapping must then stay, for its device may still use it."""
        with self._lock:
            self._closing.set()
            worker = self._worker
        if worker is not None:
            worker.join(CLOSE_DEADLINE_S)
            if worker.is_alive():
                return False  # A driver that hangs: what it holds must stay where it is.
        return self._pieces.give_back()

    def _register_all(self, place: Any) -> None:
        _torch_module().set_device(place)
        self._pieces.walk()
        if self._closing.is_set():
            return
        told = _log.warning if self._pieces.refused_bytes else _log.info
        told(
            "registered %d of %d bytes of the pool with the device",
            self._pieces.registered_bytes, self._pieces.size_bytes,
        )  # fmt: skip
