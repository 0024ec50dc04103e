"""The place that fails on order is a proper place until it is told to fail, and then fails as told."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from maru.errors import NoSuchObject, TierFailed, TierFull
from maru.testing.faulty_tier import FOR_EVER, KINDS, Fault, FaultyTier, Plan
from maru.testing.tier_contract import TierContract, fresh_name, read
from maru.tier.contract import Tier


class TestHealthy(TierContract):
    large_bytes = 6 << 20  # All of it lies in memory.

    def make_tier(self, tmp_path: Path) -> Tier:  # noqa: ARG002
        return FaultyTier()


class TestHealed(TierContract):
    large_bytes = 6 << 20

    def make_tier(self, tmp_path: Path) -> Tier:  # noqa: ARG002
        tier = FaultyTier(plan=Plan(Fault.FAILS, times=FOR_EVER))
        tier.heal()
        return tier


CONTENT = bytes(range(256)) * 8


def what_comes(tier: FaultyTier, name: str) -> bytes:
    return asyncio.run(read(tier, name))


@pytest.fixture
def names() -> tuple[str, str]:
    return fresh_name(), fresh_name()


def with_two_objects(names: tuple[str, str], plan: Plan) -> FaultyTier:
    tier = FaultyTier()
    asyncio.run(tier.store(names[0], [CONTENT]))
    asyncio.run(tier.store(names[1], [b"another"]))
    tier.plan = plan
    return tier


def test_wrong_bytes_are_wrong_as_ordered(names: tuple[str, str]) -> None:
    def got(fault: Fault) -> bytes:
        return what_comes(with_two_objects(names, Plan(fault, where=0.25)), names[0])

    flipped = got(Fault.FLIPS)
    assert [at for at in range(len(CONTENT)) if flipped[at] != CONTENT[at]] == [len(CONTENT) // 4]
    assert got(Fault.CUTS) == CONTENT[: len(CONTENT) // 4]
    assert got(Fault.SWAPS) == b"another"
    added = got(Fault.ADDS)
    assert added.startswith(CONTENT)
    assert len(added) > len(CONTENT)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fault", [Fault.FAILS, Fault.FAILS_LATE, Fault.HANGS, Fault.HANGS_LATE, Fault.RAISES])
def test_only_the_operations_of_the_plan_fail(kind: str, fault: Fault, names: tuple[str, str]) -> None:
    tier = with_two_objects(names, Plan(fault, nth=2, kind=kind, times=2))

    async def operate(each: str) -> None:
        if each == "store":
            await tier.store(names[0], [CONTENT])
        elif each == "load":
            await read(tier, names[0])
        elif each == "contains":
            await tier.contains([names[0]])
        elif each == "remove":
            await tier.remove([fresh_name()])
        elif each == "list":
            _ = [one async for one in tier.list()]
        else:
            await tier.health()

    async def is_done(each: str) -> bool:
        doing = asyncio.ensure_future(operate(each))
        for _ in range(20):
            await asyncio.sleep(0)
        if not doing.done():
            doing.cancel()
        await asyncio.gather(doing, return_exceptions=True)
        return not doing.cancelled() and doing.exception() is None

    async def tell() -> list[list[str]]:
        return [[each for each in KINDS if not await is_done(each)] for _ in range(4)]

    assert asyncio.run(tell()) == [[], [kind], [kind], []]
    assert tier.struck == 2
    assert what_comes(tier, names[0]) == CONTENT


def test_stores_and_answers_go_wrong_as_ordered(names: tuple[str, str]) -> None:
    async def story() -> None:
        gone = fresh_name()
        tier = FaultyTier(plan=Plan(Fault.IS_FULL))
        with pytest.raises(TierFull):
            await tier.store(gone, [b"x"])
        tier = FaultyTier(plan=Plan(Fault.LOSES))
        await tier.store(gone, [b"x"])
        with pytest.raises(NoSuchObject):
            await read(tier, gone)
        tier = FaultyTier(plan=Plan(Fault.FAILS_LATE))
        with pytest.raises(TierFailed):
            await tier.store(gone, [b"x"])
        assert await read(tier, gone) == b"x"
        tier = with_two(Plan(Fault.IMAGINES, times=2))
        assert await tier.contains([gone]) == [True]
        assert len([one async for one in tier.list()]) == 1
        tier = with_two(Plan(Fault.FORGETS, times=2))
        assert await tier.contains([names[0]]) == [False]
        with pytest.raises(NoSuchObject):
            await read(tier, names[0])

    def with_two(plan: Plan) -> FaultyTier:
        return FaultyTier(plan=plan)

    asyncio.run(story())
