"""What comes up: the leading chunks of a prefix that a place below has, into the pool, before somebody reads them.

Several processes that miss the same prefix load it once: whoever reserves a chunk loads it, the others wait for that.
Chunks are reserved head first and loaded some at a time, so the rest of a prefix is on its way while its head arrives;
each is sealed as soon as its bytes are verified, and held until the last one is here: nothing continues it yet, so it
would be the first to go for the room that the next one needs. What is not there within the deadline is a miss.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

from maru.errors import MaruError
from maru.native import core
from maru.pool import Namespace, Outcome, Pool
from maru.tier.envelope import ChunkFacts
from maru.tiering.decision import Decision
from maru.tiering.place import Loaded, Place, Which
from maru.tiering.sources import Sources
from maru.tiering.tenants import Tenants

KEY_BYTES = 16
LOADS_AT_ONCE = 4
MORE_AT_ONCE = 16
"""A place that has all that was asked for is asked for so many times as many."""
ABSENT_S = 2.0
"""What no place had is not asked for again so soon."""
ABSENT_MAX = 1 << 16
PREFIX_SHARE = 1 / 2
"""Of the pool: a prefix longer than that would push out its own beginning."""


class Promoter:
    """Runs on the ladder's loop."""

    def __init__(
        self,
        pool: Pool,
        places: Sequence[Place],
        decision: Decision,
        sources: Sources,
        at: Callable[[str], None] = lambda _step: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pool, self._places, self._decision, self._at, self._clock = pool, places, decision, at, clock
        self._sources = sources
        self._tenants = Tenants(pool)
        self._absent: OrderedDict[tuple[bytes, bytes, int], float] = OrderedDict()
        self._chunk_bytes: dict[bytes, int] = {}
        self._bytes_max = int(PREFIX_SHARE * int(pool.stats()["size_bytes"]))
        self.figures: Counter[str] = Counter()
        self._probing: asyncio.Task[None] | None = None

    STEPS = ("reserved", "loaded", "sealed")

    async def leading(self, keys: bytes, namespace: Namespace, before: int, deadline_s: float) -> int:
        """How many leading chunks of `keys` some place has and loading them is worth it. A hint."""
        return len(await self._found(keys, namespace, namespace.epoch, before, deadline_s))

    async def promote(
        self, keys: bytes, namespace: Namespace, parent: bytes | None, deadline_s: float, before: int
    ) -> int:
        """Have the leading chunks of `keys`, which the pool lacks, in the pool. Returns how many lead there now.

        `parent`: of the first. `deadline_s`: after so many seconds what has not come is a miss. `before`: how many
        chunks of the prefix come before these.
        """
        epoch = namespace.epoch
        try:
            async with asyncio.timeout(deadline_s):
                found = await self._found(keys, namespace, epoch, before, deadline_s)
        except TimeoutError:
            found = []
        brought: Counter[str] = Counter()
        if found:
            brought = await self._bring(keys, found, namespace, epoch, parent, deadline_s)
        leading: int = core.PoolCore.lookup(self._pool, keys)
        self.figures.update(promoted_prefixes=int(bool(found)), promoted=min(leading, len(found)))
        for name, chunks in brought.items():
            self._sources.from_below(name, chunks)
        self._sources.from_pool(leading - brought.total())
        return leading

    async def _found(
        self, keys: bytes, namespace: Namespace, epoch: int, before: int, deadline_s: float
    ) -> list[Place]:
        """For each leading chunk that is below, the place to take it from; empty when computing is quicker."""
        tenant, policy = self._tenants.of(namespace.id), self._pool._policy_of(namespace.digest)
        asked = [
            Which(keys[at : at + KEY_BYTES], namespace.digest, epoch, tenant, policy)
            for at in range(0, self._bounded(keys, namespace.digest), KEY_BYTES)
        ]
        if not asked or self._is_absent(asked[0]):
            return []
        found: list[Place] = []
        for place in self._places:  # Each goes on where the one before has no more.
            found += [place] * await _leading_in(place, asked[len(found) :])
        if not found:
            self._remember_absent(asked[0])
            return []
        size = self._chunk_bytes.get(namespace.digest, 0)
        if self._decision.should_load(len(found), size, found[0].load_speed, LOADS_AT_ONCE, before, deadline_s):
            return found
        self.figures["computed_instead"] += len(found)
        if self._decision.may_probe():
            self._probing = asyncio.create_task(self._probe(asked[0], found[0]))
        return []

    async def _probe(self, chunk: Which, place: Place) -> None:
        """Load a chunk only to measure. Nobody waits for it, and the pool does not see it."""

        async def begin(facts: ChunkFacts) -> memoryview | None:
            return memoryview(bytearray(facts.size_bytes)) if facts.size_bytes <= self._bytes_max else None

        await place.load(chunk, begin)

    def _bounded(self, keys: bytes, digest: bytes) -> int:
        """Bytes of `keys` that are asked for: of a prefix that would fill the pool only its beginning."""
        size = self._chunk_bytes.get(digest, 0)
        return min(len(keys), max(1, self._bytes_max // size) * KEY_BYTES) if size else len(keys)

    def _is_absent(self, chunk: Which) -> bool:
        return self._absent.get((chunk.digest, chunk.key, chunk.epoch), 0.0) > self._clock()

    def _remember_absent(self, chunk: Which) -> None:
        self._absent[chunk.digest, chunk.key, chunk.epoch] = self._clock() + ABSENT_S
        if len(self._absent) > ABSENT_MAX:
            self._absent.popitem(last=False)

    async def _bring(
        self, keys: bytes, found: list[Place], namespace: Namespace, epoch: int, parent: bytes | None, deadline_s: float
    ) -> Counter[str]:
        """Returns how many chunks came from which place."""
        brought: Counter[str] = Counter()
        room = asyncio.Semaphore(LOADS_AT_ONCE)
        before = asyncio.Event()
        before.set()
        tasks = []
        held = [self._held(parent)] if parent is not None else []
        for number, place in enumerate(found):
            key, done = keys[number * KEY_BYTES : (number + 1) * KEY_BYTES], asyncio.Event()
            which = Which(
                key, namespace.digest, epoch, self._tenants.of(namespace.id), self._pool._policy_of(namespace.digest)
            )
            tasks.append(
                asyncio.create_task(
                    self._bring_one(which, place, namespace, parent, room, (before, done), deadline_s, held, brought)
                )
            )
            before, parent = done, key
        try:
            async with asyncio.timeout(deadline_s):
                for task in tasks:
                    if not await task:
                        break  # What follows could not be reached.
        except TimeoutError:
            self.figures["late"] += 1
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return brought

    async def _bring_one(
        self,
        chunk: Which,
        place: Place,
        namespace: Namespace,
        parent: bytes | None,
        room: asyncio.Semaphore,
        turn: tuple[asyncio.Event, asyncio.Event],
        deadline_s: float,
        held: list[memoryview | None],
        brought: Counter[str],
    ) -> bool:
        """Reserve when the chunk before it has been, load, seal. False: it is not there, and will not be."""
        before, done = turn
        reservation: core.Reservation | None = None
        outcome = Outcome.BUSY

        async def begin(facts: ChunkFacts) -> memoryview | None:
            nonlocal reservation, outcome
            await before.wait()
            ttl_s = (facts.expires_at_ns - time.time_ns()) / 1e9 if facts.expires_at_ns else None
            if ttl_s is not None and ttl_s <= 0:
                return None
            try:
                reservation = core.PoolCore.reserve(
                    self._pool, chunk.key, facts.size_bytes, namespace, parent, ttl_s, deadline_s + 1.0
                )
            except MaruError:  # Too large for this pool, or the pool was closed: not the place's fault.
                self.figures["failed"] += 1
                return None
            self._chunk_bytes[chunk.digest] = facts.size_bytes  # One that this pool could hold, whatever was claimed.
            outcome = reservation.outcome
            done.set()
            if outcome is not Outcome.RESERVED:
                return None
            self._at("reserved")
            return memoryview(reservation.buffer)  # type: ignore[arg-type]

        try:
            async with room:
                loaded = await place.load(chunk, begin)
                if loaded is Loaded.WHOLE and reservation is not None:
                    self._at("loaded")
                    if namespace.epoch != chunk.epoch:
                        return False  # It ended while the bytes of before were on their way.
                    sealed: Outcome = reservation.seal(allow_exports=True)
                    self._at("sealed")
                    held.append(self._held(chunk.key))
                    brought[place.name] += sealed is Outcome.STORED
                    return sealed is Outcome.STORED
            if outcome is Outcome.IN_FLIGHT and await asyncio.to_thread(
                core.PoolCore.wait, self._pool, chunk.key, deadline_s
            ):
                outcome = Outcome.EXISTS  # Another process brought it, or computed it.
            if outcome is Outcome.FULL:
                self.figures["no_room"] += 1
            if outcome is Outcome.EXISTS:
                held.append(self._held(chunk.key))
            return outcome is Outcome.EXISTS
        except MaruError:
            self.figures["failed"] += 1
            return False
        finally:
            done.set()
            if reservation is not None:
                reservation.discard()

    def _held(self, key: bytes) -> memoryview | None:
        return core.PoolCore.get(self._pool, key)


async def _leading_in(place: Place, chunks: list[Which]) -> int:
    """How many leading chunks a place has. A prefix that is not there at all costs one question about one chunk."""
    count, size = 0, 1
    while count < len(chunks):
        batch = chunks[count : count + size]
        there = await place.contains(batch)
        count += there.index(False) if False in there else len(there)
        if False in there:
            break
        size *= MORE_AT_ONCE
    return count
