"""What lies in a folder, written down as it changes: found again after a restart without a look at every file.

PLACE/journal is a sequence of records of 48 bytes, little-endian, the first of which is the header:

    header  "MaruTier", version (u32), boot id (16 bytes), zeros, CRC32 of what is before (u32)
    record  kind (u8), zeros (3), folder (16), key (16), size in bytes (u64), CRC32 of what is before (u32)

    STORING  a file will get this name now        STORED   it has it
    REMOVING a file will be taken away now        REMOVED  it is gone
    USED     it was read                          CLOSED   its writer ended in order; nothing follows

Holds:      writing and reading that file. The order of the records is the order of last use.
Promises:   a name whose last record is STORING or REMOVING is reported as unsure, to be looked at; a file that another
            start of the machine wrote, and did not close, is not believed, since a loss of power takes the end of a
            journal and not the files that it told of; nor is what follows a damaged record.
Leaves:     looking at files, and who may write, to `disk_index`.
"""

from __future__ import annotations

import contextlib
import os
import struct
import zlib
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

VERSION = 1
RECORD_BYTES = 48
_MAGIC = b"MaruTier"
_HEADER = struct.Struct("<8sI16s16x")
_RECORD = struct.Struct("<B3x16s16sQ")
_CRC = struct.Struct("<I")
_READ_BYTES = RECORD_BYTES * 20_000
_NOBODY = bytes(16)


class Kind(IntEnum):
    STORING = 1
    STORED = 2
    REMOVING = 3
    REMOVED = 4
    USED = 5
    CLOSED = 6


@dataclass
class Told:
    """What a journal says."""

    sizes: OrderedDict[str, int] = field(default_factory=OrderedDict)
    """Names and sizes, the one that was used longest ago first."""
    unsure: set[str] = field(default_factory=set)
    """Names that were being stored or removed when the journal ends."""
    is_sure: bool = False
    """Nothing else lies in the folder. Else only the order is worth something."""


class Journal:
    """The file that one writer appends to. Made by `rewrite`; not for two threads at once."""

    def __init__(self, place: Path, calls: Any = os) -> None:
        self._path, self._fresh, self._calls = place / "journal", place / "journal.new", calls
        self._file = -1
        self.record_count = 0

    @property
    def is_open(self) -> bool:
        return self._file >= 0

    def read(self) -> Told:
        """What the last writer told. Raises OSError."""
        told = Told()
        try:
            file = self._calls.open(self._path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            return told
        try:
            head = self._calls.read(file, RECORD_BYTES)
            if len(head) != RECORD_BYTES or not _is_whole(head) or head[: _HEADER.size] != _header(head[12:28]):
                return told
            is_closed, is_damaged = _replay(self._records(file), told)
        finally:
            self._calls.close(file)
        told.is_sure = not is_damaged and (is_closed or head[12:28] == boot_id())
        return told

    def rewrite(self, sizes: Iterable[tuple[str, int]]) -> None:
        """Begin anew with what there is, in the order of use. The old file stays until the new one is whole."""
        file = self._calls.open(
            self._fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
        )
        try:
            count, batch = 0, bytearray(_sealed(_header(boot_id())))
            for name, size in sizes:
                batch += _record(Kind.STORED, name, size)
                count += 1
                if len(batch) >= _READ_BYTES:
                    _write_all(self._calls, file, batch)
                    batch.clear()
            _write_all(self._calls, file, batch)
            self._calls.rename(self._fresh, self._path)
        except BaseException:
            self._calls.close(file)
            raise
        self.stop()
        self._file, self.record_count = file, count

    def append(self, kind: Kind, name: str = "", size_bytes: int = 0) -> None:
        """Tell of one change. It does not wait for the medium: a process that dies loses nothing. Raises OSError."""
        _write_all(self._calls, self._file, _record(kind, name, size_bytes))
        self.record_count += 1

    def close(self) -> None:
        """Say that this is all, and have it on the medium. Raises OSError."""
        try:
            self.append(Kind.CLOSED)
            self._calls.fsync(self._file)
        finally:
            self.stop()

    def stop(self) -> None:
        """Write no more into it."""
        file, self._file = self._file, -1
        if file >= 0:
            with contextlib.suppress(OSError):
                self._calls.close(file)

    def discard(self) -> None:
        """It could not be written, so it must not be believed: the next opening lists the folder."""
        self.stop()
        with contextlib.suppress(OSError):
            self._calls.unlink(self._path)

    def _records(self, file: int) -> Iterable[bytes]:
        """Records as they lie there; the last may be cut off."""
        rest = b""
        while piece := self._calls.read(file, _READ_BYTES):
            piece = rest + piece
            whole = len(piece) - len(piece) % RECORD_BYTES
            for start in range(0, whole, RECORD_BYTES):
                yield piece[start : start + RECORD_BYTES]
            rest = piece[whole:]
        if rest:
            yield rest


def boot_id() -> bytes:
    """Which start of this machine it is: 16 bytes; of no machine when the system does not tell."""
    try:
        text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
        return bytes.fromhex(text.strip().replace("-", ""))[:16].ljust(16, b"\0")
    except (OSError, ValueError):
        return os.urandom(16)


def _replay(records: Iterable[bytes], told: Told) -> tuple[bool, bool]:
    """(it was closed, a record is damaged)."""
    is_closed = False
    for record in records:
        if len(record) != RECORD_BYTES or not _is_whole(record) or is_closed:
            return False, True
        kind, folder, key, size = _RECORD.unpack_from(record)
        name = f"{folder.hex()}/{key.hex()}"
        if kind == Kind.USED:
            if name in told.sizes:
                told.sizes.move_to_end(name)
        elif kind == Kind.STORED:
            told.sizes[name] = size
            told.sizes.move_to_end(name)
            told.unsure.discard(name)
        elif kind in (Kind.STORING, Kind.REMOVING):
            told.unsure.add(name)
        elif kind == Kind.REMOVED:
            told.sizes.pop(name, None)
            told.unsure.discard(name)
        elif kind == Kind.CLOSED:
            is_closed = True
        else:
            return False, True
    return is_closed, False


def _header(boot: bytes) -> bytes:
    return _HEADER.pack(_MAGIC, VERSION, boot)


def _record(kind: Kind, name: str, size_bytes: int) -> bytes:
    folder, _, key = name.partition("/")
    names = (bytes.fromhex(folder), bytes.fromhex(key)) if name else (_NOBODY, _NOBODY)
    return _sealed(_RECORD.pack(kind, *names, size_bytes))


def _sealed(content: bytes) -> bytes:
    return content + _CRC.pack(zlib.crc32(content))


def _is_whole(record: bytes) -> bool:
    return bool(_CRC.unpack_from(record, RECORD_BYTES - _CRC.size)[0] == zlib.crc32(record[: -_CRC.size]))


def _write_all(calls: Any, file: int, content: bytes | bytearray) -> None:
    view = memoryview(content)
    while view:
        view = view[calls.write(file, view) :]
