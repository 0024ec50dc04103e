"""Objects as files: the blocking half of a folder below the pool.

    PLACE/NAMESPACE/KK/KEY   one object whole; KK is the first two digits of KEY
    PLACE/.part/PID-RANDOM   one that is being written; whatever its writer left behind when it died

Holds:      each call to the system that touches an object. `calls` stands for the module os, so that tests can put a
            disk under it that loses, refuses or forgets.
Promises:   a file under its real name is whole, also after a loss of power: its bytes are on the medium before it is
            renamed, and its name is before write and sync_folder return. Closing may report what writing did not (NFS
            does), so it comes before the rename. A rename that answers with an error though it was done is found out
            by looking; a handle that went stale is opened once more. A file whose name asks for it is overwritten
            where it lies, and that is on the medium, before it is unlinked; a part that was for such a name too.
Leaves:     threads to `disk`, room to `disk_index`.

Bytes go past the page cache (O_DIRECT) where the file system can: what is stored was in the pool a moment ago, and what
is loaded will be; a second copy in the page cache would only take memory from both. Four at a time of 16 MiB each, on a
virtual disk: stored at 4.3 to 6.8 GiB/s with 1.5 to 2.9 ms of CPU an object, against 3.9 GiB/s and 3.4 ms through the
page cache; loaded at 2.5 GiB/s with 1.5 ms, against 2.7 to 3.2 GiB/s and 2.6 ms. So it saves CPU and memory; it is not
faster at reading. Elsewhere (`direct=0`, NFS, or a file system that refuses) the page cache is told to let go.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import secrets
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maru.tier.contract import PIECE_BYTES, Listed, is_overwritten, split_name

PARTS = ".part"
OVERWRITTEN = "-overwritten"
"""Ends the name of a part that is overwritten before it goes."""
ALIGNED_BYTES = 4096
_DIGITS = frozenset("0123456789abcdef")
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
_CHANGE = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


class Stopped(Exception):
    """The store was given up before its file had its name: no error, since whoever asked for it is gone."""


@dataclass(frozen=True)
class Part:
    """A file that is whole, on the medium, and has no name of an object yet."""

    path: Path
    size_bytes: int
    inode: int


@dataclass
class Reading:
    """One object that is being read, by one thread at a time."""

    files: ObjectFiles
    path: Path
    descriptor: int
    state: os.stat_result
    is_direct: bool

    @property
    def size_bytes(self) -> int:
        return self.state.st_size

    def fill(self, buffer: mmap.mmap, start: int) -> int:
        """Read from `start`, a multiple of ALIGNED_BYTES, into `buffer`; how much there was. Raises OSError."""
        try:
            return self._fill(buffer, start)
        except OSError as error:
            if error.errno == errno.ESTALE:
                self._reopen(error)
            elif error.errno == errno.EINVAL and self.is_direct:
                self.files.direct = False
                self._reopen(error)
            else:
                raise
            return self._fill(buffer, start)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor < 0:
            return
        with contextlib.suppress(OSError):
            if not self.is_direct:
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with contextlib.suppress(OSError):
            self.files.calls.close(descriptor)

    def _fill(self, buffer: mmap.mmap, start: int) -> int:
        wanted, got = min(len(buffer), self.size_bytes - start), 0
        view = memoryview(buffer)
        while got < wanted:
            count = self.files.calls.preadv(self.descriptor, [view[got:]], start + got)
            got += count
            if count == 0 or got % ALIGNED_BYTES:
                break  # The end, maybe too early: whoever asked compares.
        return got

    def _reopen(self, error: OSError) -> None:
        """The same file once more; another one under this name must not be mixed into what was read already."""
        self.close()
        fresh = self.files.open_once(self.path)
        self.descriptor, self.is_direct = fresh.descriptor, fresh.is_direct
        if (fresh.state.st_ino, fresh.state.st_size, fresh.state.st_mtime_ns) != (
            self.state.st_ino, self.state.st_size, self.state.st_mtime_ns,
        ):  # fmt: skip
            raise error


class ObjectFiles:
    """All objects of one folder. Every method blocks, may be called from any thread, and raises OSError."""

    def __init__(self, place: Path, direct: bool, calls: Any = os, at: Callable[[str], object] = str) -> None:
        self.place, self.direct, self.calls, self.at = place, direct, calls, at
        self._known: set[Path] = set()

    def path_of(self, name: str) -> Path:
        folder, key = split_name(name)
        return self.place / folder / key[:2] / key

    def make_place(self, may_create: bool) -> None:
        """Look that the place is a folder that strangers cannot write to; make it when its parent is there."""
        if may_create:
            with contextlib.suppress(FileExistsError):
                self.calls.mkdir(self.place, 0o700)
        state = self.calls.stat(self.place)
        if not stat.S_ISDIR(state.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, "not a folder", str(self.place))
        if state.st_mode & stat.S_IWOTH:
            raise PermissionError(errno.EPERM, "anybody may write to it; chmod o-w it first", str(self.place))
        with contextlib.suppress(FileExistsError):
            self.calls.mkdir(self.place / PARTS, 0o700)

    def write(self, frames: Sequence[memoryview], is_stopped: Callable[[], bool], name: str = "") -> Part:
        """Write a part, for `name`, and have it on the medium. Nothing is left of it when this raises.

        Raises Stopped.
        """
        ends = OVERWRITTEN if name and is_overwritten(name) else ""
        path = self.place / PARTS / f"{os.getpid()}-{secrets.token_hex(8)}{ends}"
        self.at("before_write")
        try:
            try:
                return self._write(path, frames, is_stopped, self.direct)
            except OSError as error:
                if error.errno != errno.EINVAL or not self.direct:
                    raise
                self.direct = False  # This file system knows no O_DIRECT.
                return self._write(path, frames, is_stopped, False)
        except BaseException:
            self.drop(path)
            raise

    def drop(self, path: Path) -> None:
        """Take a part away that will not be an object. What cannot be taken away now, the next opening finds."""
        with contextlib.suppress(OSError):
            if path.name.endswith(OVERWRITTEN):
                self.overwrite(path)
            self.calls.unlink(path)

    def overwrite(self, path: Path) -> None:
        """Zeros over every byte of a file, in place and on the medium.

        What the medium makes of "in place" is its own affair: docs/tiers.md.
        """
        descriptor = self.calls.open(path, _CHANGE)
        try:
            left = self.calls.fstat(descriptor).st_size
            zeros, at = memoryview(bytes(min(left, PIECE_BYTES))), 0
            while left:
                count = self.calls.pwrite(descriptor, zeros[:left], at)
                if count <= 0:
                    raise OSError(errno.EIO, "wrote nothing")
                at, left = at + count, left - count
            self.calls.fsync(descriptor)
            with contextlib.suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            self.calls.close(descriptor)

    def make_folder(self, name: str) -> None:
        """The folder that the object's file will lie in, and its own name on the medium."""
        folder = self.path_of(name).parent
        if folder in self._known:
            return
        for one in (folder.parent, folder):
            with contextlib.suppress(FileExistsError):
                self.calls.mkdir(one, 0o700)
            self._sync(one.parent)
        self._known.add(folder)

    def rename(self, part: Part, name: str) -> None:
        """Give the part its name."""
        path = self.path_of(name)
        try:
            self.calls.rename(part.path, path)
        except OSError as error:
            # The server may have done it, and its answer was lost: the second attempt finds no part.
            try:
                state = self.calls.stat(path)
            except OSError:
                raise error from None
            if (state.st_ino, state.st_size) != (part.inode, part.size_bytes) or self._is_there(part.path):
                raise

    def forget_folders(self) -> None:
        """Somebody took folders away: look again whether they are there."""
        self._known.clear()

    def sync_folder(self, name: str) -> None:
        """Have the name on the medium."""
        self._sync(self.path_of(name).parent)

    def unlink(self, name: str) -> None:
        """Take an object away, if it is there; overwritten first, if its name asks for that."""
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if is_overwritten(name):
                self.overwrite(self.path_of(name))
            self.calls.unlink(self.path_of(name))

    def open(self, name: str) -> Reading:
        path = self.path_of(name)
        try:
            return self.open_once(path)
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
            return self.open_once(path)

    def open_once(self, path: Path) -> Reading:
        is_direct = self.direct
        try:
            descriptor = self.calls.open(path, _READ | (os.O_DIRECT if is_direct else 0))
        except OSError as error:
            if error.errno != errno.EINVAL or not is_direct:
                raise
            self.direct = is_direct = False
            descriptor = self.calls.open(path, _READ)
        try:
            if not is_direct:
                with contextlib.suppress(OSError):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_SEQUENTIAL)
            return Reading(self, path, descriptor, self.calls.fstat(descriptor), is_direct)
        except BaseException:
            self.calls.close(descriptor)
            raise

    def size_of(self, name: str) -> int | None:
        """Bytes of an object; None when it is not there."""
        path = self.path_of(name)
        for is_last in (False, True):
            try:
                state = self.calls.stat(path, follow_symlinks=False)
                return int(state.st_size) if stat.S_ISREG(state.st_mode) else None
            except (FileNotFoundError, NotADirectoryError):
                return None
            except OSError as error:
                if error.errno != errno.ESTALE or is_last:
                    raise
        return None

    def groups(self, folder: str = "") -> list[Path]:
        """The folders of files of all namespaces, or of one."""
        spaces = [folder] if folder else self._folders(self.place, 32)
        return [self.place / space / two for space in spaces for two in self._folders(self.place / space, 2)]

    def listed(self, group: Path) -> list[Listed]:
        """The objects of one folder of files. What is not named like one (.nfs*, leftovers) is passed over."""
        found = []
        with self._entries(group) as entries:
            for entry in entries:
                if len(entry.name) != 32 or not _DIGITS.issuperset(entry.name):
                    continue
                try:
                    state = entry.stat(follow_symlinks=False)
                except OSError:
                    continue  # Removed a moment ago.
                if stat.S_ISREG(state.st_mode):
                    found.append(Listed(f"{group.parent.name}/{entry.name}", state.st_size, state.st_mtime))
        return found

    def remove_leftovers(self) -> None:
        """Take away what writers that died were writing. Only for the one that may write."""
        with self._entries(self.place / PARTS) as entries:
            for entry in entries:
                self.drop(Path(entry.path))

    def _write(self, path: Path, frames: Sequence[memoryview], is_stopped: Callable[[], bool], is_direct: bool) -> Part:
        descriptor = self.calls.open(path, _WRITE | (os.O_DIRECT if is_direct else 0), 0o600)
        try:
            size = self._pour(descriptor, frames, is_stopped, is_direct)
            self.at("written")
            self.calls.fsync(descriptor)
            self.at("synced")
            if not is_direct:
                with contextlib.suppress(OSError):
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            inode = self.calls.fstat(descriptor).st_ino
        except BaseException:
            with contextlib.suppress(OSError):
                self.calls.close(descriptor)
            raise
        self.calls.close(descriptor)  # May say that there was no room.
        if is_stopped():
            raise Stopped
        return Part(path, size, inode)

    def _pour(
        self, descriptor: int, frames: Sequence[memoryview], is_stopped: Callable[[], bool], is_direct: bool
    ) -> int:
        """Write the frames through one aligned buffer; how much it was."""
        total = sum(len(frame) for frame in frames)
        # Not closed by hand: an error that is on its way up still holds slices of it.
        view = memoryview(mmap.mmap(-1, max(_aligned(min(total, PIECE_BYTES)), ALIGNED_BYTES)))
        filled = written = 0
        for frame in frames:
            taken = 0
            while taken < len(frame):
                count = min(len(frame) - taken, len(view) - filled)
                view[filled : filled + count] = frame[taken : taken + count]
                taken, filled = taken + count, filled + count
                if filled == len(view):
                    if is_stopped():
                        raise Stopped
                    self._write_all(descriptor, view)
                    written, filled = written + filled, 0
        if filled:
            padded = _aligned(filled) if is_direct else filled
            view[filled:padded] = bytes(padded - filled)
            self._write_all(descriptor, view[:padded])
            if padded != filled:
                self.calls.ftruncate(descriptor, written + filled)
        return total

    def _write_all(self, descriptor: int, view: memoryview) -> None:
        done = 0
        while done < len(view):
            count = self.calls.write(descriptor, view[done:])
            if count <= 0:
                raise OSError(errno.EIO, "wrote nothing")
            done += count

    def _sync(self, folder: Path) -> None:
        descriptor = self.calls.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            self.calls.fsync(descriptor)
        finally:
            self.calls.close(descriptor)

    def _is_there(self, path: Path) -> bool:
        try:
            self.calls.stat(path)
        except OSError:
            return False
        return True

    def _folders(self, above: Path, digits: int) -> list[str]:
        with self._entries(above) as entries:
            names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
        return [name for name in names if len(name) == digits and _DIGITS.issuperset(name)]

    @contextlib.contextmanager
    def _entries(self, folder: Path) -> Iterator[Iterator[os.DirEntry[str]]]:
        """What lies in a folder; nothing when the folder is not there."""
        try:
            found = self.calls.scandir(folder)
        except FileNotFoundError:
            yield iter(())
            return
        with found:
            yield found


def _aligned(size_bytes: int) -> int:
    return -(-size_bytes // ALIGNED_BYTES) * ALIGNED_BYTES
