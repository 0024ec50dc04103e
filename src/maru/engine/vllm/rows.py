"""Rows of vLLM's offloading and a pool: the copies between them, for `tier`.

Holds:      the attached pool, the namespace of the rows in it, the rows' memory, and what was counted.
Promises:   a chunk is found whole and of a row's size, or not at all. Any trouble with the pool is a miss or a chunk
            that is not stored: counted, and logged once a kind. A pool that cannot be opened or was destroyed is off
            for good: one line in the log.
Leaves:     threads, requests and what they pin to `tier`.

Both directions are one copy, with streaming stores and without the GIL. Thread-safe.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from vllm.v1.core import kv_cache_utils

from maru.address import Address
from maru.attachment import refuse_small_slabs
from maru.client.opening import open_pool
from maru.errors import MaruError
from maru.key import Identity
from maru.native import core
from maru.pool import IS_THERE, Namespace, Outcome, Pool

log = logging.getLogger("maru.vllm")

KEY_BYTES = 16


@dataclass
class TierCounters:
    """What one tier did since it began."""

    chunks_stored: int = 0
    chunks_present: int = 0
    """Stored by somebody else before, or just then."""
    chunks_refused: int = 0
    """No room in the pool, or no pool."""
    chunks_loaded: int = 0
    chunks_not_loaded: int = 0
    wrong_sizes: int = 0
    failures: int = 0


class PoolRows:
    """One pool beside one block of rows."""

    def __init__(self, address: Address, identity: Identity, rows: memoryview, row_bytes: int) -> None:
        """`rows`: contiguous bytes, n x `row_bytes`. Raises nothing: a pool that cannot be opened is off."""
        self.row_bytes = row_bytes
        self.counters = TierCounters()
        self._rows = rows
        self._lock = threading.Lock()
        self._logged: set[str] = set()
        self._is_off = False
        self._pool: Pool | None = None
        self._namespace: Namespace | None = None
        try:
            self._pool = open_pool(address, near=False)
            refuse_small_slabs(self._pool, row_bytes)
            self._namespace = self._pool.namespace(identity)
        except (MaruError, OSError) as error:
            self._turn_off(f"could not open its pool: {error}")
            return
        log.info("offloading tier in pool %s, chunks of %d bytes", self._pool.config.url, row_bytes)

    def find(self, key: bytes) -> memoryview | None:
        """The chunk under a key of vLLM's, pinned as long as the view lives."""
        if not self.works:
            return None
        assert self._pool is not None
        try:
            view = self._pool.get(self._key(key))
        except MaruError as error:
            self._failed("find a chunk", error)
            return None
        if view is not None and view.nbytes != self.row_bytes:
            self.count(wrong_sizes=1)
            return None
        return view

    def load(self, row: int, key: bytes, view: memoryview | None) -> bool:
        """Copy a chunk (`view`, if found before) into a row. False, and the row untouched, when it is not there."""
        view = view if view is not None else self.find(key)
        if view is not None:
            core.stream_copy(self._row(row), view)
        self.count(**{"chunks_loaded" if view is not None else "chunks_not_loaded": 1})
        return view is not None

    def store(self, keys: Sequence[bytes], rows: Sequence[int], parent: bytes | None) -> tuple[int, int]:
        """Copy rows into the pool, each key the next one's parent. How many were stored, and how many are not there.

        After one that finds no room the rest is not tried.
        """
        outcomes = [Outcome.BUSY] * len(keys)
        if self.works:
            assert self._pool is not None
            packed = b"".join(map(self._key, keys))
            before = self._key(parent) if parent is not None else None
            buffers = [self._row(row) for row in rows]
            try:
                outcomes = self._pool.put_many(packed, buffers, namespace=self._namespace, parent=before)
            except MaruError as error:
                self._failed("store chunks", error)
        stored, present = outcomes.count(Outcome.STORED), sum(outcome in IS_THERE for outcome in outcomes)
        refused = len(outcomes) - present
        self.count(chunks_stored=stored, chunks_present=present - stored, chunks_refused=refused)
        return stored, refused

    @property
    def works(self) -> bool:
        """Is there a pool? One that was destroyed under us is not looked for again."""
        if not self._is_off and self._pool is not None and self._pool.destroyed:
            self._turn_off("its pool was destroyed")
        return not self._is_off

    def count(self, **counts: int) -> None:
        """Add to the counters of these names."""
        with self._lock:
            for name, by in counts.items():
                setattr(self.counters, name, getattr(self.counters, name) + by)

    def close(self) -> None:
        """Let go of the pool and of the rows, which vLLM could not unmap else. Idempotent."""
        self._is_off = True
        self._rows.release()
        if self._pool is not None:
            self._pool.close()

    def _key(self, key: bytes) -> bytes:
        """Ours for one of vLLM's. Its hashes hang on an algorithm and a seed; the hash that all begin with tells both.

        That is known before the first request, and not yet when the tier begins.
        """
        assert self._namespace is not None
        begins_with = repr(getattr(kv_cache_utils, "NONE_HASH", None)).encode()  # Bytes, or what else is put there.
        return core.blake3(self._namespace.digest + begins_with + key, KEY_BYTES)

    def _row(self, row: int) -> memoryview:
        return self._rows[row * self.row_bytes : (row + 1) * self.row_bytes]

    def _turn_off(self, why: str) -> None:
        with self._lock:
            is_news, self._is_off = not self._is_off, True
        if is_news:
            log.error("the offloading tier is off: %s; vLLM goes on without it", why)

    def _failed(self, doing: str, error: MaruError) -> None:
        kind = type(error).__name__
        with self._lock:
            self.counters.failures += 1
            is_news = kind not in self._logged
            self._logged.add(kind)
        if is_news:
            log.warning("could not %s, going on without (logged once for %s): %s", doing, kind, error)
