"""What requests and answers are made of, beside their headers: keys, parents, times, extents; checked.

Each raises BadKey or BadMessage for what cannot be, before anything was touched.
"""

from __future__ import annotations

from array import array

from maru import wire
from maru.errors import BadKey, BadMessage
from maru.native import core

KEY_BYTES = 16
TTL_S_MAX = 1e9


def keys_of(body: bytes | memoryview) -> bytes:
    if len(body) % KEY_BYTES or len(body) > wire.KEYS_MAX * KEY_BYTES:
        raise BadKey(f"keys are n x 16 bytes, at most {wire.KEYS_MAX:,} at once; got {len(body):,} bytes")
    return bytes(body)


def one_key_of(body: bytes | memoryview) -> bytes:
    if len(body) != KEY_BYTES:
        raise BadKey(f"one key is 16 bytes; got {len(body)}", got_bytes=len(body))
    return bytes(body)


def parent_of(parent: bytes) -> bytes | None:
    if len(parent) not in (0, KEY_BYTES):
        raise BadKey(f"a parent is a key of 16 bytes; got {len(parent)}", got_bytes=len(parent))
    return parent or None


def ttl_of(ttl_s: float | None) -> float | None:
    if ttl_s is not None and not 0 < ttl_s <= TTL_S_MAX:
        raise BadMessage(f"a time to live is above 0 and at most {TTL_S_MAX:.0f} seconds")
    return ttl_s


def fitting(prefix: core.PinnedPrefix, room: int) -> int:
    """How many leading chunks fit into so many bytes; fewer than there are."""
    places = memoryview(prefix.extents()).cast("Q")
    total = 0
    for at in range(len(prefix)):
        total += places[2 * at + 1]
        if total > room:
            return at
    return len(prefix) - 1


def plain_extents(prefix: core.PinnedPrefix) -> bytes:
    """Extents of chunks whose bytes go over the wire: each piece has a checksum of its own."""
    out = array("Q", bytes(wire.EXTENT_BYTES * len(prefix)))
    places = array("Q", prefix.extents())
    out[0::3], out[1::3] = places[0::2], places[1::2]
    return out.tobytes()
