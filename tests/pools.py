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
    structs = {item["name"]: item for item in json.loads(core.layout_description())["structs"]}
    fields = {name: {one["name"]: one for one in item["fields"]} for name, item in structs.items()}
    table, node_of_row = fields["Superblock"]["offset_segments"], fields["SegmentRow"]["numa_node"]
    with (Path(pool.folder) / "index").open("r+b") as index:
        index.seek(table["offset"])
        first_row = int.from_bytes(index.read(table["bytes"]), "little")
        for number, node in enumerate(nodes):
            index.seek(first_row + number * structs["SegmentRow"]["bytes"] + node_of_row["offset"])
            index.write(node.to_bytes(node_of_row["bytes"], "little", signed=True))
