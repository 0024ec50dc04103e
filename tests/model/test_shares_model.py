"""Shares and limits against a plain ledger: who has how many chunks, who was promised and allowed how many.

One chunk size and no order among chunks, so the ledger knows what may go for whom. It does not say which chunk goes,
only whose: what is gone after a store is looked up and held against the rules.
"""

from __future__ import annotations

import itertools
import os

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import maru
from maru import Identity, Outcome
from maru.errors import ShareTooLarge
from maru.testing.crash import spawn

SIZE = 4096
CHUNKS = 16  # One slab of so many.
TENANTS = ["ada", "bob", "cy"]
_serial = itertools.count()
tenants = st.sampled_from(TENANTS)
amounts = st.sampled_from([0, 0, 1, 3, 5, 8])
limits = st.sampled_from([0, 0, 0, 2, 5, 9])


class SharesMachine(RuleBasedStateMachine):
    """The ledger: what each tenant has (keys of chunks, pinned or not; drafts), its share, its limit."""

    @initialize()
    def begin(self) -> None:
        self.serial = 0
        # 1 MiB is the smallest pool there is: a slab of sixteen chunks in use, and the rest given to nobody.
        self.url = f"maru:///test-{os.getpid()}-shares-{next(_serial)}?size=1MiB&slab_bytes=64KiB&slots=600&gate=off"
        self.pool = maru.Pool.create(self.url + "&unit_bytes=4096")
        self.filler = [self.pool.allocate(64 << 10) for _ in range(15)]
        self.spaces = {t: self.pool.namespace(Identity(model="m", kv_layout="x", tenant=t)) for t in TENANTS}
        self.keys: dict[str, list[bytes]] = {t: [] for t in TENANTS}
        self.pins: dict[bytes, object] = {}
        self.drafts: dict[str, list[maru.pool.Draft]] = {t: [] for t in TENANTS}
        self.share = dict.fromkeys(TENANTS, 0)
        self.limit: dict[str, int] = dict.fromkeys(TENANTS, 0)
        self.refuses = dict.fromkeys(TENANTS, False)

    def has(self, tenant: str) -> int:
        return len(self.keys[tenant]) + len(self.drafts[tenant])

    def above(self, tenant: str) -> int:
        return self.has(tenant) - self.share[tenant]

    def free(self) -> int:
        return CHUNKS - sum(map(self.has, TENANTS))

    def movable(self, tenant: str) -> int:
        return sum(key not in self.pins for key in self.keys[tenant])

    def may_make_way(self, incoming: str) -> set[str]:
        """Whose chunks may go for one more chunk of this tenant, which then has it on its account."""
        above = self.above(incoming) + 1
        if not any(self.share.values()):
            return {t for t in TENANTS if self.movable(t)}
        others = {
            t for t in TENANTS if t != incoming and self.movable(t) and self.above(t) >= 1 and self.above(t) >= above
        }
        if self.movable(incoming) and (above > 0 or not others):
            others.add(incoming)
        return others

    @rule(tenant=tenants, share=amounts, limit=limits, refuses=st.booleans())
    def set_share(self, tenant: str, share: int, limit: int, refuses: bool) -> None:
        at_limit = "refuse" if refuses else "evict"
        try:
            self.pool.set_share(tenant, share * SIZE, limit * SIZE, at_limit)  # type: ignore[arg-type]
        except ShareTooLarge:
            assert limit
            assert share > limit
            return
        assert not limit or share <= limit
        self.share[tenant], self.limit[tenant], self.refuses[tenant] = share, limit, refuses

    @rule(tenant=tenants, count=st.integers(1, 12), as_draft=st.sampled_from([False, False, False, True]))
    def store(self, tenant: str, count: int, as_draft: bool) -> None:
        for _ in range(1 if as_draft else count):
            self.store_one(tenant, as_draft)

    def store_one(self, tenant: str, as_draft: bool) -> None:
        before = {t: list(self.keys[t]) for t in TENANTS}
        had, free, allowed = self.has(tenant), self.free(), self.may_make_way(tenant)
        limit, own = self.limit[tenant], self.movable(tenant)
        at_limit = limit != 0 and had + 1 > limit
        if as_draft:
            draft = self.pool.allocate(SIZE, namespace=self.spaces[tenant])
            stored = draft is not None
            if draft is not None:
                self.drafts[tenant].append(draft)
        else:
            self.serial += 1
            key = self.serial.to_bytes(16, "little")
            stored = self.pool.put(key, bytes(SIZE), namespace=self.spaces[tenant]) == Outcome.STORED
            if stored:
                self.keys[tenant].append(key)
        gone = {t: [key for key in before[t] if not self.pool.exists(key)] for t in TENANTS}
        for t in TENANTS:
            self.keys[t] = [key for key in self.keys[t] if key not in gone[t]]
            assert not set(gone[t]) & set(self.pins), "a pinned chunk went"
        if at_limit:
            assert not any(gone[t] for t in TENANTS if t != tenant)
            # A limit that was lowered below what is there is come back to by its own, if it may.
            needed = had + 1 - limit
            if self.refuses[tenant]:
                assert not stored
                assert not gone[tenant]
            else:
                assert stored == (own >= needed)
            return
        if free:
            assert stored
            assert not any(gone.values())
            return
        assert stored == bool(allowed)
        assert sum(map(len, gone.values())) == stored
        assert {t for t in TENANTS if gone[t]} <= allowed

    @rule(tenant=tenants, at=st.integers(0, 100))
    def remove(self, tenant: str, at: int) -> None:
        if self.keys[tenant]:
            key = self.keys[tenant][at % len(self.keys[tenant])]
            assert self.pool.remove(key) == (key not in self.pins)
            if key not in self.pins:
                self.keys[tenant].remove(key)

    @rule(tenant=tenants, at=st.integers(0, 100))
    def pin(self, tenant: str, at: int) -> None:
        if self.keys[tenant]:
            key = self.keys[tenant][at % len(self.keys[tenant])]
            self.pins[key] = self.pool.get(key)

    @rule(at=st.integers(0, 100))
    def unpin(self, at: int) -> None:
        if self.pins:
            del self.pins[sorted(self.pins)[at % len(self.pins)]]

    @rule(tenant=tenants, to=tenants)
    def end_draft(self, tenant: str, to: str) -> None:
        """Given back, or named for the same tenant or another one."""
        if not self.drafts[tenant]:
            return
        draft = self.drafts[tenant].pop()
        self.serial += 1
        key = self.serial.to_bytes(16, "little")
        fits = to == tenant or not self.limit[to] or self.has(to) + 1 <= self.limit[to]
        outcome = draft.publish(key, namespace=self.spaces[to])
        assert (outcome == Outcome.STORED) == fits
        if fits:
            self.keys[to].append(key)
        else:
            draft.discard()

    @rule(tenant=tenants)
    def invalidate(self, tenant: str) -> None:
        """What counts as absent is nobody's any more, as soon as the sweep has seen it; pinned chunks stay."""
        if not any(key in self.pins for key in self.keys[tenant]):
            self.spaces[tenant].bump()
            for key in self.keys[tenant]:
                assert not self.pool.exists(key)
            while self.figures(tenant) != len(self.drafts[tenant]):
                self.pool.reap()
                self.pool.wait(bytes(16), 0.05)
            self.keys[tenant] = []

    def figures(self, tenant: str) -> int:
        return int(next(row["used_bytes"] for row in self.pool.stats()["tenants"] if row["name"] == tenant)) // SIZE

    @invariant()
    def the_accounts_are_the_ledger(self) -> None:
        if hasattr(self, "pool"):
            assert {t: self.figures(t) for t in TENANTS} == {t: self.has(t) for t in TENANTS}

    def teardown(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.check() == []
            self.pins.clear()
            self.drafts.clear()
            self.filler.clear()
            self.pool.close()
            maru.Pool.destroy(self.url, force=True)


TestShares = SharesMachine.TestCase
TestShares.settings = settings(
    max_examples=80, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)


FOUND = ("AssertionError", "ExceptionGroup")  # One fault, or several.


def hunt() -> None:
    """Walk the machine, and say what it found. Runs in a process of its own, with a mutant."""
    try:
        run_state_machine_as_test(SharesMachine, settings=settings(TestShares.settings, phases=[Phase.generate]))
    except BaseException as error:
        print(type(error).__name__, flush=True)
    else:
        print("clean", flush=True)


@pytest.mark.crash
@pytest.mark.parametrize("mutant", ["limit_not_kept", "share_not_kept"])
def test_the_machine_finds_what_a_mutant_breaks(mutant: str) -> None:
    with spawn(hunt, mutants=(mutant,)) as sick:
        assert list(filter(None, sick.process.communicate(timeout=120)[0].splitlines()))[-1] in FOUND
