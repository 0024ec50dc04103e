"""A place below the pool that fails on order: to see that whoever uses one survives whatever it may do.

    tier = FaultyTier(plan=Plan(Fault.HANGS, nth=3))    # The third operation never answers; all others do.
    tier = FaultyTier(inner, Plan(Fault.FLIPPED, nth=1, times=FOR_EVER))

Holds:      MemoryTier, which keeps the contract with a dict, and FaultyTier, which stands before any tier.
Promises:   without a plan, or after heal(), it is the tier behind it. With one it counts those operations that its
            fault can befall, and from the n-th on it strikes `times` of them; `struck` tells how often it did.
Leaves:     time to whoever asks: what hangs, hangs until it is cancelled.
"""

from __future__ import annotations

import asyncio
import enum
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maru.errors import NoSuchObject, TierFailed, TierFull
from maru.tier.contract import PIECE_BYTES, Capabilities, Listed, Tier, check_folder, is_overwritten, split_name

if TYPE_CHECKING:
    from typing_extensions import Buffer

KINDS = ("store", "load", "contains", "remove", "list", "health")
FOR_EVER = 1 << 62
OBJECT_BYTES_MAX = 1 << 40


class Fault(enum.Enum):
    """What a place does wrong. Where a fault is "late", the operation is done, or half done, all the same."""

    FAILS = enum.auto()
    FAILS_LATE = enum.auto()
    HANGS = enum.auto()
    HANGS_LATE = enum.auto()
    RAISES = enum.auto()
    """An error that no place may raise by the contract."""
    IS_FULL = enum.auto()
    LOSES = enum.auto()
    """It says that it took an object, and did not keep it."""
    FORGETS = enum.auto()
    """What is there is said not to be."""
    IMAGINES = enum.auto()
    """What is not there is said to be."""
    FLIPS = enum.auto()
    """One bit of an object is another."""
    CUTS = enum.auto()
    """The end of an object does not come."""
    ADDS = enum.auto()
    """More comes than was stored."""
    SWAPS = enum.auto()
    """Another object's bytes come, whole."""


_CAN_BEFALL = {
    Fault.IS_FULL: ("store",),
    Fault.LOSES: ("store",),
    Fault.FORGETS: ("load", "contains", "list"),
    Fault.IMAGINES: ("contains", "list"),
    Fault.FLIPS: ("load",),
    Fault.CUTS: ("load",),
    Fault.ADDS: ("load",),
    Fault.SWAPS: ("load",),
}


@dataclass(frozen=True)
class Plan:
    """Which operations go wrong, and how."""

    fault: Fault
    nth: int = 1
    """The first that does, counted from 1 among those of `kind` that this fault can befall."""
    kind: str | None = None
    """One of KINDS; None: all that this fault can befall."""
    times: int = 1
    """How many in a row do."""
    where: float = 0.5
    """Where in an object bytes go wrong: 0 is its beginning, 1 its end."""

    def befalls(self, kind: str) -> bool:
        return kind in _CAN_BEFALL.get(self.fault, KINDS) and self.kind in (None, kind)


class MemoryTier(Tier):
    """A dict that keeps the contract; gone with its process."""

    kind = "memory"
    url = "memory:///"

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, float]] = {}
        """By name: the bytes, and when they were stored, in seconds since 1970."""
        self.overwritten: list[str] = []
        """Names of objects whose bytes would have been overwritten when they went."""
        self._is_closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(False, False, True, OBJECT_BYTES_MAX, overwrites=True)

    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:  # noqa: ARG002
        split_name(name)
        await self._turn()
        self.objects[name] = (b"".join(frames), time.time())

    async def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[memoryview]:
        split_name(name)
        await self._turn()
        if name not in self.objects:
            raise NoSuchObject(f"{self.url} has no {name}", place=self.url)
        data = memoryview(self.objects[name][0])[start:]
        for at in range(0, len(data) if size is None else min(size, len(data)), PIECE_BYTES):
            yield data[at : at + PIECE_BYTES if size is None else min(at + PIECE_BYTES, size)]
            await self._turn()

    async def contains(self, names: Sequence[str]) -> list[bool]:
        for name in names:
            split_name(name)
        await self._turn()
        return [name in self.objects for name in names]

    async def remove(self, names: Sequence[str]) -> None:
        for name in names:
            split_name(name)
        await self._turn()
        for name in names:
            if self.objects.pop(name, None) is not None and is_overwritten(name):
                self.overwritten.append(name)

    async def list(self, folder: str = "") -> AsyncIterator[Listed]:
        check_folder(folder)
        await self._turn()
        for name, (data, stored_at) in list(self.objects.items()):
            if name.startswith(folder):
                yield Listed(name, len(data), stored_at)

    async def health(self) -> None:
        await self._turn()

    async def close(self) -> None:
        self._is_closed = True

    async def _turn(self) -> None:
        """Let others have theirs, as every place does that has to be waited for."""
        if self._is_closed:
            raise TierFailed(f"{self.url} was closed", place=self.url)
        await asyncio.sleep(0)


