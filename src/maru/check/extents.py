"""Rules about slabs, owner words and extent headers: who owns each piece of the data, seen from the data's side.

A slab is cut into chunks of one size, so extents cannot overlap as long as each owner word stands at the head of a
chunk and each slot owns one of them; slots.py looks from the other side.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable, Iterable, Mapping

from maru.check.clock import host_boot_ns
from maru.check.files import PoolFile
from maru.check.finding import Finding, Severity, Suspects
from maru.check.slots import Progress, SlotRules, no_progress
from maru.check.tables import HEADER_FIELDS, Row

_FREE, _PROCESS, _SLOT, _COOLING = range(4)
_COOLING_SLACK_MS = 1000


class ExtentRules:
    """The rules, bound to the tables of one look and to the segments' files that could be opened."""

    def __init__(self, slots: SlotRules, suspects: Suspects, files: Mapping[int, PoolFile]) -> None:
        self.tables = slots.tables
        self.slots, self._suspects, self.files = slots, suspects, files
        layout = self.tables.layout
        self._kind_shift = layout.words["owner"].field("kind")[0]
        self._value_mask = layout.words["owner"].field("value")[1]
        self._header = layout.row("ExtentHeader", *HEADER_FIELDS)
        self._mark_at = layout.offset("ExtentHeader", "sealed") // 4
        self._mark_step = layout.sizes["ExtentHeader"] // 4
        self._generation = layout.words["slot"].field("generation")[0]
        self._checksummed = layout.constants["slot_checksummed"]
        self._sealed = layout.slot_states.index("SEALED")
        self._lost = layout.segment_states.index("LOST")
        self._cooling_aside = layout.words["owner"].make(kind=_COOLING, wiped=1)
        self._until_ms_max = (host_boot_ns() + self.tables.geometry.cooling_ns) // 1_000_000 + _COOLING_SLACK_MS

    def look(self, progress: Progress = no_progress) -> None:
        """Judge every slab and every unit."""
        geometry, all_owners = self.tables.geometry, self.tables.owners
        header_bytes = geometry.header_bytes
        assert isinstance(all_owners, array)  # Read in one go: what the first look is for.
        for slab in range(geometry.slab_count):
            progress("extents", slab, geometry.slab_count)
            units = self.look_at_slab(slab)
            base = slab * geometry.units_per_slab
            owners = all_owners[base : base + geometry.units_per_slab]
            heads = 0
            if units:
                headers = self._headers(slab, 0, geometry.units_per_slab // units)
                marks = memoryview(headers).cast("I") if headers else None
                for n in range(geometry.units_per_slab // units):
                    owner = owners[n * units]
                    heads += owner != 0
                    mark = marks[n * self._mark_step + self._mark_at] if marks else 0
                    if owner or mark:
                        row = headers[n * header_bytes : (n + 1) * header_bytes]
                        self._look_at_head(base + n * units, owner, units, row)
            if geometry.units_per_slab - owners.count(0) > heads:
                for n, owner in enumerate(owners):
                    if owner and (not units or n % units):
                        self._look_at_stray(base + n, owner)

    def look_again(self, units: Iterable[int], slabs: Iterable[int]) -> None:
        """Judge only these."""
        geometry = self.tables.geometry
        for slab in slabs:
            self.look_at_slab(slab)
        for unit in units:
            slab, within = divmod(unit, geometry.units_per_slab)
            owner = self.tables.owners[unit]
            chunk_units = self.chunk_units(self.tables.slabs[slab][0])
            if chunk_units and within % chunk_units == 0:
                self._look_at_head(unit, owner, chunk_units, self._headers(slab, within // chunk_units, 1))
            elif owner:
                self._look_at_stray(unit, owner)

    def chunk_units(self, slab_word: int) -> int:
        """Size of a slab's chunks; 0 for a slab that is not cut, or whose word is impossible."""
        bits = self.tables.layout.words["slab"]
        units = bits.get("chunk_units", slab_word)
        is_cut = 0 < bits.get("state", slab_word) < len(self.tables.layout.slab_states)
        return units if is_cut and units <= self.tables.geometry.units_per_slab else 0

    def look_at_slab(self, slab: int) -> int:
        """Judge its row; returns the size of its chunks in units, 0 for none."""
        layout, geometry = self.tables.layout, self.tables.geometry
        word, real = self.tables.slabs[slab]
        bits = layout.words["slab"]
        state, process, units = (bits.get(name, word) for name in ("state", "process", "chunk_units"))

        def say(severity: Severity, code: str, what: str, field: str = "word", advice: str = "restore") -> None:
            place = geometry.sections["slabs"].place(slab) + layout.offset("SlabRow", field)
            words = (word, real) if field == "real_bytes" else (word,)
            self._suspects.add(Finding(severity, code, "slab", slab, what, "index", place, advice, words))

        if real > geometry.slab_bytes:
            say("error", "slab.real", f"{real:,} real bytes, and it has {geometry.slab_bytes:,}", "real_bytes")
        if state >= len(layout.slab_states):
            say("error", "slab.state", f"state {state} does not exist")
            return 0
        name = layout.slab_states[state]
        nobody = layout.constants["nobody"]
        if word & bits.spare or (name == "FREE" and word) or (name == "ACTIVE" and process != nobody):
            say("error", "slab.word", f"{name} with bits that mean nothing ({word:#018x})")
        if name != "FREE" and not 0 < units <= geometry.units_per_slab:
            say("error", "slab.size", f"chunks of {units:,} units, and it has {geometry.units_per_slab:,}")
        if name == "DRAINING" and not self.tables.is_alive(process):
            if self.tables.is_attached(process):
                say("leftover", "slab.dead", f"being re-cut by {self.tables.name_of(process)}", advice="reap")
            else:
                what = f"being re-cut by {self.tables.name_of(process)}, after whom nobody will clean up"
                say("error", "slab.stranded", what, advice="destroy")
        return self.chunk_units(word)

    def _headers(self, slab: int, first: int, count: int) -> bytes:
        """Rows of the slab's table of extent headers; none where its segment cannot be read or has none yet."""
        geometry = self.tables.geometry
        segment = geometry.segment_of_slab(slab)
        file = self.files.get(segment.number)
        if file is None or not self.tables.slabs[slab][1] or segment.state == self._lost:
            return b""  # What a lost segment says about itself counts for nothing.
        length = count * geometry.header_bytes
        data = file.read(geometry.header_place(slab) + first * geometry.header_bytes, length)
        return data if len(data) == length else b""

    def _is_still(self, unit: int, owner: int) -> bool:
        """False for an owner word that has moved on since it was read: common in a pool in use."""
        place = self.tables.geometry.sections["owners"].place(unit)
        return self.tables.index.read(place, 8) == owner.to_bytes(8, "little")

    def _say(
        self, severity: Severity, code: str, unit: int, what: str, owner: int, *words: int, advice: str = "restore"
    ) -> None:
        if not self._is_still(unit, owner):
            return
        place = self.tables.geometry.sections["owners"].place(unit)
        words = (owner, *words)
        self._suspects.add(Finding(severity, code, "unit", unit, what, "index", place, advice, words))

    def _look_at_owner(self, unit: int, owner: int) -> int:
        """What an owner word says about itself; returns its kind."""
        kind, value = owner >> self._kind_shift, owner & self._value_mask
        if kind == _FREE:
            if owner:
                self._say("error", "unit.word", unit, f"free, with bits that mean nothing ({owner:#018x})", owner)
        elif kind == _PROCESS:
            if not self.tables.is_alive(value):
                self._look_at_dead(unit, owner, value)
        elif kind == _COOLING and owner & ~self._cooling_aside > self._until_ms_max:
            what = "rests longer than the pool's cooling time: its space is lost until then"
            self._say("error", "unit.cooling", unit, what, owner, advice="destroy")
        return kind

    def _look_at_dead(self, unit: int, owner: int, process: int) -> None:
        if self.tables.is_attached(process):
            self._say("leftover", "unit.dead", unit, f"held by {self.tables.name_of(process)}", owner, advice="reap")
        else:
            what = f"held by {self.tables.name_of(process)}, after whom nobody will clean up"
            self._say("error", "unit.stranded", unit, what, owner, advice="destroy")

    def _look_at_stray(self, unit: int, owner: int) -> None:
        """An owner word inside a chunk or in a slab that is not cut: only whoever re-cuts a slab leaves one."""
        if self._look_at_owner(unit, owner) in (_SLOT, _COOLING):
            self._say("error", "unit.inside", unit, f"an owner word where no chunk begins ({owner:#018x})", owner)

    def _look_at_head(self, unit: int, owner: int, chunk_units: int, header: bytes) -> None:
        kind = self._look_at_owner(unit, owner)
        fields = self._header.unpack(header) if header else None
        if kind == _SLOT:
            slot = owner & self._value_mask
            if slot >= self.tables.geometry.slot_count:
                self._say("error", "unit.slot", unit, f"owned by slot {slot:,}, which does not exist", owner)
                return
            row = self.tables.hot[slot]
            state = self.slots.state_of(row[0])
            if state == 0 or self.slots.unit_of(row[3], max(row[4], 1)) != unit:
                what = f"owned by slot {slot}, which does not own it: the space is leaked"
                self._say("error", "unit.leaked", unit, what, owner, row[0], row[3], advice="destroy")
            elif state == self._sealed and fields:
                self._look_at_header(unit, slot, row, chunk_units, fields)
        elif fields and fields[-1] and kind in (_FREE, _COOLING) and not self._is_device(unit):
            # A raw device may hold anything from an earlier life; a file began empty.
            self._say_stale_header(unit, owner, fields[-1])

    def _say_stale_header(self, unit: int, owner: int, mark: int) -> None:
        if self._is_still(unit, owner):
            self._say_header(unit, "header.stale", "describes a sealed chunk where there is none", owner, mark)

    def _is_device(self, unit: int) -> bool:
        segment = self.tables.geometry.segment_of_slab(unit // self.tables.geometry.units_per_slab)
        return self.files[segment.number].size_bytes() is None

    def _say_header(self, unit: int, code: str, what: str, *words: int) -> None:
        geometry = self.tables.geometry
        slab, within = divmod(unit, geometry.units_per_slab)
        units = self.chunk_units(self.tables.slabs[slab][0]) or 1
        place = geometry.header_place(slab) + within // units * geometry.header_bytes
        file = str(geometry.segment_of_slab(slab).path)
        self._suspects.add(
            Finding("error", code, "unit", unit, f"its extent header {what}", file, place, "restore", words)
        )

    def _look_at_header(self, unit: int, slot: int, row: Row, chunk_units: int, header: Row) -> None:
        word, key_lo, key_hi, _, size, namespace, row_epoch, _, flags = row
        head_lo, head_hi, digest, generation, epoch, head_size, checksum, units, mark = header
        digests = self.tables.digests
        wrong = [
            name
            for name, is_wrong in (
                ("mark", mark == 0),
                ("key", head_lo != key_lo or head_hi != key_hi),
                ("size", head_size != size),
                ("generation", generation != word >> self._generation & 0xFFFFFFFF),
                ("namespace epoch", epoch != row_epoch),
                ("chunk size", units % self.tables.layout.constants["header_expires"] != chunk_units),
                ("namespace", namespace < len(digests) and digests[namespace] not in (None, digest)),
                ("checksum", flags & self._checksummed and checksum != self.tables.cold[slot][5]),
            )
            if is_wrong
        ]
        if wrong and self.slots.word_now(slot) == word:
            what = f"does not describe slot {slot}: {', '.join(wrong)}"
            self._say_header(unit, "header.mismatch", what, word, mark, head_lo, head_hi, head_size)


def verify_bytes(
    rules: ExtentRules, checksum_of: Callable[[bytes], int], progress: Progress = no_progress
) -> tuple[list[Finding], int]:
    """Hash every checksummed sealed chunk and every header of a sealed one: (what does not match, bytes hashed).

    A chunk counts only if its slot's word is the same before and after, so that one that left meanwhile is no finding.
    """
    tables, files = rules.tables, rules.files
    geometry, layout = tables.geometry, tables.layout
    sealed, flag = layout.slot_states.index("SEALED"), layout.constants["slot_checksummed"]
    order = []
    for slot in range(geometry.slot_count):
        row = tables.hot[slot]
        if rules.slots.state_of(row[0]) == sealed:
            unit = rules.slots.unit_of(row[3], row[4])
            if unit >= 0:
                order.append((unit, slot))
    findings, verified = [], 0
    for n, (unit, slot) in enumerate(sorted(order)):
        progress("bytes", n, len(order))
        slab, within = divmod(unit, geometry.units_per_slab)
        file = files.get(geometry.segment_of_slab(slab).number)
        units = rules.chunk_units(tables.slabs[slab][0])
        if file is None or not units or within % units:
            continue
        word, size, is_flagged = tables.hot[slot][0], tables.hot[slot][4], tables.hot[slot][8] & flag
        place = geometry.data_place(unit)
        header_place = geometry.header_place(slab) + within // units * geometry.header_bytes
        header = file.read(header_place, geometry.header_bytes)
        mark_at = layout.offset("ExtentHeader", "sealed")
        identity = int.from_bytes(geometry.pool_uuid[:8], "little")
        mark = struct.unpack_from("<I", header, mark_at)[0] if len(header) == geometry.header_bytes else 0
        wrong = []
        if mark != ((checksum_of(header[:mark_at]) ^ identity) & 0xFFFFFFFF or 1):
            what = f"the extent header of slot {slot} does not match its own mark"
            wrong.append(Finding("error", "header.mark", "unit", unit, what, str(file.path), header_place))
        if is_flagged:
            data = file.read(place, size)
            verified += len(data)
            if checksum_of(data) != tables.cold[slot][5]:
                what = f"its {size:,} bytes do not match their checksum"
                wrong.append(
                    Finding("error", "slot.bytes", "slot", slot, what, str(file.path), place, "quarantine", (word,))
                )
        if wrong and rules.slots.word_now(slot) == word:
            findings += wrong
    return findings, verified
