"""Content that is to be overwritten when it leaves is, whoever dies while it leaves."""

from __future__ import annotations

import os
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


def draft_and(url: str, ending: str) -> None:
    """Memory that never gets a name: given back, or left by a death."""
    with maru.Pool.attach(url) as pool:
        namespace = pool.namespace(Identity(model="m", kv_layout="x"), policy=["zeroed"])
        draft = pool.allocate(len(SECRET), namespace=namespace)
        assert draft is not None
        with memoryview(draft.buffer) as memory:  # type: ignore[arg-type]
            memory[:] = SECRET
        if ending == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        draft.discard()


@pytest.mark.parametrize("ending", ["discarded", "killed"])
def test_what_was_never_named_is_overwritten_too(pool_url: str, ending: str) -> None:
    url = pool_url.partition("?")[0] + QUERY
    with maru.Pool.create(url) as pool:
        with spawn(draft_and, url, ending) as victim:
            assert victim.wait() == (-signal.SIGKILL if ending == "killed" else 0)
        pool.reap()
        assert SECRET[:4096] not in memory_of(pool)
        assert pool.check() == []


def die_while_a_device_copies(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        namespace = pool.namespace(Identity(model="m", kv_layout="x"), policy=["zeroed"])
        reservation = pool.reserve(key_of(0), len(SECRET), namespace=namespace, device=True)
        print(reservation.offset, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)


def store_shorter_chunks(url: str) -> None:
    """Of as many units, the last one nearly empty, until each extent of the pool was some chunk's."""
    with maru.Pool.attach(url) as pool:
        for n in range(1, 100):
            pool.put(key_of(n), bytes(2 * 4096 + 1))


def a_late_copy_is_overwritten(url: str, *mutants: str) -> bool:
    """The extent of a dead writer is wiped; its device writes on; then the memory is another chunk's, a shorter one."""
    with maru.Pool.create(url + "&cooling=0&unit_bytes=4096") as pool:
        with spawn(die_while_a_device_copies, url) as victim:
            offset = int(victim.line())
            victim.wait()
        pool.reap()
        row = pool.stats()["segments"][0]
        with Path(row["path"]).open("r+b") as memory:
            memory.seek(row["data_offset"] + offset)
            memory.write(SECRET)
        with spawn(store_shorter_chunks, url, mutants=mutants) as others:
            assert others.wait() == 0
        assert pool.check() == []
        return SECRET[-300:] not in memory_of(pool)


def test_what_a_device_wrote_late_is_overwritten_before_anybody_else_gets_the_memory(pool_url: str) -> None:
    assert a_late_copy_is_overwritten(pool_url.partition("?")[0] + QUERY)


def test_without_wiping_what_has_cooled_down_it_would_be_left(pool_url: str) -> None:
    assert not a_late_copy_is_overwritten(pool_url.partition("?")[0] + QUERY, "cooled_extent_not_wiped")
