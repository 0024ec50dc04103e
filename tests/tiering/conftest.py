"""Pools of some MiB with a folder below them."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from pathlib import Path

import pytest

from maru.config import parse_url
from maru.key import Identity
from maru.native import core
from maru.pool import Namespace, Outcome, Pool
from maru.testing.content import bytes_of
from maru.tiering.ladder import LadderSettings
from maru.tiering.tiered import TieredPool

CHUNK_TOKENS = 256
CHUNK_BYTES = 100_000
PREFIX_CHUNKS = 5
IDENTITY = Identity(model="test/model", kv_layout="tests")


class Story:
    """A pool that is too small for what is put into it, and handles on it."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.tier = f"file://{folder}?size=1GiB"
        Pool.create(url).close()
        self._open: list[TieredPool] = []

    def handle(self, *tiers: str, settings: LadderSettings | None = None, is_explicit: bool = False) -> TieredPool:
        """What another process would have: the pool with these tiers below it."""
        pool = TieredPool(parse_url(self.url), tiers or (self.tier,), settings, is_explicit=is_explicit)
        self._open.append(pool)
        return pool

    def end(self) -> None:
        for pool in self._open:
            pool.close()
        Pool.destroy(self.url, force=True)


def prefix_of(namespace: Namespace, number: int, chunks: int = PREFIX_CHUNKS) -> bytes:
    """Keys of a prefix that no other number shares."""
    return namespace.chunk_keys(array("q", [number] * (chunks * CHUNK_TOKENS)), CHUNK_TOKENS)


def keys_in(packed: bytes) -> list[bytes]:
    return [packed[at : at + 16] for at in range(0, len(packed), 16)]


def put(pool: Pool, namespace: Namespace, packed: bytes, ttl: float | None = None) -> None:
    keys = keys_in(packed)
    outcomes = core.PoolCore.put_many(pool, packed, [bytes_of(key, CHUNK_BYTES) for key in keys], namespace, None, ttl)
    assert set(outcomes) <= {Outcome.STORED, Outcome.EXISTS}, outcomes


def are_right(pool: Pool, packed: bytes) -> int:
    """How many leading chunks can be read; every byte of them is what it was."""
    with pool.pin(packed) as prefix:
        for key, view in zip(keys_in(packed), prefix.views, strict=False):
            assert bytes(view) == bytes_of(key, CHUNK_BYTES)
        return len(prefix)


def here(pool: Pool, packed: bytes) -> int:
    """How many leading chunks lie in the pool itself."""
    return core.PoolCore.lookup(pool, packed)


@pytest.fixture
def story(tmp_path: Path) -> Iterator[Story]:
    folder = tmp_path / "below"
    folder.mkdir()
    story = Story(f"maru:///tiering-{tmp_path.name[-40:]}?size=4MiB&slab_bytes=512KiB&gate=off", folder)
    try:
        yield story
    finally:
        story.end()
