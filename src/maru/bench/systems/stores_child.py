"""The process of the engine `synthetic`: a store in one inference process whose model computes nothing.

A prompt's chunks have keys that follow from its tokens, and bytes that follow from the keys; "computing" writes those
bytes into the engine's own KV memory, untimed. So the data path is a real engine's at full size: find the known prefix,
load it into KV memory, store what was missing; and every process can tell whether what it loaded is right.

Imports nothing of the pool: it runs also in interpreters that have only a rival.
"""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import numpy as np

from maru.bench.rivals.contract import KEY_BYTES, Rival, RivalFailed
from maru.bench.systems.children import EngineChild, Question

_SEED = 20250916
SOMEBODY_ELSE_S = 2.0


class StoresChild(EngineChild):
    """One store, and the KV memory of an engine."""

    def __init__(self, store: Rival) -> None:
        super().__init__()
        self._store = store
        self._place: Path | None = None

    def begin(self, **job: Any) -> dict[str, Any]:
        """Host the store when there is no address yet, else attach to it."""
        self._chunk_tokens, self._chunk_bytes = int(job["chunk_tokens"]), int(job["chunk_bytes"])
        address = str(job["address"])
        self._store.options = str(job["options"])
        if address:
            self._store.attach(address)
        else:
            self._place = Path(job["place"])
            self._place.mkdir(parents=True, exist_ok=True)
            address = self._store.setup(self._place, int(job["capacity_bytes"]))
        # What chunks are cut from, at a place that their key chooses: more than the caches hold.
        self._source = (
            np.random.default_rng(_SEED)
            .integers(0, 1 << 63, (int(job["source_bytes"]) + self._chunk_bytes) // 8, dtype=np.int64)
            .view(np.uint8)
        )
        self._kv = self._store.make_landing(int(job["context_tokens_max"]) // self._chunk_tokens * self._chunk_bytes)
        return {"address": address, "version": self._store.version()}

    def _keys(self, prompt: list[int]) -> list[bytes]:
        """A chain of digests, one for each whole chunk."""
        tokens = np.asarray(prompt, dtype="<u4")
        keys, parent = [], b""
        for at in range(0, len(prompt) - self._chunk_tokens + 1, self._chunk_tokens):
            chunk = tokens[at : at + self._chunk_tokens].tobytes()
            parent = hashlib.blake2b(parent + chunk, digest_size=KEY_BYTES).digest()
            keys.append(parent)
        return keys

    def _bytes_of(self, key: bytes) -> Any:
        """What the model would have computed for this chunk."""
        room = (self._source.nbytes - self._chunk_bytes) // 64
        at = int.from_bytes(key[:8], "little") % max(1, room) * 64
        return self._source[at : at + self._chunk_bytes]

    def _slot(self, first: int, count: int) -> Any:
        return self._kv[first * self._chunk_bytes : (first + count) * self._chunk_bytes]

    def respond(self, prompt: list[int], question: Question) -> dict[str, Any]:
        """Checked: KV memory is wiped before and compared after, which no time counts, nor what it waited."""
        keys = self._keys(prompt)
        packed = b"".join(keys)
        sent_ns = question.sent_ns
        if question.is_checked:
            self._slot(0, len(keys)).fill(0)  # What is not loaded is not there.
            sent_ns = time.monotonic_ns()
        begun = time.perf_counter()
        found = self._store.lookup(self._store.keys_of(packed)) if keys else 0
        if found:
            found = self._load(packed[: found * KEY_BYTES], found)
        loaded_s = time.perf_counter() - begun
        ttft_s = (time.monotonic_ns() - sent_ns) * 1e-9
        checked = found if question.is_checked else 0
        wrong = sum(not np.array_equal(self._slot(n, 1), self._bytes_of(keys[n])) for n in range(checked))
        for n in range(found, len(keys)):
            np.copyto(self._slot(n, 1), self._bytes_of(keys[n]))
        store_s, stored = self._store_missing(keys, found)
        return {
            "ttft_s": ttft_s,
            "total_s": loaded_s + store_s,
            "prompt_tokens": len(prompt),
            "cached_tokens": found * self._chunk_tokens,
            "store_s": store_s,
            "loaded_bytes": found * self._chunk_bytes,
            "stored_bytes": stored * self._chunk_bytes,
            "compared": checked,
            "wrong": wrong,
        }

    def _load(self, packed: bytes, count: int) -> int:
        """How many leading chunks lie in KV memory now. What went between looking and reading is a miss."""
        try:
            self._store.read_into(self._store.keys_of(packed), self._slot(0, count))
        except RivalFailed:
            return 0
        return count

    def _store_missing(self, keys: list[bytes], found: int) -> tuple[float, int]:
        """Returns seconds, and how many it stored: what another replica stored meanwhile is as good."""
        pairs = [(keys[n], self._store.key_of(keys[n]), self._slot(n, 1)) for n in range(found, len(keys))]
        stored = 0
        begun = time.perf_counter()
        for name, key, data in pairs:
            try:
                self._store.put(key, data)
                stored += 1
            except RivalFailed:
                if not self._comes(name):
                    raise
        return time.perf_counter() - begun, stored

    def _comes(self, key: bytes) -> bool:
        """Is a chunk there that could not be stored? Another replica may be in the middle of storing it."""
        until = time.monotonic() + SOMEBODY_ELSE_S
        while not (found := self._store.lookup(self._store.keys_of(key))) and time.monotonic() < until:
            time.sleep(0.001)
        return bool(found)

    def end(self) -> None:
        self._store.teardown()
