"""The fake CUDA driver as tests see it: built once, loaded below the real cuda-bindings, told what to do."""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "fake_cuda" / "driver.cpp"
EVERYTHING = 1 << 40


def build(folder: Path) -> Path:
    """Compile it into `folder`; put that folder on LD_LIBRARY_PATH of a process that shall find it."""
    library = folder / "libcuda.so.1"
    command = [
        "c++",
        "-std=c++20",
        "-O1",
        "-g",
        "-shared",
        "-fPIC",
        "-pthread",
        "-Wl,-soname,libcuda.so.1",
        "-o",
        str(library),
    ]
    subprocess.run([*command, str(SOURCE)], check=True)
    return library


class Fake:
    """The library, loaded into this process. cuda-bindings asks for libcuda.so.1 later and finds it loaded."""

    def __init__(self, library: Path) -> None:
        self.folder = library.parent
        self._library = ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
        for name in ("fake_run", "fake_calls", "fake_registered_bytes", "fake_registrations", "fake_retained"):
            getattr(self._library, name).restype = ctypes.c_long
        self._library.fake_violations.restype = ctypes.c_char_p

    def reset(self) -> None:
        """Back to a driver that nobody has used."""
        self._library.fake_reset()

    def late(self, on: bool = True) -> None:
        """Whether copies and kernels wait for `run`."""
        self._library.fake_late(int(on))

    def run(self, seed: int = 1, limit: int = EVERYTHING) -> int:
        """Perform up to `limit` queued operations, in an order that follows from `seed`. Returns how many."""
        return int(self._library.fake_run(ctypes.c_uint64(seed), ctypes.c_long(limit)))

    def fail(self, name: str, code: int, nth: int = 1) -> None:
        """The `nth` call of `name` from now on fails, once; with 0 every one does."""
        self._library.fake_fail(name.encode(), ctypes.c_long(nth), code)

    def set(self, name: str, value: int) -> None:
        """driver, devices, register_supported, register_max, pointer_shift."""
        self._library.fake_set(name.encode(), ctypes.c_long(value))

    def calls(self, name: str) -> int:
        return int(self._library.fake_calls(name.encode()))

    @property
    def registered_bytes(self) -> int:
        return int(self._library.fake_registered_bytes())

    @property
    def registrations(self) -> int:
        return int(self._library.fake_registrations())

    @property
    def retained(self) -> int:
        """Primary contexts that somebody retains."""
        return int(self._library.fake_retained())

    @property
    def violations(self) -> list[str]:
        """What a driver would have forgiven silently, or crashed on."""
        return list(self._library.fake_violations().decode().splitlines())

    def fill(self, stream: int, address: int, value: int, size_bytes: int) -> None:
        """A kernel that writes one value."""
        code = self._library.fake_kernel_fill(
            ctypes.c_uint64(stream), ctypes.c_void_p(address), value, ctypes.c_size_t(size_bytes)
        )
        assert code == 0

    def move(self, stream: int, to: int, source: int, size_bytes: int) -> None:
        """A kernel that reads one place and writes another."""
        code = self._library.fake_kernel_copy(
            ctypes.c_uint64(stream), ctypes.c_void_p(to), ctypes.c_void_p(source), ctypes.c_size_t(size_bytes)
        )
        assert code == 0


def device_bytes(address: int, size_bytes: int) -> bytes:
    """What lies in the fake's device memory now, queued kernels aside."""
    return ctypes.string_at(address, size_bytes)


def write_device(address: int, content: bytes) -> None:
    """Put bytes there, at once."""
    ctypes.memmove(address, content, len(content))


@pytest.fixture(scope="session")
def loaded_fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return Fake(build(tmp_path_factory.mktemp("fake_cuda")))


@pytest.fixture
def fake(loaded_fake: Fake) -> Iterator[Fake]:
    """A driver that nobody has used; at the end nobody did what a real one would have crashed on."""
    loaded_fake.reset()
    yield loaded_fake
    assert loaded_fake.violations == []
