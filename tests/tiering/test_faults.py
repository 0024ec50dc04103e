"""Whatever one operation of a place does wrong, or all from one on: right bytes or a miss, in time, nothing held.

Each loop lets the first operation fail, then the second, and so on until a story passes that has no such operation.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import time
from collections.abc import Iterator

import pytest
from ladder_kit import (
    CHUNKS,
    FLUSH_S,
    IDENTITY,
    WAIT_S,
    Prefix,
    assert_nothing_is_held,
    bring,
    fresh_pool,
    go_down_and_up,
    ladder_over,
    make_impatient,
    prefixes,
)

from maru.pool import Namespace, Pool
from maru.testing.content import bytes_of
from maru.testing.faulty_tier import FOR_EVER, Fault, FaultyTier, MemoryTier, Plan
from maru.tier.codec import open_codec
from maru.tier.envelope import ChunkFacts
from maru.tiering.breaker import FAILURES_MAX
from maru.tiering.ladder import Ladder, LadderSettings
from maru.tiering.place import Loaded, Place, Which
from maru.tiering.prefill import Prefill

ALL_CAME = [CHUNKS] * 3
OPERATIONS_MIN = {"store": 13, "load": 8, "contains": 3}
"""What a story has at least, so that a loop that ends too early is seen."""
LOOPS_MAX = 200
DEADLINE = "deadline=0.15s"
TOLD_OF = (Fault.FAILS, Fault.FAILS_LATE, Fault.RAISES, Fault.IS_FULL)
SLOW = (Fault.HANGS, Fault.HANGS_LATE)
BYTES = (Fault.FLIPS, Fault.CUTS, Fault.ADDS, Fault.SWAPS)
SMALL_SLABS = "?size=3MiB&slab_bytes=256KiB&slots=300&processes=16"
PLACES_IN_AN_OBJECT = (0.0, 0.0005, 0.3, 0.999)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    make_impatient(monkeypatch)
    gc.disable()  # What is held until garbage is collected is held too long.
    yield
    gc.enable()


def is_told_of(plan: Plan | None) -> bool:
    """One copy failed, and whoever copies knows: then it is done again."""
    return plan is not None and plan.fault in TOLD_OF and (plan.kind, plan.times) == ("store", 1)


class StaysOpen(MemoryTier):
    """For one ladder after another."""

    async def close(self) -> None:
        pass


def loops() -> list[tuple[Fault, str]]:
    """Each fault in each kind of operation that a ladder asks for."""
    kinds = ("store", "load", "contains")
    return [(fault, kind) for fault in Fault for kind in kinds if Plan(fault).befalls(kind)]


def heal_and_see_it_work(
    patch: pytest.MonkeyPatch, pool_url: str, tier: FaultyTier, deadline: str, flush_s: float
) -> bool:
    """One story with faults and one without. False when nothing went wrong in the first."""
    with fresh_pool(pool_url) as pool:
        namespace = pool.namespace(IDENTITY)
        namespace.bump()  # So that there is a marker, which may go wrong as well.
        with ladder_over(patch, pool, tier, f"write=through&{deadline}") as ladder:
            plan = tier.plan
            came = go_down_and_up(pool, ladder, namespace, "faults", flush_s)
            struck = tier.struck
            tier.heal()
            if not struck or is_told_of(plan):
                assert came == ALL_CAME
            wait_until_up(pool, ladder, namespace)
            assert go_down_and_up(pool, ladder, namespace, "healed", FLUSH_S) == ALL_CAME
            for prefix in prefixes("faults"):
                bring(pool, ladder, namespace, prefix)
                prefix.read(pool)
        assert_nothing_is_held(pool)
    return struck > 0


def wait_until_up(pool: Pool, ladder: Ladder, namespace: Namespace) -> None:
    """A look and a copy are asked for until both are answered again: rests are short here."""
    ends = time.monotonic() + 20
    for number in itertools.count():
        if ladder.stats()["places"][0]["state"] == "up":
            return
        Prefix(f"try-{number}-", 1).put(pool, namespace)
        ladder.flush(1.0)
        ladder.promote(Prefix(f"nowhere-{number}-", 1).keys, namespace)
        assert time.monotonic() < ends, "the ladder does not use the place any more"


@pytest.mark.parametrize(("fault", "kind"), loops(), ids=lambda one: one.name if isinstance(one, Fault) else one)
def test_one_operation_goes_wrong(fault: Fault, kind: str, pool_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    step = 4 if fault in SLOW else 1 if fault is Fault.FAILS or fault in BYTES else 2
    for nth in range(1, LOOPS_MAX, step):
        where = PLACES_IN_AN_OBJECT[nth % len(PLACES_IN_AN_OBJECT)]
        tier = FaultyTier(plan=Plan(fault, nth, kind, where=where))
        deadline = DEADLINE if fault in SLOW else "deadline=10s"
        if not heal_and_see_it_work(monkeypatch, pool_url, tier, deadline, FLUSH_S):
            break
    assert OPERATIONS_MIN[kind] < nth < LOOPS_MAX - step


@pytest.mark.parametrize(("fault", "kind"), loops(), ids=lambda one: one.name if isinstance(one, Fault) else one)
@pytest.mark.parametrize("nth", [1, 3])
def test_all_operations_from_one_on_go_wrong(
    fault: Fault, kind: str, nth: int, pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = FaultyTier(plan=Plan(fault, nth, kind, FOR_EVER))
    assert heal_and_see_it_work(monkeypatch, pool_url, tier, DEADLINE, 0.2)


def test_a_place_that_hangs_is_left_alone_even_when_nobody_waits_for_its_own_deadline(
    pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru.tiering.breaker.REST_S", 60.0)
    monkeypatch.setattr("maru.tiering.breaker.REST_MAX_S", 60.0)
    monkeypatch.setattr("maru.tiering.place.PATIENCE_S", 0.02)
    tier = FaultyTier(plan=Plan(Fault.HANGS, times=FOR_EVER))
    settings = LadderSettings(demotes=False, lookup_deadline_s=0.05, promote_deadline_s=0.05)
    with (
        fresh_pool(pool_url) as pool,
        ladder_over(monkeypatch, pool, tier, "deadline=600s", settings) as ladder,
    ):
        namespace = pool.namespace(IDENTITY)
        for number in range(40):
            assert ladder.leading(Prefix(f"{number}-").keys, namespace) == 0
            assert ladder.promote(Prefix(f"{number}-").keys, namespace) == 0
        assert ladder.stats()["places"][0]["state"] == "down"
        assert tier.operations.total() <= 6


def test_a_chunk_too_large_for_the_pool_is_not_the_places_fault(pool_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tier = FaultyTier(StaysOpen())
    with fresh_pool(pool_url) as pool, ladder_over(monkeypatch, pool, tier) as ladder:
        namespace = pool.namespace(IDENTITY)
        for key in Prefix("large-").each:
            pool.put(key, bytes_of(key, 1 << 20), namespace)
            assert ladder.flush(FLUSH_S)
    with fresh_pool(pool_url, SMALL_SLABS) as pool:
        with ladder_over(monkeypatch, pool, tier) as ladder:
            namespace = pool.namespace(IDENTITY)
            for key in Prefix("large-").each:
                assert ladder.promote(key, namespace) == 0
            place = ladder.stats()["places"][0]
            assert (place["state"], place["failures"]) == ("up", 0)
            assert ladder.stats()["promoter"]["failed"] == CHUNKS
        assert_nothing_is_held(pool)


def test_a_place_that_did_not_suit_is_measured_again_though_engines_only_look_up(
    pool_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tier = FaultyTier()
    settings = LadderSettings(prefill=Prefill(256, 1e12), promote_deadline_s=WAIT_S)  # Nothing is quicker.
    with fresh_pool(pool_url) as pool, ladder_over(monkeypatch, pool, tier, settings=settings) as ladder:
        namespace = pool.namespace(IDENTITY)
        prefix = Prefix("measured-")
        prefix.put(pool, namespace)
        assert ladder.flush(FLUSH_S)
        prefix.remove(pool)
        assert bring(pool, ladder, namespace, prefix) == CHUNKS  # Nobody knows yet how quick the place is.
        prefix.remove(pool)
        before = tier.operations["load"]
        assert ladder.leading(prefix.keys, namespace) == 0
        assert ladder.leading(prefix.keys, namespace) == 0
        ends = time.monotonic() + 20
        while ladder.stats()["places"][0]["loaded"] == CHUNKS:
            assert time.monotonic() < ends, "it was not measured"
        assert ladder.stats()["places"][0]["loaded"] == CHUNKS + 1
        assert tier.operations["load"] == before + 1
        assert prefix.read(pool) == 0


def test_time_spent_waiting_for_somebody_else_is_not_the_places_fault() -> None:
    async def never(facts: ChunkFacts) -> memoryview | None:
        await asyncio.Event().wait()
        return None

    async def story() -> None:
        place = Place(FaultyTier(), open_codec("none", 2), None, bytes(16), 0.02)
        which = Which(bytes(16), bytes(16), 0)
        assert await place.store(which, None, memoryview(b"chunk"), None)
        for _ in range(2 * FAILURES_MAX):
            assert await place.load(which, never) is Loaded.FAILED
        assert place.state() == "up"
        place.tier.plan = Plan(Fault.HANGS, times=FOR_EVER)  # type: ignore[attr-defined]
        for _ in range(FAILURES_MAX):
            assert await place.load(which, never) is Loaded.FAILED
        assert place.state() == "down"

    asyncio.run(story())


def test_who_goes_away_early_neither_blames_a_place_nor_makes_its_failures_forgotten() -> None:
    async def story() -> None:
        tier = FaultyTier(plan=Plan(Fault.HANGS, times=FOR_EVER))
        which = Which(bytes(16), bytes(16), 0)
        patient = Place(tier, open_codec("none", 2), None, bytes(16), 600.0)
        for _ in range(2 * FAILURES_MAX):
            await ask_and_go_away(patient, which)
        assert patient.state() == "up"
        place = Place(tier, open_codec("none", 2), None, bytes(16), 0.02)
        for _ in range(FAILURES_MAX):
            assert place.state() == "up"
            await ask_and_go_away(place, which)
            assert await place.contains([which]) == [False]
        assert place.state() == "down"

    async def ask_and_go_away(place: Place, which: Which) -> None:
        asking = asyncio.ensure_future(place.contains([which]))
        await asyncio.sleep(0)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(story())
