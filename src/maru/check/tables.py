"""The index's tables as sequences, in two ways: read in one go for the first look, row by row for the later ones.

The rules are written once, over `Tables`. The first look walks everything and wants speed; a later look asks only
about what was suspicious, and wants to see it as it is now.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from maru.check.clock import host_boot_ns
from maru.check.files import PoolFile, held_bytes
from maru.check.geometry import Geometry, Section
from maru.check.layout import Layout
from maru.errors import PoolMismatch

Row = tuple[Any, ...]
"""Numbers, and bytes where a field is neither 1, 2, 4 nor 8 long."""

HOT_FIELDS = ("word", "key_lo", "key_hi", "extent", "size_bytes", "namespace_id", "namespace_epoch", "children",
              "flags")  # fmt: skip
COLD_FIELDS = ("expiry_ns", "deadline_ns", "parent", "parts", "part_owner", "checksum")
SLAB_FIELDS = ("word", "real_bytes")
PROCESS_FIELDS = ("epoch", "attached", "pid")
HEADER_FIELDS = ("key_lo", "key_hi", "namespace_digest", "generation", "namespace_epoch", "size_bytes", "checksum",
                 "chunk_units", "sealed")  # fmt: skip
ZEROS = bytes(1 << 20)
LEASE_LIMIT_NS = 600 * 10**9
"""A row whose lease ends later than this from now was written by nobody honest."""


class Rows(Protocol):
    """Rows of a table, unpacked. Out of range is the caller's mistake."""

    def __getitem__(self, number: int, /) -> Row: ...


class Numbers(Protocol):
    """A table of plain numbers."""

    def __getitem__(self, number: int, /) -> int: ...


class _ReadRows:
    def __init__(self, data: bytes, row: struct.Struct) -> None:
        self._data, self._unpack, self._size = data, row.unpack_from, row.size

    def __getitem__(self, number: int) -> Row:
        return self._unpack(self._data, number * self._size)


class _FreshRows:
    def __init__(self, index: PoolFile, section: Section, row: struct.Struct) -> None:
        self._index, self._section, self._row = index, section, row

    def __getitem__(self, number: int) -> Row:
        return self._row.unpack(whole(self._index, self._section.place(number), self._row.size))


class _FreshNumbers:
    def __init__(self, index: PoolFile, offset: int, size: int) -> None:
        self._index, self._offset, self._size = index, offset, size

    def __getitem__(self, number: int) -> int:
        return int.from_bytes(whole(self._index, self._offset + number * self._size, self._size), "little")


def whole(index: PoolFile, offset: int, count: int) -> bytes:
    """Exactly `count` bytes. Raises PoolMismatch when the file has become shorter while we looked."""
    data = index.read(offset, count)
    if len(data) < count:
        raise PoolMismatch(
            f"{index.path} became shorter while it was read: was the pool destroyed?", path=str(index.path)
        )
    return data


@dataclass
class Tables:
    """What the rules see at one look."""

    geometry: Geometry
    layout: Layout
    index: PoolFile
    alive: set[int] | None
    """Numbers of the processes that hold their byte, or whose lease runs; None when the lock file cannot be asked."""
    hot: Rows
    cold: Rows
    tags: Numbers
    """Sixteen a bucket: fifteen tags and `overflowed`."""
    slabs: Rows
    owners: Numbers
    processes: list[Row]
    digests: list[bytes | None]
    """Of each namespace row in use; None for a free one."""

    def is_alive(self, process: int) -> bool:
        """Where nobody can be asked everybody counts as alive: better silent than wrong about the living."""
        return process < self.geometry.process_limit and (self.alive is None or process in self.alive)

    def is_attached(self, process: int) -> bool:
        """Does its row say that somebody still has to clean up after it?"""
        return process < self.geometry.process_limit and self.processes[process][1] != 0

    def name_of(self, process: int) -> str:
        """A process for people: its number, its id where there is a row, and whether it lives."""
        if process >= self.geometry.process_limit:
            return f"process number {process}, which cannot be"
        life = "alive" if self.is_alive(process) else "dead"
        return f"process {process} (pid {self.processes[process][2]}, {life})"

    def column(self, process: int) -> Iterator[tuple[int, bytes]]:
        """A process's pin column in pieces: (slot of the first counter, bytes)."""
        section, slots = self.geometry.sections["pins"], self.geometry.slot_count
        start, end = section.place(process * slots), section.place((process + 1) * slots)
        for at in range(start, end, len(ZEROS)):
            yield (at - start) // 2, whole(self.index, at, min(len(ZEROS), end - at))


