"""Promises of the words for routers: in vLLM's form, in an order that a router can follow, and none too many."""

from __future__ import annotations

import struct

import msgspec
import pytest

from maru.daemon.kv_events import (
    BLOCKS_AN_EVENT,
    CLEARED_MIN,
    MEDIA,
    AllBlocksCleared,
    BlockRemoved,
    BlockStored,
    EventStream,
    KVEventBatch,
)
from router_view import View

DIGEST, OTHER = b"d" * 16, b"o" * 16
NO_PARENT = bytes(16)


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


def change(kind: int, number: int, parent: int | None = None, digest: bytes = DIGEST) -> bytes:
    above = NO_PARENT if parent is None else key(parent)
    return struct.pack("<16s16s16sQBB6x", key(number), above, digest, 100, kind, parent is not None)


def came(number: int, parent: int | None = None, digest: bytes = DIGEST) -> bytes:
    return change(1, number, parent, digest)


def left(number: int, digest: bytes = DIGEST) -> bytes:
    return change(2, number, digest=digest)


def events(*changes: bytes, told_count: int = 10**6) -> list[object]:
    batch = EventStream("shm").batch(b"".join(changes), told_count, 1.5)
    return list(batch.events) if batch else []


def test_nothing_changed_is_no_batch() -> None:
    assert EventStream("shm").batch(b"", 0, 1.5) is None


def test_a_prefix_is_one_event_that_begins_at_its_parent() -> None:
    (event,) = events(came(1, parent=0), came(2, parent=1), came(3, parent=2))
    assert event == BlockStored(
        [key(1), key(2), key(3)], key(0), [], 0, None, "CPU", None, 0, "LOCAL", f"maru:{DIGEST.hex()}"
    )


def test_what_does_not_continue_the_last_is_an_event_of_its_own() -> None:
    got = events(came(1), came(2, parent=1), came(3, parent=1), came(4), came(5, parent=4, digest=OTHER))
    assert [(one.parent_block_hash, one.block_hashes) for one in got] == [  # type: ignore[attr-defined]
        (None, [key(1), key(2)]), (key(1), [key(3)]), (None, [key(4)]), (key(4), [key(5)]),
    ]  # fmt: skip
    assert [one.ownership for one in got][-1] == f"maru:{OTHER.hex()}"  # type: ignore[attr-defined]


def test_what_left_is_told_by_namespace_before_what_came() -> None:
    got = events(came(9), left(1), left(2, digest=OTHER), left(3))
    assert [(type(one).__name__, one.block_hashes) for one in got] == [  # type: ignore[attr-defined]
        ("BlockRemoved", [key(1), key(3)]), ("BlockRemoved", [key(2)]), ("BlockStored", [key(9)]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "is_there"),
    [
        ([left(1), came(1)], True),
        ([came(1), left(1)], False),
        ([left(1), came(1), left(1)], False),
        ([came(1), left(1), came(1)], True),
    ],
)
def test_of_a_key_that_changed_twice_the_last_counts(changes: list[bytes], is_there: bool) -> None:
    view = View({key(1): None})
    view.apply(EventStream("shm").batch(b"".join(changes), 10**6, 0.0))
    assert view.keys == ({key(1)} if is_there else set())


def test_a_parent_that_left_and_came_again_stands_before_its_child() -> None:
    view = View()
    view.apply(EventStream("shm").batch(came(1) + came(2, parent=1) + left(1) + came(1), 10**6, 0.0))
    assert view.parents == {key(1): None, key(2): key(1)}


def test_a_parent_that_leaves_after_its_child_came_is_told_to_leave_after_that() -> None:
    view = View({key(1): None})
    view.apply(EventStream("shm").batch(came(2, parent=1) + left(1), 10**6, 0.0))
    assert view.parents == {key(2): key(1)}


def test_all_of_many_gone_is_one_event_and_few_are_named() -> None:
    many = [left(number) for number in range(CLEARED_MIN)]
    assert events(*many, told_count=0) == [AllBlocksCleared()]
    cleared, stored = events(*many, came(-1 & 0xFFFF), told_count=1)
    assert cleared == AllBlocksCleared()
    assert isinstance(stored, BlockStored)
    assert all(isinstance(one, BlockRemoved) for one in events(*many, told_count=1))
    assert all(isinstance(one, BlockRemoved) for one in events(*many[1:], told_count=0))


def test_an_event_names_no_more_than_it_may() -> None:
    count = 2 * BLOCKS_AN_EVENT + 1
    stored = events(*(came(number, parent=number - 1 if number else None) for number in range(count)))
    assert [len(one.block_hashes) for one in stored] == [BLOCKS_AN_EVENT, BLOCKS_AN_EVENT, 1]  # type: ignore[attr-defined]
    assert stored[1].parent_block_hash == key(BLOCKS_AN_EVENT - 1)  # type: ignore[attr-defined]
    removed = events(*(left(number) for number in range(count)))
    assert [len(one.block_hashes) for one in removed] == [BLOCKS_AN_EVENT, BLOCKS_AN_EVENT, 1]  # type: ignore[attr-defined]


def test_a_snapshot_begins_with_nothing() -> None:
    batch = EventStream("file", chunk_tokens=256).snapshot(came(1) + came(2, parent=1), 2.5)
    assert batch.events[0] == AllBlocksCleared()
    stored = batch.events[1]
    assert isinstance(stored, BlockStored)
    assert (stored.block_hashes, stored.block_size, stored.medium) == ([key(1), key(2)], 256, "STORAGE")
    assert EventStream("shm").snapshot(b"", 2.5).events == [AllBlocksCleared()]


def test_every_medium_of_a_pool_has_a_word() -> None:
    assert set(MEDIA) == {"shm", "hugetlb", "devdax", "file"}


def test_the_form_is_an_array_of_maps_as_vllm_sends_them() -> None:
    batch = EventStream("shm").batch(came(1) + left(2), 10**6, 1.5)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(batch)) == [
        1.5,
        [
            {
                "type": "BlockRemoved", "block_hashes": [key(2)], "medium": "CPU", "group_idx": 0,
                "locality": "LOCAL", "ownership": f"maru:{DIGEST.hex()}",
            },
            {
                "type": "BlockStored", "block_hashes": [key(1)], "parent_block_hash": None, "token_ids": [],
                "block_size": 0, "lora_id": None, "medium": "CPU", "lora_name": None, "group_idx": 0,
                "locality": "LOCAL", "ownership": f"maru:{DIGEST.hex()}",
            },
        ],
        None,
    ]  # fmt: skip
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(KVEventBatch(1.5, [AllBlocksCleared()]))) == [
        1.5, [{"type": "AllBlocksCleared"}], None,
    ]  # fmt: skip
