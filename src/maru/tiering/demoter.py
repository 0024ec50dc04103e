"""What goes down: the coldest chunks are copied to the places below while they still lie in the pool.

One process a pool does it, whoever holds a byte of the pool's `lock` file; when it dies another one goes on. It goes
ahead of eviction: as long as it keeps up, whatever an evictor takes has its copy below already. Nobody waits for it.
What was evicted before its turn came is lost to the places, and counted ("dropped").

With `write=back` the coldest `AHEAD_SHARE` of the pool has copies, less what is free anyway. An evictor takes the
coldest of those it happens to look at, so that share is larger than what it takes between two looks; with "through"
everything that is stored has a copy soon. Places may tell that apart by namespace (maru.tier.policy): what any place
wants at once goes at once, to all that take it.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from maru.errors import NotAttached
from maru.inherited import give_back, take_byte
from maru.native import core
from maru.pool import POLICIES, Pool
from maru.tier.policy import Write
from maru.tiering.place import Place, Which
from maru.tiering.tenants import Tenants

_log = logging.getLogger("maru")

LOCK_BYTE = 5
"""kLockByteDemoter of pool/layout.h."""
AHEAD_SHARE = 1 / 4
STORES_AT_ONCE = 4
"""Chunks that are held for copying at one time: they cannot be evicted meanwhile."""
LOOK_S, LOOK_COST = 0.05, 20
"""Between two looks: so long, or so many times what the last look took."""
LOOK_CHUNKS = 64
FAR_LOOK_CHUNKS = 4096
ELECTION_S = 0.5
AGAIN_S = 5.0
"""Until a chunk that no place took is tried again."""
_ALL_BYTES = (1 << 63) - 1
_LEAVING = struct.Struct("<16s16s16sQQQQIIB7x")


class Leaving(NamedTuple):
    """One chunk, as core.LeavingScan tells of it."""

    key: bytes
    parent: bytes
    digest: bytes
    size_bytes: int
    slot: int
    generation: int
    expires_in_ns: int
    namespace: int
    epoch: int
    has_parent: int

    @property
    def place(self) -> tuple[int, int]:
        return self.slot, self.generation


class Demoter:
    """Runs on the ladder's loop, from run() until it is cancelled."""

    def __init__(
        self,
        pool: Pool,
        places: Sequence[Place],
        at: Callable[[str], None] = lambda _step: None,
    ) -> None:
        """`at` is told the steps of STEPS as they are reached, for tests that kill there."""
        self._pool, self._places, self._at = pool, places, at
        self._writes = set[Write]().union(*(place.policy.writes() for place in places))
        self._tenants = Tenants(pool)
        self._room = asyncio.Semaphore(STORES_AT_ONCE)
        self._under_way: dict[tuple[int, int], asyncio.Task[None]] = {}
        self._later: dict[tuple[int, int], float] = {}
        self._settled: dict[bytes, tuple[int, int]] = {}
        """By digest: the epoch and the policy that all places know of."""
        self._scan: core.LeavingScan | None = None
        self._far_scan: core.LeavingScan | None = None
        """Looks beyond what leaves soon, for namespaces that are written through while others are not."""
        self.looks = 0
        self.is_idle = False
        """The last look found nothing to do, and nothing is under way."""

    STEPS = ("right_taken", "looked", "held", "stored", "kept")

    @property
    def has_right(self) -> bool:
        """This process copies for all."""
        return self._scan is not None

    def residents(self) -> tuple[int, int, int]:
        """As of the last look: (bytes in the pool, bytes of it with a copy below or meant for none, chunks that left
        without one)."""
        return self._scan.residents() if self._scan is not None else (0, 0, 0)

    async def run(self) -> None:
        lock = -1
        try:
            while True:
                if lock < 0:
                    lock = take_right(Path(self._pool.folder))
                    if lock < 0:
                        await asyncio.sleep(ELECTION_S)
                        continue
                    self._at("right_taken")
                    self._scan = core.LeavingScan(self._pool)
                    self._far_scan = core.LeavingScan(self._pool) if self._is_mixed else None
                await asyncio.sleep(await self._round(self._scan))
        except NotAttached:
            pass  # Closed meanwhile.
        finally:
            for task in self._under_way.values():
                task.cancel()
            await asyncio.gather(*self._under_way.values(), return_exceptions=True)
            self._scan = self._far_scan = None
            if lock >= 0:
                give_back(lock)

    async def _round(self, scan: core.LeavingScan | None) -> float:
        """Look, and begin what fits. Returns seconds until the next look."""
        assert scan is not None
        if not any(place.takes for place in self._places):
            return ELECTION_S
        begun = time.monotonic()
        found, epochs = await asyncio.to_thread(self._look, scan)
        await self._settle(epochs)
        took = time.monotonic() - begun
        self._at("looked")
        self._later = {place: until for place, until in self._later.items() if until > begun}
        wanted = [one for one in found if one.place not in self._under_way and one.place not in self._later]
        wanted = await self._absent_below(scan, wanted)
        for one in wanted:
            await self._room.acquire()
            self._under_way[one.place] = asyncio.create_task(self._demote(scan, one))
        self.looks += 1
        self.is_idle = not found and not self._under_way
        return max(LOOK_S, LOOK_COST * took) if not wanted else 0.0

    @property
    def _is_mixed(self) -> bool:
        """What goes down depends on the namespace, and some of it goes at once."""
        return "through" in self._writes and len(self._writes) > 1

    def _look(self, scan: core.LeavingScan) -> tuple[list[Leaving], dict[bytes, int]]:
        """What goes down next, and the epochs of namespaces."""
        figures = self._pool.stats()
        epochs = {bytes.fromhex(row["digest"]): int(row["epoch"]) for row in figures["namespaces"]}
        ahead_bytes = _ALL_BYTES if self._writes == {"through"} else _ahead_bytes(figures)
        found = self._wanted_of(scan, ahead_bytes, ("back", "through"), LOOK_CHUNKS)
        if self._far_scan is not None:
            soon = {one.place for one in found}
            beyond = self._wanted_of(self._far_scan, _ALL_BYTES, ("through",), FAR_LOOK_CHUNKS)
            found += [one for one in beyond if one.place not in soon][:LOOK_CHUNKS]
        return found, epochs

    def _wanted_of(
        self, scan: core.LeavingScan, ahead_bytes: int, writes: tuple[Write, ...], limit: int
    ) -> list[Leaving]:
        """The first chunks that go down in one of these ways. Others are not looked at again: they would be all that
        `limit` leaves room for.
        """
        while True:
            page = [Leaving(*fields) for fields in _LEAVING.iter_unpack(scan.look(ahead_bytes, limit))]
            wanted = []
            for one in page:
                if self._write_of(one) in writes:
                    wanted.append(one)
                else:
                    scan.keep(*one.place)
            if wanted or len(page) < limit:
                return wanted

    def _write_of(self, chunk: Leaving) -> Write:
        which = self._which(chunk)
        told = {place.write_of(which) for place in self._places}
        return "through" if "through" in told else "back" if "back" in told else "never"

    def _keep(self, scan: core.LeavingScan, chunk: Leaving) -> None:
        scan.keep(*chunk.place)
        if self._far_scan is not None:
            self._far_scan.keep(*chunk.place)

    async def _settle(self, epochs: dict[bytes, int]) -> None:
        """What a bump ended here ends below too, even if nothing is ever stored again."""
        for digest, epoch in epochs.items():
            now = epoch, self._pool._policy_of(digest) & POLICIES["zeroed"]
            if now != self._settled.get(digest, (0, 0)):
                done = await asyncio.gather(*(place.settle(digest, *now) for place in self._places))
                if all(done):
                    self._settled[digest] = now

    async def _absent_below(self, scan: core.LeavingScan, chunks: list[Leaving]) -> list[Leaving]:
        """Without those that a place has from before: another process stored them, or this pool's last life."""
        if not chunks:
            return []
        asked = [self._which(one) for one in chunks]
        answers = await asyncio.gather(*(place.contains(asked) for place in self._places))
        absent = []
        for one, *there in zip(chunks, *answers, strict=True):
            if any(there):
                self._keep(scan, one)
            else:
                absent.append(one)
        return absent

    def _which(self, chunk: Leaving) -> Which:
        return Which(
            chunk.key, chunk.digest, chunk.epoch, self._tenants.of(chunk.namespace), self._pool._policy_of(chunk.digest)
        )

    async def _demote(self, scan: core.LeavingScan, chunk: Leaving) -> None:
        try:
            view = scan.hold(chunk.slot, chunk.generation)
            if view is None:
                return  # It has left.
            self._at("held")
            parent = chunk.parent if chunk.has_parent else None
            expires_in_s = chunk.expires_in_ns / 1e9 if chunk.expires_in_ns else None
            which = self._which(chunk)
            taken = await asyncio.gather(
                *(place.store(which, parent, view, expires_in_s) for place in self._places), return_exceptions=True
            )
            self._at("stored")
            if any(one is True for one in taken):
                self._keep(scan, chunk)
                self._at("kept")
            else:
                self._later[chunk.place] = time.monotonic() + AGAIN_S
            for one in taken:
                if isinstance(one, Exception):
                    _log.warning("a chunk was not copied below: %s: %s", type(one).__name__, str(one))
        except NotAttached:
            pass
        finally:
            self._under_way.pop(chunk.place, None)
            self._room.release()


def _ahead_bytes(figures: dict[str, Any]) -> int:
    """What writers may take before the next look, less what they find free: nobody is evicted for that."""
    fresh = figures["slab_count"] - sum(row["slabs"] for row in figures["classes"])
    free: int = fresh * figures["slab_bytes"]
    free += sum(row["free_chunks"] * row["chunk_bytes"] for row in figures["classes"])
    return max(0, int(AHEAD_SHARE * figures["size_bytes"]) - free)


def take_right(folder: Path) -> int:
    """A descriptor that holds the one demoter's byte; -1 while somebody else has it, or the pool is gone."""
    try:
        return take_byte(folder, LOCK_BYTE)
    except OSError:
        return -1