def _shared(
    geometry: Geometry, layout: Layout, index: PoolFile
) -> tuple[set[int] | None, list[Row], list[bytes | None]]:
    """Who lives, the process table and the namespaces: small, and read anew at every look. Who lives comes first."""
    first = layout.constants["lock_byte_process"]
    held = held_bytes(geometry.folder / "lock", range(first, first + geometry.process_limit))
    alive = None if held is None else {byte - first for byte in held}
    section = geometry.sections["processes"]
    table = whole(index, section.offset, section.bytes)
    processes = list(layout.row("ProcessRow", *PROCESS_FIELDS).iter_unpack(table))
    if alive is not None:
        now_ns = host_boot_ns()
        for number, (attached, lease_ns) in enumerate(
            layout.row("ProcessRow", "attached", "lease_ns").iter_unpack(table)
        ):
            if attached and 0 < lease_ns - now_ns <= LEASE_LIMIT_NS:
                alive.add(number)
    section = geometry.sections["namespaces"]
    row = layout.row("NamespaceRow", "word", "digest")
    rows = row.iter_unpack(whole(index, section.offset, section.bytes))
    return alive, processes, [digest if word == 1 else None for word, digest in rows]


def read_tables(geometry: Geometry, layout: Layout, index: PoolFile) -> Tables:
    """Everything at once: about as much memory as the index has without its pin columns."""
    alive, processes, digests = _shared(geometry, layout, index)

    def rows(name: str, struct_name: str, fields: tuple[str, ...]) -> _ReadRows:
        section = geometry.sections[name]
        return _ReadRows(whole(index, section.offset, section.bytes), layout.row(struct_name, *fields))

    def numbers(name: str, code: str) -> array[int]:
        section = geometry.sections[name]
        out = array(code)
        out.frombytes(whole(index, section.offset, section.bytes))
        return out

    # Slots before owners, so that a chunk that leaves between the two readings looks like one that is gone.
    return Tables(
        geometry, layout, index, alive,
        hot=rows("slots_hot", "SlotHot", HOT_FIELDS),
        owners=numbers("owners", "Q"),
        slabs=rows("slabs", "SlabRow", SLAB_FIELDS),
        tags=numbers("buckets", "I"),
        cold=rows("slots_cold", "SlotCold", COLD_FIELDS),
        processes=processes,
        digests=digests,
    )  # fmt: skip


def fresh_tables(geometry: Geometry, layout: Layout, index: PoolFile) -> Tables:
    """Nothing kept: each row is read when a rule asks for it."""
    alive, processes, digests = _shared(geometry, layout, index)

    def rows(name: str, struct_name: str, fields: tuple[str, ...]) -> _FreshRows:
        return _FreshRows(index, geometry.sections[name], layout.row(struct_name, *fields))

    return Tables(
        geometry, layout, index, alive,
        hot=rows("slots_hot", "SlotHot", HOT_FIELDS),
        owners=_FreshNumbers(index, geometry.sections["owners"].offset, 8),
        slabs=rows("slabs", "SlabRow", SLAB_FIELDS),
        tags=_FreshNumbers(index, geometry.sections["buckets"].offset, 4),
        cold=rows("slots_cold", "SlotCold", COLD_FIELDS),
        processes=processes,
        digests=digests,
    )  # fmt: skip
