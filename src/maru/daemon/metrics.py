"""/metrics: the daemon's figures in Prometheus' words.

Promises:   names begin with `maru_`, carry base units (bytes, seconds), and end in _total when they only rise. Every
            counter of a pool is there. A counter that is a difference of two others never falls, so that Prometheus
            sees no restart where there is none. No label grows without bound: no keys, no process ids.
Leaves:     walking the pools to `looks`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import generate_latest

from maru.daemon.facts import Facts, Histogram
from maru.daemon.looks import Look, Looks
from maru.daemon.tier_metrics import tier_metrics

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Counter of the pool: (metric, what it says, label and its value where several counters are one metric).
COUNTERS: dict[str, tuple[str, str, str, str]] = {
    "lookup_keys": ("maru_lookup_keys", "Keys asked for by lookup, pin and get.", "", ""),
    "hit_keys": ("maru_lookup_hits", "Keys asked for and found.", "", ""),
    "pinned": ("maru_pins_taken", "Pins taken.", "", ""),
    "pinned_bytes": ("maru_bytes", "Bytes read in place, and bytes stored.", "direction", "read"),
    "stored_bytes": ("maru_bytes", "", "direction", "stored"),
    "stored": ("maru_stored_chunks", "Chunks sealed.", "", ""),
    "exists": ("maru_unstored_chunks", "Stores that stored nothing, by the answer.", "answer", "exists"),
    "in_flight": ("maru_unstored_chunks", "", "answer", "in_flight"),
    "full": ("maru_unstored_chunks", "", "answer", "full"),
    "busy": ("maru_unstored_chunks", "", "answer", "busy"),
    "lost": ("maru_unstored_chunks", "", "answer", "lost"),
    "discarded": ("maru_discarded_reservations", "Reservations and drafts given back.", "", ""),
    "removed": ("maru_removed_chunks", "Chunks removed because somebody asked.", "", ""),
    "crowded_out": ("maru_evicted_chunks", "Chunks evicted, by reason.", "reason", "index_bucket_full"),
    "evicted_bytes": ("maru_evicted_bytes", "Bytes evicted to make room.", "", ""),
    "evicted_parents": ("maru_evicted_parents", "Chunks evicted although others continue them.", "", ""),
    "evict_reverts": ("maru_evict_reverts", "Evictions that gave way to a pin.", "", ""),
    "expired": ("maru_expired_chunks", "Chunks found past their time, or of a namespace that was expired.", "", ""),
    "revoked": ("maru_revoked_reservations", "Reservations taken over past their deadline.", "", ""),
    "quarantined": ("maru_quarantined_chunks", "Chunks whose bytes no longer matched their checksum.", "", ""),
    "cooled": ("maru_cooled_extents", "Extents that rested since a device might still write them.", "", ""),
    "reaped": ("maru_reaped_processes", "Dead processes cleaned up after.", "", ""),
    "resolved": ("maru_resolved_words", "Single words of dead processes resolved on the way.", "", ""),
    "lock_steals": ("maru_lock_steals", "Locks taken over from dead holders.", "", ""),
    "reclassed": ("maru_reclassed_slabs", "Slabs given another chunk size.", "", ""),
    "space_refused": ("maru_space_refused", "Times the medium gave no more space.", "", ""),
    "sweeps": ("maru_sweeps", "Sweeps of the housekeeper.", "", ""),
    "gate_refused": ("maru_gate_refused", "Stores answered FULL since what would go is wanted sooner.", "", ""),
    "key_pins_expired": ("maru_key_pins_expired", "Pins without an address, dropped at their maximum age.", "", ""),
    "suffixes_linked": ("maru_suffixes", "Batches of an engine's own keys, by what they continue.", "found", "linked"),
    "suffixes_orphaned": ("maru_suffixes", "", "found", "orphaned"),
    "suffixes_unplaced": ("maru_suffixes", "", "found", "unplaced"),
}
# A part that must not fall although its two counters are read one after the other: (whole, part, as above).
DIFFERENCES = (
    ("lookup_keys", "hit_keys", "maru_lookup_misses", "Keys asked for and not found.", "", ""),
    ("evicted", "crowded_out", "maru_evicted_chunks", "Chunks evicted, by reason.", "reason", "space_needed"),
)
_SIZES = {
    "size_bytes": ("maru_pool_size_bytes", "What the pool was made for."),
    "real_bytes": ("maru_pool_real_bytes", "What of it the medium has given."),
    "used_bytes": ("maru_pool_used_bytes", "What chunks take up, rounded to units."),
    "chunk_bytes": ("maru_pool_chunk_bytes", "Bytes of the sealed chunks."),
    "index_bytes": ("maru_pool_index_bytes", "The index in shared memory."),
}
_SEGMENT_STATES = ("online", "draining", "lost", "absent")


class Metrics:
    """The figures of one daemon. `text()` may be called from any thread."""

    def __init__(self, facts: Facts, looks: Looks) -> None:
        self._facts, self._looks = facts, looks
        self._highest: dict[tuple[str, str, str], int] = {}
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def text(self) -> bytes:
        """One scrape, in Prometheus' text format."""
        exposition: bytes = generate_latest(self._registry)
        return exposition

    def describe(self) -> list[Metric]:
        """Nothing is told before the first scrape: a registry that is asked for names walks no pool."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All metrics of this moment; what prometheus-client asks for."""
        looks = self._looks.all()
        yield from self._daemon(looks)
        living = {name: look for name, look in looks.items() if not look.error}
        yield from self._counters(living)
        yield from _sizes(living)
        yield from _occupancy(living)
        yield from _holders(living)
        yield from _segments(living)
        yield from self._leases()
        yield from self._rpc()
        yield from tier_metrics(self._facts.below())

    def _daemon(self, looks: Mapping[str, Look]) -> Iterator[Metric]:
        identity = self._facts.identity
        yield InfoMetricFamily(
            "maru_build", "Which daemon this is.", value={"name": identity.name, "version": identity.version}
        )
        yield GaugeMetricFamily("maru_start_time_seconds", "When it began, in Unix time.", identity.started_unix_s)
        yield GaugeMetricFamily("maru_ready", "1 when requests are answered.", int(self._facts.is_ready()[0]))
        yield GaugeMetricFamily("maru_peers", "Other daemons that it knows of.", len(self._facts.peers()))
        up = GaugeMetricFamily("maru_pool_up", "1 when the pool can be looked at.", labels=["pool"])
        for name, look in looks.items():
            up.add_metric([name], int(look.error is None))
        yield up

    def _counters(self, looks: Mapping[str, Look]) -> Iterator[Metric]:
        families: dict[str, Metric] = {}

        def add(metric: str, told: str, label: str, value: str, pool: str, count: int) -> None:
            labels = ["pool", label] if label else ["pool"]
            if metric not in families:
                families[metric] = CounterMetricFamily(metric, told, labels=labels)
            families[metric].add_metric([pool, value] if label else [pool], count)

        for name, look in looks.items():
            counters = look.stats["counters"]
            for counter, (metric, told, label, value) in COUNTERS.items():
                if counter in counters:
                    add(metric, told or metric, label, value, name, counters[counter])
            for whole, part, metric, told, label, value in DIFFERENCES:
                rest = counters[whole] - counters[part]
                add(metric, told, label, value, name, self._never_less((look.stats["uuid"], whole, part), rest))
        yield from families.values()

    def _never_less(self, which: tuple[str, str, str], count: int) -> int:
        """The count, or an earlier higher one. There are as many as pools that this daemon ever served."""
        self._highest[which] = max(self._highest.get(which, 0), count)
        return self._highest[which]

    def _leases(self) -> Iterator[Metric]:
        leases = self._facts.leases()
        families = {
            "pins": GaugeMetricFamily("maru_lease_pins", "Pins that a host's lease holds.", labels=_LEASE),
            "pinned_bytes": GaugeMetricFamily("maru_lease_pinned_bytes", "Bytes pinned by a lease.", labels=_LEASE),
            "reservations": GaugeMetricFamily("maru_lease_reservations", "Open reservations of it.", labels=_LEASE),
            "seconds_left": GaugeMetricFamily("maru_lease_left_seconds", "Until it ends by itself.", labels=_LEASE),
        }
        counts: dict[str, int] = {"mapped": 0, "wire": 0}
        for lease in leases:
            counts[lease.kind] = counts.get(lease.kind, 0) + 1
            for field, family in families.items():
                family.add_metric([lease.pool, lease.host, lease.kind, str(lease.row)], getattr(lease, field))
        total = GaugeMetricFamily("maru_leases", "Leases that run, by how their hosts reach bytes.", labels=["kind"])
        for kind, count in sorted(counts.items()):
            total.add_metric([kind], count)
        yield total
        yield from families.values()

    def _rpc(self) -> Iterator[Metric]:
        rpc = self._facts.rpc()
        yield GaugeMetricFamily("maru_rpc_clients", "RPC clients connected now.", rpc.clients)
        for metric, told, label, counts in (
            ("maru_rpc_requests", "Requests, by operation.", "op", rpc.requests),
            ("maru_rpc_errors", "Requests that ended in a named error.", "error", rpc.errors),
            (
                "maru_rpc_bytes",
                "Bytes through the RPC sockets.",
                "direction",
                {"in": rpc.bytes_in, "out": rpc.bytes_out},
            ),
        ):
            family = CounterMetricFamily(metric, told, labels=[label])
            for value, count in sorted(counts.items()):
                family.add_metric([value], count)
            yield family
        seconds = HistogramMetricFamily("maru_rpc_seconds", "From a request's arrival to its answer.", labels=["op"])
        for op, histogram in sorted(rpc.seconds.items()):
            seconds.add_metric([op], buckets=_cumulative(histogram), sum_value=histogram.sum_s)
        yield seconds


