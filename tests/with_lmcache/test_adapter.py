"""Promises of the allocator that LMCache gets: layouts, places, and objects that give back what they hold, once."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat, MemoryObj

import maru
import maru_lmcache
from maru_lmcache import CxlMemoryAdapter
from maru_lmcache.adapter import LayoutRefused

TOKENS = 16
SHAPES = [torch.Size([2, 3, TOKENS, 32])]
DTYPES = [torch.bfloat16]
CHUNK = 2 * 3 * TOKENS * 32 * 2


def make_handler(pool_name: str, chunk: int = CHUNK) -> maru.MaruHandler:
    handler = maru.MaruHandler(
        maru.MaruConfig(server_url=f"maru:///{pool_name}", pool_size=1 << 20, chunk_size_bytes=chunk)
    )
    assert handler.connect()
    return handler


@pytest.fixture
def handler(pool_name: str) -> Iterator[maru.MaruHandler]:
    connected = make_handler(pool_name)
    yield connected
    connected.close()


@pytest.fixture
def adapter(handler: maru.MaruHandler) -> CxlMemoryAdapter:
    return CxlMemoryAdapter(handler, SHAPES, DTYPES, MemoryFormat.KV_2LTD, CHUNK)


def stored(adapter: CxlMemoryAdapter, handler: maru.MaruHandler, key: str, value: float) -> MemoryObj:
    obj = adapter.allocate(SHAPES, DTYPES)
    assert obj is not None
    obj.tensor.fill_(value)
    assert handler.store(key, adapter.create_store_handle(obj))
    return obj


def found(adapter: CxlMemoryAdapter, handler: maru.MaruHandler, key: str) -> MemoryObj | None:
    info = handler.retrieve(key)
    assert info is not None
    return adapter.get_by_location(info.region_id, info.page_index, len(info.view), CHUNK // TOKENS)


def whole_pool(adapter: CxlMemoryAdapter) -> list[Any]:
    objs: list[Any] = []
    while (obj := adapter.allocate(SHAPES, DTYPES)) is not None:
        objs.append(obj)
    return objs


def test_importing_the_package_loads_neither_torch_nor_lmcache() -> None:
    program = "import sys, maru_lmcache; sys.exit('torch' in sys.modules or 'lmcache' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_name_that_configurations_use_resolves_and_others_do_not() -> None:
    assert maru_lmcache.CxlMemoryAllocator is CxlMemoryAdapter
    assert maru_lmcache.MaruConnectorAdapter is maru_lmcache.adapter.MaruConnectorAdapter
    assert maru_lmcache.MaruL2Adapter.__name__ == "MaruL2Adapter"
    with pytest.raises(AttributeError, match="no attribute"):
        _ = maru_lmcache.Nothing


@pytest.mark.parametrize("place", [(0, 0), (3, 7), (31, (1 << 32) - 1)])
def test_an_address_is_a_region_and_a_page(place: tuple[int, int]) -> None:
    assert CxlMemoryAdapter.decode_address(CxlMemoryAdapter.encode_address(*place)) == place


def test_several_kv_groups_are_kept_apart_full_and_partial(pool_name: str) -> None:
    groups = [torch.Size([2, 3, TOKENS, 32]), torch.Size([1, 2, TOKENS, 24])]
    dtypes = [torch.bfloat16, torch.float8_e4m3fn]
    chunk = sum(shape.numel() * dtype.itemsize for shape, dtype in zip(groups, dtypes, strict=True))
    handler = make_handler(pool_name, chunk)
    adapter = CxlMemoryAdapter(handler, groups, dtypes, MemoryFormat.KV_2LTD, chunk)
    for tokens in (TOKENS, 5):
        shapes = [torch.Size([*shape[:2], tokens, shape[3]]) for shape in groups]
        obj = adapter.allocate(shapes, dtypes)
        assert obj is not None
        wanted = [torch.randn(shape).to(dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
        for number, group in enumerate(wanted):
            obj.get_tensor(number).copy_(group)
        assert handler.store(f"key-{tokens}", adapter.create_store_handle(obj))
        del obj
        info = handler.retrieve(f"key-{tokens}")
        assert info is not None
        again = adapter.get_by_location(info.region_id, info.page_index, len(info.view), chunk // TOKENS)
        assert again is not None
        assert (again.get_shapes(), again.get_dtypes(), again.get_num_tokens()) == (shapes, dtypes, tokens)
        for number, group in enumerate(wanted):
            assert torch.equal(again.get_tensor(number).view(torch.uint8), group.view(torch.uint8))
    handler.close()


@pytest.mark.parametrize(
    ("shapes", "chunk"),
    [
        ([torch.Size([2, 3, 16, 32]), torch.Size([2, 3, 8, 32])], CHUNK + CHUNK // 2),
        (SHAPES, CHUNK + 1),
        ([torch.Size([2, 3])], 12),
    ],
    ids=["groups that disagree on tokens", "a chunk of another size", "no token dimension"],
)
def test_a_layout_that_cannot_be_cut_by_tokens_is_refused_at_start(
    handler: maru.MaruHandler, shapes: list[torch.Size], chunk: int
) -> None:
    with pytest.raises(LayoutRefused):
        CxlMemoryAdapter(handler, shapes, DTYPES * len(shapes), MemoryFormat.KV_2LTD, chunk)


def test_a_place_that_nobody_holds_is_none(adapter: CxlMemoryAdapter, handler: maru.MaruHandler) -> None:
    stored(adapter, handler, "a", 1.0)
    gc.collect()
    assert adapter.get_by_location(0, 0, CHUNK, CHUNK // TOKENS) is None
    assert adapter.get_by_location(9, 0, CHUNK, CHUNK // TOKENS) is None


@pytest.mark.parametrize(("size", "token"), [(CHUNK - 1, CHUNK // TOKENS), (CHUNK, CHUNK // TOKENS + 1)])
def test_a_size_that_is_not_the_chunks_is_none(
    adapter: CxlMemoryAdapter, handler: maru.MaruHandler, size: int, token: int
) -> None:
    stored(adapter, handler, "a", 1.0)
    info = handler.retrieve("a")
    assert info is not None
    assert adapter.get_by_location(info.region_id, info.page_index, size, token) is None


def test_a_stored_object_that_was_dropped_holds_nothing_though_its_handle_lives(
    adapter: CxlMemoryAdapter, handler: maru.MaruHandler
) -> None:
    obj = adapter.allocate(SHAPES, DTYPES)
    assert obj is not None
    handle = adapter.create_store_handle(obj)
    assert handler.store("a", handle)
    assert handler.view_pin_count == 1
    obj.ref_count_down()
    assert handler.view_pin_count == 0
    assert handler.delete("a")
    assert handle.buf == b""


def test_freeing_twice_is_freeing_once(adapter: CxlMemoryAdapter, handler: maru.MaruHandler) -> None:
    first = adapter.allocate(SHAPES, DTYPES)
    assert first is not None
    adapter.free(first)
    second = adapter.allocate(SHAPES, DTYPES)
    assert second is not None
    assert second.meta.address == first.meta.address
    adapter.free(first)
    second.tensor.fill_(2.0)
    assert handler.store("b", adapter.create_store_handle(second))


def test_a_tensor_that_outlives_its_object_cannot_write_into_anybodys_chunk(
    adapter: CxlMemoryAdapter, handler: maru.MaruHandler
) -> None:
    obj = adapter.allocate(SHAPES, DTYPES)
    assert obj is not None
    late = obj.tensor
    obj.ref_count_down()
    others = whole_pool(adapter)
    for number, other in enumerate(others):
        other.tensor.fill_(1.0)
        assert handler.store(f"key-{number}", adapter.create_store_handle(other))
    late.fill_(9.0)
    for number in range(len(others)):
        again = found(adapter, handler, f"key-{number}")
        assert again is not None
        assert bool((again.tensor == 1.0).all())
    del late
    gc.collect()
    assert len(whole_pool(adapter)) == 1


def test_a_stored_object_reads_on_and_keeps_its_chunk_while_it_lives(
    adapter: CxlMemoryAdapter, handler: maru.MaruHandler
) -> None:
    obj = stored(adapter, handler, "a", 3.0)
    assert bool((obj.tensor == 3.0).all())
    assert not handler.delete("a")
    del obj
    assert handler.delete("a")


def test_writing_to_what_is_stored_or_read_is_a_fault_and_not_a_wrong_byte(
    adapter: CxlMemoryAdapter, handler: maru.MaruHandler, pool_name: str
) -> None:
    stored(adapter, handler, "a", 3.0)
    program = (
        "import sys, torch\nsys.path.insert(0, sys.argv[1])\n"
        "import test_adapter as t\n"
        "from lmcache.v1.memory_management import MemoryFormat\n"
        "h = t.make_handler(sys.argv[2])\n"
        "a = t.CxlMemoryAdapter(h, t.SHAPES, t.DTYPES, MemoryFormat.KV_2LTD, t.CHUNK)\n"
        "o = t.found(a, h, 'a')\n"
        "print('got it', flush=True)\n"
        "o.tensor.fill_(1.0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, os.path.dirname(__file__), pool_name],  # noqa: PTH120
        capture_output=True,
        text=True,
        check=False,
    )
    assert "got it" in done.stdout
    assert done.returncode == -signal.SIGSEGV
    again = found(adapter, handler, "a")
    assert again is not None
    assert bool((again.tensor == 3.0).all())


def test_dropping_objects_makes_no_noise(
    adapter: CxlMemoryAdapter, handler: maru.MaruHandler, caplog: pytest.LogCaptureFixture
) -> None:
    logging.getLogger("lmcache").propagate = True
    stored(adapter, handler, "a", 1.0)
    obj = found(adapter, handler, "a")
    assert obj is not None
    obj.ref_count_up()
    unstored = adapter.allocate(SHAPES, DTYPES)
    del obj, unstored
    gc.collect()
    assert caplog.text == ""


def test_a_full_pool_is_none_and_one_line_in_the_log(
    adapter: CxlMemoryAdapter, caplog: pytest.LogCaptureFixture
) -> None:
    held = whole_pool(adapter)
    assert adapter.allocate(SHAPES, DTYPES) is None
    assert adapter.batched_allocate(SHAPES, DTYPES, 2) is None
    assert caplog.text.count("exhausted") == 1
    adapter.batched_free(held)
    assert len(adapter.batched_allocate(SHAPES, DTYPES, len(held)) or []) == len(held)


def test_after_the_handler_closed_it_is_none_too(adapter: CxlMemoryAdapter, handler: maru.MaruHandler) -> None:
    assert adapter.ensure_region_pool(0)
    assert not adapter.ensure_region_pool(1)
    assert adapter.memcheck()
    handler.close()
    assert adapter.allocate(SHAPES, DTYPES) is None
    assert adapter.get_by_location(0, 0, CHUNK, CHUNK // TOKENS) is None
    assert not adapter.memcheck()
