"""What vLLM shows of this door in its own metrics: /metrics of its server, LLM.get_metrics(), and the line in its log.

Holds:      the names, and how counts of several workers and steps become one.
Promises:   counters only ever grow by what was done once; the pool's gauges are those of the latest look.
Leaves:     counting to the two sides, and everything about the pool that is not here to `maru stat`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.metrics import (
    KVConnectorPromMetrics,
    KVConnectorStats,
    PromMetric,
)

from maru.errors import MaruError

LOOK_EVERY_S = 10.0
COUNTERS = {
    "loaded_tokens": "Tokens whose KV was copied from the pool into vLLM's blocks.",
    "loaded_bytes": "Bytes copied from the pool into vLLM's blocks.",
    "loaded_remote_bytes": "Bytes loaded from another NUMA node than the GPU's.",
    "load_seconds": "Seconds that steps waited for KV from the pool.",
    "stored_tokens": "Tokens whose KV was stored in the pool, once for each rank.",
    "stored_bytes": "Bytes stored in the pool.",
    "stored_remote_bytes": "Bytes stored on another NUMA node than the GPU's.",
    "store_seconds": "Seconds that steps waited for KV to be stored.",
    "failed_blocks": "Blocks that could not be loaded and were computed instead.",
    "lookups": "Prompts that were looked up in the pool.",
    "lookup_seconds": "Seconds that looking prompts up and pinning them took.",
    "waits": "Prompts held back because another instance was computing their beginning.",
    "wait_seconds": "Seconds that those prompts were held back.",
}
GAUGES = {
    "pool_bytes": "Size of the pool in bytes.",
    "pool_used_bytes": "Bytes of the pool that hold chunks.",
    "pool_chunks": "Chunks that can be hit.",
}


class MaruStats(KVConnectorStats):
    """`data`: {"counters": {name: sum}, "gauges": {name: latest}}, without what is nought."""

    def __init__(self, data: dict[str, Any] | None = None) -> None:
        super().__init__(data or {"counters": {}, "gauges": {}})

    def reset(self) -> None:
        self.data: dict[str, Any] = {"counters": {}, "gauges": {}}

    def add(self, name: str, by: float) -> None:
        """`name`: one of COUNTERS."""
        if by:
            self.data["counters"][name] = self.data["counters"].get(name, 0) + by

    def aggregate(self, other: KVConnectorStats) -> KVConnectorStats:
        for name, by in other.data["counters"].items():
            self.add(name, by)
        self.data["gauges"].update(other.data["gauges"])
        return self

    def reduce(self) -> dict[str, int | float]:
        """What vLLM's log line says of an interval."""
        return {f"maru_{name}": round(value, 4) for name, value in self.data["counters"].items()}

    def is_empty(self) -> bool:
        return not self.data["counters"] and not self.data["gauges"]


class MaruPromMetrics(KVConnectorPromMetrics):
    """The same in Prometheus, as vllm:maru_NAME with vLLM's labels."""

    def __init__(
        self,
        vllm_config: Any,
        metric_types: dict[type[PromMetric], type[Any]],
        labelnames: list[str],
        per_engine_labelvalues: dict[int, list[object]],
    ) -> None:
        super().__init__(vllm_config, metric_types, labelnames, per_engine_labelvalues)
        self._by_engine: dict[int, dict[str, Any]] = {engine: {} for engine in per_engine_labelvalues}
        kinds: tuple[tuple[dict[str, str], Any], ...] = ((COUNTERS, self._counter_cls), (GAUGES, self._gauge_cls))
        for texts, kind in kinds:
            for name, text in texts.items():
                metric = kind(name=f"vllm:maru_{name}", documentation=text, labelnames=labelnames)
                for engine, values in per_engine_labelvalues.items():
                    self._by_engine[engine][name] = metric.labels(*values)

    def observe(self, transfer_stats_data: dict[str, Any], engine_idx: int = 0) -> None:
        metrics = self._by_engine[engine_idx]
        for name, by in transfer_stats_data["counters"].items():
            metrics[name].inc(by)
        for name, value in transfer_stats_data["gauges"].items():
            metrics[name].set(value)


class PoolWatch:
    """Looks at the pool now and then in a thread of its own: that walks the index, and no step shall wait for it."""

    def __init__(self, look: Callable[[], dict[str, Any]], every_s: float = LOOK_EVERY_S) -> None:
        """`look`: Pool.stats."""
        self._look = look
        self._every_s = every_s
        self._latest: dict[str, float] | None = None
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="maru-pool-watch", daemon=True)
        self._thread.start()

    def take(self) -> dict[str, float]:
        """Gauges since the last call; empty when nobody looked since."""
        latest, self._latest = self._latest, None
        return latest or {}

    def close(self) -> None:
        self._closing.set()
        self._thread.join(LOOK_EVERY_S)

    def _run(self) -> None:
        while True:
            try:
                figures = self._look()
            except MaruError:
                return  # Closed or gone: whoever uses the pool says so.
            self._latest = {
                "pool_bytes": figures["size_bytes"],
                "pool_used_bytes": figures["used_bytes"],
                "pool_chunks": figures["chunks"]["sealed"],
            }
            if self._closing.wait(self._every_s):
                return
