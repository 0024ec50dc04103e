"""Promises of the change scan: what it tells, in order, sums up to what lookup finds."""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import pytest

import maru
from maru import Identity, Outcome
from maru.errors import NotAttached
from maru.native import core
from maru.testing.content import key_of

CHANGE = struct.Struct("<16s16s16sQBB?5x")
PLENTY = 1 << 20


@dataclass(frozen=True)
class Change:
    """One change, unpacked."""

    kind: str
    key: bytes
    parent: bytes | None
    digest: bytes
    size_bytes: int
    is_brought: bool = False


def unpacked(raw: bytes) -> list[Change]:
    return [
        Change({1: "came", 2: "left"}[kind], key, parent if has_parent else None, digest, size_bytes, brought)
        for key, parent, digest, size_bytes, kind, has_parent, brought in CHANGE.iter_unpack(raw)
    ]


def look(scan: core.ChangeScan) -> list[Change]:
    """All changes since the last look."""
    raw, is_whole = scan.look(PLENTY)
    assert is_whole
    return unpacked(raw)


def told(changes: list[Change]) -> list[tuple[str, bytes]]:
    return [(one.kind, one.key) for one in changes]


@pytest.fixture
def scan(pool: maru.Pool) -> core.ChangeScan:
    return core.ChangeScan(pool)


def chain(pool: maru.Pool, count: int, first: int = 0) -> list[bytes]:
    """Chunks that continue one another."""
    keys = [key_of(first + number) for number in range(count)]
    for number, key in enumerate(keys):
        assert pool.put(key, b"x" * 100, parent=keys[number - 1] if number else None) is Outcome.STORED
    return keys


def test_what_came_is_told_once_with_all_that_a_router_needs(pool: maru.Pool, scan: core.ChangeScan) -> None:
    ns = pool.namespace(Identity(model="m", kv_layout="l"))
    pool.put(key_of(0), b"x" * 100, namespace=ns)
    pool.put(key_of(1), b"x" * 200, namespace=ns, parent=key_of(0))
    assert look(scan) == [
        Change("came", key_of(0), None, ns.digest, 100),
        Change("came", key_of(1), key_of(0), ns.digest, 200),
    ]
    assert look(scan) == []
    assert unpacked(scan.told())[1].parent == key_of(0)
    assert scan.told_count == 2


def test_what_is_being_written_is_not_told(pool: maru.Pool, scan: core.ChangeScan) -> None:
    writing = pool.reserve(key_of(0), 100)
    assert look(scan) == []
    writing.seal()
    assert told(look(scan)) == [("came", key_of(0))]
    pool.reserve(key_of(1), 100).discard()
    assert look(scan) == []


def test_a_slot_used_again_between_two_looks_tells_who_left_and_who_came(pool_url: str) -> None:
    """With few slots a chunk soon lies where another one lay."""
    with maru.Pool.create(pool_url.partition("?")[0] + "?size=1MiB&slab_bytes=64KiB&slots=60&processes=8") as pool:
        scan, view = core.ChangeScan(pool), set()
        for number in range(200):
            pool.remove(key_of(number))
            pool.put(key_of(number + 1), b"x")
            for kind, key in told(look(scan)):
                view.add(key) if kind == "came" else view.discard(key)
            assert view == {key_of(number + 1)}


def test_the_same_key_again_in_the_same_slot_is_told_as_left_and_come(pool: maru.Pool, scan: core.ChangeScan) -> None:
    pool.put(key_of(0), b"x")
    look(scan)
    pool.remove(key_of(0))
    pool.put(key_of(0), b"other")
    assert told(look(scan)) == [("left", key_of(0)), ("came", key_of(0))]


def test_a_key_that_moved_to_another_slot_stays_known(pool: maru.Pool, scan: core.ChangeScan) -> None:
    """The old slot is looked at after the new one or before it: either way the key counts as there at the end."""
    key, view, orders = key_of(0), set(), set()
    namespaces = [pool.namespace(Identity(model="m", kv_layout=f"{number}")) for number in range(7)]
    assert pool.put(key, b"x", namespace=namespaces[0]) is Outcome.STORED
    for old, new in pairwise(namespaces):
        pinned = pool.get(key)  # Keeps the old slot from being the new one.
        old.bump()
        assert pool.put(key, b"x", namespace=new) is Outcome.STORED
        changes = told(look(scan))
        for kind, one in changes:
            view.add(one) if kind == "came" else view.discard(one)
        assert view == {key}
        orders.add(tuple(kind for kind, _ in changes))
        del pinned
        pool.reap()
    assert orders == {("came",), ("left", "came")}
    assert scan.told_count == 1


