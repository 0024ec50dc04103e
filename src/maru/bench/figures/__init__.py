"""The figures of `maru bench`, one module each.

    base         what a figure is
    ttft         time to first token by context length: computed, first transfer, reuse
    concurrency  time to first token of hits that come at once
    energy       tokens per joule, or CPU seconds a token
    multiturn    conversations about long contexts
    tiers        the pool on different media
    below        places below the pool, beside the same thing raw
    bandwidth    what the medium can do, and what a GiB costs through each store
    hosts        hits on other hosts, by each way to a pool
    workloads    streams of requests: hit rates by source, waiting, throughput
    chaos        steady load while processes are killed
    cost         prefill seconds and money that a GiB of pool saves
    capacity     hit rate by pool size, on traces

A new one is a module here with a FIGURE, and a line in NAMES.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from maru.bench.figures.base import Figure

NAMES = {
    "ttft": "time to first token by context length: computed, first transfer, reuse",
    "concurrency": "time to first token of cache hits when 1, 2, 4, 8, ... of them come at once",
    "energy": "tokens per joule by context length, or CPU seconds a token where nothing counts joules",
    "multiturn": "conversations about long contexts of real source code, with the cache and without it",
    "tiers": "the same load with the pool on different media, and against recompute",
    "below": "places below the pool beside the same thing raw: throughput, codecs, what puts wait, prefixes",
    "bandwidth": "raw bandwidth and latency, and what a GiB through each store costs in CPU and network",
    "hosts": "hits on other hosts: local, mapped, over the wire, encrypted, beside Redis, for several hosts at once",
    "workloads": "streams of requests: what hits and from where, how long users wait, what the machine does",
    "chaos": "steady load while replicas and cache servers are killed: goodput, wrong answers, time to the next hit",
    "cost": "prefill seconds that a GiB of pool saves in a day, and money, with your prices",
    "capacity": "hit rate against pool size on traces, beside LRU, S3-FIFO and the exact optimum",
}
"""What each figure shows, in the order of the report. Known without importing what measuring needs."""


def figure_named(name: str) -> Figure:
    figure: Figure = importlib.import_module(f"{__name__}.{name}").FIGURE
    return figure
