"""What the daemon tells its web face: pools, RPC, leases, peers. Values only; nothing here opens a port or a pool.

Holds:      the `Facts` that metrics, the admin API and the dashboard read, and a histogram's quantile.
Promises:   everything but the pools themselves is a copy, taken when asked for and never changed afterwards.
Leaves:     counting to whoever serves RPC, and how it looks to `metrics`, `feed` and the dashboard.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from maru.pool import Namespace, Pool


@dataclass(frozen=True)
class Histogram:
    """How long something took, as counts between bounds."""

    buckets: tuple[tuple[float, int], ...]
    """(upper bound in seconds, how many took longer than the bound before it and at most this one), bounds rising.
    The last bound is infinite."""
    sum_s: float = 0.0

    @property
    def count(self) -> int:
        return sum(count for _, count in self.buckets)


def quantile(buckets: Sequence[tuple[float, int]], share: float) -> float:
    """Seconds within which `share` (0 to 1) of what was counted was done, read linearly between two bounds.

    What lies beyond the last finite bound counts as that bound. NaN when nothing was counted.
    """
    total = sum(count for _, count in buckets)
    if total == 0:
        return math.nan
    wanted, below, floor_s = share * total, 0, 0.0
    for bound_s, count in buckets:
        if count and below + count >= wanted:
            return floor_s if math.isinf(bound_s) else floor_s + (bound_s - floor_s) * (wanted - below) / count
        below += count
        floor_s = floor_s if math.isinf(bound_s) else bound_s
    return floor_s


@dataclass(frozen=True)
class DaemonIdentity:
    """Which daemon this is."""

    name: str
    version: str
    started_unix_s: float


@dataclass(frozen=True)
class RpcFigures:
    """What the RPC sockets did since the daemon began."""

    clients: int = 0
    """Connected now."""
    requests: Mapping[str, int] = field(default_factory=dict)
    """How many of each operation."""
    errors: Mapping[str, int] = field(default_factory=dict)
    """How many ended in each named error."""
    bytes_in: int = 0
    bytes_out: int = 0
    seconds: Mapping[str, Histogram] = field(default_factory=dict)
    """How long each operation took, from a request's arrival to its answer."""


@dataclass(frozen=True)
class LeaseFigures:
    """One lease that another host holds."""

    host: str
    kind: str
    """How that host reaches the bytes: "mapped" or "wire"."""
    row: int
    """Number of its row in the pool's process table."""
    seconds_left: float
    pins: int = 0
    pinned_bytes: int = 0
    reservations: int = 0
    pool: str = ""


@dataclass(frozen=True)
class PeerFigures:
    """Another daemon that this one knows of."""

    name: str
    url: str
    pools: tuple[str, ...] = ()
    seen_ago_s: float = 0.0


class Facts(Protocol):
    """The daemon, as far as its web face knows it. Called from several threads."""

    @property
    def identity(self) -> DaemonIdentity: ...

    @property
    def pools(self) -> Mapping[str, Pool]:
        """The pools served, by the name that people use; attached, or closed when they were lost."""

    def rpc(self) -> RpcFigures: ...

    def leases(self) -> Sequence[LeaseFigures]: ...

    def peers(self) -> Sequence[PeerFigures]: ...

    def below(self) -> Mapping[str, Any]:
        """Figures of the places below the pool, as Ladder.stats() gives them; empty without any."""

    @property
    def rise(self) -> Callable[[bytes, Namespace, bytes | None], Future[int] | None] | None:
        """Brings missing chunks up from below in the background; see Ladder.begin. None without places."""

    @property
    def remove_below(self) -> Callable[[bytes, Namespace], None] | None:
        """Takes chunks away below, in the background; see Ladder.remove. None without places."""

    def is_ready(self) -> tuple[bool, str]:
        """Whether requests are answered as they should be, and in words why not ("" when they are)."""
