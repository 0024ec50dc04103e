"""What runs that were killed have left in shared memory.

A run removes what it made, however it ends, unless it is killed: then its folder stays, and the pools that it made
itself, with all their memory. The next run takes them away. What is somebody's is never touched: a folder is locked for
as long as its run lives, a pool that a process has attached cannot be destroyed, and names carry the run's process id.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from maru.bench.ground import SHM
from maru.config import shared_memory_root
from maru.errors import MaruError
from maru.pool import Pool

_FOLDER = re.compile(r"maru-bench-(\d+)-")
_POOL = re.compile(r"(?:bench-(?:media-|invalidation-|maru-bench-|engines-)?|hit-rates-)(\d+)(?:-|$)")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody takes the folder for left over. The lock goes with this process, however that ends."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def clear(shared_memory: Path = SHM) -> list[str]:
    """Remove what is nobody's. Returns what that was."""
    folders = [folder for folder in sorted(shared_memory.glob("maru-bench-*-*")) if _is_left_over(folder)]
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)
    return [*map(str, folders), *_clear_pools()]


def _clear_pools() -> list[str]:
    found = []
    for folder in sorted(shared_memory_root().glob("*")):
        made_by = _POOL.match(folder.name)
        if not made_by or _is_alive(int(made_by[1])):
            continue
        url = f"maru:///{folder.name}"
        try:
            Pool.destroy(url)
        except MaruError:  # Somebody has it attached, or took it away just now.
            continue
        found.append(url)
    return found


def _is_left_over(folder: Path) -> bool:
    made_by = _FOLDER.match(folder.name)
    if not made_by or _is_alive(int(made_by[1])):
        return False
    try:
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            return False
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False  # Its run lives where its process has another number: in another container.
    finally:
        os.close(fd)
    return True


def _is_alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()