def test_invalidated_chunks_count_as_left(pool: maru.Pool, scan: core.ChangeScan) -> None:
    ns = pool.namespace(Identity(model="m", kv_layout="l"))
    pool.put(key_of(0), b"x", namespace=ns)
    pool.put(key_of(1), b"x")
    look(scan)
    ns.bump()
    assert told(look(scan)) == [("left", key_of(0))]


def test_a_chunk_whose_time_is_over_counts_as_left(pool: maru.Pool, scan: core.ChangeScan) -> None:
    short = pool.namespace(Identity(model="m", kv_layout="l"), ttl=1e-9)
    pool.put(key_of(0), b"x", namespace=short)
    assert look(scan) == []
    long = pool.namespace(Identity(model="n", kv_layout="l"), ttl=3600)
    pool.put(key_of(1), b"x", namespace=long)
    assert told(look(scan)) == [("came", key_of(1))]


def test_a_chunk_whose_bytes_changed_counts_as_left(pool_url: str) -> None:
    with maru.Pool.create(pool_url + "&checksum=always") as pool:
        scan = core.ChangeScan(pool)
        pool.put(key_of(0), b"x" * 4096)
        look(scan)
        writable, readable, _ = pool._data_range()
        at = np.frombuffer(pool.get(key_of(0)), dtype=np.uint8).ctypes.data
        ctypes.memset(writable + at - readable, 0, 1)
        assert pool.get(key_of(0)) is None  # Seen to be damaged, and put aside.
        assert told(look(scan)) == [("left", key_of(0))]


def test_a_lost_segments_chunks_count_as_left(pool: maru.Pool, pool_url: str, scan: core.ChangeScan) -> None:
    chain(pool, 3)
    look(scan)
    maru.Pool.set_segment(pool_url, 0, "lost")
    assert sorted(told(look(scan))) == sorted(("left", key_of(number)) for number in range(3))


def test_what_others_do_is_told_too(pool: maru.Pool, pool_url: str, scan: core.ChangeScan) -> None:
    with maru.Pool.attach(pool_url) as other:
        other.put(key_of(0), b"x")
        assert told(look(scan)) == [("came", key_of(0))]
        other.remove(key_of(0))
    assert told(look(scan)) == [("left", key_of(0))]


def test_a_destroyed_pool_tells_that_everything_left(pool: maru.Pool, pool_url: str, scan: core.ChangeScan) -> None:
    chain(pool, 3)
    look(scan)
    maru.Pool.destroy(pool_url, force=True)
    assert [one.kind for one in look(scan)] == ["left"] * 3
    assert look(scan) == []
    assert scan.told_count == 0


def test_a_parent_is_told_before_its_children_however_small_the_looks(pool: maru.Pool, scan: core.ChangeScan) -> None:
    keys = [*chain(pool, 40), *chain(pool, 40, first=1000)]
    got: list[Change] = []
    for _ in range(1000):
        raw, is_whole = scan.look(7)
        assert len(raw) <= 7 * CHANGE.size
        got += unpacked(raw)
        if is_whole:
            break
    assert sorted(one.key for one in got) == sorted(keys)
    for number, one in enumerate(got):
        assert one.parent is None or one.parent in {before.key for before in got[:number]}
    assert sum(one.parent is None for one in got) == 2
    seen: set[bytes] = set()
    for one in unpacked(scan.told()):
        assert one.parent is None or one.parent in seen
        seen.add(one.key)
    assert seen == set(keys)


def test_a_parent_that_is_gone_is_not_named(pool: maru.Pool) -> None:
    first, second = chain(pool, 2)
    pool.remove(first)
    assert look(core.ChangeScan(pool))[0].parent is None
    assert pool.put(first, b"x") is Outcome.STORED
    assert {one.key: one.parent for one in look(core.ChangeScan(pool))} == {first: None, second: None}


def test_each_scan_has_a_record_of_its_own(pool: maru.Pool, scan: core.ChangeScan) -> None:
    pool.put(key_of(0), b"x")
    look(scan)
    later = core.ChangeScan(pool)
    assert told(look(later)) == [("came", key_of(0))]


def test_a_closed_pool_and_too_little_room_are_refused(pool: maru.Pool, scan: core.ChangeScan) -> None:
    with pytest.raises(ValueError, match="two changes"):
        scan.look(1)
    pool.close()
    for refused in (lambda: scan.look(2), scan.told, lambda: core.ChangeScan(pool)):
        with pytest.raises(NotAttached):
            refused()


def test_what_was_brought_from_another_pool_is_told_as_that(pool: maru.Pool, scan: core.ChangeScan) -> None:
    for number, reserve in enumerate((pool._reserve_brought, pool.reserve)):
        with reserve(key_of(number), 64, None, None) as reservation:
            reservation.buffer[:] = bytes(64)
            reservation.seal()
    assert {one.key: one.is_brought for one in look(scan)} == {key_of(0): True, key_of(1): False}
