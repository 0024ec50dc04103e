"""Promises about memory that a GPU may reach, with a device that only takes notes: no GPU was there to run them on."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat

import maru
from maru.registered import FIRST_PIECE_BYTES, PIECE_BYTES
from maru_lmcache import CxlMemoryAdapter
from maru_lmcache.registration import Registration

MIB = 1 << 20
GIB = 1 << 30
SHAPES, DTYPES = [torch.Size([2, 3, 16, 32])], [torch.float32]
CHUNK = 2 * 3 * 16 * 32 * 4
CHUNK_ROOM = -(-CHUNK // 4096) * 4096
DEADLINE_S = 30.0


class Notes:
    """A device that registers what it is told to, unless it was told to refuse."""

    def __init__(self, largest: int = 1 << 62, may: threading.Event | None = None, at_once: int = 0) -> None:
        """All pieces but the first `at_once` wait for `may`."""
        self.largest = largest
        self.may = may
        self.at_once = at_once
        self.pieces: dict[int, int] = {}
        self.flags: set[int] = set()
        self.tried: list[int] = []
        self.keeps = False

    def pin_memory(self, ptr: int, size: int, flags: int = 0) -> bool:
        if self.may and len(self.tried) >= self.at_once:
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
    registration = Registration(notes, address, [(0, size)], slab)
    registration.begin()
    assert registration.wait(DEADLINE_S)
    return registration


def test_a_pool_is_registered_in_pieces_whose_edges_are_slabs() -> None:
    notes = Notes()
    registration = registered(notes, 20 * GIB, 256 * MIB)
    assert list(notes.pieces.values()) == [FIRST_PIECE_BYTES, PIECE_BYTES, PIECE_BYTES, 4 * GIB - FIRST_PIECE_BYTES]
    assert all((start - 0x1000) % (256 * MIB) == 0 for start in notes.pieces)
    assert notes.flags == {3}
    assert registration.covers(0, FIRST_PIECE_BYTES)
    assert registration.covers(FIRST_PIECE_BYTES, 20 * GIB // 3)
    assert registration.covers(20 * GIB - 1, 1)


def test_bytes_across_two_pieces_are_not_covered() -> None:
    registration = registered(Notes(), 20 * GIB, 256 * MIB)
    for edge in (FIRST_PIECE_BYTES, FIRST_PIECE_BYTES + PIECE_BYTES):
        assert registration.covers(edge - 10, 10)
        assert not registration.covers(edge - 10, 11)
    assert not registration.covers(20 * GIB, 1)


def test_a_piece_that_is_refused_is_tried_smaller() -> None:
    notes = Notes(largest=3 * GIB)
    registration = registered(notes, 20 * GIB, 256 * MIB)
    assert notes.tried[:4] == [256 * MIB, 8 * GIB, 4 * GIB, 2 * GIB]
    assert sum(notes.pieces.values()) == 20 * GIB
    assert registration.covers(19 * GIB, 1)


def test_what_no_size_helps_with_is_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    registration = registered(Notes(largest=1), GIB, 256 * MIB)
    assert not registration.covers(0, 1)
    assert "registered 0 of 1073741824 bytes" in caplog.text


def test_nothing_is_registered_before_it_begins() -> None:
    notes = Notes()
    registration = Registration(notes, 0x1000, [(0, GIB)], 256 * MIB)
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
    registration = Registration(Notes(may=may), 0x1000, [(0, GIB)], 256 * MIB)
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


def test_a_device_that_does_not_answer_makes_everything_a_miss_until_it_does(
    handler: maru.MaruHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("maru_lmcache.registration.FIRST_DEADLINE_S", 0.01)
    may = threading.Event()
    adapter = make_adapter(handler, Notes(may=may))
    assert caplog.text.count("no memory is registered with the device") == 1
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


@pytest.fixture
def large(pool_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[maru.MaruHandler]:
    """On a pool of two segments of four slabs, whose first pieces are one slab each."""
    monkeypatch.setattr("maru.registered.FIRST_PIECE_BYTES", MIB)
    files = ",".join(str(tmp_path / name) for name in ("a", "b"))
    with maru.Pool.create(f"maru:///{pool_name}?size=8MiB&slab_bytes=1MiB&medium=file&data={files}"):
        pass
    connected = maru.MaruHandler(maru.MaruConfig(server_url=f"maru:///{pool_name}", chunk_size_bytes=CHUNK))
    assert connected.connect()
    yield connected
    connected.close()


def test_the_first_chunks_of_a_new_pool_are_stored_and_found_while_the_rest_is_being_registered(
    large: maru.MaruHandler,
) -> None:
    may = threading.Event()
    notes = Notes(may=may, at_once=2)
    adapter = make_adapter(large, notes)
    objs = []
    while (obj := adapter.allocate(SHAPES, DTYPES)) is not None:
        objs.append(obj)
    assert len(objs) == 2 * (MIB // CHUNK_ROOM)
    assert all(inside(notes, obj.data_ptr) for obj in objs)
    assert {adapter.decode_address(obj.meta.address)[0] for obj in objs} == {0, 1}
    assert large.store("within", adapter.create_store_handle(objs[0]))
    beyond = large.alloc(CHUNK)
    assert large.store("beyond", beyond)
    assert found(adapter, large, "within")
    assert not found(adapter, large, "beyond")
    may.set()
    settle(adapter)
    assert adapter.allocate(SHAPES, DTYPES) is not None
    assert found(adapter, large, "beyond")
    adapter.close()


def test_an_adapter_is_handed_out_after_its_first_piece_is_registered(
    handler: maru.MaruHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited_for = threading.Event()
    wait = Registration.wait_for_first

    def notes_and_waits(registration: Registration) -> bool:
        waited_for.set()
        return wait(registration)

    monkeypatch.setattr(Registration, "wait_for_first", notes_and_waits)
    adapter = make_adapter(handler, Notes(may=waited_for))  # It begins when somebody waits, not before.
    assert adapter.allocate(SHAPES, DTYPES) is not None
    adapter.close()


def found(adapter: CxlMemoryAdapter, handler: maru.MaruHandler, key: str) -> bool:
    info = handler.retrieve(key)
    assert info is not None
    return adapter.get_by_location(info.region_id, info.page_index, CHUNK, CHUNK // 16) is not None


def test_no_piece_lies_in_two_segments(large: maru.MaruHandler) -> None:
    notes = Notes()
    adapter = make_adapter(large, notes)
    settle(adapter)
    assert list(notes.pieces.values()) == [MIB, MIB, 3 * MIB, 3 * MIB]
    adapter.close()


def test_a_device_that_refuses_is_not_waited_for_to_the_deadline(
    handler: maru.MaruHandler, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("maru.registered.BACKOFF_S", 0.0)
    monkeypatch.setattr("maru_lmcache.registration.FIRST_DEADLINE_S", threading.TIMEOUT_MAX)
    adapter = make_adapter(handler, Notes(largest=1))
    assert caplog.text.count("no memory is registered with the device") == 1
    assert adapter.allocate(SHAPES, DTYPES) is None
    adapter.close()


def test_where_the_device_is_not_in_use_nothing_is_registered_and_nothing_waits(
    handler: maru.MaruHandler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru_lmcache.adapter.is_in_use", lambda: False)
    monkeypatch.setattr("maru_lmcache.registration.FIRST_DEADLINE_S", threading.TIMEOUT_MAX)
    notes = Notes(may=threading.Event())
    adapter = make_adapter(handler, notes)
    assert notes.tried == []
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
