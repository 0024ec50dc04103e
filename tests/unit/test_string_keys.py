"""Promises about keys that an engine made up, and about what a batch of them continues."""

from __future__ import annotations

import blake3
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import maru
from maru.errors import BadKey
from maru.string_keys import KEY_BYTES, Lookups, Place, lmcache_namespace, pack_keys


def packed(*numbers: int) -> bytes:
    return b"".join(number.to_bytes(KEY_BYTES, "big") for number in numbers)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(keys=st.lists(st.text(st.characters(exclude_categories=("Cs",)), max_size=300), max_size=8))
def test_a_key_is_blake3_over_the_namespace_and_the_string(pool: maru.Pool, keys: list[str]) -> None:
    namespace = lmcache_namespace(pool)
    wanted = [blake3.blake3(namespace.digest + key.encode()).digest(KEY_BYTES) for key in keys]
    assert pack_keys(namespace, keys) == b"".join(wanted)


def test_a_number_is_taken_for_its_digits(pool: maru.Pool) -> None:
    namespace = lmcache_namespace(pool)
    assert pack_keys(namespace, [17]) == pack_keys(namespace, ["17"])


def test_two_tenants_never_share_a_key(pool: maru.Pool) -> None:
    blue, red = lmcache_namespace(pool, "blue"), lmcache_namespace(pool, "red")
    assert pack_keys(blue, ["a"]) != pack_keys(red, ["a"])


@pytest.mark.parametrize("key", [None, 1.5, ["a"], "\ud800"])
def test_what_is_no_key_is_refused_by_name(pool: maru.Pool, key: object) -> None:
    with pytest.raises(BadKey):
        pack_keys(lmcache_namespace(pool), [key])  # type: ignore[list-item]


def test_the_start_of_a_looked_up_prompt_is_a_root() -> None:
    lookups = Lookups()
    lookups.remember(packed(1, 2, 3))
    assert lookups.place(packed(1)) == Place(True, None)


def test_a_later_chunk_continues_the_one_before_it() -> None:
    lookups = Lookups()
    lookups.remember(packed(1, 2, 3))
    assert lookups.place(packed(3)) == Place(True, packed(2))


def test_the_latest_lookup_counts() -> None:
    lookups = Lookups()
    lookups.remember(packed(1, 3))
    lookups.remember(packed(2, 3))
    assert lookups.place(packed(3)) == Place(True, packed(2))


def test_what_nobody_looked_up_is_not_known() -> None:
    lookups = Lookups()
    lookups.remember(packed(1, 2))
    assert lookups.place(packed(9)) == Place(False)


def test_bytes_that_match_across_two_keys_are_no_key() -> None:
    first, second = bytes(range(16)), bytes(range(16, 32))
    lookups = Lookups()
    lookups.remember(first + second)
    assert lookups.place((first + second)[8:24]) == Place(False)


def test_only_so_many_lookups_are_remembered() -> None:
    lookups = Lookups(limit=2)
    for number in (1, 2, 3):
        lookups.remember(packed(number))
    assert [lookups.place(packed(number)).known for number in (1, 2, 3)] == [False, True, True]
