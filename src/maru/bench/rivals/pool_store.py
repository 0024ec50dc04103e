"""Ours: the pool through its Python face, with what it has by default but for three options.

Slabs hold every size that is measured, the index has slots for the smallest, and the gate is off: what is stored here
is never read again, which is what the gate is there to refuse, and no other store refuses anything.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import maru
from maru.bench.rivals.contract import KEY_BYTES, Array, Rival, RivalFailed, copy_out, insist_on
from maru.errors import PoolNotFound
from maru.pool import Outcome, Pool

READY_TIMEOUT_S = 60.0
OPTIONS = f"slab_bytes={64 << 20}&chunk_bytes={4 << 10}&gate=off"


class PoolStore(Rival):
    """The pool."""

    def __init__(self) -> None:
        self._pool: Pool | None = None
        self._url = ""
        self._is_host = False

    def version(self) -> str:
        return f"maru {maru.__version__}, {OPTIONS.replace('&', ' ')} {self.options.replace('&', ' ')}".rstrip()

    def setup(self, place: Path, capacity_bytes: int) -> str:
        self._is_host = True
        self._url = f"maru:///bench-{place.parent.name}-{place.name}"
        more = f"&{self.options}" if self.options else ""
        self._use(Pool.create(f"{self._url}?size={capacity_bytes}&{OPTIONS}{more}"))
        return self._url

    def attach(self, address: str) -> None:
        self._use(Pool.attach(address))

    def _use(self, pool: Pool) -> None:
        self._pool = pool
        if not pool.wait_ready(READY_TIMEOUT_S):
            raise RivalFailed(f"{pool!r} was not ready after {READY_TIMEOUT_S:.0f} s")
        self._put, self._get, self._pin, self._lookup = pool.put, pool.get, pool.pin, pool.lookup

    def put(self, key: bytes, data: Array) -> None:
        outcome = self._put(key, data)
        if outcome is not Outcome.STORED:
            raise RivalFailed(f"a chunk was not stored: {outcome}")

    def get_view(self, key: bytes) -> Any:
        view = self._get(key)
        if view is None:
            raise RivalFailed("a chunk is missing")
        return view

    def release(self, _key: bytes, view: Any) -> None:
        view.release()

    def lookup(self, keys: bytes) -> int:
        return self._lookup(keys)

    def read_into(self, keys: bytes, landing: Array) -> None:
        with self._pin(keys) as prefix:
            insist_on(len(prefix), len(keys) // KEY_BYTES)
            copy_out(prefix.views, landing)

    def teardown(self) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._is_host:
            with suppress(PoolNotFound):
                Pool.destroy(self._url, force=True)
