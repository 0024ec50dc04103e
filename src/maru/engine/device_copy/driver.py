"""The CUDA driver, as far as copies need it. The one file that speaks to it, through `cuda-bindings`.

Holds:      one device and its primary context, the one that torch uses too: no second context appears on it.
Promises:   each result is looked at; what a caller sees is an error that names the call. A context that broke, and a
            context that came over a fork, are not called into again.
Leaves:     what is registered and copied when, to the rooms beside it.

Addresses, streams and events are integers, sizes are bytes. Every call but those that ask about the machine needs the
context: `with device.bound():`. Not run on a GPU.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeAlias

from maru.errors import MaruError

DESCRIPTORS_MAX = 1024
"""Copies a call. Fifty thousand at once hung or crashed a driver (vLLM #49276); the number is ours."""

_NOT_READY = 600
_STICKY = frozenset({4, 46, 214, 220, 226, 700, 702, 709, 710, *range(714, 720), 999})
"""CUresults after which a context, or the driver in this process, is of no use: illegal addresses, launch failures,
errors of memory and links, a driver that shuts down."""
_PORTABLE, _MAPPED = 1, 2
_NON_BLOCKING, _WITHOUT_TIMING = 1, 2

Copy: TypeAlias = tuple[int, int, int]
"""(address to, address from, bytes)."""


class DeviceUnavailable(MaruError):
    """There is no GPU to be had here: no package, no driver, no device."""

    hint = "pip install 'maru-kvcache[gpu]' brings the bindings; the driver comes with the GPU. See docs/gpu.md"


class DeviceError(MaruError):
    """The driver refused a call."""

    result: str = ""
    code: int = 0


class DeviceLate(DeviceError):
    """A copy was not done at its deadline."""

    hint = "is the GPU still computing? Copies wait for what was given to it before them"


class DeviceLost(DeviceError):
    """The context broke. No call reaches the driver any more; what the device may still use stays where it is."""

    hint = "start this process anew; its other GPU work has failed too, and the system log may say why"


def bindings() -> Any:
    """The module cuda.bindings.driver, initialised. Raises DeviceUnavailable."""
    try:
        from cuda.bindings import driver
    except ImportError as error:
        raise DeviceUnavailable(f"the package cuda-bindings is not installed: {error}") from error
    try:
        code = int(driver.cuInit(0)[0])
    except (RuntimeError, OSError) as error:  # cuda-bindings finds no libcuda.so.1.
        raise DeviceUnavailable(f"no CUDA driver: {str(error).rstrip('.')}") from error
    if code:
        raise DeviceUnavailable(f"the CUDA driver does not start: {name_of(driver, code)}")
    return driver


def name_of(driver: Any, code: int) -> str:
    """A CUresult's name, as CUDA_ERROR_INVALID_VALUE."""
    try:
        return str(driver.CUresult(code).name)
    except ValueError:
        return f"CUresult {code}"


def describe() -> dict[str, Any]:
    """The driver and its devices, as plain values; sizes in bytes. Makes no context. Raises DeviceUnavailable.

    {"driver", "bindings", "copies_in_batches", "devices": [{"ordinal", "name", "memory_bytes", "pci", "numa_node",
    "registers_host_memory", "registers_read_only_memory"}]}; versions as "13.0", a node that nobody knows as None.
    """
    cuda = bindings()

    def ask(name: str, *args: Any) -> Any:
        answer = getattr(cuda, name)(*args)
        if int(answer[0]):
            raise DeviceUnavailable(f"{name} answers {name_of(cuda, int(answer[0]))}")
        return answer[1]

    number = int(ask("cuDriverGetVersion"))
    attribute = cuda.CUdevice_attribute
    devices = []
    for ordinal in range(int(ask("cuDeviceGetCount"))):
        device = ask("cuDeviceGet", ordinal)
        pci = _text(ask("cuDeviceGetPCIBusId", 32, device)).lower()
        devices.append(
            {
                "ordinal": ordinal,
                "name": _text(ask("cuDeviceGetName", 128, device)),
                "memory_bytes": int(ask("cuDeviceTotalMem", device)),
                "pci": pci,
                "numa_node": numa_node_of(pci),
                "registers_host_memory": bool(
                    ask("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED, device)
                ),
                "registers_read_only_memory": bool(
                    ask("cuDeviceGetAttribute", attribute.CU_DEVICE_ATTRIBUTE_READ_ONLY_HOST_REGISTER_SUPPORTED, device)
                ),
            }
        )
    return {
        "driver": f"{number // 1000}.{number % 1000 // 10}",
        "bindings": version("cuda-bindings"),
        "copies_in_batches": number >= 12080 and number // 1000 >= int(version("cuda-bindings").partition(".")[0]),
        "devices": devices,
    }


def numa_node_of(pci: str) -> int | None:
    """The node of a PCI device, "0000:01:00.0"; None when the machine has one node or does not say."""
    try:
        node = int(Path(f"/sys/bus/pci/devices/{pci}/numa_node").read_text())
    except (OSError, ValueError):
        return None
    return node if node >= 0 else None


def _text(raw: bytes) -> str:
    return raw.partition(b"\0")[0].decode(errors="replace")


class Device:
    """One GPU. Thread-safe as the driver is; each thread binds the context itself."""

    def __init__(self, ordinal: int) -> None:
        """`ordinal`: as CUDA_VISIBLE_DEVICES leaves them, from 0. Raises DeviceUnavailable, DeviceError."""
        self.ordinal = ordinal
        self._cuda = bindings()
        self._lost: str = ""
        self._lost_code = 0
        self._pid = os.getpid()
        self._closing = threading.Lock()
        count = int(self._call("count devices", "cuDeviceGetCount"))
        if not 0 <= ordinal < count:
            raise DeviceUnavailable(f"there is no GPU {ordinal}: the driver has {count}")
        self._device = self._call("find the device", "cuDeviceGet", ordinal)
        self._context = self._call("retain the primary context", "cuDevicePrimaryCtxRetain", self._device)
        self._is_open = True
        attribute = self._cuda.CUdevice_attribute
        self.registers_host_memory = bool(self._attribute(attribute.CU_DEVICE_ATTRIBUTE_HOST_REGISTER_SUPPORTED))
        pci = _text(self._call("ask for the PCI address", "cuDeviceGetPCIBusId", 32, self._device)).lower()
        self.numa_node = numa_node_of(pci)
        self._has_batches = hasattr(self._cuda, "cuMemcpyBatchAsync")
        self._order = self._stream_order() if self._has_batches else None

    @property
    def is_lost(self) -> bool:
        """Has a call said that the context is gone?"""
        return bool(self._lost)

    @contextmanager
    def bound(self) -> Iterator[None]:
        """The device's context is this thread's inside; what was there before is there again afterwards."""
        self._call("bind the context", "cuCtxPushCurrent", self._context)
        try:
            if int(self._call("look at the context", "cuCtxGetCurrent")) == 0:
                raise DeviceError("no context is bound to this thread", result="CUDA_ERROR_INVALID_CONTEXT", code=201)
            yield
        finally:
            if not self._lost:
                self._call("release the context", "cuCtxPopCurrent")

    def close(self) -> None:
        """Let go of the primary context. Not of one that broke."""
        with self._closing:
            if self._is_open and not self._lost and os.getpid() == self._pid:
                self._is_open = False
                self._call("release the primary context", "cuDevicePrimaryCtxRelease", self._device)

    # Host memory

    def register(self, address: int, size_bytes: int) -> None:
        """Make mapped memory reachable at full speed. Raises DeviceError."""
        what = f"register {size_bytes} bytes at {address:#x}"
        self._call(what, "cuMemHostRegister", address, size_bytes, _PORTABLE | _MAPPED)

    def unregister(self, address: int) -> None:
        self._call(f"unregister memory at {address:#x}", "cuMemHostUnregister", address)

    def device_address(self, address: int) -> int:
        """Where the device sees registered memory."""
        return int(self._call(f"look up the memory at {address:#x}", "cuMemHostGetDevicePointer", address, 0))

    def allocate_pinned(self, size_bytes: int) -> int:
        """Address of host memory of the driver's own."""
        return int(self._call(f"allocate {size_bytes} pinned bytes", "cuMemHostAlloc", size_bytes, _PORTABLE))

    def free_pinned(self, address: int) -> None:
        self._call("free pinned memory", "cuMemFreeHost", address)

    # Device memory: an engine has its own; the self-test has none.

    def allocate(self, size_bytes: int) -> int:
        return int(self._call(f"allocate {size_bytes} bytes on the device", "cuMemAlloc", size_bytes))

    def free(self, address: int) -> None:
        self._call("free device memory", "cuMemFree", address)

    # Streams and events

    def create_stream(self) -> int:
        """One that does not wait for the legacy default stream, nor that one for it."""
        return int(self._call("create a stream", "cuStreamCreate", _NON_BLOCKING))

    def destroy_stream(self, stream: int) -> None:
        self._call("destroy a stream", "cuStreamDestroy", stream)

    def create_event(self) -> int:
        return int(self._call("create an event", "cuEventCreate", _WITHOUT_TIMING))

    def destroy_event(self, event: int) -> None:
        self._call("destroy an event", "cuEventDestroy", event)

    def record(self, event: int, stream: int) -> None:
        """The event is done when all that was given to the stream before is done."""
        self._call("record an event", "cuEventRecord", event, stream)

    def wait(self, stream: int, event: int) -> None:
        """What is given to the stream from now on waits for the event as it was last recorded."""
        self._call("make a stream wait", "cuStreamWaitEvent", stream, event, 0)

    def is_done(self, event: int) -> bool:
        return self._answer("ask for an event", "cuEventQuery", event)[0] == 0

    # Copies

    def copy_to_device(self, copies: Sequence[Copy], stream: int) -> None:
        """Enqueue copies host → device, in any order among themselves."""
        self._copy("copy to the device", "cuMemcpyHtoDAsync", copies, stream)

    def copy_to_host(self, copies: Sequence[Copy], stream: int) -> None:
        """Enqueue copies device → host. The device's memory is read in the stream's order, not before."""
        self._copy("copy from the device", "cuMemcpyDtoHAsync", copies, stream)

    def _copy(self, what: str, single: str, copies: Sequence[Copy], stream: int) -> None:
        for first in range(0, len(copies), DESCRIPTORS_MAX):
            some = copies[first : first + DESCRIPTORS_MAX]
            if self._order is None or len(some) == 1 or not self._copy_batch(what, some, stream):
                for to, source, size_bytes in some:
                    self._call(f"{what} {size_bytes} bytes", single, to, source, size_bytes, stream)

    def _copy_batch(self, what: str, copies: Sequence[Copy], stream: int) -> bool:
        """False when this driver knows no batches: 12.8 brought them, and bindings of 13 ask for those of 13.0."""
        address = self._cuda.CUdeviceptr
        tos, sources = [address(copy[0]) for copy in copies], [address(copy[1]) for copy in copies]
        sizes = [copy[2] for copy in copies]
        try:
            # Bindings of 12.8 hide an argument of that version and answer with one value more.
            self._call(
                f"{what} in a batch of {len(copies)}", "cuMemcpyBatchAsync",
                tos, sources, sizes, len(copies), [self._order], [0], 1, stream,
            )  # fmt: skip
        except RuntimeError:
            self._order = None
            return False
        return True

    def _stream_order(self) -> Any:
        """With any other order a copy may read the device's memory before the kernels ahead of it have written it."""
        attributes = self._cuda.CUmemcpyAttributes()
        attributes.srcAccessOrder = self._cuda.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
        return attributes

    # Calls

    def _attribute(self, attribute: Any) -> int:
        return int(self._call("ask for an attribute", "cuDeviceGetAttribute", attribute, self._device))

    def _call(self, what: str, name: str, *args: Any) -> Any:
        code, value = self._answer(what, name, *args)
        if code == _NOT_READY:
            raise DeviceError(f"could not {what}: not ready", result="CUDA_ERROR_NOT_READY", code=code)
        return value

    def _answer(self, what: str, name: str, *args: Any) -> tuple[int, Any]:
        """(0 or _NOT_READY, the value). Raises DeviceError for any other result, DeviceLost for one that stays."""
        if os.getpid() != self._pid:
            raise DeviceLost(f"could not {what}: this process was forked from the one that opened the GPU")
        if self._lost:
            raise DeviceLost(f"could not {what}: {self._lost}", result=self._lost, code=self._lost_code)
        answer = getattr(self._cuda, name)(*args)
        code = int(answer[0])
        if code in (0, _NOT_READY):
            return code, answer[1] if len(answer) > 1 else None
        result = name_of(self._cuda, code)
        if code in _STICKY:
            self._lost, self._lost_code = result, code
            raise DeviceLost(f"could not {what}: {result}", result=result, code=code)
        raise DeviceError(f"could not {what}: {result}", result=result, code=code)
