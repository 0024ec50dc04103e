"""Which objects of a namespace still count: what a bump in a pool ended must not come back from below.

A tier's objects lie in a folder named after the namespace's digest *and a generation*, a random number that a marker
object under the digest tells. Ending a namespace's epoch writes a new marker, and every object of before is out of
everybody's reach at once, whoever stored it; removing the bytes is only tidying. A marker also tells for which (pool,
epoch) it was written, so that a pool whose epoch it does not know makes a new one before it stores or loads anything:
nothing of before the bump is ever taken for something of after it. Other pools see the new marker when they look
again, `LOOK_AGAIN_S` later at most.

    "MARUGEN1", generation 16 bytes, count u32, then count x (pool 16 bytes, epoch u64), XXH3 of all that; little-endian
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from maru.errors import NoSuchObject, TornObject
from maru.native import core
from maru.tier.contract import Tier, name_of

LOOK_AGAIN_S = 10.0
POOLS_MAX = 256
"""Of those that a marker names; the oldest goes, and its pool makes a new one when it comes again."""
_MAGIC = b"MARUGEN1"
_HEAD = struct.Struct("<8s16sI")
_PAIR = struct.Struct("<16sQ")
_HASH = struct.Struct("<Q")
_MARKER_KEY = bytes(16)
_MARKER_BYTES_MAX = _HEAD.size + POOLS_MAX * _PAIR.size + _HASH.size
_FIRST = bytes(16)


@dataclass
class Marker:
    """What one says."""

    generation: bytes
    pools: dict[bytes, int]
    """Pool by its UUID, and the epoch of it that this generation is of."""

    def packed(self) -> bytes:
        kept = list(self.pools.items())[-POOLS_MAX:]
        body = _HEAD.pack(_MAGIC, self.generation, len(kept)) + b"".join(_PAIR.pack(*pair) for pair in kept)
        return body + _HASH.pack(core.xxh3_64(body))

    @staticmethod
    def read(data: bytes) -> Marker:
        """Raises TornObject."""
        body, end = data[: -_HASH.size], data[-_HASH.size :]
        if len(data) < _HEAD.size + _HASH.size or end != _HASH.pack(core.xxh3_64(body)):
            raise TornObject("a namespace's marker is not what was stored")
        magic, generation, count = _HEAD.unpack_from(body)
        if magic != _MAGIC or len(body) != _HEAD.size + count * _PAIR.size:
            raise TornObject("a namespace's marker is of another format")
        return Marker(generation, dict(_PAIR.iter_unpack(body[_HEAD.size :])))


class Generations:
    """Of one place, as one pool sees it. Used from one event loop."""

    def __init__(self, tier: Tier, pool_uuid: bytes, clock: Callable[[], float] = time.monotonic) -> None:
        self._tier, self._pool, self._clock = tier, pool_uuid, clock
        self._seen: dict[bytes, tuple[Marker, float]] = {}

    async def folder(self, digest: bytes, epoch: int) -> bytes:
        """The folder of a namespace in its epoch `epoch` of this pool. Raises TierFailed; TornObject never: a marker
        that cannot be read is replaced, and what lay under it is not found any more.
        """
        marker, at = self._seen.get(digest, (None, 0.0))
        if marker is None or self._clock() - at > LOOK_AGAIN_S or not self._fits(marker, epoch):
            marker = await self._look(digest)
            if not self._fits(marker, epoch):
                marker = await self._renew(digest, epoch, marker)
            self._seen[digest] = (marker, self._clock())
        return _folder(digest, marker.generation)

    def _fits(self, marker: Marker, epoch: int) -> bool:
        """A pool whose epoch never ended takes what there is."""
        return marker.pools.get(self._pool, 0) >= epoch

    async def _look(self, digest: bytes) -> Marker:
        try:
            data = b"".join(
                [bytes(piece) async for piece in self._tier.load(name_of(digest, _MARKER_KEY), 0, _MARKER_BYTES_MAX)]
            )
            return Marker.read(data)
        except NoSuchObject:
            return Marker(_FIRST, {})
        except TornObject:
            return await self._write(digest, Marker(os.urandom(16), {}))

    async def _renew(self, digest: bytes, epoch: int, before: Marker) -> Marker:
        pools = {pool: at for pool, at in before.pools.items() if pool != self._pool}
        return await self._write(digest, Marker(os.urandom(16), {**pools, self._pool: epoch}))

    async def _write(self, digest: bytes, marker: Marker) -> Marker:
        await self._tier.store(name_of(digest, _MARKER_KEY), [marker.packed()])
        return marker


def _folder(digest: bytes, generation: bytes) -> bytes:
    return digest if generation == _FIRST else core.blake3(digest + generation, 16)
