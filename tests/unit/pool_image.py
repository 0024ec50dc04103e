"""A pool's files as bytes that a test may damage: fields by name, rows by number."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from maru.native import core

DESCRIBED = json.loads(core.layout_description())
STRUCTS: dict[str, dict[str, Any]] = {item["name"]: item for item in DESCRIBED["structs"]}
PLACES = {name: {f["name"]: (f["offset"], f["bytes"]) for f in item["fields"]} for name, item in STRUCTS.items()}
_SECTIONS = {
    "segments": "SegmentRow",
    "processes": "ProcessRow",
    "namespaces": "NamespaceRow",
    "shards": "ShardRow",
    "buckets": "Bucket",
    "slots_hot": "SlotHot",
    "slots_cold": "SlotCold",
    "slabs": "SlabRow",
}
SEALED = DESCRIBED["slot_states"].index("SEALED")
SLOT_OWNER = DESCRIBED["owner_kinds"].index("SLOT")


class Image:
    """A copy of a pool's folder that nobody has attached."""

    def __init__(self, original: Path, copy: Path) -> None:
        self.folder = Path(shutil.copytree(original, copy))
        self.index = self.folder / "index"
        self.segment = self.folder / "segment-0"

    def read(self, at: int, size: int, file: Path | None = None) -> int:
        with (file or self.index).open("rb") as opened:
            opened.seek(at)
            return int.from_bytes(opened.read(size), "little")

    def write(self, at: int, size: int, value: int, file: Path | None = None) -> None:
        with (file or self.index).open("r+b") as opened:
            opened.seek(at)
            opened.write(value.to_bytes(size, "little"))

    def head(self, field: str) -> int:
        return self.read(*PLACES["Superblock"][field])

    def set_head(self, field: str, value: int) -> None:
        self.write(*PLACES["Superblock"][field], value)

    def _place(self, section: str, number: int, field: str) -> tuple[int, int]:
        struct = _SECTIONS[section]
        offset, size = PLACES[struct][field]
        return self.head(f"offset_{section}") + number * STRUCTS[struct]["bytes"] + offset, size

    def get(self, section: str, number: int, field: str) -> int:
        return self.read(*self._place(section, number, field))

    def set(self, section: str, number: int, field: str, value: int) -> None:
        self.write(*self._place(section, number, field), value)

    # ---- slots ----

    def slots(self, state: int = SEALED) -> list[int]:
        """Numbers of the slots in this state."""
        return [n for n in range(self.head("slot_count")) if self.get("slots_hot", n, "word") & 15 == state]

    def tag_place(self, slot: int) -> int:
        bucket, place = divmod(slot, DESCRIBED["constants"]["bucket_slots"])
        return self.head("offset_buckets") + bucket * STRUCTS["Bucket"]["bytes"] + 4 * place

    def copy_slot(self, source: int, target: int) -> None:
        """Make `target` the twin of `source`, tag and all."""
        for section in ("slots_hot", "slots_cold"):
            size = STRUCTS[_SECTIONS[section]]["bytes"]
            base = self.head(f"offset_{section}")
            self.write(base + target * size, size, self.read(base + source * size, size))
        self.write(self.tag_place(target), 4, self.read(self.tag_place(source), 4))

    # ---- owners, pins, the segment (one segment: a unit's number is its place) ----

    def unit_of(self, slot: int) -> int:
        return (self.get("slots_hot", slot, "extent") & (1 << 56) - 1) // self.head("unit_bytes")

    def owner(self, unit: int) -> int:
        return self.read(self.head("offset_owners") + 8 * unit, 8)

    def set_owner(self, unit: int, value: int) -> None:
        self.write(self.head("offset_owners") + 8 * unit, 8, value)

    def set_pin(self, process: int, slot: int, count: int) -> None:
        self.write(self.head("offset_pins") + 2 * (process * self.head("slot_count") + slot), 2, count)

    def header_place(self, unit: int) -> int:
        per_slab = self.head("slab_bytes") // self.head("unit_bytes")
        slab, within = divmod(unit, per_slab)
        units = self.get("slabs", slab, "word") >> 16 & 0xFFFFFF
        row = slab * per_slab + within // (units or 1)
        return self.get("segments", 0, "header_offset") + row * STRUCTS["ExtentHeader"]["bytes"]

    def set_header(self, unit: int, field: str, value: int) -> None:
        offset, size = PLACES["ExtentHeader"][field]
        self.write(self.header_place(unit) + offset, size, value, self.segment)

    def data_place(self, unit: int) -> int:
        return self.get("segments", 0, "data_offset") + unit * self.head("unit_bytes")
