"""How each of LMCache's adapters and backends is called, and what is looked at after every call.

Holds:      the chunks that are copied, the steps around a sample, and a lane for each kind of interface: L2 adapters of
            the MP server, called as its controllers do, and remote backends, called as the storage manager does.
Promises:   every store is asked for again and every load is compared with what was stored, all of it outside the time
            that is measured.
Leaves:     making adapters and backends, and their memory, to `lmcache_copy_figures`.
"""

from __future__ import annotations

import itertools
import os
import select
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.distributed.api import ObjectKey
from lmcache.v1.memory_management import MemoryFormat, MemoryObjMetadata, TensorMemoryObj

from maru.bench.measure import Contestant
from maru.native import core

COPY = "streaming copy, ordinary memory"
ANSWER_TIMEOUT_S = 60.0

_numbers = itertools.count(1)


class CopyFailed(RuntimeError):
    """An adapter or a backend did not do what it was asked, or gave other bytes; the message says which and what."""


class Batch:
    """The chunks that a sample copies, and the ordinary memory that they arrive in."""

    def __init__(self, source: Any, landing: Any, chunk_bytes: int) -> None:
        self.chunk_bytes = chunk_bytes
        self.source, self.landing = source, landing
        self.sources, self.landings = _cut(source, chunk_bytes), _cut(landing, chunk_bytes)

    def __len__(self) -> int:
        return len(self.sources)

    def wipe(self) -> None:
        """Nothing in the landing is what it is to become."""
        self.landing.fill(0)

    def compare(self, name: str, found: Sequence[Any]) -> None:
        """Raise CopyFailed unless `found`, arrays in order, is the source."""
        for at, (arrived, wanted) in enumerate(zip(found, self.sources, strict=True)):
            if not np.array_equal(arrived, wanted):
                raise CopyFailed(f"{name}: chunk {at} of {len(self)} is not what was stored")

    def copy_all(self) -> None:
        """What everybody is compared with: the same bytes by streaming stores, with nothing around them."""
        for arrived, wanted in zip(self.landings, self.sources, strict=True):
            core.stream_copy(arrived, wanted)


def _cut(array: Any, size_bytes: int) -> list[Any]:
    return [array[at : at + size_bytes] for at in range(0, array.nbytes, size_bytes)]


def _nothing() -> None:
    """A step that there is none of."""


class Steps:
    """Makes contestants whose samples have an untimed step before and one after.

    The step after a sample runs before the next sample of anybody, and for the last one in settle(): what a sample
    left is looked at before anything else touches it.
    """

    def __init__(self, chunks: int) -> None:
        self._chunks = chunks
        self._after = _nothing

    def contestant(
        self, name: str, run: Callable[[], None], *, before: Callable[[], None], after: Callable[[], None]
    ) -> Contestant:
        """`run` does a whole batch; its figure is by the chunk."""

        def prepare(_repeats: int) -> None:
            self.settle()
            before()
            self._after = after

        return Contestant(name, lambda _: run(), prepare, repeats=self._chunks)

    def settle(self) -> None:
        """Take the step that the last sample left to do. Raises CopyFailed."""
        after, self._after = self._after, _nothing
        after()


@dataclass(frozen=True)
class Timed:
    """A contestant, and whether its row is shown as bandwidth."""

    contestant: Contestant
    moves_bytes: bool = True


def plain_copy(batch: Batch, steps: Steps) -> Timed:
    """The contestant that everybody is compared with."""
    after = partial(batch.compare, COPY, batch.landings)
    return Timed(steps.contestant(COPY, batch.copy_all, before=batch.wipe, after=after))


