"""Keys that an engine made up: strings of any length, whose order in a batch is all that is known of their chain.

Holds:      how such a string becomes 16 bytes, and which chunk a batch continues.
Promises:   equal strings of one tenant give equal keys, in every process; another tenant's strings never do. What
            cannot be known is a root, never a guess.
Leaves:     storing and finding to the pool.

A pool evicts a prefix from its tail up, and for that it wants to know each chunk's parent. An engine that hashes by
itself tells nobody; but it asks for a prompt's keys in their order before it stores those that are missing. So the
latest lookup that contains a batch's first key knows what that batch continues.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maru.errors import BadKey
from maru.key import Identity
from maru.native import core

if TYPE_CHECKING:
    from maru.pool import Namespace, Pool

KEY_BYTES = 16
LOOKUPS_REMEMBERED = 64

# Everything that the bytes depend on is in LMCache's own key string; this names the way it is made into 16 bytes.
_LMCACHE = "lmcache keys 1"


def lmcache_namespace(pool: Pool, tenant: str = "default") -> Namespace:
    """The namespace that every LMCache door of this tenant shares. Raises NamespaceTableFull, PoolBusy, NotAttached."""
    return pool.namespace(Identity(model="lmcache", kv_layout=_LMCACHE, tenant=tenant))


def pack_keys(namespace: Namespace, keys: Sequence[str | int | bytes]) -> bytes:
    """n x 16 bytes, BLAKE3(namespace digest || key in UTF-8) cut to 16 each.

    Numbers count as their decimal digits. Raises BadKey for anything else, or for half a character.
    """
    seed = namespace.digest
    return b"".join([core.blake3(seed + _raw(key), KEY_BYTES) for key in keys])


def _raw(key: str | int | bytes) -> bytes:
    if isinstance(key, bytes):
        return key
    if not isinstance(key, str | int):
        raise BadKey(f"a key is a str, not {type(key).__name__}")
    try:
        return str(key).encode()
    except UnicodeEncodeError:
        raise BadKey("a key holds half a character (a lone surrogate)") from None


@dataclass(frozen=True)
class Place:
    """Where a batch of chunks belongs: `known` says whether a lookup told, `parent` is None for a prompt's start."""

    known: bool
    parent: bytes | None = None


class Lookups:
    """The latest lookup batches, to be asked what a batch continues. Thread-safe."""

    def __init__(self, limit: int = LOOKUPS_REMEMBERED) -> None:
        self._batches: deque[bytes] = deque(maxlen=limit)
        self._lock = threading.Lock()

    def remember(self, packed: bytes) -> None:
        """A prompt's keys, n x 16 bytes in the prompt's order, found or not."""
        if packed:
            with self._lock:
                self._batches.append(packed)

    def place(self, key: bytes) -> Place:
        """What comes before `key` in the latest batch that holds it."""
        with self._lock:
            batches = list(self._batches)
        for packed in reversed(batches):
            at = packed.find(key)
            while at > 0 and at % KEY_BYTES:  # A match across two keys.
                at = packed.find(key, at + 1)
            if at == 0:
                return Place(True)
            if at > 0:
                return Place(True, packed[at - KEY_BYTES : at])
        return Place(False)
