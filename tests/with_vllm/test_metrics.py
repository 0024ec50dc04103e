"""Promises of the figures in vLLM's own metrics: counts add up over workers and steps, gauges are the latest."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

import maru
from maru.engine.vllm.metrics import COUNTERS, GAUGES, MaruPromMetrics, MaruStats, PoolWatch


def stats(gauges: dict[str, float] | None = None, **counters: float) -> MaruStats:
    one = MaruStats()
    for name, by in counters.items():
        one.add(name, by)
    one.data["gauges"].update(gauges or {})
    return one


def test_counts_of_workers_and_steps_add_up_and_gauges_are_the_latest() -> None:
    whole = stats({"pool_chunks": 1}, loaded_tokens=256, load_seconds=0.5)
    whole.aggregate(stats({"pool_chunks": 3}, loaded_tokens=512, stored_tokens=7))
    assert whole.data == {
        "counters": {"loaded_tokens": 768, "load_seconds": 0.5, "stored_tokens": 7},
        "gauges": {"pool_chunks": 3},
    }
    assert whole.reduce() == {"maru_loaded_tokens": 768, "maru_load_seconds": 0.5, "maru_stored_tokens": 7}


def test_nothing_done_is_empty() -> None:
    assert stats(loaded_tokens=0).is_empty()
    assert not stats(loaded_tokens=1).is_empty()
    whole = stats(loaded_tokens=1)
    whole.reset()
    assert whole.is_empty()


def test_prometheus_shows_every_name_by_engine() -> None:
    registry = CollectorRegistry()

    def of(kind: type[Any]) -> Any:
        return lambda **described: kind(registry=registry, **described)

    metrics = MaruPromMetrics(
        SimpleNamespace(kv_transfer_config=None),  # type: ignore[arg-type]
        {Counter: of(Counter), Gauge: of(Gauge), Histogram: of(Histogram)},
        ["model_name", "engine"],
        {0: ["m", "0"], 1: ["m", "1"]},
    )
    metrics.observe(stats(dict.fromkeys(GAUGES, 5), **dict.fromkeys(COUNTERS, 2)).data, 1)
    metrics.observe(stats(loaded_tokens=3).data, 1)
    labels = {"model_name": "m", "engine": "1"}
    assert registry.get_sample_value("vllm:maru_loaded_tokens_total", labels) == 5
    assert registry.get_sample_value("vllm:maru_pool_used_bytes", labels) == 5
    assert registry.get_sample_value("vllm:maru_loaded_tokens_total", {"model_name": "m", "engine": "0"}) == 0


def test_the_pool_is_looked_at_in_a_thread_and_each_look_told_once(pool: maru.Pool) -> None:
    looked = threading.Event()

    def look() -> dict[str, Any]:
        figures = pool.stats()
        looked.set()
        return figures

    watch = PoolWatch(look, every_s=3600)
    try:
        assert looked.wait(30)
        watch.close()
        assert watch.take() == {"pool_bytes": pool.stats()["size_bytes"], "pool_used_bytes": 0, "pool_chunks": 0}
        assert watch.take() == {}
    finally:
        watch.close()


def test_a_pool_that_is_closed_ends_the_looking(pool: maru.Pool) -> None:
    pool.close()
    watch = PoolWatch(pool.stats, every_s=0)
    watch._thread.join(30)
    assert not watch._thread.is_alive()
    assert watch.take() == {}
