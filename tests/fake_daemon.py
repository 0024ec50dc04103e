"""A daemon that serves no RPC: real pools, and every other fact as a test wants it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import maru
from maru.daemon.facts import DaemonIdentity, Histogram, LeaseFigures, PeerFigures, RpcFigures

HISTOGRAM = Histogram(((0.001, 6), (0.01, 3), (math.inf, 1)), sum_s=0.25)
BUSY_RPC = RpcFigures(
    clients=3,
    requests={"lookup": 9, "pin": 1},
    errors={"PoolBusy": 2},
    bytes_in=1000,
    bytes_out=5000,
    seconds={"lookup": HISTOGRAM},
)
LEASE = LeaseFigures("host-b", "mapped", row=4, seconds_left=25.0, pins=7, pinned_bytes=4096, pool="kv")
PEER = PeerFigures("other", "https://other:7300", ("kv", "spare"), seen_ago_s=2.5)


@dataclass
class FakeFacts:
    """Facts that a test may change at any time."""

    pools: dict[str, maru.Pool] = field(default_factory=dict)
    identity: DaemonIdentity = field(default_factory=lambda: DaemonIdentity("desk", maru.__version__, 1_700_000_000.0))
    rpc_now: RpcFigures = BUSY_RPC
    lease_list: list[LeaseFigures] = field(default_factory=lambda: [LEASE])
    peer_list: list[PeerFigures] = field(default_factory=lambda: [PEER])
    below_figures: dict[str, Any] = field(default_factory=dict)
    rise: Callable[[bytes, maru.Namespace, bytes | None], Future[int] | None] | None = None
    remove_below: Callable[[bytes, maru.Namespace], None] | None = None
    ready: tuple[bool, str] = (True, "")

    def rpc(self) -> RpcFigures:
        return self.rpc_now

    def leases(self) -> list[LeaseFigures]:
        return self.lease_list

    def peers(self) -> list[PeerFigures]:
        return self.peer_list

    def below(self) -> Mapping[str, Any]:
        return self.below_figures

    def is_ready(self) -> tuple[bool, str]:
        return self.ready

    def serve_more(self, requests: int) -> None:
        """So many lookups more since the last look, each of 1 to 10 ms."""
        fast, middling, slow = self.rpc_now.seconds["lookup"].buckets
        histogram = Histogram((fast, (middling[0], middling[1] + requests), slow), sum_s=0.25 + 0.005 * requests)
        counts = {"lookup": self.rpc_now.requests["lookup"] + requests}
        self.rpc_now = replace(self.rpc_now, requests=counts, seconds={"lookup": histogram})
