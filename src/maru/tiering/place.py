"""One place below the pool as the ladder uses it: with its codec and its keys, a deadline around everything that it is
asked, and a breaker that leaves it alone while it fails.

Nothing here raises what a place did wrong: it is counted, told once in the log, and is a miss. Bytes are verified
before anybody may read them, whatever the place says.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from maru.errors import MaruError, NoSuchObject, TierFull, TornObject
from maru.pool import POLICIES, STAYS_HERE
from maru.tier.codec import Codec, PlainCodec, open_codec
from maru.tier.contract import Tier, name_of
from maru.tier.envelope import HEADER_BYTES, ChunkFacts, Unwrapping, expiry_of, wrap
from maru.tier.opening import TierConfig, open_tier
from maru.tier.policy import Policy, Write
from maru.tiering.breaker import Breaker, Speed
from maru.tiering.generations import Generations, is_marker, marker_of
from maru.tiering.noted import Notes

if TYPE_CHECKING:
    from maru.tier.cipher import Keyring, TenantCipher

_log = logging.getLogger("maru")
_Answer = TypeVar("_Answer")

PATIENCE_S = 0.25
"""Whoever goes away after so long without a word from the place has seen it fail; before that, nothing."""
SWEPT_AT_ONCE = 64
SWEEP_PAUSE_S = 0.02
"""Between two objects that are looked at: fifty a second at most."""
INLINE_BYTES = 64 << 10
"""What is decoded on the loop itself: less than handing it to a thread costs."""


class Loaded(enum.Enum):
    """What became of asking for a chunk."""

    WHOLE = enum.auto()
    ABSENT = enum.auto()
    FAILED = enum.auto()
    """The place did not answer, gave other bytes than were stored, or is left alone for now."""
    REFUSED = enum.auto()
    """Whoever asked has no room for it, or has it by now."""


@dataclass(frozen=True)
class Which:
    """A chunk in a pool: what finds its object."""

    key: bytes
    digest: bytes
    """Its namespace's."""
    epoch: int
    """The namespace's in this pool, as whoever asks goes by it."""
    tenant: str = ""
    policy: int = 0
    """The namespace's (maru.pool.POLICIES), as bits."""

    @property
    def is_zeroed(self) -> bool:
        """Its bytes are overwritten when it goes."""
        return bool(self.policy & POLICIES["zeroed"])


@dataclass
class _Heard:
    """When a place was last heard of, by the place's clock."""

    at_s: float


Begin = Callable[[ChunkFacts], Awaitable[memoryview | None]]
"""Told what an object holds; gives the memory for it, `size_bytes` of it, or None."""


