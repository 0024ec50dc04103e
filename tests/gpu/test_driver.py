"""What the one file that speaks to CUDA says about a driver, a device and a refusal; and that the fake refuses."""

from __future__ import annotations

import ctypes
import mmap
import threading
from collections.abc import Iterator

import numpy as np
import pytest
from children import say

from fake_gpu import Fake
from maru.engine.device_copy import Device, DeviceError, DeviceLost, DeviceUnavailable
from maru.engine.device_copy.driver import bindings

PAGE = mmap.PAGESIZE
ASK = "from maru.engine.device_copy import Device, DeviceUnavailable\ntry: Device(0)\n"
ASK += "except DeviceUnavailable as error: print(error)"


@pytest.fixture
def device(fake: Fake) -> Device:
    return Device(0)


@pytest.fixture
def memory() -> Iterator[int]:
    """Address of eight pages that may be written."""
    with mmap.mmap(-1, 8 * PAGE) as pages:
        letter = ctypes.c_char.from_buffer(pages)
        yield ctypes.addressof(letter)
        del letter


def test_without_a_driver_the_error_says_what_to_install() -> None:
    told = say({"LD_LIBRARY_PATH": ""}, ASK)
    assert "no CUDA driver" in told
    assert "maru-kvcache[gpu]" in told


def test_without_the_package_the_error_says_what_to_install() -> None:
    told = say({}, "import sys; sys.modules['cuda'] = None\n" + ASK)
    assert "cuda-bindings is not installed" in told
    assert "maru-kvcache[gpu]" in told


def test_a_driver_without_a_device_is_no_device(fake: Fake) -> None:
    fake.fail("cuInit", 100)
    with pytest.raises(DeviceUnavailable, match="CUDA_ERROR_NO_DEVICE"):
        Device(0)
    with pytest.raises(DeviceUnavailable, match="no GPU 3"):
        Device(3)


def test_importing_the_copies_loads_neither_cuda_nor_torch() -> None:
    program = "import sys, maru.engine.device_copy; print([m for m in ('cuda', 'torch', 'numpy') if m in sys.modules])"
    assert say({}, program) == "[]"


def test_a_refusal_names_the_call_and_the_result(device: Device, memory: int) -> None:
    with device.bound(), pytest.raises(DeviceError) as raised:
        device.register(memory + 1, PAGE)
    assert raised.value.result == "CUDA_ERROR_INVALID_VALUE"
    assert f"could not register {PAGE} bytes at {memory + 1:#x}" in str(raised.value)
    assert not device.is_lost


def test_nothing_goes_without_a_context(fake: Fake, device: Device, memory: int) -> None:
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_CONTEXT"):
        device.register(memory, PAGE)


def test_a_context_is_bound_in_a_thread_of_its_own_and_gone_afterwards(fake: Fake, device: Device, memory: int) -> None:
    told: list[object] = []

    def work() -> None:
        with device.bound():
            device.register(memory, PAGE)
            device.unregister(memory)
        try:
            device.register(memory, PAGE)
        except DeviceError as error:
            told.append(error.result)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert told == ["CUDA_ERROR_INVALID_CONTEXT"]
    assert fake.calls("cuCtxPushCurrent") == fake.calls("cuCtxPopCurrent")


def test_a_context_that_broke_is_not_called_into_again(fake: Fake, device: Device, memory: int) -> None:
    fake.fail("cuMemHostRegister", 719)
    with pytest.raises(DeviceLost, match="CUDA_ERROR_LAUNCH_FAILED"), device.bound():
        device.register(memory, PAGE)
    assert device.is_lost
    with pytest.raises(DeviceLost), device.bound():
        pass
    device.close()
    assert fake.violations == []


@pytest.mark.parametrize("code", [712, 713, 701])
def test_codes_of_the_700s_that_do_not_stay_are_ordinary_refusals(fake: Fake, device: Device, code: int) -> None:
    fake.fail("cuStreamCreate", code)
    with device.bound():
        with pytest.raises(DeviceError):
            device.create_stream()
        device.create_stream()
    assert not device.is_lost


