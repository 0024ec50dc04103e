"""What callers may get wrong: keys, sizes, times and namespaces. Each is refused by name, and changes nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import maru
from maru.errors import BadKey, BadSize, ChunkTooLarge, MaruError
from maru.testing.content import key_of


@pytest.fixture
def second_url(pool_url: str) -> Iterator[str]:
    """A second pool beside the first."""
    url = pool_url.replace("maru:///", "maru:///second-")
    yield url
    try:
        maru.Pool.destroy(url, force=True)
    except MaruError:
        return


BAD_ONE_KEY: list[object] = [b"", b"x" * 15, b"x" * 17, b"x" * 32, bytearray(15), np.zeros(4, np.int16), "x" * 16, 16]
BAD_PACKED_KEYS: list[object] = [
    b"x" * 15,
    b"x" * 17,
    b"x" * 31,
    np.zeros((4, 15), np.uint8),
    "x" * 16,
    16,
    [b"x" * 16],
]
NOT_CONTIGUOUS = [np.zeros((4, 32), np.uint8)[:, :16], np.zeros(32, np.uint8)[::2], memoryview(bytes(32))[::2]]


@pytest.mark.parametrize("key", [*BAD_ONE_KEY, *NOT_CONTIGUOUS], ids=repr)
def test_what_is_not_one_key_is_refused_everywhere(pool: maru.Pool, key: Any) -> None:
    acts: list[Callable[[], object]] = [
        lambda: pool.get(key), lambda: pool.exists(key), lambda: pool.remove(key), lambda: pool.wait(key, 0),
        lambda: pool.being_written(key),
        lambda: pool.put(key, b"x"), lambda: pool.reserve(key, 1),
        lambda: pool.put(key_of(0), b"x", parent=key),
    ]  # fmt: skip
    for act in acts:
        with pytest.raises(BadKey, match="16 bytes"):
            act()
    draft = pool.allocate(10)
    assert draft is not None
    with pytest.raises(BadKey):
        draft.publish(key)
    assert pool.stats()["chunks"]["reserved"] == 0
    assert pool.put(key_of(0), b"still fine") == maru.Outcome.STORED


@pytest.mark.parametrize("keys", [*BAD_PACKED_KEYS, *NOT_CONTIGUOUS], ids=repr)
def test_what_is_not_packed_keys_is_refused_everywhere(pool: maru.Pool, keys: Any) -> None:
    for act in (pool.lookup, pool.pin, lambda k: pool.put_many(k, [b"x"]), lambda k: pool.reserve_many(k, 10)):
        with pytest.raises(BadKey, match="16 bytes"):
            act(keys)


def test_a_bad_key_says_how_long_it_was(pool: maru.Pool) -> None:
    with pytest.raises(BadKey) as refused:
        pool.get(b"x" * 17)
    assert refused.value.got_bytes == 17
    with pytest.raises(BadKey) as refused:
        pool.lookup(b"x" * 31)
    assert refused.value.got_bytes == 31


@pytest.mark.parametrize("size", [0, -1, -(1 << 63)])
def test_a_size_below_one_byte_is_refused(pool: maru.Pool, size: int) -> None:
    acts = (
        lambda: pool.reserve(key_of(0), size), lambda: pool.allocate(size), lambda: pool.reserve_many(key_of(0), size),
    )  # fmt: skip
    for act in acts:
        with pytest.raises(BadSize):
            act()


@pytest.mark.parametrize("size", [(512 << 10) + 1, 1 << 40, (1 << 63) - 1])
def test_a_size_above_a_slab_is_refused_with_both_numbers(pool: maru.Pool, size: int) -> None:
    acts = (
        lambda: pool.reserve(key_of(0), size), lambda: pool.allocate(size), lambda: pool.reserve_many(key_of(0), size),
    )  # fmt: skip
    for act in acts:
        with pytest.raises(ChunkTooLarge) as refused:
            act()
        assert (refused.value.wanted_bytes, refused.value.slab_bytes) == (size, 512 << 10)


def test_a_namespace_of_another_pool_is_refused(pool: maru.Pool, second_url: str) -> None:
    """Its row number means another tenant's namespace here, or none."""
    with maru.Pool.create(second_url) as other:
        foreign = other.namespace(maru.Identity(model="m", kv_layout="l", tenant="theirs"))
        with pytest.raises(ValueError, match="another pool"):
            pool.put(key_of(0), b"x", namespace=foreign)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e30])
def test_impossible_times_are_refused(pool: maru.Pool, seconds: float) -> None:
    for act in (
        lambda: pool.wait(key_of(0), seconds), lambda: pool.put(key_of(0), b"x", ttl=seconds),
        lambda: pool.reserve(key_of(0), 10, deadline=seconds), lambda: pool.wait_ready(seconds),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="0 or more seconds"):
            act()
    assert pool.check() == []


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("size=1", "at least 1 MiB"), ("size=1048575", "at least 1 MiB"), ("size=65T", "at most 64 TiB"),
        ("size=8388607T", "at most 64 TiB"), ("size=8M&slab_bytes=3M", "power of two"),
        ("size=8M&slab_bytes=16M", "at least one slab"), ("size=8M&slab_bytes=8K", "at least 4 units"),
        ("size=8M&slab_bytes=1T", "slab_bytes"), ("size=8M&unit_bytes=3", "unit_bytes"),
        ("size=8M&unit_bytes=256", "unit_bytes"),
        ("size=8M&unit_bytes=4M", "unit_bytes"), ("size=8M&unit_bytes=8E", "not a size"),
        ("size=1T&slab_bytes=256K", "too many slabs"),
    ],
)  # fmt: skip
def test_a_pool_that_cannot_be_laid_out_is_refused_and_leaves_nothing(pool_url: str, query: str, says: str) -> None:
    url = f"{pool_url.partition('?')[0]}?{query}"
    for act in (maru.Pool.create, maru.Pool.open):
        with pytest.raises(ValueError, match=says) as refused:
            act(url)
        assert isinstance(refused.value, MaruError)
    assert not maru.config.default_folder(url.partition("?")[0].removeprefix("maru:///")).exists()
