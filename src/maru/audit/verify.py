"""Reads a whole log and says what was done to it since it was written.

Promises:   any change, loss or shuffle of whole lines and files is named, as far as the head and the key can tell (see
            docs/audit.md for what they cannot); what a crash leaves is a note and no damage. Nothing is written.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from maru.audit.chain import BEGINNING, ChainKey, Line, hash_of, read_line
from maru.audit.log import HEAD, file_name, head_says, numbered_files
from maru.errors import AuditError

Kind = Literal[
    "line_changed", "line_missing", "lines_swapped", "line_repeated", "tail_cut", "file_missing", "head_missing",
    "head_changed", "foreign_key", "key_needed", "foreign_chain", "not_the_same",
]  # fmt: skip
DAMAGES_MAX = 1000
"""More than these are not listed."""


@dataclass(frozen=True)
class Damage:
    """One thing that is not as it was written."""

    kind: Kind
    file: str
    seq: int
    """Number of the line; 0 where there is none."""
    text: str


@dataclass
class Verdict:
    """What was found in a folder."""

    damages: list[Damage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a crash, or the log's own bound, explains."""
    files: int = 0
    lines: int = 0
    first_seq: int = 0
    last_seq: int = 0
    last_hash: str = ""
    is_keyed: bool = False

    @property
    def is_good(self) -> bool:
        return not self.damages


def verify_log(folder: Path, key: ChainKey | None = None, held: tuple[int, str] | None = None) -> Verdict:
    """Walk the chain. `held`: number and hash of a line, as an earlier verdict told them.

    Raises AuditError: there is no log in the folder, or it cannot be read.
    """
    try:
        files = numbered_files([path.name for path in folder.iterdir()])
        head_raw = (folder / HEAD).read_bytes() if (folder / HEAD).exists() else None
        if not files and head_raw is None:
            raise AuditError(f"{folder} holds no audit log", path=str(folder))
        walk = _Walk(folder, key, held)
        for at, number in enumerate(files):
            walk.read_file(number, is_last=at == len(files) - 1)
        walk.end(files, head_raw)
    except OSError as error:
        raise AuditError(f"cannot read {folder}: {error.strerror}", path=str(folder)) from None
    return walk.verdict


