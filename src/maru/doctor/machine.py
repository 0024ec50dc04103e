"""Where facts about a machine are read: the roots of /proc, /sys, /dev and /, so that a test can hand in other trees.

Everything is read, nothing is changed. A file that is not there reads as "".
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _room(folder: Path) -> tuple[int, int]:
    state = os.statvfs(folder)
    return state.f_blocks * state.f_frsize, state.f_bavail * state.f_frsize


@dataclass(frozen=True)
class Machine:
    """The trees of one machine."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    root: Path = Path("/")
    room: Callable[[Path], tuple[int, int]] = _room
    """(size, free) in bytes of the file system that holds a folder."""

    def read(self, path: Path) -> str:
        try:
            return path.read_text(errors="replace").strip()
        except OSError:
            return ""

    def number(self, path: Path) -> int | None:
        """The number that stands in a file, None for anything else; "max" is anything else."""
        text = self.read(path)
        return int(text) if text.isascii() and text.lstrip("-").isdigit() else None

    def folders(self, path: Path, pattern: str) -> list[Path]:
        """What matches in a folder, by name; nothing where there is no such folder."""
        try:
            return sorted(path.glob(pattern))
        except OSError:
            return []

    def mounts(self) -> list[tuple[str, str, str]]:
        """(mount point, type, options) of every mount that this process sees, in the order they were made."""
        lines = (line.split(" ") for line in self.read(self.proc / "self" / "mounts").splitlines())
        return [(words[1], words[2], words[3]) for words in lines if len(words) >= 4]

    def limit(self, name: str) -> int | None:
        """A soft limit of this process from /proc/self/limits; None for unlimited and unknown."""
        for line in self.read(self.proc / "self" / "limits").splitlines():
            if line.startswith(name):
                soft = line[len(name) :].split()[0]
                return int(soft) if soft.isdigit() else None
        return None
