"""Promises about memory that a GPU may reach, with a device that only takes notes: no GPU was there to run them on."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat

import maru
from maru_lmcache import CxlMemoryAdapter
from maru_lmcache.registration import PIECE_BYTES, Registration

MIB = 1 << 20
GIB = 1 << 30
SHAPES, DTYPES = [torch.Size([2, 3, 16, 32])], [torch.float32]
CHUNK = 2 * 3 * 16 * 32 * 4
DEADLINE_S = 30.0


class Notes:
    """A device that registers what it is told to, unless it was told to refuse."""

    def __init__(self, largest: int = 1 << 62, may: threading.Event | None = None) -> None:
        self.largest = largest
        self.may = may
        self.pieces: dict[int, int] = {}
        self.flags: set[int] = set()
        self.tried: list[int] = []
        self.keeps = False

    def pin_memory(self, ptr: int, size: int, flags: int = 0) -> bool:
        if self.may:
            assert self.may.wait(DEADLINE_S)
        self.tried.append(size)
        self.flags.add(flags)
        if size > self.largest:
            return False
        self.pieces[ptr] = size
        return True

    def unpin_memory(self, ptr: int) -> bool:
        return not self.keeps and self.pieces.pop(ptr, None) is not None


def registered(notes: Notes, size: int, slab: int, address: int = 0x1000) -> Registration:
    registration = Registration(notes, address, size, slab)
    registration.begin()
    assert registration.wait(DEADLINE_S)
    return registration


def test_a_pool_is_registered_in_pieces_whose_edges_are_slabs() -> None:
    notes = Notes()
    registration = registered(notes, 20 * GIB, 256 * MIB)
    assert list(notes.pieces.values()) == [PIECE_BYTES, PIECE_BYTES, 4 * GIB]
    assert all((start - 0x1000) % (256 * MIB) == 0 for start in notes.pieces)
    assert notes.flags == {3}
    assert registration.covers(0, 20 * GIB // 3)
    assert registration.covers(20 * GIB - 1, 1)


def test_bytes_across_two_pieces_are_not_covered() -> None:
    registration = registered(Notes(), 20 * GIB, 256 * MIB)
    assert registration.covers(PIECE_BYTES - 10, 10)
    assert not registration.covers(PIECE_BYTES - 10, 11)
    assert not registration.covers(20 * GIB, 1)


def test_a_piece_that_is_refused_is_tried_smaller() -> None:
    notes = Notes(largest=3 * GIB)
    registration = registered(notes, 20 * GIB, 256 * MIB)
    assert notes.tried[:3] == [8 * GIB, 4 * GIB, 2 * GIB]
    assert sum(notes.pieces.values()) == 20 * GIB
    assert registration.covers(19 * GIB, 1)


def test_what_no_size_helps_with_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    registration = registered(Notes(largest=1), GIB, 256 * MIB)
    assert not registration.covers(0, 1)
    assert "registered 0 of 1073741824 bytes" in caplog.text


def test_nothing_is_registered_before_it_begins() -> None:
    notes = Notes()
    registration = Registration(notes, 0x1000, GIB, 256 * MIB)
    assert not registration.covers(0, 1)
    assert notes.tried == []


def test_closing_takes_back_every_piece_and_says_when_it_cannot() -> None:
    notes = Notes()
    assert registered(notes, 20 * GIB, 256 * MIB).close()
    assert notes.pieces == {}
    stubborn = Notes()
    registration = registered(stubborn, GIB, 256 * MIB)
    stubborn.keeps = True
    assert not registration.close()


def test_a_driver_that_hangs_does_not_hang_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru_lmcache.registration.CLOSE_DEADLINE_S", 0.01)
    may = threading.Event()
    registration = Registration(Notes(may=may), 0x1000, GIB, 256 * MIB)
    registration.begin()
    assert not registration.close()
    may.set()
    assert registration.wait(DEADLINE_S)


@pytest.fixture
def handler(pool_name: str) -> Iterator[maru.MaruHandler]:
    connected = maru.MaruHandler(
        maru.MaruConfig(server_url=f"maru:///{pool_name}", pool_size=MIB, chunk_size_bytes=CHUNK)
    )
    assert connected.connect()
    yield connected
    connected.close()


def make_adapter(handler: maru.MaruHandler, notes: Notes) -> CxlMemoryAdapter:
    return CxlMemoryAdapter(handler, SHAPES, DTYPES, MemoryFormat.KV_2LTD, CHUNK, device=notes)


def settle(adapter: CxlMemoryAdapter) -> None:
    adapter._registration.begin()
    assert adapter._registration.wait(DEADLINE_S)


def test_until_memory_is_registered_nothing_is_allocated_and_nothing_found(handler: maru.MaruHandler) -> None:
    may = threading.Event()
    adapter = make_adapter(handler, Notes(may=may))
    key = handler.alloc(CHUNK)
    handler.store("a", key)
    info = handler.retrieve("a")
    assert info is not None
    assert adapter.allocate(SHAPES, DTYPES) is None
    assert adapter.get_by_location(info.region_id, info.page_index, CHUNK, CHUNK // 16) is None
    may.set()
    settle(adapter)
    assert adapter.allocate(SHAPES, DTYPES) is not None
    assert adapter.get_by_location(info.region_id, info.page_index, CHUNK, CHUNK // 16) is not None
    adapter.close()


def test_with_a_device_every_tensor_lies_in_registered_memory_and_holds_its_chunk(handler: maru.MaruHandler) -> None:
    notes = Notes()
    adapter = make_adapter(handler, notes)
    settle(adapter)
    obj = adapter.allocate(SHAPES, DTYPES)
    assert obj is not None
    obj.tensor.fill_(4.0)
    assert inside(notes, obj.data_ptr)
    assert handler.store("a", adapter.create_store_handle(obj))
    assert inside(notes, obj.data_ptr)
    del obj
    info = handler.retrieve("a")
    assert info is not None
    again = adapter.get_by_location(info.region_id, info.page_index, CHUNK, CHUNK // 16)
    del info
    assert again is not None
    assert inside(notes, again.data_ptr)
    tensor = again.tensor
    del again
    gc.collect()
    assert bool((tensor == 4.0).all())
    assert not handler.delete("a")
    del tensor
    gc.collect()
    assert handler.delete("a")
    adapter.close()


def inside(notes: Notes, address: int) -> bool:
    return any(start <= address and address + CHUNK <= start + size for start, size in notes.pieces.items())


def test_what_a_device_writes_rests_after_a_death(handler: maru.MaruHandler) -> None:
    assert not handler.device_writes
    adapter = make_adapter(handler, Notes())
    assert handler.device_writes
    adapter.close()


def test_memory_that_the_device_keeps_stays_mapped(handler: maru.MaruHandler) -> None:
    notes = Notes()
    adapter = make_adapter(handler, notes)
    settle(adapter)
    notes.keeps = True
    address = next(iter(notes.pieces))
    adapter.close()
    handler.close()
    gc.collect()
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        starts = [int(line.partition("-")[0], 16) for line in maps]
    assert address in starts


def test_a_new_pool_in_place_of_a_destroyed_one_is_registered_anew(
    handler: maru.MaruHandler, pool_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru.handler.REATTACH_PAUSE_S", 0.0)
    notes = Notes()
    adapter = make_adapter(handler, notes)
    settle(adapter)
    before = dict(notes.pieces)
    maru.Pool.destroy(f"maru:///{pool_name}", force=True)
    with maru.Pool.create(f"maru:///{pool_name}?size=1MiB"):
        assert handler.healthcheck()
        settle(adapter)
        obj = adapter.allocate(SHAPES, DTYPES)
        assert obj is not None
        assert inside(notes, obj.data_ptr)
        assert notes.pieces.keys() != before.keys()
        adapter.close()
