"""Rights that one process has: bytes of a pool's `lock` file, and descriptors that must not keep a right alive in a
forked child when its parent dies.

A lock on an open file belongs to the file as it was opened, and fork hands that on. So a child lets go of its copy at
once; the parent's holds the lock as before.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
from pathlib import Path

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of <fcntl.h>: type, whence, start, length, process."""
_held: set[int] = set()


def take_byte(folder: Path, byte: int) -> int:
    """A descriptor that holds this byte of the `lock` file of the pool in `folder`; end it with give_back.

    -1 while somebody else has it. Raises OSError when there is no such file.
    """
    fd = os.open(folder / "lock", os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    except OSError:
        os.close(fd)
        return -1
    return not_for_children(fd)


def take_file(fd: int) -> bool:
    """Hold all of an open file, until give_back; False while somebody else holds a byte of it."""
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError:
        return False
    not_for_children(fd)
    return True


def is_held(fd: int) -> bool:
    """Does a living process hold a byte of this open file, other than by `fd`?"""
    asked = _FLOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, 0, 0, 0)
    kind: int = _FLOCK.unpack(fcntl.fcntl(fd, fcntl.F_OFD_GETLK, asked))[0]
    return kind != fcntl.F_UNLCK


def not_for_children(fd: int) -> int:
    """This process's forked children close `fd` before anything of theirs runs. Returns `fd`; end it with give_back."""
    _held.add(fd)
    return fd


def give_back(fd: int) -> None:
    """Close it. In a child that closed it already: nothing."""
    if fd in _held:
        _held.discard(fd)
        os.close(fd)


def _let_go_in_child() -> None:
    while _held:
        with contextlib.suppress(OSError):
            os.close(_held.pop())


os.register_at_fork(after_in_child=_let_go_in_child)
