"""The pool against a plain dict: two handles on one pool, as two processes would have, in any order of calls.

Nothing is evicted here, so the dict knows every answer. Eviction has a model of its own (test_eviction_model.py).
"""

from __future__ import annotations

import hashlib
import itertools
import os
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    precondition,
    rule,
)  # fmt: skip

import maru
from maru import Outcome
from maru.testing.content import key_of

KEYS = [key_of(n) for n in range(10)]
UNIT = 4096
SECONDS = 300.0  # A deadline or time to live that no example reaches.
_serial = itertools.count()

handles = st.integers(0, 1)
keys = st.sampled_from(KEYS)
sizes = st.sampled_from([1, 2, 100, 4096, 4098, 9000, 20_000])
tenants = st.sampled_from([0, 0, 1, 2])  # 0: the default namespace.
lives = st.sampled_from(["for ever", "for ever", "long", "over at once"])
TTL = {"for ever": None, "long": SECONDS, "over at once": 1e-9}


def content_of(key: bytes, size: int) -> bytes:
    """Other bytes at every store, so that an old chunk under the same key is told from a new one."""
    seed = hashlib.blake2b(key + next(_serial).to_bytes(8, "little"), digest_size=64).digest()
    return (seed * (size // 64 + 1))[:size]


@dataclass
class Chunk:
    """A chunk that was sealed. Pins are what holds this very chunk, under whatever key is asked now."""

    content: bytes
    tenant: int
    epoch: int
    expired: bool
    pins: int = 0


@dataclass
class Writing:
    """A reservation of one handle."""

    key: bytes
    content: bytes
    tenant: int
    epoch: int
    expired: bool
    overdue: bool
    native: Any
    state: str = "reserved"  # reserved, revoked, ended


@dataclass
class Held:
    """Something that pins: views of one chunk or of several, and the prefix they came from."""

    chunks: list[Chunk]
    views: list[Any] = field(default_factory=list)
    prefix: Any = None


class PoolAndDict(RuleBasedStateMachine):
    writings: Any = Bundle("writings")
    drafts: Any = Bundle("drafts")
    held: Any = Bundle("held")

    @initialize()
    def create(self) -> None:
        self.url = (
            f"maru:///model-{os.getpid()}-{next(_serial)}?size=8MiB&slots=1024&processes=64&namespaces=8&populate=off"
        )
        self.pools = [maru.Pool.create(self.url), maru.Pool.attach(self.url)]
        identities = [maru.Identity(model="m", kv_layout="l", tenant=f"t{n}") for n in (1, 2)]
        self.namespaces = [[None, *(pool.namespace(i) for i in identities)] for pool in self.pools]
        self.epochs = [0, 0, 0]
        self.sealed: dict[bytes, Chunk] = {}
        self.writing: dict[bytes, Writing] = {}
        self.all_writings: list[Writing] = []
        self.all_drafts: list[Any] = []
        self.all_held: list[Held] = []

    # ---- what the dict says ----

    def is_current(self, chunk: Chunk) -> bool:
        return not chunk.expired and chunk.epoch == self.epochs[chunk.tenant]

    def current(self, key: bytes) -> Chunk | None:
        chunk = self.sealed.get(key)
        return chunk if chunk is not None and self.is_current(chunk) else None

    def verdict(self, key: bytes) -> Outcome:
        """What a reservation of this key answers."""
        if self.current(key) is not None:
            return Outcome.EXISTS
        other = self.writing.get(key)
        return Outcome.IN_FLIGHT if other is not None and not other.overdue else Outcome.RESERVED

    def bind(self, key: bytes) -> None:
        """The key is given to a new chunk: a stale one lets go of it, an overdue writer loses it."""
        self.sealed.pop(key, None)
        other = self.writing.pop(key, None)
        if other is not None:
            other.state = "revoked"

    def store(self, key: bytes, content: bytes, tenant: int, life: str) -> None:
        self.bind(key)
        self.sealed[key] = Chunk(content, tenant, self.epochs[tenant], life == "over at once")

    def agree(self, got: Outcome, wanted: Outcome, key: bytes) -> bool:
        """Is it what the dict says? BUSY is allowed only while the housekeeper may be removing a stale chunk."""
        if got == Outcome.BUSY and key in self.sealed and self.current(key) is None:
            return False
        assert got == wanted
        return True

    # ---- writing ----

    @rule(h=handles, key=keys, size=sizes, tenant=tenants, life=lives, parent=st.none() | keys)
    def put(self, h: int, key: bytes, size: int, tenant: int, life: str, parent: bytes | None) -> None:
        content, wanted = content_of(key, size), self.verdict(key)
        got = self.pools[h].put(key, content, namespace=self.namespaces[h][tenant], parent=parent, ttl=TTL[life])
        if self.agree(got, Outcome.STORED if wanted == Outcome.RESERVED else wanted, key) and got == Outcome.STORED:
            self.store(key, content, tenant, life)

    @rule(h=handles, many=st.lists(keys, max_size=6), size=sizes, tenant=tenants, life=lives)
    def put_many(self, h: int, many: list[bytes], size: int, tenant: int, life: str) -> None:
        contents = [content_of(key, size) for key in many]
        answers = self.pools[h].put_many(b"".join(many), contents, namespace=self.namespaces[h][tenant], ttl=TTL[life])
        assert len(answers) == len(many)
        for key, content, got in zip(many, contents, answers, strict=True):
            wanted = self.verdict(key)
            if self.agree(got, Outcome.STORED if wanted == Outcome.RESERVED else wanted, key) and got == Outcome.STORED:
                self.store(key, content, tenant, life)

    @rule(target=writings, h=handles, key=keys, size=sizes, tenant=tenants, life=lives, overdue=st.booleans())
    def reserve(self, h: int, key: bytes, size: int, tenant: int, life: str, overdue: bool) -> Any:
        native = self.pools[h].reserve(
            key, size, namespace=self.namespaces[h][tenant], ttl=TTL[life], deadline=0 if overdue else SECONDS
        )
        if not self.agree(native.outcome, self.verdict(key), key) or native.outcome != Outcome.RESERVED:
            return multiple()
        self.bind(key)
        mine = Writing(key, content_of(key, size), tenant, self.epochs[tenant], life == "over at once", overdue, native)
        native.buffer[:] = mine.content
        self.writing[key] = mine
        self.all_writings.append(mine)
        return mine

    @rule(mine=consumes(writings))
    def seal(self, mine: Writing) -> None:
        alive = mine.state == "reserved" and mine.epoch == self.epochs[mine.tenant]
        buffer = mine.native.buffer
        array = np.frombuffer(buffer, dtype=np.uint8)
        assert array.tobytes() == mine.content  # Also a revoked one: the key was taken, never the bytes.
        del array
        assert mine.native.seal() == (Outcome.STORED if alive else Outcome.LOST)
        assert buffer.released
        self.end(mine)
        if alive:
            self.sealed[mine.key] = Chunk(mine.content, mine.tenant, mine.epoch, mine.expired)

    @rule(mine=consumes(writings))
    def discard(self, mine: Writing) -> None:
        mine.native.discard()
        self.end(mine)

    def end(self, mine: Writing) -> None:
        if self.writing.get(mine.key) is mine:
            del self.writing[mine.key]
        mine.state = "ended"

    @rule(mine=writings, later=st.booleans())
    def renew(self, mine: Writing, later: bool) -> None:
        assert mine.native.renew(SECONDS if later else 0) == (mine.state == "reserved")
        mine.overdue = not later

    @rule(
        h=handles,
        key=keys,
        half=st.sampled_from([1, 50, 4096, 6000]),
        tenant=tenants,
        end=st.sampled_from(["seal", "give up"]),
    )
    def in_two_parts(self, h: int, key: bytes, half: int, tenant: int, end: str) -> None:
        content = content_of(key, 2 * half)
        first = self.pools[h].reserve(
            key, 2 * half, namespace=self.namespaces[h][tenant], part=0, parts=2, deadline=SECONDS
        )
        if not self.agree(first.outcome, self.verdict(key), key) or first.outcome != Outcome.RESERVED:
            return
        self.bind(key)
        rival = self.pools[1 - h]
        ns = self.namespaces[1 - h][tenant]
        assert rival.put(key, b"x") == Outcome.IN_FLIGHT
        second = rival.reserve(key, 2 * half, namespace=ns, part=1, parts=2, deadline=SECONDS)
        assert second.outcome == Outcome.RESERVED
        first.buffer[:] = content[:half]
        second.buffer[:] = content[half:]
        if end == "seal":
            assert second.seal() == Outcome.STORED
            assert rival.lookup(key) == 0
            assert first.seal() == Outcome.STORED
            self.sealed[key] = Chunk(content, tenant, self.epochs[tenant], expired=False)
        else:
            first.discard()
            assert second.seal() == Outcome.LOST
            assert rival.lookup(key) == 0

    # ---- drafts ----

    @rule(target=drafts, h=handles, size=sizes)
    def allocate(self, h: int, size: int) -> Any:
        draft = self.pools[h].allocate(size)
        assert draft is not None
        content = content_of(b"draft", size)
        draft.buffer[:] = content
        self.all_drafts.append(draft)
        return h, draft, content

    @rule(target=drafts, mine=consumes(drafts), key=keys, tenant=tenants, life=lives)
    def publish(self, mine: Any, key: bytes, tenant: int, life: str) -> Any:
        h, draft, content = mine
        wanted = self.verdict(key)
        got = draft.publish(key, namespace=self.namespaces[h][tenant], ttl=TTL[life])
        if not self.agree(got, Outcome.STORED if wanted == Outcome.RESERVED else wanted, key) or got != Outcome.STORED:
            assert bytes(memoryview(draft.buffer)) == content  # Still ours.
            return mine
        self.store(key, content, tenant, life)
        return multiple()

    @rule(mine=consumes(drafts))
    def drop_draft(self, mine: Any) -> None:
        mine[1].discard()

    # ---- reading ----

    @rule(target=held, h=handles, key=keys)
    def get(self, h: int, key: bytes) -> Any:
        view, chunk = self.pools[h].get(key), self.current(key)
        assert (view is None) == (chunk is None)
        if view is None or chunk is None:
            return multiple()
        assert view.readonly
        return self.hold(Held([chunk], [view]))

    @rule(target=held, h=handles, many=st.lists(keys, max_size=6), keep_views=st.booleans())
    def pin(self, h: int, many: list[bytes], keep_views: bool) -> Any:
        prefix = self.pools[h].pin(b"".join(many))
        run = [chunk for key in many if (chunk := self.current(key)) is not None]
        leading = list(itertools.takewhile(lambda c: c is not None, (self.current(key) for key in many)))
        assert len(prefix) == len(leading) <= len(run)
        chunks = [chunk for chunk in leading if chunk is not None]
        assert prefix.nbytes == sum(len(chunk.content) for chunk in chunks)
        assert [bytes(view) for view in prefix.views] == [chunk.content for chunk in chunks]
        if keep_views:  # The views alone hold the chunks now.
            views = prefix.views
            prefix.release()
            return self.hold(Held(chunks, views))
        return self.hold(Held(chunks, prefix=prefix))

    def hold(self, mine: Held) -> Held:
        for chunk in mine.chunks:
            chunk.pins += 1
        self.all_held.append(mine)
        return mine

    @rule(mine=consumes(held))
    def release(self, mine: Held) -> None:
        for chunk in mine.chunks:
            chunk.pins -= 1
        if mine.prefix is not None:
            mine.prefix.release()
        mine.views.clear()
        mine.prefix = None
        self.all_held.remove(mine)

    @rule(h=handles, many=st.lists(keys, max_size=12))
    def lookup(self, h: int, many: list[bytes]) -> None:
        run = itertools.takewhile(lambda key: self.current(key) is not None, many)
        assert self.pools[h].lookup(b"".join(many)) == len(list(run))

    @rule(h=handles, key=keys)
    def exists_and_wait(self, h: int, key: bytes) -> None:
        assert self.pools[h].exists(key) == (self.current(key) is not None)
        assert self.pools[h].wait(key, 0) == (self.current(key) is not None)

    # ---- removing ----

    @rule(h=handles, key=keys)
    def remove(self, h: int, key: bytes) -> None:
        removed, chunk = self.pools[h].remove(key), self.sealed.get(key)
        if chunk is not None and self.is_current(chunk):
            assert removed == (chunk.pins == 0)
        elif chunk is None or chunk.pins:
            assert not removed  # Of a stale one the housekeeper may have been first.
        if removed:
            del self.sealed[key]

    @rule(h=handles, tenant=st.sampled_from([1, 2]))
    def bump(self, h: int, tenant: int) -> None:
        self.epochs[tenant] += 1
        assert self.namespaces[h][tenant].bump() == self.namespaces[1 - h][tenant].epoch

    @rule(h=handles)
    def reap(self, h: int) -> None:
        assert self.pools[h].reap() == 0

    @precondition(lambda self: not self.all_held)
    @rule(h=handles)
    def reopen(self, h: int) -> None:
        """The handle goes and another comes; what the old one had reserved stays with it."""
        self.pools[h].close()
        self.pools[h] = maru.Pool.attach(self.url)
        for tenant in (1, 2):
            identity = maru.Identity(model="m", kv_layout="l", tenant=f"t{tenant}")
            self.namespaces[h][tenant] = self.pools[h].namespace(identity)

    # ---- always ----

    @invariant()
    def what_is_held_does_not_change(self) -> None:
        for mine in getattr(self, "all_held", []):
            views = mine.views if mine.prefix is None else mine.prefix.views
            assert [bytes(view) for view in views] == [chunk.content for chunk in mine.chunks]

    def teardown(self) -> None:
        if not hasattr(self, "pools"):
            return
        try:
            for mine in list(self.all_held):
                self.release(mine)
            for writing in self.all_writings:
                writing.native.discard()
            for draft in self.all_drafts:
                draft.discard()
            self.pools[0].reap()
            assert self.pools[0].check() == []
            figures = self.pools[1].stats()
            current = [chunk for chunk in self.sealed.values() if self.is_current(chunk)]
            assert figures["chunks"]["sealed"] == len(current)
            assert figures["chunk_bytes"] == sum(len(chunk.content) for chunk in current)
            assert figures["used_bytes"] == sum(-(-len(chunk.content) // UNIT) * UNIT for chunk in current)
            assert figures["counters"]["evicted"] == 0
            for pool in self.pools:
                pool.close()
            with maru.Pool.attach(self.url) as later:  # An extent that nobody gave back would be a dead process's now.
                assert later.check() == []
                assert {key for key in KEYS if later.exists(key)} == {k for k in KEYS if self.current(k) is not None}
        finally:
            maru.Pool.destroy(self.url, force=True)


TestPoolAndDict = PoolAndDict.TestCase
TestPoolAndDict.settings = settings(
    derandomize=True, deadline=None, database=None, max_examples=250, stateful_step_count=60,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
