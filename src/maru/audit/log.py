"""The folder of an audit log: lines appended to files that follow each other.

    audit-000001.jsonl …   mode 0600; the first line of each names the chain and says which files still exist
    head                   the last line's number and hash: who cuts the tail off has to change this too
    .lock                  held while lines are appended, so that several processes of one user share a folder
    audit.key              optional: the chain's key, when it is not kept elsewhere

Promises:   a line that was written is never touched again. write() has its lines on the disk before it returns, head
            after them, so a head is never ahead of what a crash left. The folder takes no more than `total_bytes`; the
            oldest files go first, and the first line of a later file says so. A half line that a crash left stays where
            it is, and the next file says how long it is.
Leaves:     when to write, and what becomes of a failure, to `summing`.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import platform
import re
import secrets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maru.audit.chain import BEGINNING, FORMAT, ChainKey, hash_of, make_line, read_key, read_line
from maru.audit.record import Entry, this_process
from maru.errors import AuditError

HEAD, LOCK, KEY_FILE = "head", ".lock", "audit.key"
LOCK_DEADLINE_S = 1.0
_LOCK_PAUSE_S = 0.005
_FILE = re.compile(r"audit-(\d{6,9})\.jsonl")
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


@dataclass(frozen=True)
class Bounds:
    """How large a log gets. Raises ValueError for bounds that leave no room for a file beside the one in use."""

    file_bytes: int = 16 << 20
    file_age_s: float = 86400.0
    """A file that began longer ago gets no more lines."""
    total_bytes: int = 256 << 20
    """Of all files, but for at most one second's lines."""

    def __post_init__(self) -> None:
        if self.file_bytes < 4096 or self.file_age_s <= 0 or self.total_bytes < 2 * self.file_bytes:
            raise ValueError("an audit log's files have 4096 bytes or more, and there is room for two of them")


@dataclass(frozen=True)
class _End:
    """Where the next line goes."""

    chain: str
    file: int
    """Number of the last file; 0: there is none."""
    seq: int
    """Number of the last line."""
    hash: bytes
    size: int = 0
    """Of the last file."""
    begun_unix_ns: int = 0
    key_id: str = ""
    torn: bytes = b""
    """What a crash left behind the last whole line."""
    is_cut: bool = False
    """The file ends before what the head says."""


def file_name(number: int) -> str:
    return f"audit-{number:06d}.jsonl"


def numbered_files(names: Sequence[str]) -> list[int]:
    """Numbers of the log's files among these names, in order."""
    return sorted(int(match[1]) for match in map(_FILE.fullmatch, names) if match)


def default_key(folder: Path, given: Path | None = None) -> ChainKey | None:
    """The key from the file that was given, else from `audit.key` in the folder, if it is there.

    Raises CredentialNotFound, UnsafeCredentials, BadCredential.
    """
    if given is None and not os.path.lexists(folder / KEY_FILE):
        return None
    return read_key(given or folder / KEY_FILE)


