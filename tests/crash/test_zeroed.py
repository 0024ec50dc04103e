"""Content that is to be overwritten when it leaves is, whoever dies while it leaves."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

import maru
from maru import Identity
from maru.testing.content import key_of
from maru.testing.crash import spawn

pytestmark = pytest.mark.crash

SECRET = b"a secret, word for word. " * 400
QUERY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=8&gate=off"
POINTS = [
    "seal.before_word", "seal.after_word", "evict.before_mark", "evict.marked", "evict.unpinned", "evict.extent_taken",
    "evict.header_cleared", "evict.wiped", "evict.tag_cleared", "free.header_cleared", "free.owner_cleared",
]  # fmt: skip


def store_and_remove(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        namespace = pool.namespace(Identity(model="m", kv_layout="x"), policy=["zeroed"])
        pool.put(key_of(0), SECRET, namespace=namespace)
        pool.remove(key_of(0))


def memory_of(pool: maru.Pool) -> bytes:
    row = pool.stats()["segments"][0]
    return Path(row["path"]).read_bytes()[row["data_offset"] :]


@pytest.mark.parametrize("point", POINTS)
def test_nothing_of_it_is_left_wherever_its_owner_died(pool_url: str, point: str) -> None:
    url = pool_url.partition("?")[0] + QUERY
    with maru.Pool.create(url) as pool:
        with spawn(store_and_remove, url, die_at=point) as victim:
            assert victim.wait() == -signal.SIGKILL
        pool.reap()
        if pool.exists(key_of(0)):
            assert pool.remove(key_of(0))
        assert SECRET[:4096] not in memory_of(pool)
        assert SECRET[-4096:] not in memory_of(pool)
        assert pool.check() == []
