"""What tests do with pools by name, and with a pool's NUMA nodes, which no machine of ours has several of."""

from __future__ import annotations

import json
from pathlib import Path

import maru
from maru.native import core


def with_force_gone(url: str) -> None:
    """Destroy the pool if it is there."""
    try:
        maru.Pool.destroy(url, force=True)
    except maru.MaruError:
        return


def say_numa_nodes(pool: maru.Pool, *nodes: int) -> None:
    """Write into the index which node each segment lies on; -1: unknown."""
    for number, node in enumerate(nodes):
        write_field(pool, "segments", "SegmentRow", number, "numa_node", node)


def write_field(pool: maru.Pool, table: str, struct: str, row: int, field: str, value: int) -> None:
    """Write one number into a row of one of the index's tables. Negative ones as the field's size holds them."""
    structs = {item["name"]: item for item in json.loads(core.layout_description())["structs"]}
    fields = {name: {one["name"]: one for one in item["fields"]} for name, item in structs.items()}
    begins, place = fields["Superblock"][f"offset_{table}"], fields[struct][field]
    with (Path(pool.folder) / "index").open("r+b") as index:
        index.seek(begins["offset"])
        first_row = int.from_bytes(index.read(begins["bytes"]), "little")
        index.seek(first_row + row * structs[struct]["bytes"] + place["offset"])
        index.write((value % (1 << 8 * place["bytes"])).to_bytes(place["bytes"], "little"))
