"""Maru: one shared-memory pool of KV cache, read in place by every inference process of a host.

pool = maru.Pool.open("maru:///demo?size=4GiB")
ns = pool.namespace(maru.Identity(model="my-model", kv_layout="my-engine/1"))
keys = ns.chunk_keys(token_ids, chunk_tokens=256)
with pool.pin(keys) as prefix:
    for view in prefix.views: ...
"""

from maru.client import connect
from maru.errors import MaruError
from maru.handler import AllocHandle, MaruConfig, MaruHandler, MemoryInfo
from maru.key import Identity
from maru.pool import Draft, Namespace, Outcome, PinnedPrefix, Pool, Reservation, ReservationBatch

__version__ = "0.1.0"

__all__ = [
    "AllocHandle",
    "Draft",
    "Identity",
    "MaruConfig",
    "MaruError",
    "MaruHandler",
    "MemoryInfo",
    "Namespace",
    "Outcome",
    "PinnedPrefix",
    "Pool",
    "Reservation",
    "ReservationBatch",
    "__version__",
    "connect",
]
