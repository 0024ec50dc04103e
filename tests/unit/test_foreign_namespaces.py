"""Calls that are told which namespaces to see: a chunk of any other is absent, and stays what it is."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

import maru
from maru import Identity, Namespace, Outcome
from maru.testing.content import bytes_of, key_of

SIZE = 5000
BYTES = bytes_of(key_of(1), SIZE)


def only(namespaces: Iterable[int]) -> bytes:
    """A bitmap of these numbers, as short as it can be."""
    bits = sum(1 << number for number in set(namespaces))
    return bits.to_bytes((bits.bit_length() + 7) // 8, "little")


def everything_but(number: int) -> bytes:
    return only(set(range(1024)) - {number})


@pytest.fixture
def mine(pool: maru.Pool) -> Namespace:
    return pool.namespace(Identity(model="m", kv_layout="x", tenant="red"))


@pytest.fixture
def theirs(pool: maru.Pool) -> Namespace:
    for n in range(20):  # So that the number is not in the bitmap's first byte.
        other = pool.namespace(Identity(model="m", kv_layout="x", tenant=f"blue-{n}"))
    return other


def test_a_chunk_is_seen_by_its_own_namespaces_bit_alone(pool: maru.Pool, theirs: Namespace) -> None:
    pool.put(key_of(1), BYTES, theirs)
    for seen, bits in ((True, None), (True, only([theirs.id])), (False, everything_but(theirs.id)), (False, b"")):
        assert pool.lookup(key_of(1), namespaces=bits) == int(seen)
        assert pool.exists(key_of(1), namespaces=bits) is seen
        with pool.pin(key_of(1), namespaces=bits) as prefix:
            assert [bytes(view) for view in prefix.views] == [BYTES][: int(seen)]
    assert pool.stats()["processes"][0]["pins"] == 0


def test_a_prefix_ends_where_another_namespaces_chunk_stands(
    pool: maru.Pool, mine: Namespace, theirs: Namespace
) -> None:
    keys = b"".join(key_of(n) for n in range(4))
    for n in range(4):
        pool.put(key_of(n), BYTES, theirs if n == 2 else mine)
    assert pool.lookup(keys) == 4
    assert pool.lookup(keys, namespaces=only([mine.id])) == 2
    with pool.pin(keys, namespaces=only([mine.id])) as prefix:
        assert len(prefix) == 2


def test_chunks_of_no_namespace_are_those_of_number_0(pool: maru.Pool, mine: Namespace) -> None:
    pool.put(key_of(1), BYTES)
    assert pool.exists(key_of(1), namespaces=only([0]))
    assert not pool.exists(key_of(1), namespaces=only([mine.id]))


def test_who_writes_is_told_to_its_own_namespaces_alone(pool: maru.Pool, mine: Namespace, theirs: Namespace) -> None:
    with pool.reserve(key_of(1), SIZE, theirs) as reserved:
        assert reserved.outcome is Outcome.RESERVED
        assert pool.being_written(key_of(1))
        assert pool.being_written(key_of(1), namespaces=only([theirs.id]))
        assert not pool.being_written(key_of(1), namespaces=only([mine.id]))


def test_another_namespaces_chunk_cannot_be_removed(pool: maru.Pool, mine: Namespace, theirs: Namespace) -> None:
    pool.put(key_of(1), BYTES, theirs)
    assert pool.remove(key_of(1), namespaces=only([mine.id])) is False
    assert pool.exists(key_of(1))
    assert pool.remove(key_of(1), namespaces=only([theirs.id])) is True
    assert not pool.exists(key_of(1))


def test_whoever_asks_for_what_is_not_theirs_leaves_it_as_cold_as_it_was(
    pool: maru.Pool, mine: Namespace, theirs: Namespace
) -> None:
    pool.put(key_of(1), BYTES, theirs)
    before = pool.stats()["counters"]
    pool.pin(key_of(1), namespaces=only([mine.id])).release()
    after = pool.stats()["counters"]
    assert after["hit_keys"] == before["hit_keys"]
    pool.pin(key_of(1), namespaces=only([theirs.id])).release()
    assert pool.stats()["counters"]["hit_keys"] == before["hit_keys"] + 1


def test_the_namespaces_in_use_are_told_with_their_tenants(pool: maru.Pool, mine: Namespace) -> None:
    pool.namespace(Identity(model="m", kv_layout="x", tenant="blue"), ttl=2.5)
    rows = {number: (tenant, ttl_ns) for number, _, tenant, ttl_ns, _ in pool._namespace_rows()}
    assert rows[0][1] == 0
    assert rows[mine.id] == (b"red", 0)
    assert (b"blue", 2_500_000_000) in rows.values()
    assert (mine.id, mine.digest, b"red", 0, 0) in pool._namespace_rows()
