"""What ladders tell about themselves, for whoever looks at the pool from outside: a small file each in its folder.

Holds:      writing such a file, and reading all that count.
Promises:   a reader sees a file whole, as it was at one moment; it counts only while a process that lives holds a lock
            on it, so nothing is believed of a dead one, in whatever container. What dead ones left goes when the next
            ladder starts, and with the pool.
Leaves:     what is told to `ladder`, which names places by URLs that are fit to be shown.

The pool's index has no room for figures of places, and a command that looks must not need an answer: a process that is
stopped shows what it told last, with the time.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import secrets
import stat
import time
from pathlib import Path
from typing import Any

from maru.inherited import give_back, is_held, take_file

_log = logging.getLogger("maru")

TELL_EVERY_S = 1.0
PATTERN = "ladder-*"
"""kLadderPrefix of pool/creation.cpp, which removes them with the pool."""
BYTES_MAX = 1 << 20
FILES_MAX = 256
_LOOKS_MAX = 3


class Teller:
    """Of one ladder. Never raises: what cannot be told is not told."""

    def __init__(self, folder: Path) -> None:
        """`folder`: the pool's."""
        self._folder = folder
        self._path = folder / f"ladder-{secrets.token_hex(8)}.json"
        self._fd = -1
        self._figures: dict[str, Any] | None = None
        self._since_unix_s = time.time()
        self._failed = False

    def tell(self, figures: dict[str, Any]) -> None:
        """`figures` in place of what was told before."""
        if figures == self._figures:
            return
        told = {"pid": os.getpid(), "since_unix_s": self._since_unix_s, "told_unix_s": time.time(), **figures}
        try:
            if self._figures is None:
                _sweep(self._folder)
            fd = self._written(json.dumps(told).encode())
        except OSError as error:
            if not self._failed:
                self._failed = True
                _log.info("maru stat will not show the places below %s: %s", self._folder, error.strerror)
            return
        give_back(self._fd)
        self._fd, self._figures = fd, figures

    def _written(self, text: bytes) -> int:
        """A descriptor that holds the new file."""
        made = self._path.with_suffix(".new")
        with contextlib.suppress(FileNotFoundError):
            made.unlink()  # From a time when renaming failed.
        fd = os.open(made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            # Whoever may map the pool may read this.
            os.fchmod(fd, 0o600 | stat.S_IMODE((self._folder / "lock").stat().st_mode) & 0o444)
            if not take_file(fd):
                raise OSError(None, "the new file is locked by another process")
            os.write(fd, text)
            made.rename(self._path)
        except BaseException:
            give_back(fd)
            with contextlib.suppress(OSError):
                os.close(fd)
            with contextlib.suppress(OSError):
                made.unlink()
            raise
        return fd

    def __enter__(self) -> Teller:
        return self

    def __exit__(self, *_: object) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                self._path.unlink()
            give_back(self._fd)
            self._fd = -1


def told_beside(folder: Path) -> list[dict[str, Any]]:
    """What the living ladders of the pool in `folder` told, the oldest first. Files that make no sense are left out."""
    found = [_read(path) for path in sorted(folder.glob(f"{PATTERN}.json"))[:FILES_MAX]]
    return sorted((one for one in found if one is not None), key=lambda one: one["since_unix_s"])


def _read(path: Path) -> dict[str, Any] | None:
    for _ in range(_LOOKS_MAX):  # It may be replaced, and its lock let go, between opening and looking.
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode) and is_held(fd):
                return _checked(os.read(fd, BYTES_MAX))
        except OSError:
            return None
        finally:
            os.close(fd)
    return None


def _checked(text: bytes) -> dict[str, Any] | None:
    """Whoever may write into the pool's folder may have written this."""
    try:
        told = json.loads(text)
    except (ValueError, RecursionError):
        return None
    kinds = {
        "pid": int, "since_unix_s": float, "told_unix_s": float, "places": list, "demoter": dict, "promoter": dict,
        "decision": dict, "sources": dict,
    }  # fmt: skip
    if not isinstance(told, dict) or not all(isinstance(told.get(name), kind) for name, kind in kinds.items()):
        return None
    return told if all(isinstance(place, dict) for place in told["places"]) else None


def _sweep(folder: Path) -> None:
    """Remove what nobody holds. One that is being made is not held for a moment: its maker makes it once more."""
    for path in folder.glob(PATTERN):
        with contextlib.suppress(OSError):
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if not is_held(fd):
                    path.unlink()
            finally:
                os.close(fd)
