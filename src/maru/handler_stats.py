"""The pool's figures in the words and the shape that the reference implementation's clients read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def handler_stats(stats: Mapping[str, Any], chunk_size: int, operations: Mapping[str, int]) -> dict[str, Any]:
    """`stats` as of Pool.stats(); pages are counted in units of `chunk_size` bytes, as the reference does."""
    size, used = stats["size_bytes"], stats["used_bytes"]
    pages, used_pages = size // chunk_size, -(-used // chunk_size)
    regions = [
        {"region_id": number, "pool_size": row["bytes"], "page_count": row["bytes"] // chunk_size}
        for number, row in enumerate(stats["segments"])
    ]
    whole = {
        "page_count": pages,
        "free_pages": max(0, pages - used_pages),
        "allocated_pages": used_pages,
        "utilization": used / size if size else 0.0,
    }
    living = [row for row in stats["processes"] if row["alive"]]
    return {
        "kv_manager": {"total_entries": stats["chunks"]["sealed"], "total_size": stats["chunk_bytes"]},
        "allocation_manager": {
            "num_allocations": len(regions),
            "total_allocated": size,
            "active_clients": [row["name"] for row in living],
        },
        "stats_manager": {
            "clients": {"_all": {"operations": {name: {"count": count} for name, count in operations.items()}}}
        },
        "store_regions": {
            "num_regions": len(regions),
            "total_pool_size": size,
            "total_page_count": whole["page_count"],
            "total_free_pages": whole["free_pages"],
            "total_allocated_pages": whole["allocated_pages"],
            "utilization": whole["utilization"],
            "regions": regions,
        },
        "allocator": {"pool_size": size, "chunk_size": chunk_size, "region_id": 0, **whole},
    }


class Allocator:
    """`handler.allocator`: counts of pages, asked for when they are read."""

    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self._stats = stats

    def get_stats(self) -> dict[str, Any]:
        figures: dict[str, Any] = self._stats()["allocator"]
        return figures

    @property
    def page_count(self) -> int:
        return int(self.get_stats()["page_count"])

    @property
    def num_free_pages(self) -> int:
        return int(self.get_stats()["free_pages"])

    @property
    def num_allocated(self) -> int:
        return int(self.get_stats()["allocated_pages"])

    @property
    def chunk_size(self) -> int:
        return int(self.get_stats()["chunk_size"])


class RegionManager:
    """`handler.owned_region_manager`: the pool's segments."""

    def __init__(self, stats: Callable[[], dict[str, Any]]) -> None:
        self._stats = stats

    def get_stats(self) -> dict[str, Any]:
        figures: dict[str, Any] = self._stats()["store_regions"]
        return figures

    def get_first_region_id(self) -> int:
        return 0
