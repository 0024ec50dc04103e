"""/metrics of the places below the pool: what each has taken and given, how it fails, and what was lost on the way."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

_STATES = ("up", "read-only", "down")
_BY_DIRECTION = (("in", "stored"), ("out", "loaded"))
_TROUBLES = ("timeouts", "failures", "full", "torn", "left_alone")


def tier_metrics(below: Mapping[str, Any]) -> Iterator[Metric]:
    """`below`: as Facts.below() gives it; nothing for nothing."""
    if not below:
        return
    state = GaugeMetricFamily("maru_tier_state", "1 for the state that a place is in.", labels=["tier", "state"])
    chunks = CounterMetricFamily("maru_tier_chunks", "Chunks that a place took and gave.", labels=["tier", "direction"])
    size = CounterMetricFamily("maru_tier_bytes", "Their bytes, as in the pool.", labels=["tier", "direction"])
    kept = CounterMetricFamily("maru_tier_object_bytes", "Bytes stored there, packed.", labels=["tier"])
    trouble = CounterMetricFamily("maru_tier_failures", "Times that it was no use, by reason.", labels=["tier", "why"])
    speed = GaugeMetricFamily("maru_tier_bytes_per_second", "Of late.", labels=["tier", "direction"])
    for place in below["places"]:
        name = place["url"]
        for one in _STATES:
            state.add_metric([name, one], int(place["state"] == one))
        for direction, figure in _BY_DIRECTION:
            chunks.add_metric([name, direction], place[figure])
            size.add_metric([name, direction], place[f"{figure}_bytes"])
        kept.add_metric([name], place["stored_object_bytes"])
        for why in _TROUBLES:
            trouble.add_metric([name, why], place[why])
        for direction, figure in (("in", "store_bytes_per_s"), ("out", "load_bytes_per_s")):
            if place[figure] is not None:
                speed.add_metric([name, direction], place[figure])
    yield from (state, chunks, size, kept, trouble, speed)
    demoter, promoter = below["demoter"], below["promoter"]
    yield GaugeMetricFamily("maru_tier_demoter", "1 when this process copies chunks below.", int(demoter["is_ours"]))
    yield GaugeMetricFamily("maru_tier_copied_bytes", "Bytes in the pool that lie below too.", demoter["copied_bytes"])
    yield CounterMetricFamily("maru_tier_dropped_chunks", "Chunks that left without a copy below.", demoter["dropped"])
    yield CounterMetricFamily("maru_tier_promoted_chunks", "Chunks that came up.", promoter["promoted"])
    yield CounterMetricFamily("maru_tier_late_prefixes", "Prefixes that did not come up in time.", promoter["late"])
    yield CounterMetricFamily(
        "maru_tier_computed_chunks", "Chunks left below, since computing them is quicker.", promoter["computed_instead"]
    )
