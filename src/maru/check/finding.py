"""What `maru check` answers: findings, and the report that holds them.

A finding says what, where to the byte, how bad, and what to do. `error`: no honest writer leaves this behind, dead or
alive. `leftover`: a dead process left it in a state that the next housekeeper ends. `note`: worth knowing, nothing
wrong. Notes leave a pool sound.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["error", "leftover", "note"]

ADVICE = {
    "restore": "something else wrote here: check this host's memory and what else may write to the files, then "
    "destroy the pool and create it again",
    "reap": "nothing: the next process that works with the pool clears it within a second",
    "destroy": "destroy the pool and create it again",
    "mount": "bring the file back to that path, or destroy the pool and create it again",
    "none": "nothing",
    "quarantine": "remove the key, or store it again; if it comes back, test this host's memory",
    "look": "maru stat shows the process; if it is stuck, stop it",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is not as it should be.

    `kind` and `number` name the item (slot, unit, slab, process, shard, namespace, segment, superblock, pool); `words`
    are the words it was judged by, so that a later look can tell the same finding from a new one.
    """

    severity: Severity
    code: str
    kind: str
    number: int
    what: str
    file: str = "index"
    byte_offset: int = -1
    advice: str = "restore"
    words: tuple[int, ...] = ()
    rival: int = -1
    """Another item of the same kind without which the finding cannot be judged."""

    def items(self, kind: str) -> tuple[int, ...]:
        """The items of this kind that it is about."""
        if self.kind != kind:
            return ()
        return (self.number,) if self.rival < 0 else (self.number, self.rival)

    @property
    def identity(self) -> tuple[object, ...]:
        """Equal in two looks when it is the same finding about the same words."""
        return (self.code, self.kind, self.number, self.words)

    @property
    def where(self) -> str:
        """The item and its place, for people."""
        place = f" at byte {self.byte_offset:,} of {self.file}" if self.byte_offset >= 0 else ""
        return f"{self.kind}{f' {self.number}' if self.number >= 0 else ''}{place}"

    def document(self) -> dict[str, Any]:
        return {
            "severity": self.severity,
            "code": self.code,
            "kind": self.kind,
            "number": self.number,
            "file": self.file,
            "byte_offset": self.byte_offset,
            "what": self.what,
            "do": ADVICE[self.advice],
        }


@dataclass
class Report:
    """The outcome of one check: findings that lasted through all looks, and what was looked at."""

    folder: str
    findings: list[Finding] = field(default_factory=list)
    unlisted_count: int = 0
    """Suspects beyond the limit of what one look keeps."""
    figures: dict[str, int] = field(default_factory=dict)
    """slots, units, slabs, chunks by state, processes alive, bytes_verified, looks."""
    seconds: float = 0.0

    def count(self, severity: Severity) -> int:
        return sum(finding.severity == severity for finding in self.findings)

    @property
    def is_sound(self) -> bool:
        """No error and nothing left over; notes are allowed."""
        return not self.unlisted_count and all(finding.severity == "note" for finding in self.findings)

    def document(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "folder": self.folder,
            "verdict": "sound" if self.is_sound else "findings",
            "errors": self.count("error"),
            "leftovers": self.count("leftover"),
            "notes": self.count("note"),
            "unlisted": self.unlisted_count,
            "figures": self.figures,
            "seconds": round(self.seconds, 3),
            "findings": [finding.document() for finding in self.findings],
        }


SUSPECTS_MAX = 20_000
"""What one look keeps. A pool full of garbage has more; they are counted, so that memory and time stay bounded."""


@dataclass
class Suspects:
    """The findings of one look, before a later look confirms them."""

    found: dict[tuple[object, ...], Finding] = field(default_factory=dict)
    beyond_count: int = 0

    def add(self, finding: Finding) -> None:
        if len(self.found) < SUSPECTS_MAX:
            self.found[finding.identity] = finding
        else:
            self.beyond_count += 1

    def numbers(self, kind: str) -> list[int]:
        """Items of this kind that a later look must look at, in order."""
        named = (number for finding in self.found.values() for number in finding.items(kind))
        return sorted(set(named))
