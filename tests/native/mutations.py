"""Which bytes of a pool a hostile hand would change, and to what: one plan a case, the same for the same seed.

Places come from `maru/pool_format.json` and the superblock of the pool itself, so a new field is mutated the day it is
there. A plan also says which wrong bytes a reader may then see: a slot whose words were changed may show anything
inside the pool, its neighbours may not. `hostile.cpp` carries plans out.
"""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

FORMAT = json.loads((Path(__file__).resolve().parents[2] / "src" / "maru" / "pool_format.json").read_text())
STRUCTS = {struct["name"]: struct for struct in FORMAT["structs"]}
PLACES = {
    name: {field["name"]: (field["offset"], field["bytes"]) for field in struct["fields"]}
    for name, struct in STRUCTS.items()
}
LAST_STEP = 12  # Of hostile.cpp's steps: leaving.
KEPT_WHOLE = {"magic", "layout_crc", "format", "boot_id"}  # Any change is refused at once: a case each is enough.


@dataclass(frozen=True)
class Section:
    """A table of the pool: `count` rows of one struct, or of bare words."""

    name: str
    file: str  # "i" for the index, "s" for the segment.
    base: int
    row_bytes: int
    count: int
    fields: dict[str, tuple[int, int]]
    weight: int


class Image:
    """A sound pool: its bytes, and where its tables lie."""

    def __init__(self, folder: Path) -> None:
        self.index = (folder / "index").read_bytes()
        with (folder / "segment-0").open("rb") as segment:
            self.segment = segment.read()
        self.units_per_slab = self.word("slab_bytes") // self.word("unit_bytes")
        self.sections = self._sections()

    def word(self, field: str) -> int:
        offset, size = PLACES["Superblock"][field]
        return int.from_bytes(self.index[offset : offset + size], "little")

    def bytes_of(self, file: str) -> bytes:
        return self.index if file == "i" else self.segment

    def _sections(self) -> list[Section]:
        word = self.word
        slots, units = word("slot_count"), word("slab_count") * self.units_per_slab
        header = PLACES["SegmentHeader"]["data_offset"][0]
        data = int.from_bytes(self.segment[header : header + 8], "little")

        def table(struct: str, offset: str, count: int, weight: int) -> Section:
            size = STRUCTS[struct]["bytes"]
            return Section(struct, "i", word(offset) if offset else 0, size, count, PLACES[struct], weight)

        def words(name: str, offset: str, size: int, count: int, weight: int) -> Section:
            return Section(name, "i", word(offset), size, count, {"word": (0, size)}, weight)

        headers = STRUCTS["SegmentHeader"]["bytes"]
        return [
            table("Superblock", "", 1, 12),
            table("SegmentRow", "offset_segments", 2, 6),
            table("ProcessRow", "offset_processes", word("process_limit"), 4),
            table("CounterRow", "offset_counters", word("process_limit"), 1),
            table("ClassRow", "offset_classes", FORMAT["constants"]["class_limit"], 5),
            table("NamespaceRow", "offset_namespaces", word("namespace_limit"), 4),
            table("TenantRow", "offset_tenants", word("tenant_limit"), 4),
            table("ShardRow", "offset_shards", word("shard_count") + 1, 3),
            table("Bucket", "offset_buckets", slots // FORMAT["constants"]["bucket_slots"], 6),
            table("SlotHot", "offset_slots_hot", slots, 26),
            table("SlotCold", "offset_slots_cold", slots, 10),
            table("SlabRow", "offset_slabs", word("slab_count"), 16),
            words("owners", "offset_owners", 8, units, 12),
            words("pins", "offset_pins", 2, slots * word("process_limit"), 3),
            table("ReuseTable", "offset_reuse", 1, 4),
            Section("SegmentHeader", "s", 0, headers, 1, PLACES["SegmentHeader"], 3),
            Section("ExtentHeader", "s", headers, STRUCTS["ExtentHeader"]["bytes"], units, PLACES["ExtentHeader"], 4),
            Section("data", "s", data, word("unit_bytes"), units, {"bytes": (0, word("unit_bytes"))}, 3),
        ]


@dataclass
class Mutation:
    """One change of up to eight bytes, and what it is about."""

    section: Section
    row: int
    field: str
    offset: int  # In the file.
    width: int
    operator: str
    operand: int

    def order(self) -> str:
        return f"{self.section.file}:{self.offset}:{self.width}:{self.operator}:{self.operand}"

    def told(self) -> str:
        return f"{self.section.name}[{self.row}].{self.field} {self.operator}{self.operand:#x} ({self.width} bytes)"


@dataclass
class Plan:
    """One case: what is changed, before which step, and which chunks may then show wrong bytes."""

    number: int
    step: int
    trusted: str
    mutations: list[Mutation]

    def line(self) -> str:
        return " ".join([str(self.number), str(self.step), self.trusted, *(m.order() for m in self.mutations)])

    def told(self) -> str:
        return f"before step {self.step}: " + "; ".join(m.told() for m in self.mutations)


def make_plan(image: Image, seed: int, number: int, verifies: bool) -> Plan:
    """Case `number` of `seed`, whatever was planned before. `verifies`: this pool checks its bytes at each pin."""
    dice = random.Random(f"{seed}/{number}")
    count = 1 if dice.random() < 0.7 else dice.randint(2, 5)
    mutations = [mutation for _ in range(count) for mutation in _mutate(image, dice)]
    step = 0 if dice.random() < 0.6 else dice.randint(1, LAST_STEP)
    return Plan(number, step, _trusted(image, mutations, count, step, verifies), mutations)


def _mutate(image: Image, dice: random.Random) -> list[Mutation]:
    section = dice.choices(image.sections, [s.weight for s in image.sections])[0]
    content = image.bytes_of(section.file)
    row = _choose_row(section, content, dice)
    start = section.base + row * section.row_bytes
    if dice.random() < 0.04:  # The whole row is noise, or another row.
        other = section.base + dice.randrange(section.count) * section.row_bytes
        is_copy = dice.random() < 0.5
        return [
            Mutation(section, row, f"+{at}", start + at, min(8, section.row_bytes - at), *(
                ("<", other + at) if is_copy else ("=", dice.getrandbits(64))
            ))
            for at in range(0, min(section.row_bytes, 128), 8)
        ]  # fmt: skip
    field = dice.choice(list(section.fields))
    if field in KEPT_WHOLE and dice.random() < 0.9:
        field = dice.choice(list(section.fields))
    place, size = section.fields[field]
    width = size if size in (1, 2, 4, 8) else _element_bytes(section.name, field)
    at = start + place + dice.randrange(max(1, size // width)) * width
    return [Mutation(section, row, field, at, width, *_change(section, at, width, field, content, dice))]


def _element_bytes(struct: str, field: str) -> int:
    """Bytes of one element of an array field."""
    arrays = {("Bucket", "tag"): 4, ("ClassRow", "cursor"): 4}
    return 1 if field in ("path", "name", "tenant", "index_path", "bytes") else arrays.get((struct, field), 8)


def _choose_row(section: Section, content: bytes, dice: random.Random) -> int:
    """Mostly a row that says something."""
    for _ in range(12 if dice.random() < 0.8 else 1):
        row = dice.randrange(section.count)
        at = section.base + row * section.row_bytes
        if any(content[at : at + section.row_bytes]):
            break
    return row


def _change(section: Section, at: int, width: int, field: str, content: bytes, dice: random.Random) -> tuple[str, int]:
    """Operator and operand: a boundary, a step beside what is there, a neighbour's value, or noise."""
    full = (1 << width * 8) - 1
    kind = dice.randrange(8)
    if kind == 0:
        return "=", dice.choice([0, 1, 2, 3, full, full - 1, full >> 1, (full >> 1) + 1, full >> 8])
    if kind == 1:
        return "+", dice.choice([1, full, 2, 64, 1024, 4096]) & full
    if kind in (2, 3):
        return "^", 1 << dice.randrange(width * 8)
    if kind == 4:
        other = at + dice.choice([-1, 1]) * section.row_bytes
        return "<", other if 0 <= other <= len(content) - width else at
    if kind == 5:
        return "=", dice.randrange(300)
    if kind == 6 and width == 8:  # Looks like a state word: state, process, number, and the owner's kind on top.
        word = dice.randrange(16) | dice.choice([0, 1, 2, 3, 4, 254, 255]) << 8 | dice.randrange(70) << 16
        return "=", word | dice.choice([0, 0, 1, 2, 3]) << 62
    return "=", dice.getrandbits(width * 8)


def _trusted(image: Image, mutations: list[Mutation], count: int, step: int, verifies: bool) -> str:
    """Which chunks may show wrong bytes, and it would be the mutation's own doing.

    Tables that only hint, or that readers check, excuse nobody. Several changes at once may conspire.
    """
    if count > 1:
        return "all"
    blamed = {"none"}
    for mutation in mutations:
        name, row = mutation.section.name, mutation.row
        if name in ("SlotHot", "SlotCold"):
            blamed.add(f"s{row}")
        elif name == "owners":
            blamed.add(f"u{row}")
        elif name == "SlabRow":
            blamed.add(f"b{row}")
        elif name == "data" and not (verifies and step == 0):
            chunk_units = image.units_per_slab  # A chunk lies in one slab.
            blamed.add(f"b{row // chunk_units}")
        elif (name == "pins" or mutation.field == "live") and step > 0:
            return "all"  # Who zeroes a living reader's pin takes the chunk from under it.
        elif mutation.field == "checksum_policy":
            return "all"  # And whoever attaches then verifies nothing.
    return ",".join(sorted(blamed))
