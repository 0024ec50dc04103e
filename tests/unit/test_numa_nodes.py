"""A handle that prefers a NUMA node takes its segments' free memory first; without a preference all take turns."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import maru
from maru import Outcome
from maru.errors import NotAttached
from maru.testing.content import bytes_of, key_of
from maru.testing.crash import spawn
from pools import say_numa_nodes

MIB = 1 << 20
SIZE = 64 << 10
ROOM = MIB // SIZE
"""Chunks of a segment: each has one slab."""


@pytest.fixture
def pool(pool_url: str, tmp_path: Path) -> Iterator[maru.Pool]:
    """Three segments of a slab each, whose nodes nobody knows."""
    files = ",".join(str(tmp_path / name) for name in "abc")
    options = f"size=3MiB&slab_bytes=1MiB&slots=300&processes=8&gate=off&medium=file&data={files}"
    with maru.Pool.create(f"{pool_url.partition('?')[0]}?{options}") as pool:
        yield pool


def taken(pool: maru.Pool, count: int, held: list[maru.Draft]) -> list[int]:
    """Numbers of the segments that this many new extents come from. They stay taken."""
    numbers = []
    for _ in range(count):
        draft = pool.allocate(SIZE)
        assert draft is not None
        held.append(draft)
        numbers.append(draft.offset // MIB)
    return numbers


def test_without_a_preference_segments_take_turns(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, 0)
    assert taken(pool, 6, []) == [0, 1, 2, 0, 1, 2]


def test_the_preferred_nodes_segment_is_used_up_first_and_then_the_others_take_turns(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, 0)
    pool.prefer_numa_node(1)
    held: list[maru.Draft] = []
    assert taken(pool, ROOM, held) == [1] * ROOM
    rest = taken(pool, 2 * ROOM, held)
    assert rest in ([0, 2] * ROOM, [2, 0] * ROOM)
    assert pool.allocate(SIZE) is None
    held[3].discard()
    assert taken(pool, 1, held) == [1]


def test_segments_of_the_preferred_node_take_turns_among_themselves(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 7, 2, 7)
    pool.prefer_numa_node(7)
    assert taken(pool, 8, []) in ([0, 2] * 4, [2, 0] * 4)


@pytest.mark.parametrize("node", [None, 5])
def test_no_node_and_a_node_without_segments_are_no_preference(pool: maru.Pool, node: int | None) -> None:
    say_numa_nodes(pool, 0, 1, -1)
    pool.prefer_numa_node(1)
    pool.prefer_numa_node(node)
    assert taken(pool, 6, []) == [0, 1, 2, 0, 1, 2]


def test_a_segment_that_drains_is_not_taken_from_even_on_the_preferred_node(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, 0)
    pool.prefer_numa_node(1)
    maru.Pool.set_segment(pool.config.url, 1, "draining")
    assert set(taken(pool, 4, [])) == {0, 2}


def test_what_is_evicted_does_not_depend_on_the_preference(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, 0)

    def put(number: int) -> int:
        """The segment that this chunk came to lie in."""
        key = key_of(number)
        assert pool.put(key, bytes_of(key, SIZE)) == Outcome.STORED
        with pool.pin(key) as prefix:
            return memoryview(prefix.extents()).cast("Q")[0] // MIB

    filled = [put(number) for number in range(3 * ROOM)]
    pool.prefer_numa_node(1)
    assert sorted(put(1000 + number) for number in range(3 * ROOM)) == sorted(filled)


def test_a_preference_belongs_to_one_handle(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, 0)
    pool.prefer_numa_node(1)
    with maru.Pool.attach(pool.config.url) as other:
        assert taken(other, 3, []) == [0, 1, 2]


def fork_and_allocate(url: str) -> None:
    pool = maru.Pool.attach(url)
    pool.prefer_numa_node(1)
    out, into = os.pipe()
    if os.fork() == 0:
        held: list[maru.Draft] = []
        os.write(into, json.dumps(taken(pool, 4, held)).encode())
        os._exit(0)
    os.wait()
    print(os.read(out, 1000).decode(), flush=True)


def test_a_forked_child_prefers_what_its_parent_did(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, 0)
    with spawn(fork_and_allocate, pool.config.url) as parent:
        assert json.loads(parent.line()) == [1] * 4
        assert parent.wait() == 0


def test_what_is_no_node_is_refused_and_changes_nothing(pool: maru.Pool) -> None:
    say_numa_nodes(pool, 0, 1, -1)
    pool.prefer_numa_node(1)
    with pytest.raises(ValueError, match="0 or more"):
        pool.prefer_numa_node(-1)
    with pytest.raises(TypeError):
        pool.prefer_numa_node("1")  # type: ignore[arg-type]
    assert taken(pool, 2, []) == [1, 1]


def test_a_closed_handle_prefers_nothing(pool: maru.Pool) -> None:
    pool.close()
    with pytest.raises(NotAttached):
        pool.prefer_numa_node(0)
