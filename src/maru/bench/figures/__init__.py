"""The figures of `maru bench`, one module each.

base         what a figure is
ttft         time to first token by context length: computed, first transfer, reuse
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maru.bench.figures.base import Figure

NAMES = {
    "ttft": "time to first token by context length: computed, first transfer, reuse",
    "concurrency": "time to first token of cache hits when 1, 2, 4, 8, ... of them come at once",
    "multiturn": "conversations about long contexts of real source code, with the cache and without it",
    "bandwidth": "raw bandwidth and latency, and what a GiB through each store costs in CPU and network",
    "capacity": "hit rate against pool size on traces, beside LRU, S3-FIFO and the exact optimum",
}
"""What each figure shows, in the order of the report. Known without importing what measuring needs."""


def figure_named(name: str) -> Figure:
    figure: Figure = importlib.import_module(f"{__name__}.{name}").FIGURE
    return figure