def test_a_forked_child_calls_nothing(fake: Fake, device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fake.calls("cuCtxPushCurrent")
    monkeypatch.setattr("maru.engine.device_copy.driver.os.getpid", lambda: -1)
    with pytest.raises(DeviceLost, match="forked"), device.bound():
        pass
    device.close()
    assert fake.calls("cuCtxPushCurrent") == before


def test_a_driver_that_knows_no_batches_copies_one_by_one(loaded_fake: Fake) -> None:
    program = """
from maru.engine.device_copy import Device
device = Device(0)
with device.bound():
    stream, host, there = device.create_stream(), device.allocate_pinned(8192), device.allocate(8192)
    import ctypes
    ctypes.memset(host, 7, 8192)
    device.copy_to_device([(there, host, 4096), (there + 4096, host + 4096, 4096)], stream)
    print(ctypes.string_at(there, 8192) == bytes([7]) * 8192)
"""
    environment = {"LD_LIBRARY_PATH": str(loaded_fake.folder), "FAKE_CUDA_MISSING": "cuMemcpyBatchAsync"}
    assert say(environment, program) == "True"


# The fake refuses what a driver refuses. Else the tests beside this one would prove nothing.


def code_of(result: object) -> int:
    return int(result[0])  # type: ignore[index]


def test_the_fake_refuses_wrong_registrations(fake: Fake, device: Device, memory: int) -> None:
    cuda = bindings()
    register = cuda.cuMemHostRegister
    with device.bound():
        assert code_of(register(memory, 2 * PAGE, 3)) == 0
        assert code_of(register(memory + PAGE, 2 * PAGE, 3)) == 712
        assert code_of(register(memory + 2 * PAGE, PAGE, 3 | 4)) == 1
        assert code_of(register(memory + 2 * PAGE, 1 << 39, 3)) == 2
        assert code_of(cuda.cuMemHostUnregister(memory + PAGE)) == 713
        with mmap.mmap(-1, PAGE, prot=mmap.PROT_READ) as read_only:
            at = int(np.frombuffer(read_only, dtype=np.uint8).ctypes.data)
            assert code_of(register(at, PAGE, 3)) == 1
            assert code_of(register(at, PAGE, 3 | 8)) == 0


def test_the_fake_refuses_wrong_copies(fake: Fake, device: Device, memory: int) -> None:
    cuda = bindings()
    with device.bound():
        device.register(memory, PAGE)
        device.register(memory + PAGE, PAGE)
        there = device.allocate(4 * PAGE)
        stream = device.create_stream()
        with pytest.raises(DeviceError):
            device.copy_to_device([(there, memory, 2 * PAGE)], stream)  # It straddles two registrations.
        with pytest.raises(DeviceError):
            device.copy_to_device([(there, memory + PAGE, 2 * PAGE)], stream)
        pointer = cuda.CUdeviceptr
        order = cuda.CUmemcpyAttributes()
        order.srcAccessOrder = cuda.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_STREAM
        batch = [pointer(there)], [pointer(memory)], [PAGE], 1, [order], [0], 1
        assert code_of(cuda.cuMemcpyBatchAsync(*batch, 0)) == 1  # The legacy default stream.
        assert code_of(cuda.cuMemcpyBatchAsync(*batch, stream)) == 0


def test_the_fake_tells_what_a_driver_forgives_silently(loaded_fake: Fake, memory: int) -> None:
    loaded_fake.reset()
    device = Device(0)
    with device.bound():
        device.copy_to_device([(device.allocate(PAGE), memory, PAGE)], device.create_stream())
    assert "not registered" in loaded_fake.violations[0]


def test_the_fake_reads_early_when_it_may(fake: Fake, device: Device, memory: int) -> None:
    cuda = bindings()
    with device.bound():
        device.register(memory, PAGE)
        there, stream = device.allocate(PAGE), device.create_stream()
        seen = []
        for order in ("STREAM", "ANY"):
            ctypes.memset(there, 1, PAGE)
            attributes = cuda.CUmemcpyAttributes()
            attributes.srcAccessOrder = getattr(cuda.CUmemcpySrcAccessOrder, f"CU_MEMCPY_SRC_ACCESS_ORDER_{order}")
            fake.late()
            fake.fill(stream, there, 2, PAGE)
            batch = [cuda.CUdeviceptr(memory)], [cuda.CUdeviceptr(there)], [PAGE], 1, [attributes], [0], 1
            assert code_of(cuda.cuMemcpyBatchAsync(*batch, stream)) == 0
            fake.run()
            seen.append(ctypes.string_at(memory, 1))
    assert seen == [b"\2", b"\1"]
