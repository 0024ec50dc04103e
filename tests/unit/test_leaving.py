"""What leaves a pool next, as whoever keeps copies below asks for it."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

import pytest

from maru.errors import NotAttached
from maru.key import Identity
from maru.native import core
from maru.pool import Namespace, Pool

_LEAVING = struct.Struct("<16s16s16sQQQQIIB7x")
ALL = 1 << 40
SIZE = 1000


class Leaving(NamedTuple):
    key: bytes
    parent: bytes
    digest: bytes
    size_bytes: int
    slot: int
    generation: int
    expires_in_ns: int
    namespace: int
    epoch: int
    has_parent: int


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def look(scan: core.LeavingScan, ahead_bytes: int = ALL, limit: int = 1000) -> list[Leaving]:
    return [Leaving(*fields) for fields in _LEAVING.iter_unpack(scan.look(ahead_bytes, limit))]


@pytest.fixture
def namespace(pool: Pool) -> Namespace:
    return pool.namespace(Identity(model="m", kv_layout="leaving"))


def fill(pool: Pool, namespace: Namespace, count: int = 10) -> None:
    for number in range(count):
        pool.put(key(number), bytes([number]) * SIZE, namespace)


def test_everything_is_told_with_what_finds_it_again(pool: Pool, namespace: Namespace) -> None:
    pool.put(key(1), b"head" * 10, namespace)
    pool.put(key(2), b"tail", namespace, parent=key(1), ttl=60.0)
    head, tail = sorted(look(core.LeavingScan(pool)))
    assert (head.key, head.has_parent, head.size_bytes, head.expires_in_ns) == (key(1), 0, 40, 0)
    assert (tail.key, tail.has_parent, tail.parent, tail.size_bytes) == (key(2), 1, key(1), 4)
    assert 0 < tail.expires_in_ns <= 60 * 10**9
    assert {head.digest, tail.digest} == {namespace.digest}
    assert (head.namespace, head.epoch) == (namespace.id, namespace.epoch)


def test_the_coldest_come_first_and_only_as_many_bytes_as_were_asked_for(pool: Pool, namespace: Namespace) -> None:
    fill(pool, namespace)
    for _ in range(50):  # Epochs pass; all but two are asked for again and again.
        for number in range(10):
            if number not in (3, 7):
                pool.get(key(number))
    found = look(core.LeavingScan(pool), 2 * SIZE)
    assert {one.key for one in found} == {key(3), key(7)}
    assert look(core.LeavingScan(pool), 0) == []
    assert len(look(core.LeavingScan(pool), ALL, 4)) == 4


def test_what_was_kept_is_not_told_again_until_the_slot_holds_something_else(pool: Pool, namespace: Namespace) -> None:
    fill(pool, namespace, 3)
    scan = core.LeavingScan(pool)
    for one in look(scan):
        scan.keep(one.slot, one.generation)
    assert look(scan) == []
    assert scan.residents()[:2] == (3 * SIZE, 3 * SIZE)
    pool.remove(key(1))
    pool.put(key(1), b"anew", namespace)
    (again,) = look(scan)
    assert (again.key, again.size_bytes) == (key(1), 4)


def test_what_left_without_a_copy_is_counted_and_what_had_one_is_not(pool: Pool, namespace: Namespace) -> None:
    fill(pool, namespace, 2)
    scan = core.LeavingScan(pool)
    first = min(look(scan))
    scan.keep(first.slot, first.generation)
    pool.remove(key(0))
    pool.remove(key(1))
    look(scan)
    assert scan.residents() == (0, 0, 1)


def test_what_a_bump_ended_is_neither_told_nor_counted_as_lost(pool: Pool, namespace: Namespace) -> None:
    fill(pool, namespace, 4)
    scan = core.LeavingScan(pool)
    look(scan)
    namespace.bump()
    assert look(scan) == []
    for number in range(4):
        pool.remove(key(number))
    look(scan)
    assert scan.residents() == (0, 0, 0)


def test_holding_keeps_a_chunk_and_makes_it_no_warmer(pool: Pool, namespace: Namespace) -> None:
    fill(pool, namespace, 1)
    scan = core.LeavingScan(pool)
    (one,) = look(scan)
    view = scan.hold(one.slot, one.generation)
    assert view is not None
    assert bytes(view) == bytes(SIZE)
    assert not pool.remove(one.key)
    counters = pool.stats()["counters"]
    assert (counters["pinned"], counters["hit_keys"], counters["lookup_keys"]) == (0, 0, 0)
    del view
    assert pool.remove(one.key)


@pytest.mark.parametrize("slot", ["its own", "another", "none"])
def test_what_has_left_cannot_be_held(pool: Pool, namespace: Namespace, slot: str) -> None:
    fill(pool, namespace, 1)
    scan = core.LeavingScan(pool)
    (one,) = look(scan)
    number = {"its own": one.slot, "another": one.slot ^ 1, "none": 1 << 60}[slot]
    if slot == "its own":
        pool.remove(one.key)
        pool.put(one.key, b"anew", namespace)
    assert scan.hold(number, one.generation) is None
    assert pool.stats()["processes"][0]["pins"] == 0


def test_with_every_read_verified_a_damaged_chunk_is_not_carried_away(pool_url: str) -> None:
    with Pool.create(f"{pool_url.partition('?')[0]}?size=4MiB&checksum=always") as pool:
        pool.put(key(1), b"right" * 100)
        scan = core.LeavingScan(pool)
        (one,) = look(scan)
        with pool.pin(key(1)) as prefix:
            at = memoryview(prefix.extents()).cast("Q")[0]
        segment = pool.stats()["segments"][0]
        with Path(segment["path"]).open("r+b") as file:
            file.seek(segment["data_offset"] + at)
            file.write(b"wrong")
        assert scan.hold(one.slot, one.generation) is None
        assert not pool.exists(key(1))


def test_a_scan_ends_with_its_pool(pool: Pool) -> None:
    scan = core.LeavingScan(pool)
    pool.close()
    with pytest.raises(NotAttached):
        scan.look(ALL, 1)