class _Walk:
    def __init__(self, folder: Path, key: ChainKey | None, held: tuple[int, str] | None) -> None:
        self.verdict = Verdict()
        self._folder, self._key, self._held = folder, key, held
        self._seq = 0
        self._hash: bytes | None = None
        """Of the line before; None: it cannot be known."""
        self._torn: tuple[str, bytes] | None = None
        self._file_number = 0
        self._kept_from = 1
        self._first_file = 0
        self._chain = ""
        self._unkeyed: str = ""
        """The last file without a key, while no file with one has followed it."""
        self._can_hash = True
        self._hashes: dict[int, bytes] = {}
        """Of the last file's lines."""

    def _found(self, kind: Kind, file: str, seq: int, text: str) -> None:
        if len(self.verdict.damages) < DAMAGES_MAX:
            self.verdict.damages.append(Damage(kind, file, seq, text))

    def read_file(self, number: int, is_last: bool) -> None:
        name = file_name(number)
        content = (self._folder / name).read_bytes()
        whole, newline, torn = content.rpartition(b"\n")
        raws = whole.split(b"\n") if newline else []
        lines = [read_line(raw) for raw in raws]
        if self._file_number and number != self._file_number + 1:
            gone = f"files {self._file_number + 1} to {number - 1} are not there"
            self._found("file_missing", name, self._seq + 1, gone)
            self._hash = None
            self._seq = lines[0].seq - 1 if lines and lines[0] else self._seq
        self._first_file = self._first_file or number
        opening = lines[0] if lines and lines[0] and lines[0].fields.get("what") == "opened" else None
        if opening is None:
            self._found("line_missing", name, 0, "the file does not begin with the line that names its chain")
            self._torn = None
        else:
            self._open(name, number, opening)
        self._check_lines(name, raws, lines, is_first=number == self._first_file)
        if torn and is_last:
            self.verdict.notes.append(f"{name} ends with {len(torn)} bytes of a line that was not finished: a crash")
        self._torn = (name, torn)
        self._file_number = number
        self.verdict.files += 1

    def _open(self, name: str, number: int, opening: Line) -> None:
        fields = opening.fields
        told_key, chain = fields.get("key", ""), fields.get("chain", "")
        if fields.get("file") != number:
            self._found("lines_swapped", name, opening.seq, f"the file says that it is number {fields.get('file')}")
        if self._chain and chain != self._chain:
            self._found("foreign_chain", name, opening.seq, "the file is of another chain than the one before it")
        self._chain = str(chain)
        if isinstance(fields.get("kept_from"), int):
            self._kept_from = max(self._kept_from, fields["kept_from"])
        if self._torn is not None:
            before, torn = self._torn
            told = (fields.get("torn_bytes", 0), fields.get("torn_hash", hashlib.sha256(b"").hexdigest()))
            if told != (len(torn), hashlib.sha256(torn).hexdigest()):
                self._found(
                    "line_changed", before, self._seq, "the end of the file is not as the next file says it was"
                )
            elif torn:
                self.verdict.notes.append(f"{before} ends with {len(torn)} bytes of an unfinished line: a crash")
        wanted = self._key.id if self._key else ""
        self._can_hash = told_key == wanted
        if told_key and told_key != wanted:
            self._found(
                "foreign_key" if wanted else "key_needed", name, opening.seq,
                f"the file was written with the key {told_key}, " + (f"not with {wanted}" if wanted else "give it"),
            )  # fmt: skip
        elif wanted and not told_key:
            self._unkeyed = name
            self._can_hash = True  # Without a key; the file after it has to stand for it.
        else:
            self._unkeyed = ""
        self.verdict.is_keyed = self.verdict.is_keyed or bool(told_key)

    def _check_lines(self, name: str, raws: list[bytes], lines: list[Line | None], is_first: bool) -> None:
        key = None if self._unkeyed == name else self._key
        hashes: dict[int, bytes] = {line.seq: line.stated for line in reversed(lines) if line}
        if self._hash is not None:
            hashes.setdefault(self._seq, self._hash)
        if is_first and lines and lines[0]:
            self.verdict.first_seq = lines[0].seq
            self._seq = lines[0].seq - 1
        if lines and lines[0]:  # What stood before it may be gone: then it is what it says itself.
            hashes.setdefault(lines[0].seq - 1, _told_previous(lines[0]))
        computed: dict[int, bytes] = {}
        missing: set[int] = set()
        seen: set[int] = set()
        for raw, line in zip(raws, lines, strict=True):
            self.verdict.lines += 1
            if line is None:
                self._seq += 1
                what = "is empty" if not raw else "cannot be read"
                self._found("line_changed", name, self._seq, f"the line after {self._seq - 1} {what}")
                hashes.pop(self._seq, None)
                continue
            if line.seq in missing:
                missing.discard(line.seq)
                self._found("lines_swapped", name, line.seq, f"line {line.seq} does not stand in its place")
            elif line.seq in seen or line.seq <= self._seq:
                self._found(
                    "line_repeated", name, line.seq, f"line {line.seq} stands here once more, or out of its place"
                )
            elif line.seq > self._seq + 1:
                if line.seq - self._seq <= DAMAGES_MAX * 10:
                    missing.update(range(self._seq + 1, line.seq))
                else:
                    self._found("line_missing", name, self._seq + 1, f"lines {self._seq + 1} to {line.seq - 1}")
            seen.add(line.seq)
            previous = hashes.get(line.seq - 1)
            if self._can_hash and previous is not None and not line.is_after(previous, key):
                # Where only the hash of the line before was changed, that line was named already.
                before = computed.get(line.seq - 1)
                if before is None or not line.is_after(before, key):
                    self._found("line_changed", name, line.seq, f"line {line.seq} is not as it was written")
                computed[line.seq] = hash_of(previous, line.body, key)
            self._seq = max(self._seq, line.seq)
        for seq in sorted(missing):
            self._found("line_missing", name, seq, f"line {seq} is not there")
        self._hash = hashes.get(self._seq)
        self._hashes = hashes
        if self._held and self._held[0] in seen and hashes[self._held[0]].hex() != self._held[1]:
            self._found("not_the_same", name, self._held[0], f"line {self._held[0]} had another hash")

    def end(self, files: list[int], head_raw: bytes | None) -> None:
        verdict = self.verdict
        verdict.last_seq, verdict.last_hash = self._seq, (self._hash or b"").hex()
        if files and files[0] > self._kept_from:
            self._found(
                "file_missing", file_name(files[0] - 1), 0, f"no line says that file {files[0] - 1} was removed"
            )
        elif self._kept_from > 1:
            verdict.notes.append(f"files before {self._kept_from} were removed by the log's own bound")
        if self._unkeyed:
            self._found("foreign_key", self._unkeyed, 0, "the last file was written without the key")
        if self._held and not verdict.first_seq <= self._held[0] <= self._seq:
            self._found("not_the_same", "", self._held[0], f"line {self._held[0]} is not there to be compared")
        head = head_says(head_raw, None if self._unkeyed else self._key) if head_raw is not None else None
        if head_raw is None:
            self._found("head_missing", HEAD, 0, "the file that says where the log ends is not there")
        elif head is None or (self._can_hash and not head.is_whole):
            self._found("head_changed", HEAD, 0, "the file that says where the log ends is not as it was written")
        elif head.seq > self._seq:
            self._found(
                "tail_cut", HEAD, head.seq, f"the log ended with line {head.seq}, and ends now with {self._seq}"
            )
        elif head.seq < self._seq:
            verdict.notes.append(f"the head ends at line {head.seq}, before the log: a crash, or it is being written")
        if head and self._hashes.get(head.seq, head.hash) != head.hash:
            self._found("head_changed", HEAD, head.seq, f"the head has another hash of line {head.seq}")


def _told_previous(opening: Line) -> bytes:
    """What the oldest file says stood before it: that is gone, or it is the beginning."""
    try:
        told = bytes.fromhex(str(opening.fields.get("previous", "")))
    except ValueError:
        told = b""
    return told if opening.seq > 1 else BEGINNING
