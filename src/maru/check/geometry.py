"""How many of what, and where: read from the superblock and the segment table, believed only after it adds up.

Each number is bounded before it is used to compute another. What does not add up raises PoolMismatch with a sentence:
without it no slot and no extent can be found, so there is nothing that could be checked further.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from maru.check.files import PoolFile
from maru.check.layout import Layout
from maru.errors import PoolMismatch, PoolNotFound

SUPERBLOCK_SECTION_BYTES = 4096
_PAGE = 4096
_HUGE_PAGE = 2 << 20
_LIVE, _DESTROYED = 1, 2
_KNOWN_INCOMPATIBLE = 0
_SHARDS_MAX = 256
_PROCESSES_MAX = 255
_NAMESPACES_MAX = 1 << 20
_SLABS_MAX = 1 << 20
_SLOTS_MAX = 1 << 31
_SLAB_BYTES_MAX = 16 << 30
_DATA_BYTES_MAX = 1 << 47
_FILE_BYTES_MAX = 1 << 50
_TENANT_ROWS_MAX = 4096
_REUSE_ENTRIES_MIN, _REUSE_ENTRIES_MAX = 1 << 13, 1 << 16

_ADDS_UP = (
    "index_bytes", "unit_bytes", "slab_bytes", "slot_count", "buckets_per_shard", "shard_count", "slab_count",
    "process_limit", "namespace_limit", "tenant_limit", "checksum_policy", "reuse_entries",
)  # fmt: skip


@dataclass(frozen=True)
class Section:
    """A table of the index: `count` rows of `row_bytes`, from byte `offset`."""

    offset: int
    row_bytes: int
    count: int

    @property
    def bytes(self) -> int:
        return self.row_bytes * self.count

    def place(self, number: int) -> int:
        """Byte offset of row `number` in the index."""
        return self.offset + number * self.row_bytes


@dataclass(frozen=True)
class Segment:
    """One data segment, as the index has it."""

    number: int
    state: int
    uuid: bytes
    file_bytes: int
    header_offset: int
    data_offset: int
    first_slab: int
    slab_count: int
    path: Path


@dataclass(frozen=True)
class Geometry:
    """The numbers that bound every later step."""

    folder: Path
    pool_uuid: bytes
    boot_id: bytes
    unit_bytes: int
    slab_bytes: int
    units_per_slab: int
    slab_count: int
    slot_count: int
    buckets_per_shard: int
    shard_count: int
    process_limit: int
    namespace_limit: int
    cooling_ns: int
    header_bytes: int
    """Of one extent header."""
    sections: dict[str, Section]
    segments: tuple[Segment, ...]

    @property
    def unit_count(self) -> int:
        return self.slab_count * self.units_per_slab

    def segment_of_slab(self, slab: int) -> Segment:
        for segment in self.segments:
            if slab < segment.first_slab + segment.slab_count:
                return segment
        raise IndexError(slab)

    def header_place(self, slab: int) -> int:
        """Byte offset, in its segment's file, of the first extent header of a slab."""
        segment = self.segment_of_slab(slab)
        return segment.header_offset + (slab - segment.first_slab) * self.units_per_slab * self.header_bytes

    def data_place(self, unit: int) -> int:
        """Byte offset of a unit's bytes in its segment's file."""
        slab, within = divmod(unit, self.units_per_slab)
        segment = self.segment_of_slab(slab)
        return segment.data_offset + (slab - segment.first_slab) * self.slab_bytes + within * self.unit_bytes


