"""What the admin API is told and what it answers: one Struct a body. The OpenAPI description is made from these.

Promises:   a field that is not here is refused by its name; every field has a type, and bounds where it needs them.
Leaves:     what is done with them to `admin`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from msgspec import UNSET, Meta, Struct, UnsetType

KEEP_SECONDS_MAX = 86_400.0
DIGEST_PATTERN = "^[0-9a-f]{32}$"

Digest = Annotated[str, Meta(pattern=DIGEST_PATTERN, description="A namespace's digest, 32 hex digits.")]
TokenIds = list[Annotated[int, Meta(ge=0, le=2**32 - 1)]]


class Prefix(Struct, forbid_unknown_fields=True, kw_only=True):
    """A run of chunks: either `keys`, or `namespace` and `token_ids`."""

    keys: Annotated[str, Meta(pattern="^([0-9a-f]{32})+$", description="Packed keys, 32 hex digits each.")] | None = (
        None
    )
    namespace: Digest | None = None
    token_ids: TokenIds | None = None
    """Token ids of the prompt, from its start; an incomplete last chunk has no key."""
    chunk_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 256


class ExpireBody(Struct, forbid_unknown_fields=True):
    """Which namespaces: one by its digest, or all of a tenant."""

    namespace: Digest | None = None
    tenant: Annotated[str, Meta(min_length=1, max_length=64)] | None = None


class RemoveBody(Prefix):
    """The chunks to remove. What continues them is not found any more and is the first to be evicted."""


class KeepBody(Prefix):
    """The chunks to keep, and how long."""

    seconds: Annotated[float, Meta(gt=0, le=KEEP_SECONDS_MAX)]


class PromoteBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """The prefix to bring up from the places below the pool: its namespace, and either `keys` or `token_ids`."""

    namespace: Digest
    keys: Annotated[str, Meta(pattern="^([0-9a-f]{32})+$", description="Packed keys, 32 hex digits each.")] | None = (
        None
    )
    token_ids: TokenIds | None = None
    """Token ids of the prompt, from its start; an incomplete last chunk has no key."""
    chunk_tokens: Annotated[int, Meta(ge=1, le=1 << 20)] = 256


class SegmentBody(Struct, forbid_unknown_fields=True):
    """What the segment shall be."""

    state: Literal["draining", "online"]


class PrewarmBody(Struct, forbid_unknown_fields=True, kw_only=True):
    """What shall be computed, and by which of the engines that this daemon was told of."""

    engine: Annotated[str, Meta(min_length=1, max_length=64)]
    model: Annotated[str, Meta(min_length=1, max_length=256)]
    prompt: Annotated[str, Meta(min_length=1)] | Annotated[TokenIds, Meta(min_length=1)]
    """Text or token ids."""


class PoolLine(Struct):
    """One pool, shortly."""

    name: str
    error: str | None = None
    """Why it cannot be looked at; then the figures are zero."""
    medium: str = ""
    size_bytes: int = 0
    used_bytes: int = 0
    chunks: int = 0
    processes: int = 0
    """Living ones, with this daemon."""


class Pools(Struct):
    pools: list[PoolLine]


class PoolDetail(Struct):
    """One pool with everything that `maru stat --json` tells of it."""

    name: str
    stats: dict[str, Any]


class NamespaceLine(Struct):
    digest: str
    tenant: str
    epoch: int
    ttl_s: float | None
    chunks: int
    bytes: int


class Namespaces(Struct):
    """Who takes up how much, the largest first."""

    namespaces: list[NamespaceLine]


class TenantLine(Struct):
    name: str
    used_bytes: int
    share_bytes: int
    """Nobody else pushes it below. 0: none."""
    limit_bytes: int
    """It never takes more. 0: none."""
    at_limit: Literal["evict", "refuse"]
    made_way: int
    """Its chunks that were evicted for others."""
    made_own_way: int
    refused: int


class Tenants(Struct):
    """What each tenant takes of a pool, was promised and may take."""

    tenants: list[TenantLine]


class ShareBody(Struct, forbid_unknown_fields=True):
    """What a tenant is promised and may take; what was said before is replaced."""

    share_bytes: Annotated[int, Meta(ge=0, lt=1 << 62)] = 0
    limit_bytes: Annotated[int, Meta(ge=0, lt=1 << 62)] = 0
    at_limit: Literal["evict", "refuse"] = "evict"


class ProcessLine(Struct):
    number: int
    """Of its row in the pool's table."""
    pid: int
    name: str
    is_alive: bool
    attached_s: float
    pins: int
    key_pins: int
    """Of these, pins that nobody has an address of; they expire."""
    oldest_key_pin_s: float


class PinLine(Struct):
    """A pinned chunk."""

    slot: int
    process: int
    pins: int
    bytes: int
    epochs_since_hit: int
    """Eviction epochs since anybody asked for it; when it was pinned is not recorded."""


class ReservationLine(Struct):
    """A chunk being written."""

    slot: int
    process: int
    bytes: int
    state: str
    seconds_left: float
    """Below zero: past its deadline."""


class Processes(Struct):
    """Who is attached, and up to 16 each of the oldest pins and of the reservations that end first."""

    processes: list[ProcessLine]
    oldest_pins: list[PinLine]
    reservations: list[ReservationLine]


class ExpiredLine(Struct):
    namespace: str
    tenant: str
    epoch: int
    """The new one; what was stored before it is a miss from now on."""
    chunks: int
    """About as many were in it."""


class Expired(Struct):
    expired: list[ExpiredLine]


class Removed(Struct):
    """What became of the chunks of the prefix."""

    removed: int
    pinned: int
    """Still there, since somebody reads them."""
    absent: int


class SegmentNow(Struct):
    number: int
    state: str


class Keep(Struct):
    """A prefix that this daemon holds."""

    id: str
    pool: str
    chunks: int
    """As many of the prefix as were there."""
    bytes: int
    seconds_left: float


class Keeps(Struct):
    keeps: list[Keep]


class Ended(Struct):
    id: str


class Promotion(Struct):
    """A prefix that was asked to come up from below."""

    id: str
    pool: str
    state: Literal["running", "done", "failed"]
    chunks: int
    """Of the prefix."""
    were_here: int
    """Leading ones that were in the pool when it was asked for."""
    are_here: int
    """And now."""
    seconds: float
    """Since it was asked for, or how long it took."""


class Promotions(Struct):
    promotions: list[Promotion]


class Prewarm(Struct):
    """A prefix that an engine was asked to compute."""

    id: str
    engine: str
    state: Literal["queued", "running", "done", "failed"]
    seconds: float
    """Since it was asked for, or how long it took."""
    message: str = ""
    """Why it failed."""
    prompt_tokens: int | UnsetType = UNSET
    """As the engine counted them."""


class Prewarms(Struct):
    engines: list[str]
    """Who may be asked."""
    prewarms: list[Prewarm]


class Lease(Struct):
    host: str
    kind: str
    pool: str
    row: int
    seconds_left: float
    pins: int
    pinned_bytes: int
    reservations: int


class Peer(Struct):
    name: str
    url: str
    pools: list[str]
    seen_ago_s: float


class Daemon(Struct):
    """This daemon."""

    name: str
    version: str
    started_unix_s: float
    is_ready: bool
    why_not: str
    leases: list[Lease]
    peers: list[Peer]
