"""A (fake) GPU outlives the process that uses it: its copies land late, out of order, in a pool that goes on.

The worker is a process with the fake driver; what it copies to the pool is handed to a device in another process
(maru.testing.late_device), which lands it when told. Not run on a GPU.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

import maru
from fake_gpu import Fake, write_device
from late_copies import QUERY, SIZE, changed, fill, land_while_others_store
from maru import Outcome
from maru.engine.device_copy import Device, DeviceCopier, Registration
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import Victim, mutants, spawn
from maru.testing.late_device import LateDevice

pytestmark = pytest.mark.crash

PIECES = 4
LATE = b"\xdd" * SIZE
KEY = key_of(0, "gpu")


def store_from_gpu(url: str, number: int, reservation_deadline: float, copy_deadline: float) -> None:
    """A worker with one chunk on its GPU: asks for the copy, then polls when told."""
    with maru.Pool.attach(url) as pool:
        device = Device(0)
        registration = Registration(pool, device)
        registration.begin()
        assert registration.wait(30)
        copier = DeviceCopier(device, registration, copy_deadline, poll_s=None)
        with device.bound():
            compute, blocks = device.create_stream(), device.allocate(SIZE)
        write_device(blocks, LATE)
        reservation = pool.reserve(key_of(number, "gpu"), SIZE, device=True, deadline=reservation_deadline)
        assert reservation.outcome == Outcome.RESERVED
        told: list[str] = []

        def done(arrived: bool) -> None:
            if arrived:
                told.append(reservation.seal().name)
            else:
                reservation.discard()
                told.append("discarded")

        at, piece = reservation.offset, SIZE // PIECES
        copier.store([(at + n * piece, blocks + n * piece, piece) for n in range(PIECES)], done, compute)
        print(f"asked, {copier.poll()} pending", flush=True)
        while input() == "poll":
            print(f"{copier.poll()} pending {''.join(told)}".strip(), flush=True)


@pytest.fixture
def url(pool_url: str, loaded_fake: Fake, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("LD_LIBRARY_PATH", str(loaded_fake.folder))
    return pool_url.partition("?")[0]


@pytest.fixture
def pool(url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(url + QUERY) as made:
        assert made.wait_ready(20)
        yield made


def worker(
    url: str,
    device: LateDevice,
    monkeypatch: pytest.MonkeyPatch,
    reservation: float = 30.0,
    copy: float = 30.0,
    number: int = 0,
) -> Victim:
    monkeypatch.setenv("FAKE_CUDA_DEVICE", device.address)
    return spawn(store_from_gpu, url, number, reservation, copy)


def after_death(url: str, monkeypatch: pytest.MonkeyPatch, seed: int, using: tuple[str, ...] = ()) -> list[int]:
    """Chunks that changed when the copies of a killed worker landed while others stored."""
    with maru.Pool.create(url + QUERY) as maker, LateDevice(maker) as device:
        assert maker.wait_ready(20)
        with worker(url, device, monkeypatch) as owner:
            assert owner.line() == "asked, 1 pending"
            assert len(device.pending()) == PIECES
            maker.close()  # So that nobody but the cleaner below cleans up.
            owner.kill()
        with spawn(reap, url, mutants=using) as cleaner:
            assert cleaner.line() == "reaped"
        with maru.Pool.attach(url) as pool:
            wrong = land_while_others_store(pool, device, random.Random(seed))
            assert pool.check() == [] or using
            return wrong


def reap(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.reap()
        print("reaped", flush=True)


@pytest.mark.parametrize("seed", range(3))
def test_copies_that_land_after_their_worker_was_killed_change_no_sealed_chunk(
    url: str, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    assert after_death(url, monkeypatch, seed) == []


def test_reuse_without_a_rest_is_found(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "device_extent_not_cooled" in mutants()
    assert after_death(url, monkeypatch, 1, ("device_extent_not_cooled",)) != []


def test_a_chunk_is_sealed_when_the_last_piece_has_landed_and_not_before(
    url: str, pool: maru.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LateDevice(pool) as device, worker(url, device, monkeypatch) as owner:
        assert owner.line() == "asked, 1 pending"
        for number in reversed(device.pending()):
            assert pool.lookup(KEY) == 0
            owner.tell("poll")
            assert owner.line() == "1 pending"
            device.land([number])
        owner.tell("poll")
        assert owner.line() == "0 pending STORED"
        view = pool.get(KEY)
        assert view is not None
        assert bytes(view) == LATE


def test_copies_that_land_while_their_worker_is_stopped_change_no_sealed_chunk(
    url: str, pool: maru.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LateDevice(pool) as device, worker(url, device, monkeypatch, reservation=0.0) as owner:
        assert owner.line() == "asked, 1 pending"
        owner.stop()
        assert pool.put(KEY, bytes_of(KEY, SIZE)) == Outcome.STORED  # The deadline has passed: the key is taken over.
        assert land_while_others_store(pool, device, random.Random(5)) == []
        owner.resume()
        owner.tell("poll")
        assert owner.line() == "0 pending LOST"
        fill(pool, 700)
        assert changed(pool) == []


def test_a_copy_past_its_deadline_is_given_up_and_lands_in_nobodys_chunk(
    url: str, pool: maru.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with LateDevice(pool) as device, worker(url, device, monkeypatch, copy=0.0) as owner:
        assert owner.line() == "asked, 1 pending"
        owner.tell("poll")
        assert owner.line() == "1 pending"
        assert land_while_others_store(pool, device, random.Random(6)) == []
        owner.tell("poll")
        assert owner.line() == "0 pending discarded"
        assert pool.lookup(KEY) == 0
        assert pool.put(KEY, bytes_of(KEY, SIZE)) == Outcome.STORED
        view = pool.get(KEY)
        assert view is not None
        assert is_right(KEY, view)
        assert pool.check() == []


def test_workers_that_all_die_at_once_leave_no_wrong_chunk(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the clients of one MPS server do when one of them faults: their copies are all still under way."""
    with maru.Pool.create(url + QUERY) as pool, LateDevice(pool) as device, ExitStack() as stack:
        assert pool.wait_ready(20)
        workers = [stack.enter_context(worker(url, device, monkeypatch, number=number)) for number in range(3)]
        for one in workers:
            assert one.line() == "asked, 1 pending"
        assert len(device.pending()) == 3 * PIECES
        for one in workers:
            one.kill()
        pool.reap()
        assert land_while_others_store(pool, device, random.Random(7)) == []
        assert [pool.exists(key_of(number, "gpu")) for number in range(3)] == [False] * 3
        assert pool.check() == []
