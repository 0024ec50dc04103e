"""A router's view, built from events alone, against what lookup says: after any traffic, from two handles, both agree.

Chunks come with and without parents, leave by removal, by eviction (the pool is too small for them all), by invalidated
namespaces and by time; somebody looks now and then, a few changes at a time.
"""

from __future__ import annotations

import itertools
import os
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import maru
from maru.daemon.kv_events import EventStream
from maru.native import core
from maru.testing.content import key_of
from router_view import View

KEY_COUNT = 40
SIZE_BYTES = 30_000  # Some thirty of them fill the pool.

_serial = itertools.count()
handles = st.integers(0, 1)
numbers = st.integers(0, KEY_COUNT - 1)
tenants = st.sampled_from([0, 0, 1, 2])  # 0: the default namespace.


class RouterAndPool(RuleBasedStateMachine):
    @initialize(chunk_tokens=st.sampled_from([0, 256]))
    def create(self, chunk_tokens: int) -> None:
        self.url = (
            f"maru:///model-events-{os.getpid()}-{next(_serial)}"
            "?size=1MiB&slab_bytes=64KiB&slots=60&processes=8&namespaces=8&gate=off&populate=off"
        )
        self.pools = [maru.Pool.create(self.url), maru.Pool.attach(self.url)]
        identities = [maru.Identity(model="m", kv_layout="l", tenant=f"t{n}") for n in (1, 2)]
        self.namespaces = [[None, *(pool.namespace(i) for i in identities)] for pool in self.pools]
        self.stream = EventStream("shm", chunk_tokens)
        self.scan = core.ChangeScan(self.pools[0])
        self.view = View()
        self.pins: list[Any] = []

    # ---- traffic ----

    @rule(handle=handles, number=numbers, above=st.none() | numbers, tenant=tenants)
    def put(self, handle: int, number: int, above: int | None, tenant: int) -> None:
        parent = None if above is None else key_of(above)
        self.pools[handle].put(
            key_of(number), bytes(SIZE_BYTES), parent=parent, namespace=self.namespaces[handle][tenant]
        )

    @rule(handle=handles, first=numbers, count=st.integers(2, 12), tenant=tenants)
    def put_prefix(self, handle: int, first: int, count: int, tenant: int) -> None:
        keys = [key_of((first + at) % KEY_COUNT) for at in range(count)]
        for above, key in zip([None, *keys], keys, strict=False):
            self.pools[handle].put(key, bytes(SIZE_BYTES), parent=above, namespace=self.namespaces[handle][tenant])

    @rule(handle=handles, number=numbers)
    def remove(self, handle: int, number: int) -> None:
        self.pools[handle].remove(key_of(number))

    @rule(handle=handles, number=numbers)
    def pin(self, handle: int, number: int) -> None:
        self.pins = [*self.pins[-3:], self.pools[handle].get(key_of(number))]

    @rule(handle=handles, tenant=st.sampled_from([1, 2]))
    def bump(self, handle: int, tenant: int) -> None:
        self.namespaces[handle][tenant].bump()

    @rule(handle=handles)
    def sweep(self, handle: int) -> None:
        self.pools[handle].reap()

    # ---- what the router hears ----

    @rule(limit=st.integers(2, 20))
    def look(self, limit: int) -> None:
        self.hear(limit)

    @rule(limit=st.sampled_from([2, 5, 1000]))
    def look_at_everything(self, limit: int) -> None:
        is_whole = self.hear(limit) and self.hear(limit)  # The first may only have ended what was begun.
        while not is_whole:
            is_whole = self.hear(limit)
        if limit == 1000:  # One whole look with nothing going on meanwhile.
            self.agree()

    def hear(self, limit: int) -> bool:
        changes, is_whole = self.scan.look(limit)
        assert len(changes) <= 64 * limit
        self.view.apply(self.stream.batch(changes, self.scan.told_count, 0.0))
        return is_whole

    def agree(self) -> None:
        there = {key_of(number) for number in range(KEY_COUNT) if self.pools[1].exists(key_of(number))}
        assert self.view.keys == there

    @invariant()
    def a_newcomer_is_told_what_the_others_know(self) -> None:
        if not hasattr(self, "scan"):
            return
        newcomer = View()
        newcomer.apply(self.stream.snapshot(self.scan.told(), 0.0))
        assert newcomer.keys == self.view.keys

    def teardown(self) -> None:
        if not hasattr(self, "pools"):
            return
        try:
            self.hear(1000)
            self.hear(1000)
            self.agree()
        finally:
            self.pins.clear()
            for pool in self.pools:
                pool.close()
            maru.Pool.destroy(self.url, force=True)


TestRouterAndPool = RouterAndPool.TestCase
TestRouterAndPool.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
