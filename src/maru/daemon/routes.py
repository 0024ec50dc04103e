"""Every route under /v1, as a table: the app is made from it, and so is its OpenAPI description.

Leaves:     what a route does to `admin`, and how its answer travels to `web`.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from maru.daemon import admin_bodies as bodies


@dataclass(frozen=True)
class Route:
    """One method of one path. `does` is the method of Admin."""

    method: str
    path: str
    does: str
    summary: str
    answer: type[msgspec.Struct]
    body: type[msgspec.Struct] | None = None
    status: int = 200

    @property
    def role(self) -> str:
        return "read" if self.method == "GET" else "admin"


ROUTES = (
    Route("GET", "/v1/daemon", "daemon", "This daemon, its leases and its peers", bodies.Daemon),
    Route("GET", "/v1/pools", "pools", "The pools that this daemon serves", bodies.Pools),
    Route("GET", "/v1/pools/{pool}", "pool", "Everything about one pool", bodies.PoolDetail),
    Route("GET", "/v1/pools/{pool}/namespaces", "namespaces", "Who takes up how much of it", bodies.Namespaces),
    Route("GET", "/v1/pools/{pool}/tenants", "tenants", "What each tenant takes and was promised", bodies.Tenants),
    Route(
        "POST", "/v1/pools/{pool}/tenants/{tenant}", "set_share", "Promise a tenant a share, allow it a limit",
        bodies.Tenants, bodies.ShareBody,
    ),
    Route("GET", "/v1/pools/{pool}/processes", "processes", "Who is attached and holds what", bodies.Processes),
    Route(
        "POST", "/v1/pools/{pool}/expire", "expire", "Make everything in a namespace, or of a tenant, a miss",
        bodies.Expired, bodies.ExpireBody,
    ),
    Route(
        "POST", "/v1/pools/{pool}/remove", "remove", "Remove the chunks of a prefix, from its tail up",
        bodies.Removed, bodies.RemoveBody,
    ),
    Route(
        "POST", "/v1/pools/{pool}/segments/{segment}", "segment", "Empty a data segment, or take it back",
        bodies.SegmentNow, bodies.SegmentBody,
    ),
    Route("GET", "/v1/pools/{pool}/keeps", "keeps", "The prefixes that this daemon keeps", bodies.Keeps),
    Route(
        "POST", "/v1/pools/{pool}/keeps", "keep", "Hold what is there of a prefix for a while",
        bodies.Keep, bodies.KeepBody, status=201,
    ),
    Route("DELETE", "/v1/pools/{pool}/keeps/{keep}", "end_keep", "Let go of a kept prefix", bodies.Ended),
    Route(
        "GET", "/v1/pools/{pool}/promotions", "promotions", "Prefixes that were asked to come up from below",
        bodies.Promotions,
    ),
    Route(
        "POST", "/v1/pools/{pool}/promotions", "promote", "Bring a prefix up from the places below, in the background",
        bodies.Promotion, bodies.PromoteBody, status=202,
    ),
    Route("GET", "/v1/prewarms", "prewarms", "The latest prewarms, and the engines that may be asked", bodies.Prewarms),
    Route(
        "POST", "/v1/prewarms", "ask_prewarm", "Ask an engine to compute a prompt in the background",
        bodies.Prewarm, bodies.PrewarmBody, status=202,
    ),
    Route("GET", "/v1/prewarms/{prewarm}", "prewarm", "One prewarm", bodies.Prewarm),
)  # fmt: skip