class Place:
    """One tier of a ladder. Its coroutines run on the ladder's loop."""

    def __init__(
        self,
        tier: Tier,
        codec: Codec,
        keyring: Keyring | None,
        pool_uuid: bytes,
        deadline_s: float,
        ttl_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        policy: Policy | None = None,
        exact_codec: Codec | None = None,
        notes: Notes | None = None,
    ) -> None:
        """`keyring`: seals what is stored, one key a tenant; None: stored as it is. `deadline_s`: of anything.
        `exact_codec`: for namespaces that did not opt in to a lossy `codec`.
        """
        self.policy = policy or Policy()
        self._notes = notes or Notes()
        self._where = f"{tier.kind}, {'plain' if keyring is None else 'encrypted'}"
        self._exact_codec = exact_codec or PlainCodec()
        self.tier, self.codec = tier, codec
        self.deadline_s = deadline_s
        self._ciphers: dict[str, TenantCipher] = {}
        self.figures: Counter[str] = Counter()
        self.load_speed, self.store_speed = Speed(), Speed()
        self._keyring, self._ttl_s, self._clock = keyring, ttl_s, clock
        self._generations = Generations(tier, pool_uuid, clock)
        self._storing, self._reading = Breaker(clock), Breaker(clock)

    @classmethod
    def open(cls, config: TierConfig, pool_uuid: bytes, notes: Notes | None = None) -> Place:
        """The place that `config` names. `notes`: for an audit log. Raises BadUrl, MissingPackage, CredentialError."""
        keyring = None
        if config.keys is not None:
            from maru.tier.cipher import Keyring

            keyring = Keyring.read(config.keys)
        codec = open_codec(config.codec, config.item_bytes)
        is_mixed = codec.is_lossy and config.policy.lossy is not None
        return cls(
            open_tier(config), codec, keyring, pool_uuid, config.deadline_s, config.ttl_s, policy=config.policy,
            exact_codec=open_codec("blosc2", config.item_bytes) if is_mixed else None, notes=notes,
        )  # fmt: skip

    @property
    def name(self) -> str:
        return self.tier.url

    @property
    def kind(self) -> str:
        return self.tier.kind

    def state(self) -> str:
        """ "up", "down" (nothing is asked for now) or "read-only" (nothing is stored for now)."""
        return "down" if self._reading.is_open else "read-only" if self._storing.is_open else "up"

    @property
    def takes(self) -> bool:
        """It may be asked to store something now."""
        return not self._storing.is_open

    def write_of(self, chunk: Which) -> Write:
        """When a chunk goes down here, if at all. What its namespace forbids counts before what this place is told."""
        if chunk.policy & STAYS_HERE:
            return "never"
        if chunk.policy & POLICIES["encrypted-only"] and self._keyring is None:
            return "never"
        if chunk.is_zeroed and not self.tier.capabilities.overwrites:
            return "never"
        return self.policy.write_of(chunk.tenant, chunk.digest)

    def _codec_of(self, chunk: Which) -> Codec:
        is_allowed = not self.codec.is_lossy or self.policy.may_lose(chunk.tenant, chunk.digest)
        return self.codec if is_allowed else self._exact_codec

    async def contains(self, chunks: Sequence[Which]) -> list[bool]:
        """Which are there. All False when the place does not say; False for what it is not to hold."""
        held = [one for one in chunks if self.write_of(one) != "never"]
        if not held:
            return [False] * len(chunks)
        answers = iter(await self._contains(held))
        return [self.write_of(one) != "never" and next(answers) for one in chunks]

    async def _contains(self, chunks: Sequence[Which]) -> list[bool]:
        async def ask() -> list[bool]:
            names = [await self._name(one) for one in chunks]
            return await self.tier.contains(names)

        try:
            answer = await self._ask(self._reading, "looked up", ask())
        except NoSuchObject:
            answer = None
        return answer if answer is not None else [False] * len(chunks)

    async def store(self, chunk: Which, parent: bytes | None, data: memoryview, expires_in_s: float | None) -> bool:
        """Keep a chunk. False when the place did not take it, or is not to, or the chunk does not count any more."""
        if self.write_of(chunk) == "never":
            return False

        async def keep() -> bool:
            lives = [one for one in (expires_in_s, self._ttl_s) if one is not None]
            ttl_s = min(lives) if lives else None
            folder = await self._generations.folder_to_store(chunk.digest, chunk.epoch, chunk.is_zeroed)
            until = time.time_ns() + int(ttl_s * 1e9) if ttl_s is not None else 0
            facts = ChunkFacts(chunk.key, folder, data.nbytes, parent, until)
            pack = partial(wrap, facts, data, self._codec_of(chunk), self._cipher_of(chunk))
            frames = await asyncio.to_thread(pack)
            size = sum(memoryview(frame).nbytes for frame in frames)
            begun = self._clock()
            await self.tier.store(name_of(folder, chunk.key), frames, ttl_s)
            self.store_speed.saw(0.0, self._clock() - begun, data.nbytes)
            self.figures.update(stored=1, stored_bytes=data.nbytes, stored_object_bytes=size)
            self._notes.note("exported", self._where, chunk.digest, chunk.tenant, 1, data.nbytes)
            return True

        try:
            return bool(await self._ask(self._storing, "stored", keep()))
        except NoSuchObject:
            return False

    async def load(self, chunk: Which, begin: Begin) -> Loaded:
        """Bring a chunk into the memory that `begin` gives. Only after WHOLE may anybody read it."""
        if self.write_of(chunk) == "never":
            return Loaded.ABSENT
        heard = _Heard(self._clock())

        async def bring() -> Loaded:
            folder = await self._generations.folder(chunk.digest, chunk.epoch, chunk.is_zeroed)
            is_lossy = self._codec_of(chunk).is_lossy
            unwrapping = Unwrapping(chunk.key, folder, self._cipher_of(chunk), accept_lossy=is_lossy)
            begun, first_s, out = self._clock(), 0.0, None
            async for piece in self.tier.load(name_of(folder, chunk.key)):
                heard.at_s = self._clock()
                if not first_s:
                    first_s = self._clock() - begun
                if memoryview(piece).nbytes <= INLINE_BYTES:
                    unwrapping.feed(piece)
                else:
                    await asyncio.to_thread(unwrapping.feed, piece)
                if out is None and unwrapping.facts is not None:
                    if unwrapping.facts.expires_at_ns and unwrapping.facts.expires_at_ns <= time.time_ns():
                        return Loaded.ABSENT
                    heard.at_s = float("inf")  # Now it is not the place that is waited for.
                    out = await begin(unwrapping.facts)
                    heard.at_s = self._clock()
                    if out is None:
                        return Loaded.REFUSED
                    await asyncio.to_thread(unwrapping.begin, out)
            unwrapping.finish()
            assert out is not None
            self.load_speed.saw(first_s, self._clock() - begun - first_s, out.nbytes)
            self.figures.update(loaded=1, loaded_bytes=out.nbytes)
            self._notes.note("hit", self._where, chunk.digest, chunk.tenant, 1, out.nbytes)
            return Loaded.WHOLE

        try:
            answer = await self._ask(self._reading, "loaded", bring(), heard)
        except NoSuchObject:
            self.figures["absent"] += 1
            return Loaded.ABSENT
        except TornObject as error:
            self.figures["torn"] += 1
            _log.warning("%s: %s; it is computed again", self.name, str(error))  # It holds what it was raised over.
            await self._clear(chunk)
            return Loaded.FAILED
        if answer is Loaded.ABSENT:  # It has run out. Left there, it would count as a copy of what is stored anew.
            self.figures["absent"] += 1
            await self._clear(chunk)
        return answer if answer is not None else Loaded.FAILED

    async def _clear(self, chunk: Which) -> None:
        """Take away what is of no use, where that is ours to do."""
        if self.is_ours_to_clear:
            await self.remove(chunk)

    @property
    def is_ours_to_clear(self) -> bool:
        """Removing takes no other process's right to write."""
        return self.figures["stored"] > 0 or not self.tier.capabilities.has_one_writer

    async def forget(self, digest: bytes, epoch: int = 0) -> bool:
        """Take away everything of a namespace that counts, its marker too. False when the place did not."""

        async def take() -> bool:
            folders = [await self._generations.folder(digest, epoch, is_zeroed) for is_zeroed in (False, True)]
            names = [one.name for folder in folders async for one in self.tier.list(folder.hex())]
            # First: what is stored meanwhile shall have a marker of its own.
            self._generations.forget(digest)
            await self.tier.remove([*names, marker_of(digest)])
            self._notes.note("removed", self._where, digest, "", len(names))
            return True

        try:
            return bool(await self._ask(self._storing, "removed", take()))
        except NoSuchObject:
            return True

    async def sweep_ended(self) -> None:
        """Take away what lies in generations that this process ended."""
        for folder, digest in self._generations.ended() if self.is_ours_to_clear else ():
            names = await self._ask(self._reading, "listed", self._names_in(folder.hex()))
            if names is None:
                return  # Next time.
            for at in range(0, len(names), SWEPT_AT_ONCE):
                if not await self._sweep(names[at : at + SWEPT_AT_ONCE], digest):
                    return
            self._generations.swept(folder)

    async def sweep_expired(self, pause_s: float = SWEEP_PAUSE_S) -> None:
        """Take away what has run out, slowly, where the place may be swept: nobody may ever ask for it again."""
        if not (self.tier.capabilities.may_be_swept and self.is_ours_to_clear):
            return
        for name in await self._ask(self._reading, "listed", self._names_in("")) or []:
            if is_marker(name):
                continue
            until = await self._ask(self._reading, "looked at", self._expiry_of(name))
            if until and until <= time.time_ns():  # Stored anew just now, it goes all the same: a miss.
                await self._sweep([name])
            await asyncio.sleep(pause_s)

    async def _names_in(self, folder: str) -> list[str]:
        return [one.name async for one in self.tier.list(folder)]

    async def _expiry_of(self, name: str) -> int | None:
        try:
            pieces = [bytes(piece) async for piece in self.tier.load(name, 0, HEADER_BYTES)]
        except NoSuchObject:
            return None
        return expiry_of(b"".join(pieces))

    async def _sweep(self, names: Sequence[str], digest: bytes = b"") -> bool:
        async def take() -> bool:
            await self.tier.remove(names)
            return True

        is_gone = bool(await self._ask(self._storing, "removed", take()))
        if is_gone:
            self.figures["swept"] += len(names)
            self._notes.note("removed", self._where, digest, "", len(names))
        return is_gone

    def _cipher_of(self, chunk: Which) -> TenantCipher | None:
        if self._keyring is None:
            return None
        if chunk.tenant not in self._ciphers:
            self._ciphers[chunk.tenant] = self._keyring.for_tenant(chunk.tenant)
        return self._ciphers[chunk.tenant]

    async def settle(self, digest: bytes, epoch: int, policy: int = 0) -> bool:
        """Put what was stored in earlier epochs of a namespace out of everybody's reach, and what was stored before it
        was zeroed. False when the place did not take it.
        """
        is_zeroed = bool(policy & POLICIES["zeroed"])

        async def end() -> bool:
            if epoch:
                await self._generations.folder_to_store(digest, epoch, is_zeroed)
            if is_zeroed:
                await self._generations.end_unmarked(digest)
            return True

        try:
            return bool(await self._ask(self._storing, "stored", end()))
        except NoSuchObject:
            return True  # A later one was settled already.

    async def remove(self, chunk: Which) -> bool:
        """Take a chunk away. False when the place did not."""

        async def take() -> bool:
            await self.tier.remove([await self._name(chunk)])
            self._notes.note("removed", self._where, chunk.digest, chunk.tenant, 1)
            return True

        try:
            return bool(await self._ask(self._storing, "removed", take()))
        except NoSuchObject:  # Its epoch has just ended.
            return True

    async def _name(self, chunk: Which) -> str:
        return name_of(await self._generations.folder(chunk.digest, chunk.epoch, chunk.is_zeroed), chunk.key)

    async def _ask(
        self, breaker: Breaker, what: str, asking: Coroutine[Any, Any, _Answer], heard: _Heard | None = None
    ) -> _Answer | None:
        """Within the deadline, unless the place is left alone. None for every failure; NoSuchObject and TornObject are
        answers, and are raised.
        """
        if not breaker.may_ask():
            asking.close()
            self.figures["left_alone"] += 1
            return None
        heard = heard or _Heard(self._clock())
        try:
            async with asyncio.timeout(self.deadline_s):
                answer = await asking
        except (NoSuchObject, TornObject):
            breaker.went_well()
            raise
        except TimeoutError:
            if heard.at_s > self._clock():  # It went by waiting for somebody else.
                breaker.let_go()
                return None
            self._failed(breaker, what, f"no answer in {self.deadline_s:g} s", "timeouts")
            return None
        except TierFull as error:
            self._failed(breaker, what, str(error), "full")
            return None
        except Exception as error:  # Whatever it is: places of others may raise what no place should.
            self._failed(breaker, what, str(error) or type(error).__name__, "failures")
            return None
        except asyncio.CancelledError:
            if self._clock() - heard.at_s >= PATIENCE_S:
                self._failed(breaker, what, "whoever asked did not wait any longer", "timeouts")
            else:
                breaker.let_go()
            raise
        breaker.went_well()
        return answer

    def _failed(self, breaker: Breaker, what: str, why: str, figure: str) -> None:
        self.figures[figure] += 1
        if breaker.failed():
            _log.warning("%s: nothing is %s there until it answers again (%s)", self.name, what, why)

    def stats(self) -> dict[str, Any]:
        """Counters since the start, speeds in bytes a second, "state"."""
        return {
            "url": self.name,
            "kind": self.kind,
            "state": self.state(),
            "codec": self.codec.name,
            "encrypted": self._keyring is not None,
            "load_bytes_per_s": self.load_speed.bytes_per_s,
            "load_first_byte_s": self.load_speed.first_s,
            "store_bytes_per_s": self.store_speed.bytes_per_s,
            **{name: self.figures[name] for name in FIGURES},
        }

    async def close(self) -> None:
        left = self._generations.left()
        if left:
            _log.warning("%s: what ended in %d zeroed namespaces may not be overwritten yet", self.name, left)
        try:
            async with asyncio.timeout(self.deadline_s):
                await self.tier.close()
        except (TimeoutError, MaruError, OSError) as error:
            _log.info("%s: %s while it was closed", self.name, error or "no answer")


FIGURES = (
    "stored", "stored_bytes", "stored_object_bytes", "loaded", "loaded_bytes", "absent", "torn", "timeouts", "full",
    "failures", "left_alone", "swept",
)  # fmt: skip
"""What a place counts."""
