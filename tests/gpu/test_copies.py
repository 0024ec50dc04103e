"""Bytes between a (fake) GPU and the pool: what arrives, in which order, and what holds until when.

Against a fake driver only: not run on a GPU.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
from rig import BLOCK, CHUNK, DEADLINE_S, Rig

import maru
from fake_gpu import Fake
from maru import Outcome
from maru.engine.device_copy import DeviceCopier, DeviceError, DeviceLate, DeviceLost, copies, driver
from maru.testing.content import bytes_of, is_right, key_of

SEEDS = range(30)


def test_a_load_brings_a_chunk_to_its_blocks(rig: Rig) -> None:
    key = rig.put(1)
    rig.load(key, first_block=3)
    assert rig.read_blocks(3) == bytes_of(key, CHUNK)
    assert rig.copier.poll() == 0
    assert rig.copier.counters.bytes_loaded == CHUNK


def test_a_store_brings_blocks_to_a_chunk(rig: Rig) -> None:
    key = key_of(7)
    rig.write_blocks(bytes_of(key, CHUNK), first_block=5)
    outcomes: list[object] = []
    rig.store(7, first_block=5, outcomes=outcomes)
    assert rig.copier.poll() == 0
    assert outcomes == [Outcome.STORED]
    assert rig.read_pool(key) == bytes_of(key, CHUNK)
    assert rig.copier.counters.bytes_stored == CHUNK


def test_copies_go_in_batches_of_at_most_1024(rig: Rig) -> None:
    rig.store(1)  # A first batch finds out whether the driver knows them.
    before = rig.fake.calls("cuMemcpyBatchAsync")
    key = rig.put(2, 1 << 20)
    rows = [(rig.offset(key) + n * 256, rig.block(0) + n * 256, 256) for n in range(2500)]
    rig.copier.load(rows, None, rig.compute)
    assert rig.fake.calls("cuMemcpyBatchAsync") - before == 3
    assert rig.fake.calls("cuMemcpyHtoDAsync") == 0
    assert driver.DESCRIPTORS_MAX == 1024


def test_a_load_waits_for_earlier_kernels_and_later_kernels_for_it(fake: Fake, rig: Rig) -> None:
    key = rig.put(1)
    for seed in SEEDS:
        rig.write_blocks(b"\x11" * CHUNK)
        fake.late()
        fake.move(rig.compute, rig.block(100), rig.block(0), CHUNK)  # The blocks' earlier owner still reads them.
        rig.load(key)
        fake.move(rig.compute, rig.block(200), rig.block(0), CHUNK)  # And their new one reads them next.
        fake.run(seed)
        assert rig.read_blocks(100) == b"\x11" * CHUNK
        assert rig.read_blocks(200) == bytes_of(key, CHUNK)
        rig.copier.poll()


def test_a_store_reads_what_was_computed_before_it_and_nothing_of_the_next_step(fake: Fake, rig: Rig) -> None:
    for seed in SEEDS:
        fake.late()
        fake.fill(rig.compute, rig.block(0), 0x22, CHUNK)
        key = rig.store(seed)
        rig.copier.before_next_step(rig.compute)
        fake.fill(rig.compute, rig.block(0), 0x33, CHUNK)
        fake.run(seed)
        rig.copier.poll()
        assert rig.read_pool(key) == b"\x22" * CHUNK


def test_a_chunk_is_sealed_only_when_its_bytes_have_arrived(fake: Fake, rig: Rig) -> None:
    key = key_of(1)
    rig.write_blocks(bytes_of(key, CHUNK))
    fake.late()
    rig.store(1)
    while rig.read_pool(key) is None:
        assert rig.copier.poll() == 1
        assert fake.run(3, limit=1) == 1
        rig.copier.poll()
    assert rig.read_pool(key) == bytes_of(key, CHUNK)


def test_what_a_load_reads_stays_pinned_until_it_has_been_read(fake: Fake, rig: Rig) -> None:
    key = rig.put(1)
    fake.late()
    rig.load(key)
    gc.collect()
    rig.copier.poll()
    assert not rig.pool.remove(key)
    fake.run()
    assert not rig.pool.remove(key)
    rig.copier.poll()
    assert rig.pool.remove(key)


def test_stores_are_sealed_in_their_order(fake: Fake, rig: Rig) -> None:
    told: list[int] = []
    fake.late()
    for n in range(5):
        rig.copier.store([(n * BLOCK, rig.block(n), BLOCK)], lambda _, n=n: told.append(n), rig.compute)
    fake.run(9)
    rig.copier.poll()
    assert told == [0, 1, 2, 3, 4]


def test_a_store_past_its_deadline_is_never_sealed_and_its_memory_is_kept_until_the_device_is_through(
    fake: Fake, rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    outcomes: list[object] = []
    fake.late()
    key = rig.store(1, outcomes=outcomes)
    rig.clock.pause(DEADLINE_S + 1)
    assert rig.copier.poll() == 1
    assert outcomes == []
    assert rig.copier.counters.stores_given_up == 1
    assert "not done after 30 s" in caplog.text
    others = [rig.put(100 + n) for n in range(20)]
    fake.run()
    assert rig.copier.poll() == 0
    assert outcomes == [None]
    assert rig.read_pool(key) is None
    assert all(is_right(other, rig.read_pool(other)) for other in others)
    assert rig.pool.stats()["counters"]["cooled"] == 1  # A device wrote it: it rests all the same.
    assert rig.copier.counters.bytes_stored == 0


def test_a_load_past_its_deadline_keeps_its_pins(fake: Fake, rig: Rig) -> None:
    key = rig.put(1)
    fake.late()
    rig.load(key)
    rig.clock.pause(DEADLINE_S + 1)
    rig.copier.poll()
    assert rig.copier.counters.loads_late == 1
    assert not rig.pool.remove(key)
    fake.run()
    rig.copier.poll()
    assert rig.pool.remove(key)


def test_rows_outside_the_pool_are_refused(rig: Rig) -> None:
    for offset in (-1, rig.registration.size_bytes - 1):
        with pytest.raises(ValueError, match="not in a pool"):
            rig.copier.load([(offset, rig.block(0), BLOCK)], None, rig.compute)
    assert rig.copier.pending == 0


# What the driver refuses


def test_a_copy_that_the_driver_refuses_is_an_error_with_its_name(fake: Fake, rig: Rig) -> None:
    fake.fail("cuMemcpyBatchAsync", 1)
    key = rig.put(1)
    with pytest.raises(DeviceError, match="CUDA_ERROR_INVALID_VALUE") as raised:
        rig.load(key)
    assert (raised.value.code, raised.value.result) == (1, "CUDA_ERROR_INVALID_VALUE")
    assert rig.copier.poll() == 0
    assert rig.copier.counters.copies_failed == 1
    rig.load(key)
    assert rig.read_blocks() == bytes_of(key, CHUNK)


def test_a_store_that_fails_half_way_is_discarded_when_the_device_is_through(fake: Fake, rig: Rig) -> None:
    outcomes: list[object] = []
    fake.late()
    fake.fail("cuMemcpyBatchAsync", 1)
    with pytest.raises(DeviceError):
        rig.store(1, outcomes=outcomes)
    assert rig.copier.poll() == 1
    assert outcomes == []
    fake.run()
    assert rig.copier.poll() == 0
    assert outcomes == [None]
    assert rig.read_pool(key_of(1)) is None


def test_a_store_that_ends_in_any_other_error_is_never_sealed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise MemoryError

    monkeypatch.setattr(rig.copier._ring, "store", fails)
    outcomes: list[object] = []
    with pytest.raises(MemoryError):
        rig.store(1, outcomes=outcomes)
    assert rig.copier.poll() == 0
    assert outcomes == [None]
    assert rig.read_pool(key_of(1)) is None


def test_after_a_context_broke_no_call_reaches_the_driver(fake: Fake, rig: Rig) -> None:
    fake.late()
    key = rig.put(1)
    rig.load(key)
    outcomes: list[object] = []
    rig.store(2, outcomes=outcomes)
    fake.fail("cuEventQuery", 700)
    assert rig.copier.poll() == 0
    assert rig.device.is_lost
    with pytest.raises(DeviceLost, match="CUDA_ERROR_ILLEGAL_ADDRESS"):
        rig.load(key)
    with pytest.raises(DeviceLost):
        rig.store(3)
    rig.copier.before_next_step(rig.compute)
    assert not rig.copier.close(1.0)
    assert not rig.registration.close()
    rig.device.close()
    assert outcomes == []
    assert not rig.pool.remove(key)  # Its pin stays: nobody knows whether the device still reads.
    assert rig.copier.counters.kept == 2
    assert fake.violations == []


def test_a_callback_that_fails_is_counted_and_stops_nothing(rig: Rig) -> None:
    def fails(_: bool) -> None:
        raise ZeroDivisionError

    rig.copier.store([(0, rig.block(0), BLOCK)], fails, rig.compute)
    told: list[bool] = []
    rig.copier.store([(0, rig.block(0), BLOCK)], told.append, rig.compute)
    assert rig.copier.poll() == 0
    assert told == [True]
    assert rig.copier.counters.callbacks_failed == 1


# The end


def test_closing_waits_for_copies_and_gives_everything_back(fake: Fake, rig: Rig) -> None:
    key = rig.put(1)
    rig.load(key)
    rig.store(2)
    assert rig.copier.close(DEADLINE_S)
    assert rig.read_pool(key_of(2)) is not None
    assert rig.pool.remove(key)
    assert rig.registration.close()
    assert fake.registered_bytes == 0
    rig.device.close()
    assert fake.retained == 0
    with pytest.raises(DeviceError, match="closed"):
        rig.load(key)
    assert fake.calls("cuStreamCreate") - fake.calls("cuStreamDestroy") == 1  # The engine's.
    assert fake.calls("cuEventCreate") == fake.calls("cuEventDestroy")


def test_what_is_not_done_at_the_end_is_kept_and_said(
    fake: Fake, rig: Rig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[object] = []
    monkeypatch.setattr(copies, "_KEPT", kept)
    key = rig.put(1)
    fake.late()
    rig.load(key)
    assert not rig.copier.close(1.0)
    assert not rig.pool.remove(key)
    assert "not done when the copier was closed" in caplog.text
    kept.clear()
    fake.run()


def test_a_thread_of_our_own_seals_what_no_step_polls_for(rig: Rig) -> None:
    outcomes: list[object] = []
    copier = DeviceCopier(rig.device, rig.registration, poll_s=0.0005)
    rig.write_blocks(b"\x44" * CHUNK)
    reservation = rig.pool.reserve(key_of(1), BLOCK, device=True)
    row = (reservation.offset, rig.block(0), BLOCK)
    copier.store([row], lambda _: outcomes.append(reservation.seal()), rig.compute)
    assert rig.pool.wait(key_of(1), DEADLINE_S)
    assert copier.close(DEADLINE_S)
    assert outcomes == [Outcome.STORED]


# The detour


@pytest.fixture
def unregistered(fake: Fake, gpu_pool: maru.Pool) -> Iterator[Rig]:
    with Rig(fake, gpu_pool, register=False) as made:
        yield made


def test_unregistered_memory_takes_the_detour_both_ways(unregistered: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig = unregistered
    rig.copier._ring._slot_bytes = 3 * BLOCK  # Neither a chunk nor its blocks fit the slots evenly.
    key = rig.put(1)
    rig.load(key)
    assert rig.read_blocks() == bytes_of(key, CHUNK)
    rig.write_blocks(bytes_of(key_of(2), CHUNK), first_block=20)
    rig.store(2, first_block=20)
    assert rig.copier.poll() == 0
    assert rig.read_pool(key_of(2)) == bytes_of(key_of(2), CHUNK)
    assert rig.copier.counters.bytes_bounced == 2 * CHUNK
    assert rig.fake.registered_bytes == 0


def test_a_detour_waits_for_a_slot_no_longer_than_its_deadline(fake: Fake, unregistered: Rig) -> None:
    rig = unregistered
    key = rig.put(1)
    rig.copier._ring._slot_bytes = BLOCK
    fake.late()
    with pytest.raises(DeviceLate):
        rig.load(key)  # Eight blocks, four slots, and the device does nothing.
    assert not rig.pool.remove(key)
    outcomes: list[object] = []
    with pytest.raises(DeviceLate):
        rig.store(2, outcomes=outcomes)
    fake.run()
    rig.copier.poll()
    assert outcomes == [None]
    assert rig.pool.remove(key)


def test_a_device_that_registers_nothing_is_said_and_served(
    fake: Fake, gpu_pool: maru.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    fake.set("register_supported", 0)
    with Rig(fake, gpu_pool) as rig, caplog.at_level(logging.WARNING):
        assert fake.calls("cuMemHostRegister") == 0
        key = rig.put(1)
        rig.load(key)
        assert rig.read_blocks() == bytes_of(key, CHUNK)
    assert "registers no host memory" in caplog.text


def test_a_step_that_could_not_be_made_to_wait_has_its_stores_given_up(rig: Rig) -> None:
    outcomes: list[object] = []
    rig.fake.late()
    key = rig.store(1, outcomes=outcomes)
    rig.fake.fail("cuStreamWaitEvent", 1)
    with pytest.raises(DeviceError):
        rig.copier.before_next_step(rig.compute)
    rig.fake.run()
    assert rig.copier.poll() == 0
    assert outcomes == [None]  # Discarded, not sealed.
    assert not rig.pool.exists(key)
    assert rig.copier.counters.stores_given_up == 1
