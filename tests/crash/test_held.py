"""What is published held is pinned before anybody can see it: no evictor and no remover comes between.

The publisher stops itself at the very step that makes the chunk visible, and everybody else does what they can.
"""

from __future__ import annotations

import signal

import pytest

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

pytestmark = pytest.mark.crash

SIZE = 60_000
CHUNKS = 100  # Twice what fits.
QUERY = "?size=3MiB&slab_bytes=1MiB&slots=300&processes=32&gate=off"


def publish_held(url: str) -> None:
    """Publish a chunk, then look whether the view is that chunk; keep it until told."""
    with maru.Pool.attach(url) as pool:
        draft = pool.allocate(SIZE)
        assert draft is not None
        draft.buffer[:] = bytes_of(key_of(0), SIZE)
        outcome, view = draft.publish_held(key_of(0), allow_exports=True)
        print(outcome.name, view is not None and is_right(key_of(0), view), flush=True)
        input()


@pytest.fixture
def small_pool(pool_url: str) -> maru.Pool:
    return maru.Pool.create(pool_url.partition("?")[0] + QUERY)


def test_a_chunk_published_held_cannot_go_in_the_moment_it_becomes_visible(small_pool: maru.Pool) -> None:
    with small_pool as pool, spawn(publish_held, pool.config.url, die_at="seal.after_word", action="stop") as publisher:
        publisher.wait_stopped()
        assert pool.exists(key_of(0))
        assert not pool.remove(key_of(0))
        for n in range(1, CHUNKS):
            assert pool.put(key_of(n), bytes_of(key_of(n), SIZE)) == Outcome.STORED
        assert pool.exists(key_of(0))
        publisher.resume()
        assert publisher.line() == "STORED True"
        assert not pool.remove(key_of(0))
        publisher.kill()
        pool.reap()
        assert pool.remove(key_of(0))
        assert pool.check() == []


@pytest.mark.parametrize("point", ["draft.named", "seal.before_word", "seal.after_word"])
def test_a_publisher_killed_on_the_way_leaves_no_pin(small_pool: maru.Pool, point: str) -> None:
    with small_pool as pool, spawn(publish_held, pool.config.url, die_at=point) as publisher:
        assert publisher.wait() == -signal.SIGKILL
        pool.reap()
        assert pool.remove(key_of(0)) == (point == "seal.after_word")
        assert pool.check() == []
        assert pool.stats()["chunks"]["reserved"] == 0