class L2Lane:
    """One adapter, called as LMCache's controllers do: submit, wait for the signal, ask for the result."""

    def __init__(self, kind: str, adapter: Any, batch: Batch) -> None:
        self._kind, self._adapter, self._batch = kind, adapter, batch
        self._sources, self._landings = ([_object_of(a) for a in arrays] for arrays in (batch.sources, batch.landings))
        self._keys: list[ObjectKey] = []
        self._task = -1

    def timed(self, steps: Steps) -> list[Timed]:
        """In the order in which the first round has to be: nothing is found before it was stored."""
        store = steps.contestant(self._name("store"), self._store, before=self._renew, after=self._check_store)
        lookup = steps.contestant(self._name("lookup"), self._look_up, before=_nothing, after=self._check_lookup)
        load = steps.contestant(self._name("load"), self._load, before=self._before_load, after=self._check_load)
        return [Timed(store), Timed(lookup, moves_bytes=False), Timed(load)]

    def _name(self, what: str) -> str:
        return f"{self._kind} {what}, per key" if what == "lookup" else f"{self._kind} {what}"

    def clear(self) -> None:
        """Remove what it stored."""
        self._adapter.delete(self._keys)

    def _renew(self) -> None:
        self.clear()
        self._keys = [ObjectKey(os.urandom(32), "bench", 1) for _ in range(len(self._batch))]

    def _store(self) -> None:
        self._task = self._adapter.submit_store_task(self._keys, self._sources)
        self._await(self._adapter.get_store_event_fd())

    def _check_store(self) -> None:
        result = self._adapter.pop_completed_store_tasks().get(self._task)
        if result is None or not result.is_successful():
            raise CopyFailed(f"{self._name('store')}: {result}")

    def _look_up(self) -> None:
        self._task = self._adapter.submit_lookup_and_lock_task(self._keys, {})
        self._await(self._adapter.get_lookup_and_lock_event_fd())

    def _insist_on_all(self, what: str, bitmap: Any) -> None:
        count = bitmap.popcount() if bitmap is not None else 0
        if count != len(self._keys):
            raise CopyFailed(f"{self._name(what)}: {count} of {len(self._keys)} chunks")

    def _check_lookup(self) -> None:
        self._insist_on_all("lookup", self._adapter.query_lookup_and_lock_result(self._task))
        self._adapter.submit_unlock(self._keys)

    def _before_load(self) -> None:
        """LMCache loads only what it has locked."""
        self._look_up()
        self._insist_on_all("lookup", self._adapter.query_lookup_and_lock_result(self._task))
        self._batch.wipe()

    def _load(self) -> None:
        self._task = self._adapter.submit_load_task(self._keys, self._landings)
        self._await(self._adapter.get_load_event_fd())

    def _check_load(self) -> None:
        self._insist_on_all("load", self._adapter.query_load_result(self._task))
        self._batch.compare(self._name("load"), self._batch.landings)
        self._adapter.submit_unlock(self._keys)

    def _await(self, fd: int) -> None:
        poller = select.poll()
        poller.register(fd, select.POLLIN)
        if not poller.poll(ANSWER_TIMEOUT_S * 1e3):
            raise CopyFailed(f"{self._kind}: no answer in {ANSWER_TIMEOUT_S:.0f} s")
        os.eventfd_read(fd)


def _object_of(array: Any) -> TensorMemoryObj:
    """LMCache's object over memory of ours."""
    shape, dtype = torch.Size([array.nbytes]), torch.uint8
    metadata = MemoryObjMetadata(
        shape,
        dtype,
        address=0,
        phy_size=array.nbytes,
        ref_count=1,
        fmt=MemoryFormat.KV_2LTD,
        shapes=[shape],
        dtypes=[dtype],
    )
    return TensorMemoryObj(torch.from_numpy(array), metadata, None)


class RemoteLane:
    """One remote backend, called as LMCache's storage manager does."""

    def __init__(self, kind: str, backend: Any, batch: Batch, sources: list[Any], dtype: Any) -> None:
        self._kind, self._backend, self._batch, self._sources = kind, backend, batch, sources
        self._dtype = dtype
        self._keys: list[CacheEngineKey] = []
        self._got: list[Any] = []

    def timed(self, steps: Steps) -> list[Timed]:
        """In the order in which the first round has to be."""
        put = steps.contestant(f"{self._kind} put", self._put, before=self._renew, after=self._check_put)
        get = steps.contestant(f"{self._kind} get", self._get, before=_nothing, after=self._check_get)
        return [Timed(put), Timed(get)]

    def clear(self) -> None:
        """Remove what it stored."""
        for key in self._keys:
            self._backend.remove(key)

    def _renew(self) -> None:
        self.clear()
        self._keys = [CacheEngineKey("bench", 1, 0, next(_numbers), self._dtype) for _ in range(len(self._batch))]
        self._stored = threading.Semaphore(0)

    def _put(self) -> None:
        self._backend.batched_submit_put_task(
            self._keys, self._sources, on_complete_callback=lambda _key: self._stored.release()
        )
        for _ in self._keys:
            if not self._stored.acquire(timeout=ANSWER_TIMEOUT_S):
                raise CopyFailed(f"{self._kind} put: no answer in {ANSWER_TIMEOUT_S:.0f} s")

    def _check_put(self) -> None:
        count = self._backend.batched_contains(self._keys)
        if count != len(self._keys):
            raise CopyFailed(f"{self._kind} put: {count} of {len(self._keys)} chunks")

    def _get(self) -> None:
        self._got = self._backend.batched_get_blocking(self._keys)

    def _check_get(self) -> None:
        """LMCache allocates what it loads into anew; it gets that back whatever is in it."""
        got, self._got = self._got, []
        try:
            count = sum(memory_obj is not None for memory_obj in got)
            if count != len(self._keys):
                raise CopyFailed(f"{self._kind} get: {count} of {len(self._keys)} chunks")
            self._batch.compare(f"{self._kind} get", [bytes_of(memory_obj) for memory_obj in got])
        finally:
            for memory_obj in got:
                if memory_obj is not None:
                    memory_obj.ref_count_down()


def bytes_of(memory_obj: Any) -> Any:
    """The memory of one of LMCache's objects as an array."""
    return np.frombuffer(memory_obj.byte_array, dtype=np.uint8)
