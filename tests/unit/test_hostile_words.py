"""One word of a living pool is changed by somebody else: no process is sent out of bounds, kept busy or kept waiting.

What the fuzzer found, as plain tests; tests/native/test_hostile_pool.py looks for more of the kind.
"""

from __future__ import annotations

from pathlib import Path

import pool_image
import pytest

import maru
from maru import Outcome
from maru.errors import PoolMismatch
from maru.testing.content import bytes_of, key_of

RESERVED = pool_image.DESCRIBED["slot_states"].index("RESERVED")


class Living(pool_image.Image):
    """The files of a pool in use, not a copy of them."""

    def __init__(self, pool: maru.Pool) -> None:
        self.folder = Path(pool.stats()["folder"])
        self.index = self.folder / "index"
        self.segment = self.folder / "segment-0"


def test_a_namespace_number_beyond_the_table_loses_the_reservation_and_nothing_else(pool: maru.Pool) -> None:
    pool.put(key_of(1), b"mine")
    reservation = pool.reserve(key_of(0), 1000)
    image = Living(pool)
    (slot,) = image.slots(RESERVED)
    image.set("slots_hot", slot, "namespace_id", 0xFFFF_FFF0)
    assert reservation.seal() == Outcome.LOST
    assert not pool.exists(key_of(0))
    assert pool.exists(key_of(1))
    assert pool.check() == []


def test_more_real_bytes_than_a_slab_has_keep_nobody_waiting(pool_url: str) -> None:
    maru.Pool.create(pool_url).close()
    with maru.Pool.attach(pool_url) as pool:
        Living(pool).set("slabs", 3, "real_bytes", 1 << 62)
        assert pool.wait_ready(30)
        assert pool.stats()["populated_bytes"] <= pool.stats()["size_bytes"]


def test_a_file_that_the_index_calls_a_device_is_refused(pool_url: str) -> None:
    with maru.Pool.create(pool_url) as pool:
        Living(pool).set("segments", 0, "medium", 4)
        with pytest.raises(PoolMismatch, match="another medium"):
            maru.Pool.attach(pool_url)


def test_a_count_at_its_limit_is_only_a_wrong_hint(pool: maru.Pool) -> None:
    pool.put(key_of(0), bytes_of(key_of(0), 1000))
    Living(pool).set("slabs", 0, "free_hint", 0x7FFF_FFFF)
    assert pool.remove(key_of(0))
    assert pool.put(key_of(0), bytes_of(key_of(0), 1000)) == Outcome.STORED
    assert pool.check() == []


def test_an_owner_word_that_is_wrong_costs_a_put_a_bounded_search(pool: maru.Pool) -> None:
    """The victim that cannot be had is offered again and again; after so many tries the answer is FULL."""
    for n in range(16):
        assert pool.put(key_of(n), bytes(400_000)) == Outcome.STORED
    views = [pool.get(key_of(n)) for n in range(15)]
    image = Living(pool)
    slot = next(
        slot
        for slot in image.slots()
        if image.get("slots_hot", slot, "key_lo") == int.from_bytes(key_of(15)[:8], "little")
    )
    image.set_owner(image.unit_of(slot), 0x1234)
    assert pool.put(key_of(99), bytes(400_000)) in (Outcome.FULL, Outcome.STORED)
    looked_at = pool.stats()["eviction"]["slots_looked_at"]
    assert looked_at < 64 * 64
    del views
