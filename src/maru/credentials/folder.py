"""A folder that only its owner can read: how secrets lie on a disk.

Holds:      opening a folder and the files in it without following links, and writing them whole or not at all.
Promises:   what others could read, change or swap is refused by name; a crash leaves the old file or the new one; of
            two commands at once one waits, and neither's change is lost.
Leaves:     what the files mean to its neighbours.

Only the folder itself and what lies in it may not be links. The way to it may: who can change that way still cannot
make a folder that belongs to us.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from maru.errors import CredentialError, CredentialNotFound, CredentialsBusy, UnsafeCredentials

FILE_BYTES_MAX = 1 << 20
LOCK_DEADLINE_S = 5.0
_LOCK_PAUSE_S = 0.01
_LOCK_FILE = ".lock"
_UNFINISHED = ".new-"
_OPEN_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # A pipe in a file's place must not block.
_LINK_ERRORS = (errno.ELOOP, errno.ENOTDIR, errno.ENXIO)


def default_folder() -> Path:
    """Where this user's keys lie unless told otherwise: $XDG_CONFIG_HOME/maru/keys, or ~/.config/maru/keys."""
    configured = os.environ.get("XDG_CONFIG_HOME", "")
    root = Path(configured) if configured.startswith("/") else Path.home() / ".config"
    return root / "maru" / "keys"


def read_private_file(path: Path) -> bytes:
    """The bytes of one file that only this user can read.

    Raises CredentialNotFound, UnsafeCredentials (a link, somebody else's, readable by others, or larger than
    `FILE_BYTES_MAX`), CredentialError when the system fails.
    """
    try:
        return _read(os.open(path, _OPEN_FILE), path)
    except OSError as error:
        raise _named(error, path) from None


@dataclass(frozen=True)
class KeyFolder:
    """A folder of mode 0700 with files of mode 0600.

    Every method raises UnsafeCredentials, CredentialError when the system fails, and, but for make() and exists(),
    CredentialNotFound when the folder is not there.
    """

    path: Path

    def make(self) -> None:
        """Make the folder, and those above it, unless they are there."""
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
        except FileExistsError:
            pass  # Not a folder: opening says so.
        except OSError as error:
            raise _named(error, self.path) from None
        with self._opened():
            return

    def exists(self) -> bool:
        """Is there anything of that name?"""
        return os.path.lexists(self.path)

    def read(self, name: str) -> bytes | None:
        """The bytes of one file; None when it is not there."""
        with self._opened() as folder:
            try:
                return _read(os.open(name, _OPEN_FILE, dir_fd=folder), self.path / name)
            except FileNotFoundError:
                return None
            except OSError as error:
                raise _named(error, self.path / name) from None

    def write(self, name: str, content: bytes) -> Path:
        """Replace one file by `content`, and have it on the disk before returning. Returns where it lies."""
        with self._opened() as folder:
            fresh = f"{_UNFINISHED}{secrets.token_hex(8)}"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                file = os.open(fresh, flags, 0o600, dir_fd=folder)
                try:
                    with os.fdopen(file, "wb") as stream:
                        stream.write(content)
                        stream.flush()
                        os.fsync(file)
                    os.replace(fresh, name, src_dir_fd=folder, dst_dir_fd=folder)
                except BaseException:
                    os.unlink(fresh, dir_fd=folder)
                    raise
                os.fsync(folder)
            except OSError as error:
                raise _named(error, self.path / name) from None
        return self.path / name

    def remove(self, name: str) -> bool:
        """Remove one file; False when it was not there."""
        with self._opened() as folder:
            try:
                os.unlink(name, dir_fd=folder)
                os.fsync(folder)
            except FileNotFoundError:
                return False
            except OSError as error:
                raise _named(error, self.path / name) from None
        return True

    @contextmanager
    def locked(self, deadline_s: float = LOCK_DEADLINE_S) -> Iterator[None]:
        """Hold the folder against other commands, so that what is read inside is still so when it is written.

        The lock goes with its holder, also when that is killed; what a killed one left half written is removed here.
        Raises CredentialsBusy after `deadline_s` seconds.
        """
        with self._opened() as folder:
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            try:
                lock = os.open(_LOCK_FILE, flags, 0o600, dir_fd=folder)
            except OSError as error:
                raise _named(error, self.path / _LOCK_FILE) from None
            try:
                self._wait_for(lock, deadline_s)
                with os.scandir(folder) as entries:
                    for left in [entry.name for entry in entries if entry.name.startswith(_UNFINISHED)]:
                        os.unlink(left, dir_fd=folder)
                yield
            finally:
                os.close(lock)

    def _wait_for(self, lock: int, deadline_s: float) -> None:
        deadline = time.monotonic() + deadline_s
        while True:
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise CredentialsBusy(
                        f"another command has been changing {self.path} for {deadline_s:g} s", path=str(self.path)
                    ) from None
                time.sleep(_LOCK_PAUSE_S)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            folder = os.open(self.path, flags)
        except FileNotFoundError:
            raise CredentialNotFound(
                f"there are no keys in {self.path}: `maru keys generate` makes the daemon's", path=str(self.path)
            ) from None
        except OSError as error:
            raise _named(error, self.path) from None
        try:
            _refuse_unless_private(os.fstat(folder), self.path, "chmod 700")
            yield folder
        finally:
            os.close(folder)


def _read(file: int, path: Path) -> bytes:
    with os.fdopen(file, "rb") as stream:
        state = os.fstat(file)
        if not stat.S_ISREG(state.st_mode):
            raise UnsafeCredentials(f"{path} is not a file", path=str(path))
        _refuse_unless_private(state, path, "chmod 600")
        content = stream.read(FILE_BYTES_MAX + 1)
    if len(content) > FILE_BYTES_MAX:
        raise UnsafeCredentials(f"{path} is larger than {FILE_BYTES_MAX} bytes: not one of ours", path=str(path))
    return content


def _refuse_unless_private(state: os.stat_result, path: Path, remedy: str) -> None:
    if state.st_uid != os.geteuid():
        raise UnsafeCredentials(
            f"{path} belongs to another user (uid {state.st_uid}); make a copy of your own, or run as that user",
            path=str(path),
        )
    if state.st_mode & 0o077:
        raise UnsafeCredentials(
            f"others than its owner can use {path} (mode {stat.S_IMODE(state.st_mode):04o}): {remedy} '{path}', "
            "and make new keys if somebody may have read it",
            path=str(path),
        )


def _named(error: OSError, path: Path) -> CredentialError:
    where = str(path)
    if isinstance(error, FileNotFoundError):
        return CredentialNotFound(f"{path} does not exist", path=where)
    if error.errno in _LINK_ERRORS:
        return UnsafeCredentials(f"{path} is not what it should be: a link or something else in its place", path=where)
    return CredentialError(f"cannot use {path}: {error.strerror}", path=where)
