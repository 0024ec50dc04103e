"""Who may write into a folder: one process at a time. Whoever only loads asks nobody.

Holds:      FlockRight, for a folder of one host: a lock on PLACE/lock, which the system takes back when its holder
            dies.
            LeaseRight, for a folder on a network, where such a lock may hold on one host only: a file PLACE/lease that
            is made exclusively, and touched by its holder now and then; it may be taken over LEASE_S after that.
Promises:   two holders of a lease at once, which a network that was cut can bring about, do no harm to objects: those
            are written whole under names that follow from their content. Only the count of what lies there can be
            wrong then, until the next opening lists it.
Leaves:     what is counted to `disk_index`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from maru.inherited import give_back, not_for_children

LEASE_S = 60.0
RENEW_S = 10.0
_NOTE_BYTES_MAX = 200


class Right(Protocol):
    """The right to write into one folder. Every method blocks and raises OSError."""

    def take(self) -> bool:
        """Have it, or False: somebody else does."""

    def holds(self) -> bool:
        """Is it still ours? Keeps it alive."""

    def holder(self) -> str:
        """Who has it, for people."""

    def give_back(self) -> None: ...


def _note() -> bytes:
    return f"pid {os.getpid()} on {socket.gethostname()[:64]}".encode()


class FlockRight:
    """For a folder that only this host has."""

    def __init__(self, place: Path, calls: Any = os) -> None:
        self._path, self._calls, self._file = place / "lock", calls, -1

    def take(self) -> bool:
        file = self._calls.open(self._path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(file)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            raise
        self._file = not_for_children(file)
        with contextlib.suppress(OSError):  # A full disk: the note is for people only.
            os.ftruncate(file, 0)
            os.pwrite(file, _note(), 0)
        return True

    def holds(self) -> bool:
        return self._file >= 0

    def holder(self) -> str:
        return _read_note(self._path) or "another process"

    def give_back(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            give_back(file)


class LeaseRight:
    """For a folder that other hosts have mounted too. Times are the server's: those it gives to files."""

    def __init__(self, place: Path, calls: Any = os, clock: Callable[[], float] = time.monotonic) -> None:
        self._path, self._calls, self._clock = place / "lease", calls, clock
        self._ours = _note() + b" " + secrets.token_hex(16).encode()
        self._renewed_at: float | None = None

    def take(self) -> bool:
        for _ in range(2):
            if self._make():
                self._renewed_at = self._clock()
                return True
            if not self._set_aside_if_old():
                return False
        return False

    def holds(self) -> bool:
        if self._renewed_at is None:
            return False
        if self._clock() - self._renewed_at < RENEW_S:
            return True
        if self._written() != self._ours:
            self._renewed_at = None
            return False
        self._calls.utime(self._path)
        self._renewed_at = self._clock()
        return True

    def holder(self) -> str:
        return _read_note(self._path).rpartition(" ")[0] or "another host"

    def give_back(self) -> None:
        held, self._renewed_at = self._renewed_at is not None, None
        with contextlib.suppress(OSError):
            if held and self._written() == self._ours:
                self._calls.unlink(self._path)

    def _make(self) -> bool:
        try:
            file = self._calls.open(
                self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
        except FileExistsError:
            # Ours after all, when the server made it and its first answer was lost.
            return self._written() == self._ours
        try:
            self._calls.write(file, self._ours)
        finally:
            self._calls.close(file)
        return True

    def _set_aside_if_old(self) -> bool:
        """Move a lease away that nobody touched for LEASE_S, by the server's clock. Of two who do that at once, the
        later may hit the fresh lease of the earlier: it looks at what it moved, and puts it back."""
        probe = self._path.with_name(f".lease-{secrets.token_hex(8)}")
        seen = self._written()
        self._calls.close(self._calls.open(probe, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
        try:
            now = self._calls.stat(probe).st_mtime
            try:
                if now - self._calls.stat(self._path).st_mtime < LEASE_S:
                    return False
                self._calls.rename(self._path, probe)
            except FileNotFoundError:
                return True
            if self._bytes_of(probe) == seen:
                return True
            with contextlib.suppress(FileExistsError):
                self._calls.link(probe, self._path)
            return False
        finally:
            with contextlib.suppress(OSError):
                self._calls.unlink(probe)

    def _written(self) -> bytes:
        try:
            return self._bytes_of(self._path)
        except FileNotFoundError:
            return b""

    def _bytes_of(self, path: Path) -> bytes:
        file = self._calls.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return bytes(self._calls.read(file, _NOTE_BYTES_MAX))
        finally:
            self._calls.close(file)


def _read_note(path: Path) -> str:
    """What a holder wrote about itself, cut to what can be shown."""
    try:
        with path.open("rb") as file:
            text = file.read(_NOTE_BYTES_MAX).decode("ascii", "replace")
    except OSError:
        return ""
    return "".join(char for char in text if char.isprintable())
