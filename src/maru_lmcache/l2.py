"""The door for LMCache's MP server: an L2 adapter over a pool, so that every server of the host finds every KV.

    lmcache server ... --l2-adapter '{"type": "plugin", "shared": true,
      "module_path": "maru_lmcache.l2", "class_name": "MaruL2Adapter",
      "adapter_params": {"pool": "maru:///mp?size=8GiB"}}'

Holds:      LMCache's L2AdapterInterface: tasks and their event fds, locks as pins, ObjectKeys as keys of the pool.
Promises:   until close(), every task gets its result and its signal, whatever fails. What a lookup
            found stays until it is unlocked, or until `pin_max_age` of the address is over. close() leaves no thread,
            descriptor or pin.
Leaves:     the copies to `copying`, the age of locks to `maru.key_pins`, and eviction to the pool, which knows all
            servers; LMCache is told of no capacity that it should keep free.

The index is the pool's own, in shared memory: nothing has to be scanned or handed over when a server starts, and a
server that is killed leaves chunks, no locks.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

from lmcache.lmcache_native import Bitmap
from lmcache.v1.distributed.api import MemoryLayoutDesc, ObjectKey
from lmcache.v1.distributed.internal_api import L2StoreResult
from lmcache.v1.distributed.l2_adapters.base import AdapterUsage, L2AdapterInterface
from lmcache.v1.memory_management import MemoryObj
from lmcache.v1.platform import create_event_notifier

from maru.errors import BadUrl
from maru.key_pins import KeyPins
from maru.pool import IS_THERE, Outcome
from maru.string_keys import KEY_BYTES
from maru_lmcache.copying import PoolCopies

__all__ = ["MaruL2Adapter", "key_bytes"]

_log = logging.getLogger("maru.lmcache")

THREADS = 4
THREADS_LIMIT = 64
CLOSE_DEADLINE_S = 10.0
# A prompt is looked up as one row for each rank and KV group: 16 prompts of 16 ranks.
ROWS_REMEMBERED = 256

# No UTF-8 text has this byte, so no ObjectKey is ever one of the strings that LMCache's other doors store under.
_KEY_MARK = b"\xffmp1 "

Result = TypeVar("Result")


@dataclass(frozen=True)
class L2Params:
    """`adapter_params`: which pool, and how many threads copy."""

    pool: str
    threads: int = THREADS

    def __post_init__(self) -> None:
        if not isinstance(self.pool, str) or not self.pool:
            raise BadUrl('adapter_params needs "pool": a pool of this host, such as "maru:///mp?size=8GiB"')
        if isinstance(self.threads, bool) or not isinstance(self.threads, int):
            raise BadUrl(f'"threads" is a number of threads, not {self.threads!r}')
        if not 1 <= self.threads <= THREADS_LIMIT:
            raise BadUrl(f'"threads" is from 1 to {THREADS_LIMIT}, not {self.threads}')

    @classmethod
    def read(cls, params: dict[str, Any]) -> L2Params:
        """Raises BadUrl, naming what is wrong."""
        unknown = sorted(set(params) - {"pool", "threads"})
        if unknown:
            raise BadUrl(f'adapter_params knows "pool" and "threads", not {", ".join(unknown)}')
        return cls(**{"pool": "", **params})


def key_bytes(key: ObjectKey) -> bytes:
    """All fields of an ObjectKey, the longer ones behind their lengths: two keys are equal if these are."""
    model, salt = (text.encode("utf-8", "surrogatepass") for text in (key.model_name, key.cache_salt))
    numbers = b"%d %d %d %d " % (key.kv_rank, key.object_group_id, len(model), len(salt))
    return b"".join((_KEY_MARK, numbers, model, salt, key.chunk_hash))


class MaruL2Adapter(L2AdapterInterface):
    """LMCache's second cache level in a pool that other servers of this host use too."""

    def __init__(self, params: dict[str, Any], l1_memory_desc: Any = None) -> None:
        """`params` are the JSON's `adapter_params`; where LMCache keeps its first level does not matter.

        Raises BadUrl, NoDaemon for another host, and all that Pool.open raises: a server that cannot have its pool does
        not start.
        """
        super().__init__(max_capacity_bytes=0)  # LMCache is not to evict: it knows neither the others nor their pins.
        settings = L2Params.read(params)
        self._copies = PoolCopies(settings.pool, lookups_remembered=ROWS_REMEMBERED)
        self._locks_expired = 0
        self._locks = KeyPins(self._copies.address.key_pin_age_s, self._copies.tell_key_pins, self._tell_expired)
        self._events = {task: create_event_notifier() for task in ("store", "lookup", "load")}
        self._workers = ThreadPoolExecutor(settings.threads, thread_name_prefix="maru-l2")
        self._task_ids = itertools.count()
        self._lock = threading.Lock()
        self._closed = False
        self._pending: set[Future[None]] = set()
        self._stored: dict[int, L2StoreResult] = {}
        self._looked_up: dict[int, Bitmap] = {}
        self._loaded: dict[int, Bitmap] = {}
        _log.info("MP server's second level in pool %s", self._copies.name)

    # Signals, each with a descriptor of its own

    def get_store_event_fd(self) -> int:
        return int(self._events["store"].fileno())

    def get_lookup_and_lock_event_fd(self) -> int:
        return int(self._events["lookup"].fileno())

    def get_load_event_fd(self) -> int:
        return int(self._events["load"].fileno())

    # Store

    def submit_store_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Copy the objects into the pool. The task succeeds if every key is there afterwards, whoever stored it."""
        return self._submit("store", self._stored, lambda: self._store(keys, objects), L2StoreResult(False, 0))

    def pop_completed_store_tasks(self) -> dict[int, L2StoreResult]:
        with self._lock:
            completed = dict(self._stored)
            self._stored.clear()
        return completed

    def _store(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> L2StoreResult:
        packed = self._pack(keys)
        buffers = [memory_obj.byte_array for memory_obj in objects]
        outcomes: list[Outcome] = []
        for first, end, parent in self._stretches(packed):
            outcomes += self._copies.store(packed[first * KEY_BYTES : end * KEY_BYTES], buffers[first:end], parent)
        ours = [at for at, outcome in enumerate(outcomes) if outcome is Outcome.STORED]
        sizes = [buffers[at].nbytes for at in ours]
        if ours:
            self._notify_keys_stored([keys[at] for at in ours], sizes)
        return L2StoreResult(all(outcome in IS_THERE for outcome in outcomes), sum(sizes))

    def _stretches(self, packed: bytes) -> Iterator[tuple[int, int, bytes | None]]:
        """(first, end, parent) of each stretch of keys that continue one another, as far as lookups told.

        LMCache hands over what several requests stored since the last time, so neighbours need not belong together.
        """
        count = len(packed) // KEY_BYTES
        first, parent, before = 0, None, None
        for at in range(count):
            key = packed[at * KEY_BYTES : (at + 1) * KEY_BYTES]
            continues = self._copies.lookups.place(key).parent
            if at == 0 or continues is None or continues != before:
                if at > first:
                    yield first, at, parent
                first, parent = at, continues
            before = key
        if count > first:
            yield first, count, parent

    # Lookup and lock

    def submit_lookup_and_lock_task(
        self, keys: list[ObjectKey], group_layout_descs: dict[int, MemoryLayoutDesc]
    ) -> int:
        """Find each key by itself; what is found is pinned until it is unlocked, once a lookup."""
        return self._submit("lookup", self._looked_up, lambda: self._look_up(keys), Bitmap(len(keys)))

    def query_lookup_and_lock_result(self, task_id: int) -> Bitmap | None:
        with self._lock:
            return self._looked_up.pop(task_id, None)

    def submit_unlock(self, keys: list[ObjectKey]) -> None:
        """Done when it returns. A key that is not locked, or no longer, is no error."""
        packed = self._pack(keys)
        for at in range(0, len(packed), KEY_BYTES):
            self._locks.drop(packed[at : at + KEY_BYTES])

    def _look_up(self, keys: list[ObjectKey]) -> Bitmap:
        packed = self._pack(keys)
        for first, end in _rows(keys):
            self._copies.lookups.remember(packed[first * KEY_BYTES : end * KEY_BYTES])
        found = {at: view for at, view in enumerate(self._copies.views(packed)) if view is not None}
        self._locks.add([packed[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at in found], list(found.values()))
        bitmap = Bitmap(len(keys))
        bitmap.batched_set(list(found))
        return bitmap

    def _tell_expired(self, count: int) -> None:
        if not self._locks_expired:
            _log.warning("%d locks were not unlocked for %.0f s and are let go (logged once)", count, self._locks.age_s)
        self._locks_expired += count
        self._copies.count("key_pins_expired", count)

    # Load

    def submit_load_task(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> int:
        """Copy chunks into the objects. One that is absent, or of another size than its object, is a 0."""
        return self._submit("load", self._loaded, lambda: self._load(keys, objects), Bitmap(len(keys)))

    def query_load_result(self, task_id: int) -> Bitmap | None:
        with self._lock:
            return self._loaded.pop(task_id, None)

    def _load(self, keys: list[ObjectKey], objects: list[MemoryObj]) -> Bitmap:
        views = self._copies.views(self._pack(keys))
        bitmap = Bitmap(len(keys))
        for at, (view, memory_obj) in enumerate(zip(views, objects, strict=True)):
            if view is not None and self._copies.fill(memory_obj.byte_array, view):
                bitmap.set(at)
        loaded = bitmap.gather(keys)
        if loaded:
            self._notify_keys_accessed(loaded)
        return bitmap

    # Keeping house

    def delete(self, keys: list[ObjectKey]) -> None:
        """Remove chunks from the pool, for every server. One that somebody has pinned or locked stays."""
        packed = self._pack(keys)
        gone = [
            key for at, key in enumerate(keys) if self._copies.remove(packed[at * KEY_BYTES : (at + 1) * KEY_BYTES])
        ]
        if gone:
            # Sizes are for the base class's sums, which get_usage does not use: another server may have stored these.
            self._notify_keys_deleted(gone, [0] * len(gone))

    def get_usage(self) -> AdapterUsage:
        """The pool's bytes, whoever stored them.

        No figures by cache_salt: a chunk in the pool does not tell whose it is, and LMCache would delete by them.
        """
        figures = self._copies.stats()
        return AdapterUsage(
            total_bytes_used=figures.get("used_bytes", 0), total_capacity_bytes=figures.get("size_bytes", 0)
        )

    def report_status(self) -> dict[str, Any]:
        """For LMCache's status pages."""
        with self._lock:
            waiting = len(self._pending)
        return {
            "is_healthy": not self._closed and not self._copies.closed,
            "type": type(self).__name__,
            "pool": self._copies.name,
            "tasks_in_flight": waiting,
            "locks_held": len(self._locks),
            "locks_expired": self._locks_expired,
            **asdict(self._copies.counters),
        }

    def close(self) -> None:
        """Finish the copies that run, drop the others, let go of locks, descriptors and the pool. Idempotent."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            for event in self._events.values():
                event.close()
        self._workers.shutdown(wait=False, cancel_futures=True)
        late = wait(list(self._pending), CLOSE_DEADLINE_S).not_done
        if late:
            _log.error("%d tasks still run %.0f s after close()", len(late), CLOSE_DEADLINE_S)
        self._workers.shutdown(wait=not late)
        self._locks.close()
        self._copies.close()

    def _pack(self, keys: list[ObjectKey]) -> bytes:
        return self._copies.pack([key_bytes(key) for key in keys])

    def _submit(self, event: str, results: dict[int, Result], work: Callable[[], Result], failed: Result) -> int:
        """Run it beside the caller; its result, or `failed`, is there before the signal is."""
        task_id = next(self._task_ids)

        def run() -> None:
            try:
                result = work()
            except Exception:  # LMCache waits for every task: a defect may cost a miss, not a request that hangs.
                _log.exception("a %s task failed", event)
                result = failed
            with self._lock:
                if not self._closed:  # The descriptor's number may be somebody else's by now.
                    results[task_id] = result
                    self._events[event].notify()

        with self._lock:
            if self._closed:
                raise RuntimeError("this MaruL2Adapter was closed")
            future = self._workers.submit(run)
            self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return task_id


def _rows(keys: list[ObjectKey]) -> Iterator[tuple[int, int]]:
    """(first, end) of each stretch of one prompt's chunks: LMCache looks up all ranks and KV groups in one list."""
    first = 0
    for at in range(1, len(keys) + 1):
        if at == len(keys) or _row_of(keys[at]) != _row_of(keys[first]):
            yield first, at
            first = at


def _row_of(key: ObjectKey) -> tuple[str, str, int, int]:
    return key.model_name, key.cache_salt, key.kv_rank, key.object_group_id
