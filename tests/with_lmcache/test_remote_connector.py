"""One connector of the remote storage door, with LMCache's real buffers and an event loop."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

import pytest
import torch
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from remote_settings import (
    CHUNK_BYTES,
    DEADLINE_S,
    config_of,
    connector_of,
    eventually,
    key_of,
    metadata_of,
    packed,
    published,
)

import maru
from engine import CHUNK_TOKENS, HEAD_DIM, HEADS, LAYERS
from maru.errors import NotAttached

Answer = TypeVar("Answer")


@pytest.fixture
def url(pool_name: str) -> str:
    return f"maru:///{pool_name}?size=32MiB"


class Door:
    """A connector with LMCache's real buffers, and the event loop that it wants."""

    def __init__(self, settings: dict[str, Any]) -> None:
        config = config_of(settings)
        self.local = LocalCPUBackend(config, metadata_of(), "cpu")
        self.connector = connector_of(settings, self.local)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, coroutine: Coroutine[Any, Any, Answer]) -> Answer:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(DEADLINE_S)

    def chunk(self, fill: int, tokens: int = CHUNK_TOKENS) -> Any:
        memory_obj = self.local.allocate(metadata_of().get_shapes(tokens), [torch.float16], MemoryFormat.KV_2LTD)
        memory_obj.tensor.fill_(fill)
        return memory_obj

    def put(self, numbers: range) -> None:
        chunks = [self.chunk(number) for number in numbers]
        self.run(self.connector.batched_put([key_of(number) for number in numbers], chunks))
        for memory_obj in chunks:
            memory_obj.ref_count_down()

    def get(self, numbers: range) -> list[int | None]:
        """The value that fills each chunk."""
        loaded = self.run(self.connector.batched_get([key_of(number) for number in numbers]))
        values = [None if memory_obj is None else int(memory_obj.tensor.unique().item()) for memory_obj in loaded]
        for memory_obj in loaded:
            if memory_obj is not None:
                memory_obj.ref_count_down()
        return values

    def close(self) -> None:
        self.run(self.connector.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(DEADLINE_S)
        self._loop.close()
        self.local.close()


@pytest.fixture
def door(url: str) -> Iterator[Door]:
    door = Door(published(url))
    yield door
    door.close()


def test_the_bytes_and_the_key_are_those_of_a_chunk_and_nothing_else(door: Door, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        chunk = door.chunk(3)
        door.run(door.connector.put(key_of(1), chunk))
        view = pool.get(packed(pool, key_of(1)))
        assert view is not None
        assert bytes(view) == bytes(chunk.byte_array)
        pool.put(packed(pool, key_of(2)), view)
        assert door.get(range(2, 3)) == [3]


def test_a_batch_answers_for_every_key_and_its_leading_run_for_the_first(door: Door) -> None:
    door.put(range(3))
    door.put(range(4, 6))
    keys = [key_of(number) for number in range(6)]
    assert door.get(range(6)) == [0, 1, 2, None, 4, 5]
    assert door.connector.batched_contains(keys) == 3
    assert door.run(door.connector.batched_async_contains("id", keys, pin=True)) == 3
    leading = door.run(door.connector.batched_get_non_blocking("id", keys))
    assert [int(memory_obj.tensor.max()) for memory_obj in leading] == [0, 1, 2]
    assert door.connector.exists_sync(key_of(4))
    assert not door.run(door.connector.exists(key_of(3)))
    assert door.run(door.connector.get(key_of(9))) is None


@pytest.mark.parametrize("size", [1, CHUNK_BYTES - 1, CHUNK_BYTES + CHUNK_BYTES // CHUNK_TOKENS, 2 * CHUNK_BYTES])
def test_a_chunk_that_is_not_whole_tokens_of_this_model_is_a_miss(size: int, door: Door, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.put(packed(pool, key_of(1)), bytes(size))
        assert door.get(range(1, 2)) == [None]
    assert door.connector.copies.counters.wrong_sizes == 1


def test_a_full_pool_stores_less_and_says_so_in_its_counters(door: Door, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        drafts = []
        while (draft := pool.allocate(CHUNK_BYTES)) is not None:
            drafts.append(draft)
        door.put(range(3))
        assert door.get(range(3)) == [None] * 3
        assert door.connector.copies.counters.chunks_refused == 3
        drafts.clear()
        del draft
        door.put(range(3))
        assert door.get(range(3)) == [0, 1, 2]


def test_a_destroyed_pool_is_a_pool_without_chunks(door: Door, url: str) -> None:
    door.put(range(3))
    maru.Pool.destroy(url, force=True)
    eventually(lambda: door.get(range(3)) == [None] * 3, "misses")
    assert door.connector.batched_contains([key_of(0)]) == 0
    door.put(range(3))
    assert door.get(range(3)) == [None] * 3


def test_a_pool_that_was_made_anew_is_found_again(door: Door, url: str) -> None:
    maru.Pool.destroy(url, force=True)

    def stored_again() -> bool:
        door.put(range(3))
        return door.get(range(3)) == [0, 1, 2]

    with maru.Pool.create(url):
        eventually(stored_again, "chunks in the new pool")


def test_a_batch_is_one_chain_and_the_next_batch_continues_it(door: Door, url: str) -> None:
    with maru.Pool.attach(url) as pool:
        door.connector.batched_contains([key_of(number) for number in range(6)])
        door.put(range(3))
        assert pool.stats()["chunks"]["leaves"] == 1
        door.put(range(3, 6))
        assert pool.stats()["chunks"]["leaves"] == 1
        assert pool.stats()["chunks"]["sealed"] == 6


def test_a_chunk_can_be_removed_unless_somebody_views_it(door: Door, url: str) -> None:
    door.put(range(1))
    with maru.Pool.attach(url) as pool:
        view = pool.get(packed(pool, key_of(0)))
        assert not door.connector.remove_sync(key_of(0))
        del view
        assert door.connector.remove_sync(key_of(0))
    assert not door.connector.remove_sync(key_of(0))


def test_a_store_keeps_its_memory_while_it_copies_and_lets_go_afterwards(door: Door) -> None:
    chunk = door.chunk(1)
    assert chunk.get_ref_count() == 1
    door.run(door.connector.put(key_of(1), chunk))
    assert chunk.get_ref_count() == 1


def test_layerwise_chunks_have_one_layers_shape(url: str) -> None:
    door = Door({**published(url), "use_layerwise": True})
    try:
        keys = key_of(5).split_layers(LAYERS)
        shape = torch.Size([CHUNK_TOKENS - 3, 2, HEADS * HEAD_DIM])
        layers = [door.local.allocate(shape, torch.float16, MemoryFormat.KV_T2D) for _ in keys]
        for number, layer in enumerate(layers):
            layer.tensor.fill_(number + 1)
            door.run(door.connector.batched_put([keys[number]], [layer]))
        for number, key in enumerate(keys):
            (loaded,) = door.run(door.connector.batched_get_non_blocking("id", [key]))
            assert loaded.get_shape() == shape
            assert loaded.get_memory_format() is MemoryFormat.KV_T2D
            assert torch.equal(loaded.tensor, layers[number].tensor)
    finally:
        door.close()


def test_a_get_that_nobody_waits_for_gives_its_buffers_back(door: Door) -> None:
    door.put(range(4))
    free_bytes = door.local.memory_allocator.pin_allocator.address_manager.get_free_size

    async def give_up() -> None:
        task = asyncio.ensure_future(door.connector.batched_get([key_of(number) for number in range(4)]))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    before = free_bytes()
    door.run(give_up())
    eventually(lambda: free_bytes() == before, "the buffers are free again")


def test_closing_twice_is_closing_once(url: str) -> None:
    door = Door(published(url))
    door.run(door.connector.close())
    door.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("maru-remote")]
    with maru.Pool.attach(url) as pool:
        assert len(pool.stats()["processes"]) == 1


def test_a_store_after_close_is_refused_and_keeps_no_memory(url: str) -> None:
    door = Door(published(url))
    chunk = door.chunk(1)
    door.run(door.connector.close())
    with pytest.raises(NotAttached):
        door.run(door.connector.put(key_of(1), chunk))
    assert chunk.get_ref_count() == 1
    door.close()
