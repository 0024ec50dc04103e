"""Rules about who holds what: the process table, pin columns, shard locks, namespaces, segments, the boot.

These tables are small (but for the pin columns), so that every look walks all of them.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator
from pathlib import Path

from maru.check.files import PoolFile
from maru.check.finding import Finding, Severity, Suspects
from maru.check.geometry import Segment
from maru.check.slots import Progress, no_progress
from maru.check.tables import ZEROS, Tables, whole
from maru.errors import PoolMismatch

_TOLD_MAX = 8
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def look_at_holders(tables: Tables, suspects: Suspects, progress: Progress = no_progress) -> None:
    """Judge processes, pins, locks and namespaces."""
    _look_at_processes(tables, suspects, progress)
    _look_at_locks(tables, suspects)
    _look_at_namespaces(tables, suspects)


def _look_at_processes(tables: Tables, suspects: Suspects, progress: Progress) -> None:
    geometry, layout = tables.geometry, tables.layout
    live_at = layout.offset("Superblock", "live")
    live = int.from_bytes(whole(tables.index, live_at, 32), "little")
    if tables.alive is None:
        what = "the lock file cannot be asked who lives: everybody is taken for alive, and nobody can attach"
        suspects.add(Finding("error", "lock.file", "pool", -1, what, "lock", -1, "destroy"))
    for process, (epoch, attached, _) in enumerate(tables.processes):
        progress("pins", process, geometry.process_limit)

        def say(
            severity: Severity, code: str, what: str, place: int, advice: str, *words: int, number: int = process
        ) -> None:
            suspects.add(Finding(severity, code, "process", number, what, "index", place, advice, words))

        row_at = geometry.sections["processes"].place(process) + layout.offset("ProcessRow", "attached")
        pins_at = geometry.sections["pins"].place(process * geometry.slot_count)
        is_live = live >> process & 1
        if attached > 1:
            say("error", "process.attached", f"attached is {attached}, not 0 or 1", row_at, "restore", epoch, attached)
        if tables.is_alive(process):
            if tables.alive is not None:
                _look_at_living_pins(tables, suspects, process)
            continue
        count, slots = _pins_of(tables, process)
        told = ", ".join(map(str, slots)) + (", …" if count > len(slots) else "")
        if attached:
            say("leftover", "process.dead", f"{tables.name_of(process)} is still in the table", row_at, "reap", epoch)
            if count:
                what = f"pins of {tables.name_of(process)} on {count:,} slots ({told})"
                say("leftover", "process.dead-pins", what, pins_at, "reap", epoch, count)
            continue
        if count:
            what = f"pins of {tables.name_of(process)} on {count:,} slots ({told}), which nobody will wipe"
            say("error", "process.stranded-pins", what, pins_at, "destroy", epoch, count)
        if is_live:
            what = f"the live bit of {tables.name_of(process)}, whose row is empty"
            say("error", "process.live-bit", what, live_at + process // 64 * 8, "restore", epoch)
    beyond = live >> geometry.process_limit
    if beyond:
        what = "live bits of processes beyond the limit"
        suspects.add(Finding("error", "process.live-bit", "pool", -1, what, "index", live_at, "restore", (live,)))


def _pinned(tables: Tables, process: int) -> Iterator[tuple[int, int]]:
    """(slot, pins) of every slot that this column pins. Most of a column is zero, so four counters go at a time."""
    for start, piece in tables.column(process):
        if piece == ZEROS or piece == ZEROS[: len(piece)]:
            continue
        fours = array("Q")
        fours.frombytes(piece + bytes(-len(piece) % 8))
        for n, four in enumerate(fours):
            while four:
                place = ((four & -four).bit_length() - 1) // 16
                pins = four >> 16 * place & 0xFFFF
                yield start + 4 * n + place, pins
                four ^= pins << 16 * place


def _pins_of(tables: Tables, process: int) -> tuple[int, list[int]]:
    """(how many slots this column pins, the first few of them)."""
    count = 0
    first: list[int] = []
    for slot, _ in _pinned(tables, process):
        count += 1
        if len(first) < _TOLD_MAX:
            first.append(slot)
    return count, first


def _look_at_living_pins(tables: Tables, suspects: Suspects, process: int) -> None:
    """A living process pins nothing that is free, but for the moment in which it looks and lets go."""
    free = tables.layout.slot_states.index("FREE")
    for slot, pins in _pinned(tables, process):
        word = tables.hot[slot][0]
        if tables.layout.words["slot"].get("state", word) == free:
            what = f"{tables.name_of(process)} pins slot {slot}, which is free"
            place = tables.geometry.sections["pins"].place(process * tables.geometry.slot_count + slot)
            words = (slot, word, pins)
            suspects.add(Finding("note", "process.pins-free", "process", process, what, "index", place, "look", words))


def _look_at_locks(tables: Tables, suspects: Suspects) -> None:
    section = tables.geometry.sections["shards"]
    row = tables.layout.row("ShardRow", "owner")
    for shard, (owner,) in enumerate(row.iter_unpack(whole(tables.index, section.offset, section.bytes))):
        if not owner:
            continue
        process = tables.layout.words["shard"].get("process_plus_one", owner) - 1
        what, words = f"its lock is held by {tables.name_of(process) if process >= 0 else 'nobody'}", (owner,)
        place = section.place(shard)
        if not 0 <= process < tables.geometry.process_limit:
            finding = Finding("error", "shard.owner", "shard", shard, what, "index", place, "restore", words)
        elif tables.is_alive(process):
            finding = Finding("note", "shard.held", "shard", shard, what, "index", place, "look", words)
        else:
            # Whoever needs it next takes it, so that it need not wait for a cleaner.
            finding = Finding("leftover", "shard.dead", "shard", shard, what, "index", place, "reap", words)
        suspects.add(finding)


def _look_at_namespaces(tables: Tables, suspects: Suspects) -> None:
    section = tables.geometry.sections["namespaces"]
    row = tables.layout.row("NamespaceRow", "word", "digest")
    seen: dict[bytes, int] = {}
    for number, (word, digest) in enumerate(row.iter_unpack(whole(tables.index, section.offset, section.bytes))):
        place = section.place(number)

        def say(code: str, what: str, *words: int, row: int = number, at: int = place) -> None:
            suspects.add(Finding("error", code, "namespace", row, what, "index", at, "restore", words))

        if word > 1 or (number == 0 and word != 1):
            say("namespace.word", f"its word is {word:#x}", word)
        elif word == 1 and seen.setdefault(digest, number) != number:
            say("namespace.twice", f"the same namespace as row {seen[digest]}", seen[digest])


def open_segments(tables: Tables, suspects: Suspects) -> dict[int, PoolFile]:
    """Open each segment and judge its header; one that is missing or not ours is a finding and stays closed."""
    files = {}
    for segment in tables.geometry.segments:
        state = tables.layout.segment_states[segment.state]
        if state == "AWAITED":
            continue  # Its memory is still to come; the index has room for it.
        if state != "ONLINE":
            suspects.add(
                Finding("note", "segment.state", "segment", segment.number, f"its state is {state}", advice="none")
            )
        try:
            file = PoolFile(segment.path)
        except PoolMismatch as error:
            what = f"{error.message}; its chunks are there in the index only"
            suspects.add(
                Finding("error", "segment.file", "segment", segment.number, what, str(segment.path), -1, "mount")
            )
            continue
        problem = _header_problem(tables, segment, file)
        if problem:
            suspects.add(
                Finding("error", "segment.header", "segment", segment.number, problem, str(segment.path), 0, "mount")
            )
            file.close()
        else:
            files[segment.number] = file
    return files


def _header_problem(tables: Tables, segment: Segment, file: PoolFile) -> str:
    """Why this file is not the segment that the index speaks of; "" when it is."""
    layout, geometry = tables.layout, tables.geometry
    fields = ("magic", "format", "layout_crc", "pool_uuid", "segment_uuid", "data_offset", "slab_bytes", "unit_bytes",
              "segment_index", "first_slab", "slab_count", "index_path")  # fmt: skip
    length = file.size_bytes()
    if length is not None and length < segment.file_bytes:
        return f"it is cut off after {length:,} of {segment.file_bytes:,} bytes"
    try:
        raw = whole(file, 0, layout.sizes["SegmentHeader"])
        head = dict(zip(fields, layout.row("SegmentHeader", *fields).unpack(raw), strict=True))
    except (PoolMismatch, struct.error) as error:
        return str(error)
    if head["magic"] != layout.constants["segment_magic"]:
        return "it is not a Maru segment"
    if head["pool_uuid"] != geometry.pool_uuid or head["segment_uuid"] != segment.uuid:
        other = head["index_path"].split(b"\0")[0].decode("utf-8", "replace")
        return f"it belongs to another pool (whose index lies in {other})"
    wanted = {
        "format": layout.format,
        "layout_crc": layout.crc,
        "data_offset": segment.data_offset,
        "slab_bytes": geometry.slab_bytes,
        "unit_bytes": geometry.unit_bytes,
        "segment_index": segment.number,
        "first_slab": segment.first_slab,
        "slab_count": segment.slab_count,
    }
    wrong = [name for name, value in wanted.items() if head[name] != value]
    return f"its header and the index disagree about {', '.join(wrong)}" if wrong else ""


def look_at_boot(tables: Tables, suspects: Suspects, boot_id_file: Path = _BOOT_ID) -> None:
    """A pool of an earlier boot, or of another machine, can be checked as files; attach refuses it."""
    try:
        boot = bytes.fromhex(boot_id_file.read_text().strip().replace("-", ""))
    except (OSError, ValueError):
        return
    if tables.geometry.boot_id != boot:
        what = "made in another boot: nobody can attach to it; checked as files"
        place = tables.layout.offset("Superblock", "boot_id")
        suspects.add(Finding("note", "superblock.boot", "superblock", -1, what, "index", place, "destroy"))