_LEASE = ["pool", "host", "kind", "row"]


def _cumulative(histogram: Histogram) -> list[tuple[str, int]]:
    """Prometheus counts in each bucket what all smaller ones hold too."""
    found, below = [], 0
    for bound_s, count in histogram.buckets:
        below += count
        found.append(("+Inf" if math.isinf(bound_s) else repr(float(bound_s)), below))
    return found


Labels = list[str]
Rows = Callable[[dict[str, Any]], Iterator[tuple[Labels, float]]]


def _gauge(metric: str, told: str, labels: Labels, looks: Mapping[str, Look], rows: Rows) -> Metric:
    """One family over all pools: `rows` gives the values of its own labels, and the figure."""
    family = GaugeMetricFamily(metric, told, labels=["pool", *labels])
    for name, look in looks.items():
        for values, figure in rows(look.stats):
            family.add_metric([name, *values], figure)
    return family


def _sizes(looks: Mapping[str, Look]) -> Iterator[Metric]:
    for field, (metric, told) in _SIZES.items():
        family = GaugeMetricFamily(metric, told, labels=["pool", "medium"])
        for name, look in looks.items():
            family.add_metric([name, look.stats["medium"]], look.stats[field])
        yield family


def _occupancy(looks: Mapping[str, Look]) -> Iterator[Metric]:
    states = ("reserved", "sealed", "evicting", "revoked", "releasing", "quarantined")
    yield _gauge(
        "maru_chunks", "Chunks by state.", ["state"], looks,
        lambda stats: (([state], stats["chunks"][state]) for state in states),
    )  # fmt: skip
    yield _gauge(
        "maru_slots", "What the index has room for.", [], looks, lambda stats: iter([([], stats["chunks"]["slots"])])
    )
    for field, metric, told in (
        ("bytes", "maru_namespace_bytes", "Bytes of sealed chunks by namespace."),
        ("chunks", "maru_namespace_chunks", "Sealed chunks by namespace."),
        ("epoch", "maru_namespace_epoch", "How often the namespace was expired."),
    ):
        yield _gauge(
            metric, told, ["namespace", "tenant"], looks,
            lambda stats, field=field: (  # type: ignore[misc]
                ([row["digest"], _plain(row["tenant"])], row[field]) for row in stats["namespaces"]
            ),
        )  # fmt: skip
    for field, metric, told in (
        (
            "used_bytes",
            "maru_tenant_bytes",
            "Bytes of a tenant, unsealed ones too; a chunk counts as a place of the index at least.",
        ),
        ("share_bytes", "maru_tenant_share_bytes", "Bytes that a tenant was promised; 0: none."),
        ("limit_bytes", "maru_tenant_limit_bytes", "Bytes that a tenant may take; 0: no limit."),
        ("made_way", "maru_tenant_made_way", "A tenant's chunks that were evicted for others, since creation."),
        ("made_own_way", "maru_tenant_made_own_way", "A tenant's chunks that were evicted for its own."),
        ("refused", "maru_tenant_refused", "Stores that a tenant's limit or others' shares left no room for."),
    ):
        yield _gauge(
            metric, told, ["tenant"], looks,
            lambda stats, field=field: (  # type: ignore[misc]
                ([_plain(row["name"])], row[field]) for row in stats["tenants"]
            ),
        )  # fmt: skip
    for field, metric, told in (
        ("slabs", "maru_class_slabs", "Slabs cut into chunks of one size."),
        ("free_chunks", "maru_class_free_chunks", "Free chunks in these slabs."),
    ):
        yield _gauge(
            metric, told, ["chunk_bytes"], looks,
            lambda stats, field=field: (  # type: ignore[misc]
                ([str(row["chunk_bytes"])], row[field]) for row in stats["classes"]
            ),
        )  # fmt: skip


