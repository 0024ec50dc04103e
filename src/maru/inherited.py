"""Descriptors that hold a right: a forked child must not keep it alive when its parent dies.

A lock on an open file belongs to the file as it was opened, and fork hands that on. So a child lets go of its copy at
once; the parent's holds the lock as before.
"""

from __future__ import annotations

import contextlib
import os

_held: set[int] = set()


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