class AuditLog:
    """Appends to one folder. Not thread-safe; any number of processes may have one for the same folder."""

    def __init__(
        self,
        folder: Path,
        key: ChainKey | None = None,
        bounds: Bounds | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Make the folder if it is not there. Raises AuditError: it cannot be made, or others can use it."""
        self.folder, self._key, self._bounds, self._clock_ns = folder, key, bounds or Bounds(), clock_ns
        self._end: _End | None = None
        self._head: bytes | None = None
        try:
            folder.mkdir(mode=0o700, exist_ok=True)
            with self._opened() as at:
                _refuse_unless_private(os.fstat(at), folder)
        except OSError as error:
            raise AuditError(f"cannot keep an audit log in {folder}: {error.strerror}", path=str(folder)) from None

    def write(self, entries: Sequence[Entry]) -> int:
        """Append one line for each entry, on the disk when this returns. Returns how many lines, openings included.

        Raises AuditError (somebody else holds the lock for longer than LOCK_DEADLINE_S) and OSError: nothing was
        written, as far as the disk let it be taken back.
        """
        with self._opened() as at, self._locked(at):
            end = self._found_end(at)
            before = end.seq
            if self._wants_file(end):
                end = self._begin_file(at, end)
            lines, previous, seq = bytearray(), end.hash, end.seq
            for entry in entries:
                seq += 1
                line, previous = make_line(previous, {"seq": seq, **entry.fields()}, self._key)
                lines += line
            self._append(at, end, lines)
            self._end = replace(end, seq=seq, hash=previous, size=end.size + len(lines))
            self._write_head(at, self._end)
        return seq - before

    # ---- where it ends ---------------------------------------------------------------------------------------------

    def _found_end(self, at: int) -> _End:
        """From memory, when nobody else wrote since; else from the files."""
        head = _content(at, HEAD)
        if self._end is not None and head == self._head and head is not None:
            with contextlib.suppress(OSError):
                if os.stat(file_name(self._end.file), dir_fd=at, follow_symlinks=False).st_size == self._end.size:
                    return self._end
        self._head = head
        told = head_says(head or b"")
        files = numbered_files(os.listdir(at))
        end = _read_end(at, files[-1]) if files else None
        if end is None:
            end = _End(told.chain if told else "", files[-1] if files else 0, 0, BEGINNING, is_cut=bool(files))
        if told and told.seq > end.seq:  # Somebody cut the tail off: go on from where it was, so that the hole shows.
            end = replace(end, chain=told.chain, seq=told.seq, hash=told.hash, is_cut=True)
        if not end.chain:
            end = replace(end, chain=secrets.token_hex(8))
            self._write_head(at, end)  # Before the first file: a log without a head is one that lost it.
        return end

    def _wants_file(self, end: _End) -> bool:
        bounds, key_id = self._bounds, self._key.id if self._key else ""
        age_ns = self._clock_ns() - end.begun_unix_ns
        is_old = age_ns >= bounds.file_age_s * 1e9
        return end.file == 0 or end.size >= bounds.file_bytes or is_old or bool(end.torn) or end.is_cut or (
            end.key_id != key_id
        )  # fmt: skip

    def _begin_file(self, at: int, end: _End) -> _End:
        """Begin the next file with the line that opens it. Returns its end; files too many are gone."""
        kept_from = self._kept_from(at, end)
        number, now_ns, key_id = end.file + 1, self._clock_ns(), self._key.id if self._key else ""
        opening: dict[str, Any] = {
            "seq": end.seq + 1, "at_unix_ns": now_ns, "what": "opened", "door": "audit", "format": FORMAT,
            "chain": end.chain, "file": number, "previous": end.hash.hex(), "kept_from": kept_from, "key": key_id,
            "host": platform.node(), "boot": BOOT_ID.read_text().strip(), "process": this_process().process,
        }  # fmt: skip
        if end.torn:
            opening |= {"torn_bytes": len(end.torn), "torn_hash": hashlib.sha256(end.torn).hexdigest()}
        line, made = make_line(end.hash, opening, self._key)
        fresh = _End(end.chain, number, end.seq + 1, made, 0, now_ns, key_id)
        self._append(at, fresh, line, is_new=True)
        for old in numbered_files(os.listdir(at)):
            if old < kept_from:  # Only now: the line that says so is on the disk.
                os.unlink(file_name(old), dir_fd=at)
        fresh = replace(fresh, size=len(line))
        self._end = fresh
        self._write_head(at, fresh)
        return fresh

    def _kept_from(self, at: int, end: _End) -> int:
        """Number of the oldest file that may stay, when one more of full size is to fit."""
        room = self._bounds.total_bytes - self._bounds.file_bytes
        kept = end.file + 1
        for number in reversed(numbered_files(os.listdir(at))):
            room -= os.stat(file_name(number), dir_fd=at, follow_symlinks=False).st_size
            if room < 0:
                break
            kept = number
        return kept

    # ---- the disk --------------------------------------------------------------------------------------------------

    def _append(self, at: int, end: _End, lines: bytes | bytearray, is_new: bool = False) -> None:
        if not lines:
            return
        flags = os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(file_name(end.file), flags | (os.O_CREAT | os.O_EXCL if is_new else 0), 0o600, dir_fd=at)
        try:
            try:
                left = memoryview(lines)
                while left:
                    left = left[os.write(file, left) :]
                os.fdatasync(file)
            except OSError:
                with contextlib.suppress(OSError):  # Else the half line stays, and the next file tells of it.
                    os.unlink(file_name(end.file), dir_fd=at) if is_new else os.ftruncate(file, end.size)
                raise
        finally:
            os.close(file)
        if is_new:
            os.fsync(at)

    def _write_head(self, at: int, end: _End) -> None:
        head = make_head(end.chain, end.file, end.seq, end.hash, self._key)
        file = os.open(
            f"{HEAD}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at
        )
        try:
            os.write(file, head)
        finally:
            os.close(file)
        os.replace(f"{HEAD}.new", HEAD, src_dir_fd=at, dst_dir_fd=at)
        self._head = head

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        at = os.open(self.folder, _FOLDER_FLAGS)
        try:
            yield at
        finally:
            os.close(at)

    @contextlib.contextmanager
    def _locked(self, at: int) -> Iterator[None]:
        """The lock goes with its holder, also when that is killed."""
        lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=at)
        try:
            deadline = time.monotonic() + LOCK_DEADLINE_S
            while True:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        raise AuditError(
                            f"another process has held {self.folder} for {LOCK_DEADLINE_S:g} s", path=str(self.folder)
                        ) from None
                    time.sleep(_LOCK_PAUSE_S)
            yield
        finally:
            os.close(lock)


@dataclass(frozen=True)
class Head:
    """What the file `head` says."""

    chain: str
    file: int
    seq: int
    hash: bytes
    is_whole: bool
    """Does its own hash fit? Not known without the key."""


def make_head(chain: str, file: int, seq: int, last: bytes, key: ChainKey | None) -> bytes:
    fields = {"chain": chain, "file": file, "seq": seq, "last": last.hex(), "key": key.id if key else ""}
    return make_line(BEGINNING, fields, key)[0]


def head_says(raw: bytes, key: ChainKey | None = None) -> Head | None:
    """The head, or None when it cannot be read."""
    line = read_line(raw.removesuffix(b"\n"))
    try:
        fields = line.fields if line else {}
        last = bytes.fromhex(fields["last"])
        assert line is not None
        fits = hash_of(BEGINNING, line.body, key) == line.stated and raw.endswith(b"\n")
        return Head(str(fields["chain"]), int(fields["file"]), line.seq, last, fits)
    except (KeyError, TypeError, ValueError):
        return None


def _content(at: int, name: str) -> bytes | None:
    try:
        file = os.open(name, _READ_FLAGS, dir_fd=at)
    except OSError:
        return None
    with os.fdopen(file, "rb") as stream:
        return stream.read()


def _read_end(at: int, number: int) -> _End | None:
    """Where this file ends; None when nothing in it can be read."""
    content = _content(at, file_name(number)) or b""
    whole, newline, torn = content.rpartition(b"\n")
    opening, last = read_line(whole.partition(b"\n")[0]), read_line(whole.rpartition(b"\n")[2])
    if not newline or opening is None or last is None:
        return None
    fields = opening.fields
    begun, key_id, chain = fields.get("at_unix_ns", 0), str(fields.get("key", "")), str(fields.get("chain", ""))
    begun = begun if isinstance(begun, int) else 0
    return _End(chain, number, last.seq, last.stated, len(content), begun, key_id, torn)


def _refuse_unless_private(state: os.stat_result, folder: Path) -> None:
    if state.st_uid != os.geteuid():
        raise AuditError(f"{folder} belongs to another user (uid {state.st_uid})", path=str(folder))
    if state.st_mode & 0o077:
        raise AuditError(
            f"others than its owner can use {folder} (mode {stat.S_IMODE(state.st_mode):04o}): chmod 700 '{folder}'",
            path=str(folder),
        )
