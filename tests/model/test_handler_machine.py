"""The drop-in handler against a plain dictionary: two clients of one pool, with keys, pages, views and pins."""

from __future__ import annotations

import itertools
import os
from collections import Counter

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import maru
from maru import AllocHandle, MaruConfig, MaruHandler, MemoryInfo

CHUNK = 4096
KEYS = [f"model@1@0@{number:x}@bf16" for number in range(8)]
KEY_BATCH = st.lists(st.sampled_from(KEYS), min_size=1, max_size=5, unique=True)
WHO = st.integers(0, 1)

_numbers = itertools.count()


class HandlerMachine(RuleBasedStateMachine):
    """Nothing is evicted here: the pool is larger than everything that can be in it."""

    @initialize()
    def begin(self) -> None:
        self.url = f"maru:///test-handler-machine-{os.getpid()}-{next(_numbers)}?size=8MiB&populate=off&gate=off"
        self.handlers = [
            MaruHandler(MaruConfig(server_url=self.url, pool_size=8 << 20, chunk_size_bytes=CHUNK)) for _ in range(2)
        ]
        assert all(handler.connect() for handler in self.handlers)
        self.stored: dict[str, bytes] = {}
        self.pages: list[tuple[int, AllocHandle, bytes]] = []
        self.views: list[tuple[int, str, MemoryInfo, bytes]] = []
        self.pins: Counter[tuple[int, str]] = Counter()
        self.fresh = itertools.count(1)

    def teardown(self) -> None:
        if not hasattr(self, "url"):
            return
        self.pages.clear()
        self.views.clear()
        for handler in self.handlers:
            handler.close()
        maru.Pool.destroy(self.url, force=True)

    def is_held(self, key: str) -> bool:
        return any(held == key for _, held, _, _ in self.views) or any(
            count and pinned == key for (_, pinned), count in self.pins.items()
        )

    @rule(who=WHO, size=st.integers(1, CHUNK))
    def alloc(self, who: int, size: int) -> None:
        handle = self.handlers[who].alloc(size)
        content = (next(self.fresh).to_bytes(4, "little") * (size // 4 + 1))[:size]
        handle.buf[:] = content
        self.pages.append((who, handle, content))

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        who, handle, _ = self.pages.pop(data.draw(st.integers(0, len(self.pages) - 1)))
        self.handlers[who].free(handle)

    @precondition(lambda self: self.pages)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        self.pages.pop(data.draw(st.integers(0, len(self.pages) - 1)))

    @precondition(lambda self: self.pages)
    @rule(keys=KEY_BATCH, by_ids=st.booleans())
    def store(self, keys: list[str], by_ids: bool) -> None:
        who = self.pages[0][0]
        mine = [page for page in self.pages if page[0] == who][: len(keys)]
        keys = keys[: len(mine)]
        self.pages = [page for page in self.pages if page not in mine]
        handles = [handle for _, handle, _ in mine]
        if by_ids:
            handles = [AllocHandle(memoryview(b""), one.region_id, one.page_index, one.size) for one in handles]
        results = self.handlers[who].batch_store(keys, handles)
        assert results == [key not in self.stored for key in keys]
        for key, (_, _, content), good in zip(keys, mine, results, strict=True):
            if good:
                self.stored[key] = content

    @rule(who=WHO, keys=KEY_BATCH, hold=st.booleans())
    def retrieve(self, who: int, keys: list[str], hold: bool) -> None:
        infos = self.handlers[who].batch_retrieve(keys)
        assert [bytes(info.view) if info else None for info in infos] == [self.stored.get(key) for key in keys]
        if hold:
            self.views += [(who, key, info, self.stored[key]) for key, info in zip(keys, infos, strict=True) if info]

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def drop_a_view(self, data: st.DataObject) -> None:
        self.views.pop(data.draw(st.integers(0, len(self.views) - 1)))

    @rule(who=WHO, keys=KEY_BATCH)
    def exists(self, who: int, keys: list[str]) -> None:
        assert self.handlers[who].batch_exists(keys) == [key in self.stored for key in keys]

    @rule(who=WHO, keys=KEY_BATCH)
    def pin(self, who: int, keys: list[str]) -> None:
        leading = len(list(itertools.takewhile(self.stored.__contains__, keys)))
        assert self.handlers[who].batch_pin(keys) == [True] * leading + [False] * (len(keys) - leading)
        self.pins.update((who, key) for key in keys[:leading])

    @rule(who=WHO, keys=KEY_BATCH)
    def unpin(self, who: int, keys: list[str]) -> None:
        assert self.handlers[who].batch_unpin(keys) == [self.pins[who, key] > 0 for key in keys]
        for key in keys:
            self.pins[who, key] = max(0, self.pins[who, key] - 1)

    @rule(who=WHO, key=st.sampled_from(KEYS))
    def delete(self, who: int, key: str) -> None:
        wanted = key in self.stored and not self.is_held(key)
        assert self.handlers[who].delete(key) == wanted
        if wanted:
            del self.stored[key]

    @rule(who=WHO)
    def close_and_connect_anew(self, who: int) -> None:
        """What it had not stored and what it pinned by key is gone; views that somebody holds are not."""
        self.handlers[who].close()
        self.pages = [page for page in self.pages if page[0] != who]
        for pinned in [pin for pin in self.pins if pin[0] == who]:
            del self.pins[pinned]
        self.handlers[who] = MaruHandler(MaruConfig(server_url=self.url, pool_size=8 << 20, chunk_size_bytes=CHUNK))
        assert self.handlers[who].connect()

    @invariant()
    def what_is_held_does_not_change_and_can_be_found(self) -> None:
        for _, _, info, content in getattr(self, "views", []):
            assert bytes(info.view) == content

    @invariant()
    def counts_are_right(self) -> None:
        for who, handler in enumerate(getattr(self, "handlers", [])):
            assert handler.key_pin_count == sum(count for (owner, _), count in self.pins.items() if owner == who)


TestHandlerMachine = HandlerMachine.TestCase
TestHandlerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