class FaultyTier(Tier):
    """A tier before another one, or before a MemoryTier of its own."""

    def __init__(self, inner: Tier | None = None, plan: Plan | None = None) -> None:
        self.inner: Tier = MemoryTier() if inner is None else inner
        self.url, self.kind = self.inner.url, self.inner.kind
        self.plan = plan
        self.operations: Counter[str] = Counter()
        """How many of each kind were begun."""
        self.struck = 0
        self._befallen = 0

    def heal(self) -> None:
        """Nothing goes wrong any more; what hangs goes on hanging."""
        self.plan = None

    @property
    def capabilities(self) -> Capabilities:
        return self.inner.capabilities

    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:
        fault = self._next("store")
        await self._early(fault)
        if fault is Fault.IS_FULL:
            raise TierFull(f"{self.url} is full", place=self.url)
        if fault is not Fault.LOSES:
            await self.inner.store(name, frames, ttl_s)
        await self._late(fault)

    async def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[bytes | memoryview]:
        plan, fault = self.plan, self._next("load")
        await self._early(fault)
        if fault is Fault.FORGETS:
            raise NoSuchObject(f"{self.url} has no {name}", place=self.url)
        if plan is None or fault is None:
            async for piece in self.inner.load(name, start, size):
                yield piece
            return
        if fault is Fault.SWAPS:
            name = await self._another(name)
        data = bytearray()
        async for piece in self.inner.load(name, start, size):
            data += piece
        at = min(int(plan.where * len(data)), len(data) - 1)
        if fault is Fault.FLIPS and data:
            data[at] ^= 1
        elif fault is Fault.ADDS:
            data += data[:100] or b"more"
        elif fault in (Fault.CUTS, Fault.FAILS_LATE, Fault.HANGS_LATE):
            del data[max(at, 0) :]
        for begin in range(0, len(data), PIECE_BYTES):
            yield memoryview(data)[begin : begin + PIECE_BYTES]
        await self._late(fault)

    async def contains(self, names: Sequence[str]) -> list[bool]:
        fault = self._next("contains")
        await self._early(fault)
        answer = await self.inner.contains(names)
        await self._late(fault)
        if fault in (Fault.FORGETS, Fault.IMAGINES):
            return [fault is Fault.IMAGINES] * len(names)
        return answer

    async def remove(self, names: Sequence[str]) -> None:
        fault = self._next("remove")
        await self._early(fault)
        await self.inner.remove(names)
        await self._late(fault)

    async def list(self, folder: str = "") -> AsyncIterator[Listed]:
        fault = self._next("list")
        await self._early(fault)
        if fault is Fault.IMAGINES:
            yield Listed(f"{folder or '0' * 32}/{'f' * 32}", 1, time.time())
        if fault is not Fault.FORGETS:
            async for one in self.inner.list(folder):
                yield one
        await self._late(fault)

    async def health(self) -> None:
        fault = self._next("health")
        await self._early(fault)
        await self.inner.health()
        await self._late(fault)

    async def close(self) -> None:
        await self.inner.close()

    def _next(self, kind: str) -> Fault | None:
        """Count an operation. What goes wrong with it?"""
        self.operations[kind] += 1
        plan = self.plan
        if plan is None or not plan.befalls(kind):
            return None
        self._befallen += 1
        if not plan.nth <= self._befallen < plan.nth + plan.times:
            return None
        self.struck += 1
        return plan.fault

    async def _early(self, fault: Fault | None) -> None:
        await self._go_wrong(fault, Fault.FAILS, Fault.HANGS)
        if fault is Fault.RAISES:
            raise ZeroDivisionError("a place of somebody else's has a bug")

    async def _late(self, fault: Fault | None) -> None:
        await self._go_wrong(fault, Fault.FAILS_LATE, Fault.HANGS_LATE)

    async def _go_wrong(self, fault: Fault | None, fails: Fault, hangs: Fault) -> None:
        if fault is fails:
            raise TierFailed(f"{self.url} failed as ordered", place=self.url)
        if fault is hangs:
            await asyncio.Event().wait()

    async def _another(self, name: str) -> str:
        """The object that is listed after this one."""
        names = sorted([one.name async for one in self.inner.list()])
        return next((other for other in names if other > name), names[0] if names else name)