def read_geometry(folder: Path, index: PoolFile, layout: Layout) -> Geometry:
    """Read and refuse. Raises PoolNotFound where there is no pool, PoolMismatch where there is a torn one."""
    length = index.size_bytes() or 0
    fields = tuple(layout.places["Superblock"])
    raw = index.read(0, layout.sizes["Superblock"])
    if raw[:8].strip(b"\0") == b"":
        raise PoolNotFound(f"no complete pool at {folder}: its creator died, or it was destroyed", path=str(folder))
    if len(raw) < layout.sizes["Superblock"]:
        _torn(index, f"the index is cut off after {length:,} bytes")
    head = dict(zip(fields, layout.row("Superblock", *fields).unpack(raw), strict=True))
    _refuse_strangers(index, head, layout)
    g = {name: int(head[name]) for name in _ADDS_UP}
    _refuse_unbounded(index, g, layout)
    sections = _sections(g, layout)
    for name, section in sections.items():
        if head[f"offset_{name}"] != section.offset:
            _torn(index, f"section {name} begins at byte {head[f'offset_{name}']:,}, not at {section.offset:,}")
    if g["index_bytes"] != _end(sections):
        _torn(index, f"index_bytes is {g['index_bytes']:,}, not {_end(sections):,}")
    if length < g["index_bytes"]:
        _torn(index, f"the index is cut off after {length:,} of {g['index_bytes']:,} bytes")
    return Geometry(
        folder=folder,
        pool_uuid=head["pool_uuid"],
        boot_id=head["boot_id"],
        unit_bytes=g["unit_bytes"],
        slab_bytes=g["slab_bytes"],
        units_per_slab=g["slab_bytes"] // g["unit_bytes"],
        slab_count=g["slab_count"],
        slot_count=g["slot_count"],
        buckets_per_shard=g["buckets_per_shard"],
        shard_count=g["shard_count"],
        process_limit=g["process_limit"],
        namespace_limit=g["namespace_limit"],
        cooling_ns=int(head["cooling_ns"]),
        header_bytes=layout.sizes["ExtentHeader"],
        sections=sections,
        segments=_segments(folder, index, g, sections["segments"], layout),
    )


def _torn(index: PoolFile, what: str) -> None:
    raise PoolMismatch(f"{index.path}: {what}; destroy the pool and create it again", path=str(index.path))


def _refuse_strangers(index: PoolFile, head: dict[str, int | bytes], layout: Layout) -> None:
    if head["magic"] != layout.constants["index_magic"]:
        _torn(index, "this is not a Maru index")
    if head["format"] != layout.format:
        what = f"pool format {int(head['format'])}, this version reads {layout.format}; use the version that made it"
        raise PoolMismatch(f"{index.path}: {what}", path=str(index.path))
    unknown = int(head["features_incompatible"]) & ~_KNOWN_INCOMPATIBLE
    if unknown:
        what = f"the pool uses features that this version does not know (bits {unknown:#x}); upgrade Maru"
        raise PoolMismatch(f"{index.path}: {what}", path=str(index.path))
    if head["layout_crc"] != layout.crc:
        _torn(index, f"laid out by another build (layout {int(head['layout_crc']):08x}, ours {layout.crc:08x})")
    if head["state"] == _DESTROYED:
        raise PoolNotFound(f"the pool at {index.path.parent} was destroyed", path=str(index.path.parent))
    if head["state"] != _LIVE:
        _torn(index, f"torn superblock: state word {int(head['state']):#x}")


def _refuse_unbounded(index: PoolFile, g: dict[str, int], layout: Layout) -> None:
    units_per_slab = g["slab_bytes"] // max(g["unit_bytes"], 1)
    bounds = {
        "unit_bytes": _is_power(g["unit_bytes"]) and 512 <= g["unit_bytes"] <= _HUGE_PAGE,
        "slab_bytes": _is_power(g["slab_bytes"])
        and 4 * g["unit_bytes"] <= g["slab_bytes"] <= _SLAB_BYTES_MAX
        and units_per_slab < 1 << 24,
        "slab_count": 0 < g["slab_count"] <= _SLABS_MAX and g["slab_count"] * g["slab_bytes"] <= _DATA_BYTES_MAX,
        "shard_count": _is_power(g["shard_count"]) and g["shard_count"] <= _SHARDS_MAX,
        "buckets_per_shard": 0 < g["buckets_per_shard"] <= _SLOTS_MAX,
        "slot_count": g["slot_count"] == g["buckets_per_shard"] * g["shard_count"] * layout.constants["bucket_slots"]
        and g["slot_count"] <= _SLOTS_MAX + (1 << 20),
        "process_limit": 1 <= g["process_limit"] <= _PROCESSES_MAX,
        "namespace_limit": 1 <= g["namespace_limit"] <= _NAMESPACES_MAX,
        "tenant_limit": g["tenant_limit"] == min(g["namespace_limit"] + 1, _TENANT_ROWS_MAX),
        "checksum_policy": g["checksum_policy"] <= 2,
        "reuse_entries": _is_power(g["reuse_entries"])
        and _REUSE_ENTRIES_MIN <= g["reuse_entries"] <= _REUSE_ENTRIES_MAX,
    }
    for name, is_good in bounds.items():
        if not is_good:
            _torn(index, f"torn superblock: {name} is {g[name]:,}")


