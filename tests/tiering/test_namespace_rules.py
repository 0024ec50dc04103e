"""What a namespace asks for its content holds at every place below, whatever the place's URL says."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from maru.native import core
from maru.pool import Policy, Pool
from tiering.conftest import IDENTITY, PREFIX_CHUNKS, Story, keys_in, prefix_of, put
from tiering.test_policy import FLUSH_S, is_below, names_below, store_in_turns, stored

OPEN, CLOSED = replace(IDENTITY, tenant="open"), replace(IDENTITY, tenant="closed")


@pytest.mark.parametrize("policy", ["memory-only", "no-share"])
@pytest.mark.parametrize("write", ["back", "through"])
def test_what_is_for_memory_only_never_lies_below(story: Story, write: str, policy: Policy) -> None:
    pool = story.handle(f"{story.tier}&write={write}&through=closed")
    closed, others = pool.namespace(CLOSED, policy=[policy]), pool.namespace(OPEN)
    kept_in, let_out = store_in_turns(pool, closed, others)
    assert not names_below(story) & kept_in
    assert names_below(story) & let_out


def test_what_lies_below_from_before_does_not_come_up_any_more(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(CLOSED)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(FLUSH_S)
    for key in reversed(keys_in(packed)):
        assert core.PoolCore.remove(pool, key)
    assert is_below(pool, namespace, packed)
    with Pool.attach(story.url) as another:
        another.namespace(CLOSED, policy=["memory-only"])
    assert not is_below(pool, namespace, packed)
    assert pool.get(packed[:16]) is None


@pytest.mark.parametrize("has_keys", [False, True])
def test_what_is_to_be_encrypted_lies_only_where_a_place_encrypts(story: Story, has_keys: bool, tmp_path: Path) -> None:
    keys = tmp_path / "master.keys"
    keys.write_text(f"first {os.urandom(32).hex()}\n")
    keys.chmod(0o600)
    pool = story.handle(story.tier + "&write=through" + (f"&encrypt=tenant&keys=file:{keys}" if has_keys else ""))
    closed, others = pool.namespace(CLOSED, policy=["encrypted-only"]), pool.namespace(OPEN)
    put(pool, closed, prefix_of(closed, 1))
    put(pool, others, prefix_of(others, 2))
    assert pool.ladder.flush(FLUSH_S)
    assert is_below(pool, others, prefix_of(others, 2))
    assert is_below(pool, closed, prefix_of(closed, 1)) == has_keys
    assert stored(pool) == PREFIX_CHUNKS * (1 + has_keys)
