"""Promises about the addresses that engines carry in their configuration."""

from __future__ import annotations

import pytest

from maru.address import KEY_PIN_AGE_S, read_address, slab_bytes_for
from maru.config import parse_url
from maru.errors import BadUrl

MIB = 1 << 20
GIB = 1 << 30


def test_both_schemes_name_the_same_pool() -> None:
    assert read_address("maru:///kv?size=1GiB") == read_address("tcp:///kv?size=1GiB")


def test_a_size_in_the_address_wins_over_the_configured_one() -> None:
    assert parse_url(read_address("tcp:///kv?size=8GiB", size_bytes=GIB).url).size_bytes == 8 * GIB


def test_without_a_size_in_the_address_the_configured_one_counts() -> None:
    assert parse_url(read_address("tcp:///kv", size_bytes=3 * GIB).url).size_bytes == 3 * GIB


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.1.2.3", "[::1]"])
def test_a_loopback_address_is_this_hosts_default_pool(host: str) -> None:
    address = read_address(f"maru://{host}:6555?pool_size=64G")
    assert address.pool.name == "default"
    assert address.pool.size_bytes == 64 * GIB


@pytest.mark.parametrize(
    ("host", "name"),
    [
        ("cache-7", "near-cache-7-5555"),
        ("10.0.0.4", "near-10.0.0.4-5555"),
        ("[fd00::1]", "near-fd00--1-5555"),
        ("h" * 90, "near-" + "h" * 50 + "-5555"),
    ],
)
def test_another_hosts_daemon_gets_a_pool_of_this_host_in_front(host: str, name: str) -> None:
    address = read_address(f"tcp://{host}:5555?pool_size=2G&tenant=blue&key=/k/b.key&mode=wire")
    assert address.needs_daemon
    assert address.daemon == f"maru://{host}:5555?key=/k/b.key&mode=wire"
    assert (address.pool.name, address.pool.size_bytes, address.tenant) == (name, 2 * GIB, "blue")


def test_a_loopback_address_asks_a_daemon_if_there_is_one() -> None:
    address = read_address("maru://localhost:6555")
    assert (address.daemon, address.needs_daemon) == ("maru://localhost:6555", False)
    assert read_address("maru:///kv").daemon == ""


def test_what_belongs_to_the_door_does_not_reach_the_pool() -> None:
    address = read_address("maru:///kv?tenant=blue&pin_max_age=20&size=1GiB")
    assert (address.tenant, address.key_pin_age_s) == ("blue", 20.0)
    assert address.url == "maru:///kv?size=1GiB"


def test_key_pins_end_after_five_minutes_unless_told_otherwise() -> None:
    assert read_address("maru:///kv").key_pin_age_s == KEY_PIN_AGE_S == 300


@pytest.mark.parametrize(
    "text",
    [
        "", "kv", "http://localhost:1", "maru:///", "maru:///../x", "maru:///kv?bogus=1", "maru:///kv?size=1G&size=2G",
        "maru:///kv?pin_max_age=0", "maru:///kv?pin_max_age=nan", "maru:///kv?pin_max_age=soon", "maru://localhost:port",
        "maru://host", "maru://a:b@host:1",        "maru://[::1", "maru:///kv?size=-1",
    ],
)  # fmt: skip
def test_what_is_no_address_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadUrl):
        read_address(text)


def test_secrets_in_an_address_are_not_shown() -> None:
    with pytest.raises(BadUrl) as caught:
        read_address("maru://me:hunter2@cache-7:5555?token=abc")
    assert "hunter2" not in str(caught.value)
    assert "abc" not in str(caught.value)


@pytest.mark.parametrize("chunk_bytes", [1, 4096, 5 * MIB, 80 * MIB, 200 * MIB, 256 * MIB, 300 * MIB])
@pytest.mark.parametrize("size_bytes", [64 * MIB, 4 * GIB, 64 * GIB])
def test_a_slab_holds_the_chunk_and_wastes_little_of_it(size_bytes: int, chunk_bytes: int) -> None:
    slab_bytes = slab_bytes_for(size_bytes, chunk_bytes)
    assert slab_bytes >= chunk_bytes
    assert slab_bytes & (slab_bytes - 1) == 0
    wasted = 1 - slab_bytes // chunk_bytes * chunk_bytes / slab_bytes
    assert wasted <= 0.1 or size_bytes // slab_bytes < 8


def test_a_pool_made_from_an_address_takes_the_chunk_it_was_made_for() -> None:
    address = read_address("tcp:///kv?populate=off", size_bytes=64 * MIB, chunk_bytes=5 * MIB)
    assert address.pool.slab_bytes == 16 * MIB


@pytest.mark.parametrize(("chunk_bytes", "expected"), [(16 << 10, 16 << 10), (256 << 10, 0), (5 * MIB, 0)])
def test_a_pool_for_small_chunks_gets_an_index_for_as_many(chunk_bytes: int, expected: int) -> None:
    assert read_address("tcp:///kv", 64 * MIB, chunk_bytes).pool.chunk_bytes == expected


def test_places_below_come_with_the_address_or_for_all_that_name_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARU_TIERS", "file:///everybody  s3://bucket/all")
    one = "maru:///kv?size=1GiB&tier=file%3A%2F%2F%2Fvar%3Fsize%3D1GiB%26codec%3Dzstd&tier=redis%3A%2F%2Fhost"
    assert read_address(one).tiers == ("file:///var?size=1GiB&codec=zstd", "redis://host")
    assert read_address(one).url == "maru:///kv?size=1GiB"
    assert read_address("maru:///kv", tiers=["file:///mine"]).tiers == ("file:///mine",)
    assert read_address("maru:///kv").tiers == ("file:///everybody", "s3://bucket/all")


def test_an_address_shows_no_secret_of_a_place_below() -> None:
    assert "secret" not in repr(read_address("maru:///kv", tiers=["redis://user:secret@host"]))
