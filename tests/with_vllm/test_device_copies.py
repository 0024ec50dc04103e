"""Promises of a worker whose blocks lie on a GPU, against a fake CUDA driver whose copies are late and out of order.

Not run on a GPU. A second worker of one process finds the pool registered by the first: its copies take the detour.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_worker_side import SHAPE, keys

import maru
from fake_gpu import Fake
from maru.engine.device_copy import Device, DeviceCopier, driver
from maru.engine.vllm.blocks import Blocks
from maru.engine.vllm.device_copies import DeviceCopies
from maru.engine.vllm.plan import Done, Load, Save
from maru.engine.vllm.worker import WorkerSide
from pools import say_numa_nodes

pytest.importorskip("cuda.bindings.driver")

MIB = 1 << 20
BLOCKS = 12
LAYERS = SHAPE.layer_names
SAVE = Save("r", keys(3), None, (3, 1, 4, 5, 6, 9))
LOAD = Load("s", keys(3), (2, 6, 5, 3, 8, 11))
CUDA_ERROR_ILLEGAL_ADDRESS = 700


class GpuWorker:
    """A worker's side whose layers lie in the fake's device memory, [2, block, tokens, heads, 8] or [block, ...]."""

    def __init__(self, fake: Fake, pool: maru.Pool, seed: int, apart: bool, copier: type[DeviceCopier]) -> None:
        self.fake = fake
        self.failures: list[str] = []
        shape = (2, BLOCKS, SHAPE.block_tokens, 2, 8) if apart else (BLOCKS, SHAPE.block_tokens, 2, 16)
        one = torch.empty(shape).numel() * 4
        self.device = Device(0)
        with self.device.bound():
            self.memory = self.device.allocate(one * len(LAYERS))
            self.compute = self.device.create_stream()
        self.layers = {
            name: torch.frombuffer((ctypes.c_ubyte * one).from_address(self.memory + number * one), dtype=torch.float32)
            .view(shape)
            for number, name in enumerate(LAYERS)
        }  # fmt: skip
        generator = torch.Generator().manual_seed(seed)
        for layer in self.layers.values():
            layer.copy_(torch.randn(shape, generator=generator))
        self.apart = apart
        self.copies = DeviceCopies(pool, Blocks(SHAPE, self.layers, BLOCKS), 0, lambda: self.compute, copier)
        assert self.copies._registration.wait(30)
        namespace = pool.namespace(maru.Identity(model="m", kv_layout="test"))
        self.side = WorkerSide(pool, namespace, SHAPE, 0, 1, lambda what, _: self.failures.append(what))
        self.side.register(self.copies)

    def block(self, name: str, number: int) -> torch.Tensor:
        return self.layers[name][:, number] if self.apart else self.layers[name][number]

    def whole(self) -> dict[str, torch.Tensor]:
        return {name: layer.clone() for name, layer in self.layers.items()}

    def launch(self, loads: list[Load], saves: list[Save], value: int | None = None, block: int = 0) -> None:
        """A step as vLLM launches it; nothing has to be performed yet. `value`: a kernel fills this block with it."""
        self.side.before_step()
        if loads:
            self.side.begin(loads)
        for name in LAYERS:
            self.side.before_layer(name, saves)
            if value is not None:
                plane = self.layers[name]
                places = [plane[0][block], plane[1][block]] if self.apart else [plane[block]]
                for place in places:
                    self.fake.fill(self.compute, place.data_ptr(), value, place.numel() * 4)
            self.side.after_layer(name, saves)
        self.side.end(saves)

    def close(self) -> None:
        self.fake.late(False)
        self.side.close()


@pytest.fixture
def make(fake: Fake, pool: maru.Pool) -> Iterator[Any]:
    made: list[GpuWorker] = []

    def one(seed: int, apart: bool = True, copier: type[DeviceCopier] = DeviceCopier) -> GpuWorker:
        made.append(GpuWorker(fake, pool, seed, apart, copier))
        return made[-1]

    yield one
    for worker in made:
        worker.close()


@pytest.mark.parametrize("apart", [True, False])
def test_what_one_gpu_stored_another_loads_bit_by_bit(make: Any, pool: maru.Pool, apart: bool) -> None:
    a, b = make(1, apart), make(2, apart)
    untouched = b.block("a", 0).clone()
    a.launch([], [SAVE])
    a.side.before_step()
    assert pool.lookup(keys(3)) == 3
    b.launch([LOAD], [])
    for name in LAYERS:
        for mine, theirs in zip(LOAD.blocks, SAVE.blocks, strict=True):
            assert torch.equal(b.block(name, mine), a.block(name, theirs))
    assert torch.equal(b.block("a", 0), untouched)
    assert b.side.take_done() == Done({"s": 1})
    assert (b.side.take_invalid(), b.failures, a.failures) == (set(), [], [])


def test_the_first_chunk_may_be_wanted_from_its_middle_on_a_gpu(make: Any) -> None:
    a, b = make(1), make(2)
    a.launch([], [SAVE])
    a.side.before_step()
    b.launch([Load("s", keys(2), (7, 8, 9), skip_blocks=1)], [])
    for name in LAYERS:
        for mine, theirs in zip((7, 8, 9), SAVE.blocks[1:4], strict=True):
            assert torch.equal(b.block(name, mine), a.block(name, theirs))


def test_a_chunk_is_sealed_when_its_bytes_have_arrived_and_not_before(make: Any, fake: Fake, pool: maru.Pool) -> None:
    a = make(1)
    fake.late()
    a.launch([], [SAVE])
    a.launch([], [])
    assert pool.lookup(keys(3)) == 0
    fake.run()
    a.side.before_step()
    assert pool.lookup(keys(3)) == 3


@pytest.mark.parametrize("seed", range(1, 9))
def test_steps_that_are_performed_late_and_out_of_order_keep_every_byte(
    make: Any, fake: Fake, pool: maru.Pool, seed: int
) -> None:
    """A block is computed, stored, and overwritten by the next step before anything was performed."""
    a, b = make(1), make(2)
    fake.late()
    a.launch([], [SAVE], value=7, block=3)
    a.launch([], [], value=9, block=3)
    fake.run(seed)
    a.side.before_step()
    assert pool.lookup(keys(3)) == 3
    b.launch([LOAD], [])
    b.launch([], [], value=1, block=2)
    fake.run(seed)
    fake.late(False)
    c = make(3)
    c.launch([LOAD], [])
    assert c.block("a", 2).view(torch.uint8).unique().tolist() == [7]
    assert b.block("a", 2).view(torch.uint8).unique().tolist() == [1]
    for name in LAYERS:
        assert torch.equal(c.block(name, 6), a.block(name, 1))
        assert torch.equal(b.block(name, 6), a.block(name, 1))


class WaitsForNothing(DeviceCopier):
    """A mutant: the next step's kernels do not wait for this step's stores."""

    def before_next_step(self, _: int) -> None:
        return


def test_a_worker_whose_next_step_does_not_wait_is_found_out(make: Any, fake: Fake, pool: maru.Pool) -> None:
    wrong = 0
    a = make(1, copier=WaitsForNothing)
    for seed in range(1, 33):
        fake.late()
        a.launch([], [SAVE], value=7, block=3)
        a.launch([], [], value=9, block=3)
        fake.run(seed)
        fake.late(False)
        a.side.before_step()
        with pool.pin(keys(1)) as prefix:
            wrong += 9 in set(bytes(prefix.views[0]))
        assert pool.remove(keys(1, first=3))
        assert pool.remove(keys(1, first=2))
        assert pool.remove(keys(1))
    assert wrong


def test_what_is_being_loaded_stays_pinned_until_the_device_has_it(make: Any, fake: Fake, pool: maru.Pool) -> None:
    a, b = make(1), make(2)
    a.launch([], [SAVE])
    a.side.before_step()
    fake.late()
    b.launch([LOAD], [])
    assert not pool.remove(keys(1, first=3))
    fake.run()
    b.side.before_step()
    assert pool.remove(keys(1, first=3))


class NotesReservations:
    """A pool that writes down whether a device will write what is reserved."""

    def __init__(self, pool: maru.Pool) -> None:
        self._pool = pool
        self.for_device: list[bool] = []

    def reserve_many(self, *arguments: Any, device: bool, **more: Any) -> Any:
        self.for_device.append(device)
        return self._pool.reserve_many(*arguments, device=device, **more)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def test_memory_that_a_gpu_writes_is_reserved_as_such(make: Any, pool: maru.Pool) -> None:
    a = make(1)
    a.side._pool = noted = NotesReservations(pool)
    a.launch([], [SAVE])
    assert noted.for_device == [True]


def test_a_gpu_that_is_lost_turns_blocks_into_reports_and_seals_nothing(make: Any, fake: Fake, pool: maru.Pool) -> None:
    worker = make(1)
    content = bytes(worker.copies.blocks.part_bytes)
    pool.put_many(keys(3), [content] * 3)
    fake.fail("cuEventRecord", CUDA_ERROR_ILLEGAL_ADDRESS, nth=0)
    worker.launch([LOAD], [Save("t", keys(1, first=9), None, (0, 1))])
    assert worker.side.take_invalid() == set(LOAD.blocks)
    assert "load a prefix" in worker.failures
    assert not pool.exists(keys(1, first=9))
    assert pool.lookup(keys(3)) == 3


@pytest.fixture
def two_nodes(pool_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[maru.Pool]:
    """A pool with a segment on node 0 and one on node 1, where the GPU is."""
    monkeypatch.setattr(driver, "numa_node_of", lambda _: 1)
    files = ",".join(str(tmp_path / name) for name in "ab")
    options = f"size=4MiB&slab_bytes=1MiB&slots=300&processes=32&medium=file&data={files}"
    with maru.Pool.create(f"maru:///{pool_name}?{options}") as pool:
        say_numa_nodes(pool, 0, 1)
        assert pool.wait_ready(20)
        yield pool


def test_a_worker_tells_what_it_loads_from_another_node(fake: Fake, two_nodes: maru.Pool) -> None:
    worker = GpuWorker(fake, two_nodes, 1, True, DeviceCopier)
    whole = worker.copies.blocks.part_bytes
    for number in range(3):  # On nodes 0, 1, 0.
        two_nodes.prefer_numa_node(number % 2)
        two_nodes.put(keys(1, first=number + 1), bytes(whole))
    worker.launch([LOAD], [])
    told = worker.side.take_stats().data["counters"]
    assert (told["loaded_bytes"], told["loaded_remote_bytes"]) == (3 * whole, 2 * whole)
    assert "loaded_remote_bytes" not in worker.side.take_stats().data["counters"]
    worker.close()


def test_a_worker_on_a_gpu_takes_new_memory_from_the_gpus_node(fake: Fake, two_nodes: maru.Pool) -> None:
    worker = GpuWorker(fake, two_nodes, 1, True, DeviceCopier)
    worker.launch([], [SAVE])
    worker.side.before_step()
    with two_nodes.pin(keys(3)) as prefix:
        extents = memoryview(prefix.extents()).cast("Q")
        segments = [extents[at] // (2 * MIB) for at in range(0, len(extents), 2)]
    assert segments == [1, 1, 1]
    told = worker.side.take_stats().data["counters"]
    assert told["stored_bytes"] == 3 * worker.copies.blocks.part_bytes
    assert "stored_remote_bytes" not in told
    worker.close()
