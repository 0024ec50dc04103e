"""The order of copies, broken on purpose: each way of breaking it is found by the day that the real code passes.

Mutants live here, not in the product: subclasses and replaced methods. What a test cannot see broken it does not test.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
from rig import BLOCK, CHUNK, Rig

import maru
from fake_gpu import Fake
from maru import Outcome
from maru.engine.device_copy import Device, DeviceCopier, DeviceError, Registration
from maru.registered import Part, RegisteredPieces
from maru.testing.content import bytes_of, key_of

MIB = 1 << 20
SEEDS = range(15)


class SealsBeforeTheEvent(DeviceCopier):
    def store(self, rows: Any, done: Any, compute_stream: int) -> None:
        super().store(rows, lambda _: None, compute_stream)
        done(True)


class UnpinsBeforeTheEvent(DeviceCopier):
    def load(self, rows: Any, _: object, compute_stream: int) -> None:
        super().load(rows, None, compute_stream)


class NextStepDoesNotWait(DeviceCopier):
    def before_next_step(self, _: int) -> None:
        return


class StoreDoesNotWaitForCompute(DeviceCopier):
    def store(self, rows: Any, done: Any, _: int) -> None:
        super().store(rows, done, self._store_stream)


class LoadDoesNotWaitForCompute(DeviceCopier):
    def load(self, rows: Any, keep: object, compute_stream: int) -> None:
        super().load(rows, keep, self._load_stream)
        with self._device.bound():
            self._device.wait(compute_stream, self._loads[-1].event)


class ComputeDoesNotWaitForTheLoad(DeviceCopier):
    def load(self, rows: Any, keep: object, compute_stream: int) -> None:
        with self._device.bound():
            self._device.record(self._order, compute_stream)
            self._device.wait(self._load_stream, self._order)
        super().load(rows, keep, self._load_stream)


class SealsWhatIsLate(DeviceCopier):
    def _note_late(self) -> None:
        return


class GivesMemoryBackAtTheDeadline(DeviceCopier):
    def _note_late(self) -> None:
        for copy in [copy for copy in self._stores if self._clock() > copy.deadline]:
            self._stores.remove(copy)
            copy.is_late = True
            self._finish(copy)


def a_day(rig: Rig, seed: int) -> list[str]:
    """What goes wrong in three steps of an engine: a load, a store, and one that is late."""
    fake, wrong = rig.fake, []
    stored, loaded = key_of(seed), rig.put(1000 + seed)
    rig.write_blocks(b"\x11" * CHUNK)  # What the blocks' last owner computed, and still reads.
    fake.late()
    fake.move(rig.compute, rig.block(100), rig.block(0), CHUNK)
    rig.load(loaded)
    fake.move(rig.compute, rig.block(120), rig.block(0), CHUNK)
    fake.fill(rig.compute, rig.block(20), 0x22, CHUNK)  # This step computes a chunk.
    rig.store(seed, first_block=20)
    rig.copier.before_next_step(rig.compute)
    fake.fill(rig.compute, rig.block(20), 0x33, CHUNK)  # The next one uses its blocks for something else.
    gc.collect()
    if rig.pool.remove(loaded):
        wrong.append("what a load reads was not pinned")
    while True:
        content = rig.read_pool(stored)
        if content not in (None, b"\x22" * CHUNK):
            wrong.append("a chunk was sealed with other bytes than were computed")
            break
        if not fake.run(seed, limit=1):
            break
        rig.copier.poll()
    rig.copier.poll()
    if rig.read_blocks(100) != b"\x11" * CHUNK:
        wrong.append("a load wrote blocks that were still read")
    if rig.read_blocks(120) != bytes_of(loaded, CHUNK):
        wrong.append("a kernel read blocks that were not loaded yet")
    wrong += a_late_store(rig, 2000 + seed)
    return wrong


def a_late_store(rig: Rig, number: int) -> list[str]:
    wrong = []
    key = rig.store(number)
    rig.clock.pause(1e6)
    rig.copier.poll()
    if rig.pool.stats()["counters"]["cooled"]:
        wrong.append("memory went back while the device could still write it")
    rig.fake.run(number)
    rig.copier.poll()
    if rig.read_pool(key) is not None:
        wrong.append("a store was sealed past its deadline")
    return wrong


def days(fake: Fake, pool_url: str, copier: type[DeviceCopier]) -> set[str]:
    found: set[str] = set()
    for seed in SEEDS:
        fake.reset()
        with maru.Pool.create(f"{pool_url}&cooling=0") as pool, Rig(fake, pool, copier) as rig:
            found.update(a_day(rig, seed))
        maru.Pool.destroy(pool_url, force=True)
    return found


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + "?size=2MiB&slab_bytes=1MiB&slots=100&processes=4&gate=off"


def test_the_real_code_gets_through_every_day(fake: Fake, url: str) -> None:
    assert days(fake, url, DeviceCopier) == set()


@pytest.mark.parametrize(
    ("mutant", "told"),
    [
        (SealsBeforeTheEvent, "sealed with other bytes"),
        (UnpinsBeforeTheEvent, "not pinned"),
        (NextStepDoesNotWait, "sealed with other bytes"),
        (StoreDoesNotWaitForCompute, "sealed with other bytes"),
        (LoadDoesNotWaitForCompute, "still read"),
        (ComputeDoesNotWaitForTheLoad, "not loaded yet"),
        (SealsWhatIsLate, "past its deadline"),
        (GivesMemoryBackAtTheDeadline, "memory went back"),
    ],
)
def test_a_broken_order_is_found(fake: Fake, url: str, mutant: type[DeviceCopier], told: str) -> None:
    assert told in " ".join(days(fake, url, mutant))


def test_reading_device_memory_in_any_order_is_found(fake: Fake, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def any_order(device: Device) -> Any:
        attributes = device._cuda.CUmemcpyAttributes()
        attributes.srcAccessOrder = device._cuda.CUmemcpySrcAccessOrder.CU_MEMCPY_SRC_ACCESS_ORDER_ANY
        return attributes

    monkeypatch.setattr(Device, "_stream_order", any_order)
    assert "a chunk was sealed with other bytes than were computed" in days(fake, url, DeviceCopier)


# Pieces


def chunks_in_one_piece(fake: Fake, pool: maru.Pool, piece_bytes: int) -> bool:
    """Does every chunk lie in one registered piece, and can it be copied?"""
    with Rig(fake, pool, piece_bytes=piece_bytes) as rig:
        for number in range(12):
            key = key_of(number)
            assert rig.pool.put(key, bytes_of(key, MIB // 2)) in (Outcome.STORED, Outcome.EXISTS)
            if not rig.registration.covers(rig.offset(key), MIB // 2):
                return False
            rig.copier.load([(rig.offset(key), rig.block(0), MIB // 2)], None, rig.compute)
        return rig.copier.poll() == 0


def test_pieces_end_on_slabs_so_that_every_chunk_lies_in_one(fake: Fake, gpu_pool: maru.Pool) -> None:
    assert chunks_in_one_piece(fake, gpu_pool, 3 * MIB)
    assert chunks_in_one_piece(fake, gpu_pool, MIB + MIB // 4)


def test_a_piece_edge_inside_a_slab_is_found(fake: Fake, gpu_pool: maru.Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    def with_small_slabs(self: Registration, ranges: list[tuple[int, int]]) -> RegisteredPieces:
        made: RegisteredPieces = real_plan(self, ranges)
        made._slab_bytes, made._piece_bytes = 4096, MIB + MIB // 4
        return made

    real_plan: Callable[..., RegisteredPieces] = Registration._plan
    monkeypatch.setattr(Registration, "_plan", with_small_slabs)
    assert not chunks_in_one_piece(fake, gpu_pool, MIB)


def test_a_copy_that_is_not_cut_at_a_piece_edge_is_refused(
    fake: Fake, gpu_pool: maru.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Rig(fake, gpu_pool, piece_bytes=3 * MIB) as rig:
        across = [(3 * MIB - BLOCK, rig.block(0), 2 * BLOCK)]
        rig.copier.load(across, None, rig.compute)
        monkeypatch.setattr(RegisteredPieces, "cut", lambda _, offset, size: [Part(offset, size, True)])
        with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_VALUE"):
            rig.copier.load(across, None, rig.compute)
