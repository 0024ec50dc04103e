"""A pool far too small for what is stored: what is readable is right, and what is pinned neither goes nor changes.

What is evicted is the pool's choice; the model only knows what may be answered.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of

UNIT = 4096
SLAB = 64 << 10
_serial = itertools.count()

handles = st.integers(0, 1)
numbers = st.integers(0, 59)
sizes = st.sampled_from([1, 3000, 4096, 9000, 20_000, 33_000, SLAB - 1, SLAB])
parents = st.none() | numbers


class TinyPool(RuleBasedStateMachine):
    writings: Any = Bundle("writings")
    drafts: Any = Bundle("drafts")
    held: Any = Bundle("held")

    @initialize(slots=st.sampled_from([30, 500]), gate=st.booleans())
    def create(self, slots: int, gate: bool) -> None:
        self.gate = gate
        self.url = (
            f"maru:///tiny-{os.getpid()}-{next(_serial)}?size=1MiB&slab_bytes=64KiB&slots={slots}&processes=64"
            f"&populate=off&gate={'on' if gate else 'off'}"
        )
        self.pools = [maru.Pool.create(self.url), maru.Pool.attach(self.url)]
        self.pins: dict[bytes, int] = {}  # Keys that somebody holds, and how often.
        self.reserved: dict[bytes, Any] = {}
        self.all_held: list[list[tuple[bytes, Any]]] = []
        self.all_drafts: list[Any] = []

    def nothing_is_held(self) -> bool:
        return not self.pins and not self.reserved and not self.all_drafts

    def may_answer(self, key: bytes, got: Outcome, given: Outcome, *, continues: bool = False) -> None:
        """`given`: the answer when the key is free and there is room. `continues`: its prefix may fill it."""
        if got == Outcome.FULL and (self.gate or continues):
            return
        if key in self.reserved:
            assert got == Outcome.IN_FLIGHT
        elif key in self.pins:
            assert got == Outcome.EXISTS
        elif self.nothing_is_held():
            assert got in (given, Outcome.EXISTS)
        else:
            assert got in (given, Outcome.EXISTS, Outcome.FULL)

    # ---- writing ----

    @rule(h=handles, number=numbers, size=sizes, parent=parents)
    def put(self, h: int, number: int, size: int, parent: int | None) -> None:
        key = key_of(number)
        got = self.pools[h].put(key, bytes_of(key, size), parent=None if parent is None else key_of(parent))
        self.may_answer(key, got, Outcome.STORED, continues=parent is not None)
        if got in (Outcome.STORED, Outcome.EXISTS):
            assert self.pools[1 - h].exists(key)

    @rule(h=handles, first=numbers, count=st.integers(1, 12), size=sizes)
    def put_a_prefix(self, h: int, first: int, count: int, size: int) -> None:
        keys = [key_of(n) for n in range(first, first + count)]
        answers = self.pools[h].put_many(b"".join(keys), [bytes_of(key, size) for key in keys])
        for key, got in zip(keys, answers, strict=True):
            self.may_answer(key, got, Outcome.STORED, continues=True)
        # After a chunk that found no room, nothing of the prefix could be reached: the rest is not tried.
        assert list(itertools.dropwhile(lambda got: got != Outcome.FULL, answers)) == [Outcome.FULL] * answers.count(
            Outcome.FULL
        )

    @rule(target=writings, h=handles, number=numbers, size=sizes, parent=parents)
    def reserve(self, h: int, number: int, size: int, parent: int | None) -> Any:
        key = key_of(number)
        r = self.pools[h].reserve(key, size, parent=None if parent is None else key_of(parent), deadline=300)
        self.may_answer(key, r.outcome, Outcome.RESERVED, continues=parent is not None)
        if r.outcome != Outcome.RESERVED:
            return multiple()
        r.buffer[:] = bytes_of(key, size)
        self.reserved[key] = r
        return key, r

    @rule(mine=consumes(writings))
    def seal(self, mine: Any) -> None:
        key, r = mine
        assert bytes(memoryview(r.buffer)) == bytes_of(key, len(r.buffer))
        assert r.seal() == Outcome.STORED
        del self.reserved[key]
        assert self.pools[0].exists(key)

    @rule(mine=consumes(writings))
    def discard(self, mine: Any) -> None:
        key, r = mine
        r.discard()
        del self.reserved[key]
        assert not self.pools[0].exists(key)

    @rule(target=drafts, h=handles, size=sizes)
    def allocate(self, h: int, size: int) -> Any:
        draft = self.pools[h].allocate(size)
        if draft is None:
            assert self.gate or not self.nothing_is_held()
            return multiple()
        draft.buffer[:] = bytes_of(b"draft", size)
        self.all_drafts.append(draft)
        return draft

    @rule(target=drafts, draft=consumes(drafts), number=numbers)
    def publish(self, draft: Any, number: int) -> Any:
        key = key_of(number)
        assert bytes(memoryview(draft.buffer)) == bytes_of(b"draft", draft.size)
        draft.buffer[:] = bytes_of(key, draft.size)
        got = draft.publish(key)
        self.may_answer(key, got, Outcome.STORED)
        if got == Outcome.STORED:
            self.all_drafts.remove(draft)
            return multiple()
        draft.buffer[:] = bytes_of(b"draft", draft.size)
        return draft

    @rule(draft=consumes(drafts))
    def drop_draft(self, draft: Any) -> None:
        draft.discard()
        self.all_drafts.remove(draft)

    # ---- reading ----

    @rule(target=held, h=handles, first=numbers, count=st.integers(1, 8), how=st.sampled_from(["get", "pin", "array"]))
    def hold(self, h: int, first: int, count: int, how: str) -> Any:
        keys = [key_of(n) for n in range(first, first + (1 if how == "get" else count))]
        if how == "get":
            view = self.pools[h].get(keys[0])
            views: list[Any] = [] if view is None else [view]
        else:
            with self.pools[h].pin(b"".join(keys)) as prefix:
                views = prefix.views
        if how == "array":
            views = [np.frombuffer(view, dtype=np.uint8)[len(view) // 2 :] for view in views]
        for key in keys[: len(views)]:
            self.pins[key] = self.pins.get(key, 0) + 1
        wanted = [key in self.pins for key in keys]
        assert len(views) >= len(list(itertools.takewhile(bool, wanted)))  # What is pinned already is there.
        mine = list(zip(keys, views, strict=False))
        self.all_held.append(mine)
        return mine

    @rule(mine=consumes(held))
    def release(self, mine: list[tuple[bytes, Any]]) -> None:
        for key, _ in mine:
            self.pins[key] -= 1
            if self.pins[key] == 0:
                del self.pins[key]
        self.all_held = [other for other in self.all_held if other is not mine]
        mine.clear()

    @rule(h=handles, number=numbers)
    def read(self, h: int, number: int) -> None:
        key = key_of(number)
        view = self.pools[h].get(key)
        assert view is None or is_right(key, view)
        assert view is not None or key not in self.pins

    @rule(h=handles, number=numbers)
    def remove(self, h: int, number: int) -> None:
        key = key_of(number)
        if self.pools[h].remove(key):
            assert key not in self.pins
            assert key not in self.reserved
            assert not self.pools[1 - h].exists(key)

    @rule(h=handles)
    def reap(self, h: int) -> None:
        assert self.pools[h].reap() == 0

    # ---- always ----

    @invariant()
    def what_is_pinned_is_there_and_right(self) -> None:
        for mine in getattr(self, "all_held", []):
            for key, view in mine:
                whole = bytes_of(key, SLAB)
                if isinstance(view, np.ndarray):
                    full = self.pools[0].get(key)
                    assert full is not None
                    assert view.tobytes() == whole[: len(full)][len(full) // 2 :]
                else:
                    assert bytes(view) == whole[: len(view)]
                assert self.pools[1].exists(key)

    def teardown(self) -> None:
        if not hasattr(self, "pools"):
            return
        try:
            for mine in list(self.all_held):
                self.release(mine)
            for r in self.reserved.values():
                r.discard()
            for draft in self.all_drafts:
                draft.discard()
            self.pools[0].reap()
            assert self.pools[0].check() == []
            sealed = [len(view) for n in range(80) if (view := self.pools[1].get(key_of(n))) is not None]
            figures = self.pools[0].stats()
            assert figures["chunks"]["sealed"] == len(sealed)
            assert figures["chunk_bytes"] == sum(sealed)
            assert figures["used_bytes"] == sum(-(-size // UNIT) * UNIT for size in sealed)
            # With nothing held a chunk of any size fits, whatever the slabs were cut into.
            for size in (SLAB, 1, 20_000):
                got = self.pools[1].put(key_of(size, "last"), bytes(size))
                assert got == Outcome.STORED or (self.gate and got == Outcome.FULL)
            for pool in self.pools:
                pool.close()
            with maru.Pool.attach(self.url) as later:
                assert later.check() == []
        finally:
            maru.Pool.destroy(self.url, force=True)


TestTinyPool = TinyPool.TestCase
TestTinyPool.settings = settings(
    derandomize=True, deadline=None, database=None, max_examples=500, stateful_step_count=80,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