def _is_power(value: int) -> bool:
    return value > 0 and value & (value - 1) == 0


def _sections(g: dict[str, int], layout: Layout) -> dict[str, Section]:
    bucket_count = g["buckets_per_shard"] * g["shard_count"]
    units = g["slab_count"] * (g["slab_bytes"] // g["unit_bytes"])
    rows = {
        "segments": (layout.sizes["SegmentRow"], layout.constants["segment_limit"]),
        "processes": (layout.sizes["ProcessRow"], g["process_limit"]),
        "counters": (layout.sizes["CounterRow"], g["process_limit"]),
        "classes": (layout.sizes["ClassRow"], layout.constants["class_limit"]),
        "namespaces": (layout.sizes["NamespaceRow"], g["namespace_limit"]),
        "shards": (layout.sizes["ShardRow"], g["shard_count"] + 1),
        "buckets": (layout.sizes["Bucket"], bucket_count),
        "slots_hot": (layout.sizes["SlotHot"], g["slot_count"]),
        "slots_cold": (layout.sizes["SlotCold"], g["slot_count"]),
        "slabs": (layout.sizes["SlabRow"], g["slab_count"]),
        "owners": (8, units),
        "pins": (2, g["slot_count"] * g["process_limit"]),
        "reuse": (1, layout.sizes["ReuseTable"] + 8 * g["reuse_entries"]),
        "tenants": (layout.sizes["TenantRow"], g["tenant_limit"]),
    }
    sections, at = {}, SUPERBLOCK_SECTION_BYTES
    for name, (row_bytes, count) in rows.items():
        sections[name] = Section(at, row_bytes, count)
        at = _round_up(at + row_bytes * count)
    return sections


def _end(sections: dict[str, Section]) -> int:
    return max(_round_up(section.offset + section.bytes) for section in sections.values())


def _round_up(at: int) -> int:
    return -(-at // _PAGE) * _PAGE


def _segments(folder: Path, index: PoolFile, g: dict[str, int], table: Section, layout: Layout) -> tuple[Segment, ...]:
    """The rows up to the first absent one; they lie side by side and cover all slabs."""
    fields = ("word", "segment_uuid", "file_bytes", "header_offset", "data_offset", "first_slab", "slab_count",
              "medium", "path")  # fmt: skip
    row = layout.row("SegmentRow", *fields)
    raw = index.read(table.offset, table.bytes)
    units_per_slab = g["slab_bytes"] // g["unit_bytes"]
    found: list[Segment] = []
    slabs = 0
    for number in range(table.count):
        word, uuid, file_bytes, header_offset, data_offset, first, count, medium, path = row.unpack_from(
            raw, number * table.row_bytes
        )
        state = layout.words["segment"].get("state", word)
        if layout.segment_states[state : state + 1] == ["ABSENT"]:
            break
        header_bytes = count * units_per_slab * layout.sizes["ExtentHeader"]
        if not (
            state < len(layout.segment_states)
            and first == slabs
            and 0 < count <= g["slab_count"] - slabs
            and header_offset
            == layout.sizes["SegmentHeader"] + _round_up(layout.sizes["NamespaceMark"] * g["namespace_limit"])
            and data_offset % _HUGE_PAGE == 0
            and header_offset + header_bytes <= data_offset <= _FILE_BYTES_MAX
            and data_offset + count * g["slab_bytes"] <= file_bytes <= _FILE_BYTES_MAX
            and 1 <= medium <= 4
        ):
            _torn(index, f"torn segment table at segment {number}")
        slabs += count
        name = path.split(b"\0")[0].decode("utf-8", "surrogateescape")
        place = Path(name) if "/" in name else folder / name
        found.append(Segment(number, state, uuid, file_bytes, header_offset, data_offset, first, count, place))
    if slabs != g["slab_count"]:
        _torn(index, f"torn segment table: it has {slabs:,} of {g['slab_count']:,} slabs")
    return tuple(found)
