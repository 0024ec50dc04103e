"""A right that a process holds by a lock ends with it, whatever children it left."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest

from maru.inherited import give_back, not_for_children


def locked(path: Path) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return fd


def is_free(path: Path) -> bool:
    try:
        os.close(locked(path))
    except BlockingIOError:
        return False
    return True


@pytest.mark.parametrize("is_held_back", [True, False])
def test_a_child_that_lives_on_keeps_no_right_of_its_parent(tmp_path: Path, is_held_back: bool) -> None:
    path, (wakes, waker) = tmp_path / "lock", os.pipe()
    fd = locked(path)
    if is_held_back:
        not_for_children(fd)
    ready, tells = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(tells, b"x")
        os.read(wakes, 1)
        os._exit(0)
    os.read(ready, 1)
    assert not is_free(path)  # The parent holds it.
    give_back(fd) if is_held_back else os.close(fd)
    assert is_free(path) is is_held_back  # Without our care the child would hold it now.
    os.write(waker, b"x")
    os.waitpid(child, 0)
    for one in (wakes, waker, ready, tells):
        os.close(one)


def test_giving_back_twice_closes_nobody_elses_file(tmp_path: Path) -> None:
    fd = not_for_children(locked(tmp_path / "lock"))
    give_back(fd)
    other = os.open(tmp_path / "other", os.O_RDWR | os.O_CREAT)
    assert other == fd
    give_back(fd)
    os.fstat(other)
    os.close(other)
