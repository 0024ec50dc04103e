"""Namespaces of one pool go down to one place by rules of their own."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from maru.errors import BadUrl
from maru.native import core
from maru.pool import Namespace, Outcome, Pool
from maru.tier.opening import parse_tier_url
from maru.tiering.tiered import TieredPool
from tiering.conftest import IDENTITY, PREFIX_CHUNKS, Story, keys_in, prefix_of, put

FLUSH_S = 20.0
CHANNELS = 64
FIRST, SECOND = replace(IDENTITY, tenant="first"), replace(IDENTITY, tenant="second")


def stored(pool: TieredPool) -> int:
    count: int = pool.ladder.stats()["places"][0]["stored"]
    return count


def names_below(story: Story) -> set[bytes]:
    """Keys of all objects in the folder, whoever may read them."""
    names = [path.name for path in story.folder.rglob("*") if path.is_file()]
    return {bytes.fromhex(name) for name in names if len(name) == 32}


def is_below(pool: TieredPool, namespace: Namespace, packed: bytes) -> bool:
    return pool.ladder.leading(packed, namespace) == PREFIX_CHUNKS


def test_one_tenant_is_written_through_while_others_wait_for_eviction(story: Story) -> None:
    pool = story.handle(story.tier + "&through=first")
    first, second = pool.namespace(FIRST), pool.namespace(SECOND)
    cold, warm = prefix_of(second, 1), prefix_of(first, 2)
    put(pool, second, cold)
    put(pool, first, warm)
    assert pool.ladder.flush(FLUSH_S)
    assert stored(pool) == PREFIX_CHUNKS
    assert is_below(pool, first, warm)
    assert not names_below(story) & set(keys_in(cold))
    for number in range(3, 9):  # Nearly full now: the coldest are copied ahead of eviction, whosever they are.
        put(pool, second, prefix_of(second, number))
        assert pool.ladder.flush(FLUSH_S)
    assert names_below(story) >= set(keys_in(cold))


def test_one_tenant_waits_for_eviction_where_all_others_are_written_through(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through&back=second")
    first, second = pool.namespace(FIRST), pool.namespace(SECOND)
    put(pool, second, prefix_of(second, 1))
    put(pool, first, prefix_of(first, 2))
    assert pool.ladder.flush(FLUSH_S)
    assert is_below(pool, first, prefix_of(first, 2))
    assert stored(pool) == PREFIX_CHUNKS


def test_a_namespace_by_its_digest_counts_before_its_tenant(story: Story) -> None:
    with Pool.attach(story.url) as plain:
        digest = plain.namespace(FIRST).digest.hex()
        other = plain.namespace(replace(FIRST, dtype="fp16")).digest.hex()
    pool = story.handle(f"{story.tier}&never=first&through={digest}")
    named, rest = pool.namespace(FIRST), pool.namespace(replace(FIRST, dtype="fp16"))
    assert rest.digest.hex() == other
    put(pool, named, prefix_of(named, 1))
    put(pool, rest, prefix_of(rest, 2))
    assert pool.ladder.flush(FLUSH_S)
    assert stored(pool) == PREFIX_CHUNKS
    assert is_below(pool, named, prefix_of(named, 1))


def store_in_turns(pool: TieredPool, kept_in: Namespace, let_out: Namespace) -> tuple[set[bytes], set[bytes]]:
    """More than the pool holds of either, each copied below as far as it may be. Returns the keys of both."""
    keys: tuple[set[bytes], set[bytes]] = (set(), set())
    for number in range(12):
        for namespace, its_keys in zip((kept_in, let_out), keys, strict=True):
            packed = prefix_of(namespace, number)
            put(pool, namespace, packed)
            its_keys.update(keys_in(packed))
        assert pool.ladder.flush(FLUSH_S)
    return keys


@pytest.mark.parametrize("write", ["back", "through"])
def test_a_tenant_that_is_kept_in_memory_never_lies_below(story: Story, write: str) -> None:
    pool = story.handle(f"{story.tier}&write={write}&never=second")
    first, second = pool.namespace(FIRST), pool.namespace(SECOND)
    kept_in, let_out = store_in_turns(pool, second, first)
    assert not names_below(story) & kept_in
    assert names_below(story) & let_out
    assert not any(is_below(pool, second, prefix_of(second, number)) for number in range(12))


def test_what_another_instance_put_there_does_not_come_up_for_who_is_kept_out(story: Story) -> None:
    careless = story.handle(story.tier + "&write=through")
    second = careless.namespace(SECOND)
    packed = prefix_of(second, 1)
    put(careless, second, packed)
    assert careless.ladder.flush(FLUSH_S)
    for key in reversed(keys_in(packed)):
        assert core.PoolCore.remove(careless, key)
    careful = story.handle(story.tier + "&never=second")
    careful.namespace(SECOND)
    assert careful.lookup(packed) == 0
    assert careful.get(packed[:16]) is None


def test_only_who_opted_in_loses_precision(story: Story) -> None:
    pool = story.handle(f"{story.tier}&write=through&codec=int8:fp16:channels={CHANNELS}&lossy=first")
    values = np.random.default_rng(7).standard_normal(512 * CHANNELS).astype(np.float16).tobytes()
    came = {}
    for identity in (FIRST, SECOND):
        namespace = pool.namespace(identity)
        key = prefix_of(namespace, 1)[:16]
        assert pool.put(key, values, namespace) is Outcome.STORED
        assert pool.ladder.flush(FLUSH_S)
        assert core.PoolCore.remove(pool, key)
        view = pool.get(key)
        assert view is not None
        came[identity.tenant] = bytes(view)
        del view
    assert came["second"] == values
    assert came["first"] != values
    off = np.frombuffer(came["first"], np.float16).astype(float) - np.frombuffer(values, np.float16)
    assert float(np.sqrt((off**2).mean())) < 0.05


def test_a_lossy_object_does_not_come_up_for_who_did_not_opt_in(story: Story) -> None:
    codec = f"{story.tier}&write=through&codec=int8:fp16:channels={CHANNELS}"
    values = np.random.default_rng(7).standard_normal(512 * CHANNELS).astype(np.float16).tobytes()
    careless = story.handle(codec)
    namespace = careless.namespace(SECOND)
    key = prefix_of(namespace, 1)[:16]
    assert careless.put(key, values, namespace) is Outcome.STORED
    assert careless.ladder.flush(FLUSH_S)
    assert core.PoolCore.remove(careless, key)
    careful = story.handle(f"{codec}&lossy=first")
    careful.namespace(SECOND)
    assert careful.get(key) is None


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("through=", "not a list of names"),
        ("never=a,,b", "not a list of names"),
        ("never=a,%20b", "not a list of names"),
        ("back=a,a", "twice"),
        ("through=a&never=a", "in through= and in never="),
        ("lossy=a", "loses none"),
        ("codec=blosc2&lossy=a", "loses none"),
        ("write=never", "not one of"),
    ],
)
def test_rules_that_make_no_sense_are_refused_by_name(query: str, says: str) -> None:
    with pytest.raises(BadUrl, match=says):
        parse_tier_url(f"file:///var/lib/maru?{query}")
