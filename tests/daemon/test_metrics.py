"""/metrics: every figure is there, in base units, and none of them misleads Prometheus."""

from __future__ import annotations

import math
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import maru
from fake_daemon import HISTOGRAM, FakeFacts
from maru.daemon.facts import Histogram, quantile
from maru.daemon.looks import Looks
from maru.daemon.metrics import COUNTERS, DIFFERENCES, Metrics


class CountingPool:
    """A pool whose looks are counted, and whose figures a test may change."""

    def __init__(self, pool: maru.Pool) -> None:
        self.real, self.walks, self.counters = pool, 0, {}
        self.destroyed, self.folder = False, pool.folder

    def stats(self) -> dict[str, Any]:
        self.walks += 1
        figures = self.real.stats()
        figures["counters"].update(self.counters)
        return figures


@pytest.fixture
def facts(pool: maru.Pool) -> FakeFacts:
    return FakeFacts(pools={"kv": pool})


def scrape(facts: FakeFacts, metrics: Metrics | None = None) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample of one scrape, by its name and labels."""
    text = (metrics or Metrics(facts, Looks(facts))).text().decode()
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: dict[tuple[str, tuple[tuple[str, str], ...]], float], metric: str, /, **labels: str) -> float:
    return samples[metric, tuple(sorted(labels.items()))]


def test_every_counter_of_the_pool_is_told(pool: maru.Pool) -> None:
    told = set(COUNTERS) | {whole for whole, *_ in DIFFERENCES}
    assert set(pool.stats()["counters"]) == told


def test_hits_misses_and_bytes_are_what_was_asked_and_moved(facts: FakeFacts, pool: maru.Pool) -> None:
    pool.put(b"k" * 16, b"x" * 5000)
    with pool.pin(b"k" * 16 + b"absent-absent-ab") as prefix:
        assert len(prefix) == 1
        samples = scrape(facts)
    counters = pool.stats()["counters"]
    assert value(samples, "maru_lookup_hits_total", pool="kv") == counters["hit_keys"] >= 1
    assert value(samples, "maru_lookup_misses_total", pool="kv") == counters["lookup_keys"] - counters["hit_keys"] >= 1
    assert value(samples, "maru_bytes_total", pool="kv", direction="read") == 5000
    assert value(samples, "maru_bytes_total", pool="kv", direction="stored") == 5000
    assert value(samples, "maru_pins", pool="kv") == 1
    assert value(samples, "maru_chunks", pool="kv", state="sealed") == 1
    assert value(samples, "maru_processes", pool="kv", alive="true") == 1


def test_namespaces_and_chunk_sizes_show_who_takes_up_what(facts: FakeFacts, pool: maru.Pool) -> None:
    space = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="blue"))
    with pool.reserve(b"n" * 16, 4096, namespace=space) as reservation:
        assert value(scrape(facts), "maru_reservations_in_flight", pool="kv") == 1
        reservation.buffer[:] = b"y" * 4096
        reservation.seal()
    samples = scrape(facts)
    digest = space.digest.hex()
    assert value(samples, "maru_namespace_bytes", pool="kv", namespace=digest, tenant="blue") == 4096
    assert value(samples, "maru_namespace_chunks", pool="kv", namespace=digest, tenant="blue") == 1
    assert value(samples, "maru_class_slabs", pool="kv", chunk_bytes="4096") >= 1
    assert value(samples, "maru_reservations_in_flight", pool="kv") == 0


def test_a_segment_is_in_exactly_one_state(facts: FakeFacts) -> None:
    samples = scrape(facts)
    states = {
        dict(labels)["state"]: number for (name, labels), number in samples.items() if name == "maru_segment_state"
    }
    assert states["online"] == 1
    assert sum(states.values()) == 1


def test_rpc_leases_and_peers_are_told(facts: FakeFacts) -> None:
    samples = scrape(facts)
    assert value(samples, "maru_rpc_requests_total", op="lookup") == 9
    assert value(samples, "maru_rpc_errors_total", error="PoolBusy") == 2
    assert value(samples, "maru_rpc_bytes_total", direction="out") == 5000
    assert value(samples, "maru_lease_pinned_bytes", pool="kv", host="host-b", kind="mapped", row="4") == 4096
    assert value(samples, "maru_leases", kind="mapped") == 1
    assert value(samples, "maru_leases", kind="wire") == 0
    assert value(samples, "maru_peers") == 1
    assert value(samples, "maru_build_info", name="desk", version=maru.__version__) == 1


def test_a_histogram_is_cumulative_and_ends_in_infinity(facts: FakeFacts) -> None:
    samples = scrape(facts)
    counted = [value(samples, "maru_rpc_seconds_bucket", op="lookup", le=le) for le in ("0.001", "0.01", "+Inf")]
    assert counted == [6, 9, 10]
    assert value(samples, "maru_rpc_seconds_count", op="lookup") == HISTOGRAM.count == 10
    assert value(samples, "maru_rpc_seconds_sum", op="lookup") == 0.25


def test_names_say_their_unit_and_rising_ones_end_in_total(facts: FakeFacts) -> None:
    for family in text_string_to_metric_families(Metrics(facts, Looks(facts)).text().decode()):
        assert family.name.startswith("maru_")
        assert family.documentation.endswith(".")
        assert not any(unit in family.name for unit in ("_ms", "_ns", "_kb", "_mib"))
        assert family.type != "counter" or all(one.name.endswith("_total") for one in family.samples)


def test_many_scrapers_share_one_walk_a_second(facts: FakeFacts, pool: maru.Pool) -> None:
    counting, now_s = CountingPool(pool), 100.0
    facts.pools["kv"] = counting  # type: ignore[assignment]
    metrics = Metrics(facts, Looks(facts, clock=lambda: now_s))
    for _ in range(5):
        scrape(facts, metrics)
    now_s += 0.99
    scrape(facts, metrics)
    assert counting.walks == 1
    now_s += 0.02
    scrape(facts, metrics)
    assert counting.walks == 2


def test_a_difference_of_two_counters_never_falls(facts: FakeFacts, pool: maru.Pool) -> None:
    counting = CountingPool(pool)
    facts.pools["kv"] = counting  # type: ignore[assignment]
    looks = Looks(facts, age_s_max=0.0)
    metrics = Metrics(facts, looks)
    counting.counters = {"lookup_keys": 100, "hit_keys": 40}
    assert value(scrape(facts, metrics), "maru_lookup_misses_total", pool="kv") == 60
    counting.counters = {"lookup_keys": 100, "hit_keys": 41}  # Read between somebody's two additions.
    assert value(scrape(facts, metrics), "maru_lookup_misses_total", pool="kv") == 60
    counting.counters = {"lookup_keys": 110, "hit_keys": 41}
    assert value(scrape(facts, metrics), "maru_lookup_misses_total", pool="kv") == 69


def test_a_pool_that_went_away_is_down_and_the_others_are_told(
    facts: FakeFacts, pool: maru.Pool, pool_url: str
) -> None:
    gone_url = pool_url.replace("maru:///", "maru:///gone-")
    with maru.Pool.create(gone_url) as gone:
        facts.pools["gone"] = gone
        assert value(scrape(facts), "maru_pool_up", pool="gone") == 1
        maru.Pool.destroy(gone_url, force=True)
        samples = scrape(facts)
        assert value(samples, "maru_pool_up", pool="gone") == 0
        assert value(samples, "maru_pool_up", pool="kv") == 1
        assert ("maru_pins", (("pool", "gone"),)) not in samples
    assert value(scrape(facts), "maru_pool_up", pool="gone") == 0  # Closed, by now.


@pytest.mark.parametrize(("share", "seconds"), [(0.3, 0.0005), (0.6, 0.001), (0.75, 0.0055), (0.99, 0.01)])
def test_a_quantile_is_read_between_two_bounds(share: float, seconds: float) -> None:
    assert quantile(HISTOGRAM.buckets, share) == pytest.approx(seconds)


def test_a_quantile_of_nothing_is_no_number() -> None:
    assert math.isnan(quantile(Histogram(((0.1, 0), (math.inf, 0))).buckets, 0.5))
