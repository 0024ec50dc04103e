"""Reading a pool's files without being harmed by them: nothing is written, nothing mapped that could shrink.

Files are read with pread, so that one that is cut off while we read gives a short answer and no SIGBUS. What a path
from shared memory leads to is looked at before it is opened: a FIFO would hang, some devices act when opened. A DAX
device cannot be read, only mapped; it cannot shrink either.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import stat
import struct
from pathlib import Path
from types import TracebackType

from maru.errors import PoolMismatch

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid.
_DAX_MAP_BYTES = 2 << 20  # A DAX device is mapped in multiples of its alignment.


class PoolFile:
    """One file or DAX device of a pool, opened for reading. Raises PoolMismatch with a sentence about the path."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            state = path.lstat()
            self._is_device = stat.S_ISCHR(state.st_mode) and str(path).startswith("/dev/dax")
            if not stat.S_ISREG(state.st_mode) and not self._is_device:
                raise PoolMismatch(f"{path} is neither a file nor a DAX device", path=str(path))
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(path, flags)
        except (OSError, ValueError) as error:
            raise PoolMismatch(f"cannot read {path}: {_reason(error)}", path=str(path)) from None

    def size_bytes(self) -> int | None:
        """Length of the file now; None for a device, whose length the index says."""
        return None if self._is_device else os.fstat(self._fd).st_size

    def read(self, offset: int, count: int) -> bytes:
        """`count` bytes from `offset`, fewer where the file ends. Raises PoolMismatch when the medium fails."""
        try:
            if self._is_device:
                return self._read_device(offset, count)
            parts, at = [], offset
            while count > 0:
                part = os.pread(self._fd, count, at)
                if not part:
                    break
                parts.append(part)
                at += len(part)
                count -= len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        except (OSError, ValueError, OverflowError) as error:
            raise PoolMismatch(f"cannot read {self.path}: {_reason(error)}", path=str(self.path)) from None

    def _read_device(self, offset: int, count: int) -> bytes:
        start = offset // _DAX_MAP_BYTES * _DAX_MAP_BYTES
        length = -(-(offset + count - start) // _DAX_MAP_BYTES) * _DAX_MAP_BYTES
        with mmap.mmap(self._fd, length, mmap.MAP_SHARED, mmap.PROT_READ, offset=start) as window:
            return window[offset - start : offset - start + count]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PoolFile:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def held_bytes(path: Path, numbers: range) -> set[int] | None:
    """Which of these bytes of the lock file somebody holds; None when it cannot be asked.

    Open-file-description locks: asking takes nothing and disturbs nobody, and works across PID namespaces.
    """
    try:
        with PoolFile(path) as file:
            return {number for number in numbers if _is_held(file._fd, number)}
    except (OSError, PoolMismatch):
        return None


def _is_held(fd: int, byte: int) -> bool:
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0)
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked)
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _reason(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)
