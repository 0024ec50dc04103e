"""Which objects of a namespace still count: what a bump in a pool ended must not come back from below.

A tier's objects lie in a folder named after the namespace's digest *and a generation*, a random number that a marker
object under the digest tells. Whoever stores after the end of an epoch writes a new marker first, and every object of
before is out of everybody's reach at once, whoever stored it; removing the bytes is only tidying. A marker also tells
of which epochs of which pools it is. To a reader nothing lies below without a marker, or with one that does not know
its pool's epoch: nothing of before a bump is ever taken for something of after it, and a marker that was lost takes
its objects along. Other pools see a new marker when they look again, `LOOK_AGAIN_S` later at most; what such a pool
holds itself is of its own epoch, and goes below as before.

A namespace whose content is overwritten when it goes (the policy `zeroed`) has a folder of its own in each generation,
which says so to whoever takes something away there (maru.tier.contract). Pools that do not agree on that do not share
what lies below. What went down before the namespace asked for it is out of reach from then on, and is taken away.

    "MARUGEN1", generation 16 bytes, count u32, then count x (pool 16 bytes, epoch u64), XXH3 of all that; little-endian
"""

from __future__ import annotations

import asyncio
import os
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass

from maru.errors import NoSuchObject, TornObject
from maru.native import core
from maru.tier.contract import Tier, marked, name_of

LOOK_AGAIN_S = 10.0
ENDED_MAX = 2048
POOLS_MAX = 256
"""Of those that a marker names; the oldest goes, and its pool makes a new one when it comes again."""
_MAGIC = b"MARUGEN1"
_HEAD = struct.Struct("<8s16sI")
_PAIR = struct.Struct("<16sQ")
_HASH = struct.Struct("<Q")
_MARKER_KEY = bytes(16)
_MARKER_BYTES_MAX = _HEAD.size + POOLS_MAX * _PAIR.size + _HASH.size


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
        self._ended: list[tuple[bytes, bytes, float]] = []
        """Folder, the namespace's digest, and when."""
        self._looking = asyncio.Lock()

    async def folder(self, digest: bytes, epoch: int, is_zeroed: bool = False) -> bytes:
        """Where a reader finds a namespace's objects of its epoch `epoch` in this pool. `is_zeroed`: its policy.

        Raises TierFailed; NoSuchObject when there can be none: the epoch is over, or nobody stored anything in it.
        """
        return _folder(digest, self._of_epoch(await self._now(digest, epoch, False, is_zeroed), epoch), is_zeroed)

    async def folder_to_store(self, digest: bytes, epoch: int, is_zeroed: bool = False) -> bytes:
        """The same for whoever stores, with a marker from now on. Raises TierFailed; NoSuchObject: it is over."""
        return _folder(digest, self._of_epoch(await self._now(digest, epoch, True, is_zeroed), epoch), is_zeroed)

    async def end_unmarked(self, digest: bytes) -> None:
        """A namespace is zeroed: what went down before it was has ended. Raises TierFailed."""
        marker = await self._look(digest)
        if marker is not None:
            self._has_ended(digest, marker.generation, False)

    def forget(self, digest: bytes) -> None:
        """A namespace's marker is about to be removed: what was seen of it is not gone by any more."""
        self._seen.pop(digest, None)

    def ended(self) -> list[tuple[bytes, bytes]]:
        """Folders of generations that this process put out of reach so long ago that nobody stores there any more, each
        with its namespace's digest.
        """
        return [(folder, digest) for folder, digest, at in self._ended if self._clock() - at > LOOK_AGAIN_S]

    def left(self) -> int:
        """Folders of ended generations in which something to be overwritten may lie still."""
        return sum(folder[-1] & 1 for folder, *_ in self._ended)

    def swept(self, folder: bytes) -> None:
        """Nothing of an ended generation is left."""
        self._ended = [one for one in self._ended if one[0] != folder]

    async def _now(self, digest: bytes, epoch: int, is_storing: bool, is_zeroed: bool) -> Marker | None:
        known = self._known(digest, epoch)
        if known is not None:
            return known
        async with self._looking:  # Else two of them would each write a marker, and one's objects be lost.
            marker = self._known(digest, epoch) or await self._look(digest)
            if is_storing and (marker is None or not self._fits(marker, epoch)):
                pools = {pool: at for pool, at in marker.pools.items() if pool != self._pool} if marker else {}
                own = {self._pool: epoch} if epoch else {}
                before = marker
                marker = await self._write(digest, Marker(os.urandom(16), {**pools, **own}))
                if before is not None:
                    for is_marked in {False, is_zeroed}:
                        self._has_ended(digest, before.generation, is_marked)
            if marker is not None:
                self._seen[digest] = (marker, self._clock())
            return marker

    def _has_ended(self, digest: bytes, generation: bytes, is_zeroed: bool) -> None:
        ended = _folder(digest, generation, is_zeroed), digest, self._clock()
        self._ended = [*self._ended[1 - ENDED_MAX :], ended]

    def _of_epoch(self, marker: Marker | None, epoch: int) -> bytes:
        if marker is None or not self._fits(marker, epoch):
            raise NoSuchObject("nothing was stored in this epoch of its namespace", place=self._tier.url)
        if marker.pools.get(self._pool, 0) > epoch:  # A chunk of before the bump has no place among those of after it.
            raise NoSuchObject("its namespace's epoch is over", place=self._tier.url)
        return marker.generation

    def _known(self, digest: bytes, epoch: int) -> Marker | None:
        """The marker that was seen last, while it need not be looked at again."""
        marker, at = self._seen.get(digest, (None, 0.0))
        return marker if marker and self._clock() - at <= LOOK_AGAIN_S and self._fits(marker, epoch) else None

    def _fits(self, marker: Marker, epoch: int) -> bool:
        """A pool whose epoch never ended takes what there is."""
        return marker.pools.get(self._pool, 0) >= epoch

    async def _look(self, digest: bytes) -> Marker | None:
        """None: there is none that can be believed."""
        try:
            data = b"".join([bytes(piece) async for piece in self._tier.load(marker_of(digest), 0, _MARKER_BYTES_MAX)])
            return Marker.read(data)
        except (NoSuchObject, TornObject):
            return None

    async def _write(self, digest: bytes, marker: Marker) -> Marker:
        await self._tier.store(marker_of(digest), [marker.packed()])
        return marker


def marker_of(digest: bytes) -> str:
    """The name of a namespace's marker. Raises BadKey."""
    return name_of(digest, _MARKER_KEY)


def is_marker(name: str) -> bool:
    """Is this the name of a namespace's marker?"""
    return name.endswith("/" + _MARKER_KEY.hex())


def _folder(digest: bytes, generation: bytes, is_zeroed: bool) -> bytes:
    return marked(core.blake3(digest + generation, 16), is_zeroed)