def _holders(looks: Mapping[str, Look]) -> Iterator[Metric]:
    def processes(stats: dict[str, Any]) -> Iterator[tuple[Labels, float]]:
        alive = sum(row["alive"] for row in stats["processes"])
        yield ["true"], alive
        yield ["false"], len(stats["processes"]) - alive

    def one(figure: float) -> Iterator[tuple[Labels, float]]:
        yield [], figure

    def oldest_key_pin_s(stats: dict[str, Any]) -> float:
        return max((row["key_pin_ns"] for row in stats["processes"] if row["key_pins"]), default=0) / 1e9

    yield _gauge("maru_processes", "Processes in the pool's table.", ["alive"], looks, processes)
    yield _gauge(
        "maru_pins", "Pins held now.", [], looks, lambda stats: one(sum(row["pins"] for row in stats["processes"]))
    )
    yield _gauge(
        "maru_oldest_pin_epochs",
        "Eviction epochs since the pinned chunk that was left alone longest was asked for.",
        [],
        looks,
        lambda stats: one(max((pin["epochs_since_hit"] for pin in stats["oldest_pins"]), default=0)),
    )
    yield _gauge(
        "maru_oldest_key_pin_seconds", "Age of the oldest pin that nobody has an address of.", [], looks,
        lambda stats: one(oldest_key_pin_s(stats)),
    )  # fmt: skip
    yield _gauge(
        "maru_reservations_in_flight", "Chunks being written.", [], looks,
        lambda stats: one(stats["chunks"]["reserved"]),
    )  # fmt: skip
    yield _gauge(
        "maru_reservations_late", "Of the reservations that end first (16 at most), those past their deadline.", [],
        looks, lambda stats: one(sum(row["deadline_ns"] < stats["now_ns"] for row in stats["reservations"])),
    )  # fmt: skip


def _segments(looks: Mapping[str, Look]) -> Iterator[Metric]:
    yield _gauge(
        "maru_segment_bytes", "Size of a data segment.", ["segment", "medium"], looks,
        lambda stats: (([str(n), row["medium"]], row["bytes"]) for n, row in enumerate(stats["segments"])),
    )  # fmt: skip
    yield _gauge(
        "maru_segment_state", "1 for the state that a data segment is in.", ["segment", "state"], looks,
        lambda stats: (
            ([str(n), state], int(row["state"].lower() == state))
            for n, row in enumerate(stats["segments"])
            for state in _SEGMENT_STATES
        ),
    )  # fmt: skip


def _plain(text: str) -> str:
    """Names out of shared memory, where anybody may have written them: nothing that moves a cursor."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
