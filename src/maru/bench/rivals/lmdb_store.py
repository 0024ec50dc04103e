"""LMDB: chunks are values of a memory-mapped B+tree in a file in shared memory, and nothing is ever synced to a disk.

LMDB evicts nothing; the host, its one writer, deletes the oldest chunks in the transaction that stores a new one.
Whether the map is written through (`writemap`) is decided by a short trial, and told by version().
"""

from __future__ import annotations

import time
from collections import deque
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from maru.bench.rivals.contract import Array, Rival, RivalFailed, copy_out, insist_on, split

# Free pages are not always next to each other, and a long value wants pages that are: the map is larger than they are.
MAP_FACTOR = 2
# The trial of writemap: in each round so many bytes of each size.
TRIAL_ROUNDS = 6
TRIAL_BYTES = 16 << 20
TRIAL_CHUNK_BYTES = (64 << 10, 256 << 10, 8 << 20)
TRIAL_MAP_BYTES = 128 << 20


class LmdbStore(Rival):
    """One environment, one unnamed database, the pool's own keys."""

    def __init__(self) -> None:
        self._env: Any = None
        self._files: list[Path] = []
        self._writemap = False
        self._held: deque[tuple[bytes, int]] = deque()
        self._held_bytes = 0
        self._capacity = 0

    def version(self) -> str:
        number = ".".join(map(str, lmdb.version()))
        return f"LMDB {number} (py-lmdb {lmdb.__version__}), sync=False, writemap={self._writemap}, buffers=True"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        self._capacity = capacity_bytes
        self._writemap = self._choose(place)
        path = place / "data"
        self._files += [path, Path(f"{path}-lock")]
        self._env = self._open(path, MAP_FACTOR * capacity_bytes, self._writemap)
        return f"{self._writemap:d}:{capacity_bytes}:{path}"

    @staticmethod
    def _open(path: Path, map_bytes: int, writemap: bool) -> Any:
        return lmdb.open(
            str(path), map_size=map_bytes, subdir=False, sync=False, metasync=False, writemap=writemap,
            map_async=writemap, meminit=False, readahead=False,
        )  # fmt: skip

    def _choose(self, place: Path) -> bool:
        """Is it faster to write through the map? Both ways in turn, and the best round of each counts."""
        chunks: list[Array] = [np.ones(size, dtype=np.uint8) for size in TRIAL_CHUNK_BYTES]
        seconds: dict[bool, list[float]] = {False: [], True: []}
        with ExitStack() as stack:
            envs = {}
            for writemap in seconds:
                path = place / f"trial-{writemap:d}"
                self._files += [path, Path(f"{path}-lock")]
                envs[writemap] = self._open(path, TRIAL_MAP_BYTES, writemap)
                stack.callback(path.unlink)
                stack.callback(envs[writemap].close)
            for number in range(TRIAL_ROUNDS):
                for writemap, env in envs.items():
                    start = time.perf_counter()
                    for chunk in chunks:
                        key = b"%d" % chunk.nbytes
                        for _ in range(TRIAL_BYTES // chunk.nbytes):
                            with env.begin(write=True) as transaction:
                                transaction.put(key, chunk)
                    if number:  # The first round finds the memory.
                        seconds[writemap].append(time.perf_counter() - start)
        return min(seconds[True]) < min(seconds[False])

    def attach(self, address: str) -> None:
        """All processes open it alike: LMDB allows no writer through the map beside one that is not."""
        writemap, capacity, path = address.split(":", 2)
        if not Path(path).stat().st_size:
            raise RivalFailed(f"{path} is empty")
        # Each process deletes what it stored itself; the map has twice the capacity, so there is room for one more.
        self._capacity = int(capacity) // 2
        self._env = self._open(Path(path), 0, writemap == "1")

    def keys_of(self, packed: bytes) -> list[bytes]:
        return split(packed)

    def put(self, key: bytes, data: Array) -> None:
        with self._env.begin(write=True) as transaction:
            while self._held and self._held_bytes + data.nbytes > self._capacity:
                oldest, size = self._held.popleft()
                transaction.delete(oldest)
                self._held_bytes -= size
            if not transaction.put(key, data, overwrite=False):
                raise RivalFailed("a chunk was not stored")
        self._held.append((key, data.nbytes))
        self._held_bytes += data.nbytes

    def get_view(self, key: bytes) -> Any:
        self._reading = self._env.begin(buffers=True)
        view = self._reading.get(key)
        if view is None:
            raise RivalFailed("a chunk is missing")
        return view

    def release(self, _key: bytes, _view: Any) -> None:
        self._reading.abort()

    def lookup(self, keys: list[bytes]) -> int:
        with self._env.begin(buffers=True) as transaction:
            get = transaction.get
            for number, key in enumerate(keys):
                if get(key) is None:
                    return number
        return len(keys)

    def read_into(self, keys: list[bytes], landing: Array) -> None:
        with self._env.begin(buffers=True) as transaction:
            views = [view for view in map(transaction.get, keys) if view is not None]
            insist_on(len(views), len(keys))
            copy_out(views, landing)

    def teardown(self) -> None:
        if self._env is not None:
            self._env.close()
        for path in self._files:
            path.unlink(missing_ok=True)
