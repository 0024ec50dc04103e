"""Copies between LMCache's own buffers and the pool: what the remote door and the MP server's door have in common.

Holds:      one attached pool, the namespace of LMCache's keys in it, and what lookups told about order.
Promises:   once open, a pool that fails is a miss or a chunk that is not stored: counted, and logged once a kind. A
            chunk whose size is not the buffer's is a miss, never a part of one. A pool that was destroyed and made anew
            is found again.
Leaves:     what a key looks like, threads, and the buffers' lives to the two doors.

Both directions are one copy, with streaming stores and without the GIL. Whoever wants none uses LMCache's MaruBackend,
whose tensors lie in the pool.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from maru.address import read_address
from maru.attachment import refuse_small_slabs
from maru.client.opening import open_pool, reopened, settled
from maru.config import format_size, redact
from maru.errors import MaruError
from maru.native import core
from maru.pool import IS_THERE, Namespace, Outcome, Pool
from maru.string_keys import KEY_BYTES, Lookups, lmcache_namespace, pack_keys

_log = logging.getLogger("maru.lmcache")

REATTACH_PAUSE_S = 1.0


@dataclass
class CopyCounters:
    """What one door did since it opened. A chunk that somebody else stored first counts as present, not as stored."""

    chunks_stored: int = 0
    bytes_stored: int = 0
    chunks_present: int = 0
    chunks_refused: int = 0
    chunks_loaded: int = 0
    bytes_loaded: int = 0
    chunks_missed: int = 0
    wrong_sizes: int = 0
    failures: int = 0


class _Attached(NamedTuple):
    """A pool and the namespace in it. They change together, when the pool was destroyed and made anew."""

    pool: Pool
    namespace: Namespace


class PoolCopies:
    """A pool to copy into and out of. Thread-safe."""

    def __init__(self, address: str, size_bytes: int = 0, chunk_bytes: int = 0, lookups_remembered: int = 64) -> None:
        """Open the pool that `address` names, as maru.address reads it.

        `size_bytes` is the size of a new pool where the address gives none, `chunk_bytes` the largest chunk to come.
        Raises BadUrl, NoDaemon, ChunkTooLarge, and all that Pool.open and Pool.namespace raise.
        """
        self.address = read_address(address, size_bytes, chunk_bytes)
        pool = open_pool(self.address)
        self.address = settled(self.address, pool)
        self._attached = self._attach(pool, chunk_bytes)
        self.lookups = Lookups(lookups_remembered)
        self.counters = CopyCounters()
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        self._next_attempt_s = 0.0

    def _attach(self, pool: Pool, chunk_bytes: int) -> _Attached:
        try:
            refuse_small_slabs(pool, chunk_bytes)
            return _Attached(pool, lmcache_namespace(pool, self.address.tenant))
        except BaseException:
            pool.close()
            raise

    def _now(self) -> _Attached:
        """The pool as it is now. One that was destroyed is a pool of misses, until there is one of its name again."""
        attached = self._attached
        if not attached.pool.destroyed:
            return attached
        with self._lock:
            if self._attached is not attached or time.monotonic() < self._next_attempt_s:
                return self._attached
            self._next_attempt_s = time.monotonic() + REATTACH_PAUSE_S
            try:
                self._attached = self._attach(reopened(self.address), 0)
            except (MaruError, OSError):
                return attached
            self._logged.clear()
        attached.pool.close()
        _log.warning("attached to pool %s again", self.name)
        return self._attached

    @property
    def name(self) -> str:
        """The pool's URL, for people."""
        return redact(self.address.url)

    def pack(self, keys: Sequence[str | bytes]) -> bytes:
        """n x 16 bytes. Raises BadKey."""
        return pack_keys(self._attached.namespace, keys)

    def leading(self, packed: bytes) -> int:
        """How many of a prompt's keys, in the prompt's order, are there now; a hint, as Pool.lookup."""
        self.lookups.remember(packed)
        try:
            return self._now().pool.lookup(packed)
        except MaruError as error:
            self.failed("look up chunks", error)
            return 0

    def is_there(self, key: bytes) -> bool:
        """Is this one chunk there now? A hint."""
        try:
            return self._now().pool.exists(key)
        except MaruError as error:
            self.failed("look up a chunk", error)
            return False

    def views(self, packed: bytes) -> list[memoryview | None]:
        """A view of each key's chunk, None for those that are not there. Each is pinned as long as its view lives."""
        views: list[memoryview | None] = []
        try:
            pool = self._now().pool
            for at in range(0, len(packed), KEY_BYTES):
                views.append(pool.get(packed[at : at + KEY_BYTES]))
        except MaruError as error:
            self.failed("find chunks", error)
            views += [None] * (len(packed) // KEY_BYTES - len(views))
        with self._lock:
            self.counters.chunks_missed += views.count(None)
        return views

    def store(self, packed: bytes, buffers: Sequence[memoryview], parent: bytes | None) -> list[Outcome]:
        """Store a chain: every key is the next one's parent, `parent` the first one's. One outcome a key.

        `buffers` are contiguous bytes, one for each key. After one that finds no room the rest is not tried. A pool
        that failed is BUSY.
        """
        try:
            pool, namespace = self._now()
            outcomes = pool.put_many(packed, buffers, namespace=namespace, parent=parent)
        except MaruError as error:
            self.failed("store chunks", error)
            outcomes = [Outcome.BUSY] * len(buffers)
        with self._lock:
            for outcome, buffer in zip(outcomes, buffers, strict=True):
                if outcome is Outcome.STORED:
                    self.counters.chunks_stored += 1
                    self.counters.bytes_stored += buffer.nbytes
                elif outcome in IS_THERE:
                    self.counters.chunks_present += 1
                else:
                    self.counters.chunks_refused += 1
        return outcomes

    def fill(self, buffer: memoryview, view: memoryview) -> bool:
        """Copy a chunk into a buffer of exactly its size. False, and the buffer untouched, for any other."""
        if view.nbytes != buffer.nbytes:
            self.wrong_size(view.nbytes, buffer.nbytes)
            return False
        core.stream_copy(buffer, view)
        with self._lock:
            self.counters.chunks_loaded += 1
            self.counters.bytes_loaded += view.nbytes
        return True

    def remove(self, key: bytes) -> bool:
        """Remove one chunk; False when it is absent or pinned by somebody."""
        try:
            return self._now().pool.remove(key)
        except MaruError as error:
            self.failed("remove a chunk", error)
            return False

    def wrong_size(self, found_bytes: int, wanted_bytes: int) -> None:
        """Tell people once that somebody stores chunks of another size under our keys."""
        with self._lock:
            self.counters.wrong_sizes += 1
            first = self.counters.wrong_sizes == 1
        if first:
            _log.warning(
                "a chunk of %s where %s were expected counts as a miss (logged once): two configurations share pool %s "
                "and tenant %r; give one of them another tenant",
                format_size(found_bytes), format_size(wanted_bytes), self.name, self.address.tenant,
            )  # fmt: skip

    def failed(self, doing: str, error: MaruError) -> None:
        """Count a failure that the caller turns into a miss, and log the first of its kind."""
        kind = type(error).__name__
        with self._lock:
            self.counters.failures += 1
            first = kind not in self._logged
            self._logged.add(kind)
        if first:
            _log.warning("could not %s, going on without (logged once for %s): %s", doing, kind, error)

    def stats(self) -> dict[str, Any]:
        """The pool's figures; none when it failed."""
        try:
            return self._now().pool.stats()
        except MaruError as error:
            self.failed("read the pool's figures", error)
            return {}

    def tell_key_pins(self, count: int, oldest_age_s: float) -> None:
        """Show people, in the pool's own figures, how many pins of this door nobody has an address of."""
        pool = self._attached.pool
        if not pool.closed:
            pool._tell_key_pins(count, int(oldest_age_s * 1e9))

    def count(self, counter: str, by: int = 1) -> None:
        """Add to one of the pool's counters what only a door can know."""
        pool = self._attached.pool
        if not pool.closed:
            pool._count(counter, by)

    @property
    def closed(self) -> bool:
        return self._attached.pool.closed

    def close(self) -> None:
        """Let go of the pool. Idempotent."""
        with self._lock:
            self._next_attempt_s = float("inf")
        self._attached.pool.close()
