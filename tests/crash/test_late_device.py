"""A device copy outlives the process that asked for it: what it writes late must land in nobody's sealed chunk.

The device is a process of its own (maru.testing.late_device). No GPU is involved: not run on hardware.
"""

from __future__ import annotations

import random

import pytest

import maru
from late_copies import QUERY, SIZE, changed, fill, land_while_others_store
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import mutants, spawn
from maru.testing.late_device import LateDevice, offset_of, request_copy

pytestmark = pytest.mark.crash

LATE = b"\xdd" * SIZE
PIECES = 4


def ask_for_a_copy(url: str, address: str, kind: str, number: int, deadline: float) -> None:
    """Take memory for a device, have it filled in pieces, say so; then do as told."""
    with maru.Pool.attach(url) as pool:
        key = key_of(number, "device")
        if kind == "draft":
            held = pool.allocate(SIZE, device=True)
        elif kind == "part":
            held = pool.reserve(key, 2 * SIZE, device=True, part=0, parts=2, deadline=deadline)
        else:
            held = pool.reserve(key, SIZE, device=True, deadline=deadline)
        assert held is not None
        offset, piece = offset_of(pool, held.buffer), SIZE // PIECES
        for n in range(PIECES):
            request_copy(address, offset + n * piece, LATE[:piece])
        print("asked", flush=True)
        order = input()
        if order == "seal":
            print(held.seal().name, flush=True)
        elif order == "discard":
            held.discard()
            print("discarded", flush=True)
        input()


def after_death(url: str, kind: str, using: tuple[str, ...] = ()) -> list[int]:
    with maru.Pool.create(url + QUERY) as maker, LateDevice(maker) as device:
        with spawn(ask_for_a_copy, url, device.address, kind, 0, 30.0) as owner:
            assert owner.line() == "asked"
            maker.close()  # So that nobody but the cleaner below cleans up.
            owner.kill()
        with spawn(reap, url, mutants=using) as cleaner:
            assert cleaner.line() == "reaped"
        with maru.Pool.attach(url) as pool:
            return land_while_others_store(pool, device, random.Random(kind))


def reap(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.reap()
        print("reaped", flush=True)


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0]


@pytest.mark.parametrize("kind", ["reservation", "draft", "part"])
def test_copies_that_land_after_their_owners_death_change_no_sealed_chunk(url: str, kind: str) -> None:
    assert after_death(url, kind) == []


def test_the_resting_time_is_what_keeps_them_out(url: str) -> None:
    assert "device_extent_not_cooled" in mutants()
    assert after_death(url, "reservation", ("device_extent_not_cooled",)) != []


def test_the_key_of_a_dead_device_writer_is_free_at_once(url: str) -> None:
    with maru.Pool.create(url + QUERY) as pool, LateDevice(pool) as device:
        with spawn(ask_for_a_copy, url, device.address, "reservation", 0, 30.0) as owner:
            assert owner.line() == "asked"
            owner.kill()
        key = key_of(0, "device")
        assert pool.put(key, bytes_of(key, SIZE)) == Outcome.STORED
        device.land(device.pending())
        view = pool.get(key)
        assert view is not None
        assert is_right(key, view)
        assert pool.stats()["counters"]["cooled"] == 1


def test_copies_that_land_while_their_owner_is_stopped_and_taken_over_change_no_sealed_chunk(url: str) -> None:
    with (
        maru.Pool.create(url + QUERY) as pool,
        LateDevice(pool) as device,
        spawn(ask_for_a_copy, url, device.address, "reservation", 0, 0.0) as owner,
    ):
        assert owner.line() == "asked"
        owner.stop()
        key = key_of(0, "device")
        assert pool.put(key, bytes_of(key, SIZE)) == Outcome.STORED  # The deadline has passed: the key is taken.
        assert land_while_others_store(pool, device, random.Random(1)) == []
        owner.resume()
        owner.tell("seal")
        assert owner.line() == "LOST"  # It comes too late, and gives its memory back.
        fill(pool, 700)
        assert changed(pool) == []


def test_memory_that_was_given_up_during_a_copy_rests_too(url: str) -> None:
    with maru.Pool.create(url + QUERY) as pool, LateDevice(pool) as device:
        with spawn(ask_for_a_copy, url, device.address, "reservation", 0, 30.0) as owner:
            assert owner.line() == "asked"
            owner.tell("discard")
            assert owner.line() == "discarded"
            assert land_while_others_store(pool, device, random.Random(2)) == []
        assert pool.stats()["counters"]["cooled"] == 1


def test_copies_that_were_awaited_are_what_a_seal_publishes(url: str) -> None:
    with maru.Pool.create(url + QUERY) as pool, LateDevice(pool) as device:
        with spawn(ask_for_a_copy, url, device.address, "reservation", 0, 30.0) as owner:
            assert owner.line() == "asked"
            device.land(reversed(device.pending()))
            owner.tell("seal")
            assert owner.line() == "STORED"
        view = pool.get(key_of(0, "device"))
        assert view is not None
        assert bytes(view) == LATE


@pytest.mark.parametrize("seed", range(3))
def test_many_owners_that_die_stop_and_give_up_leave_every_sealed_chunk_as_it_was(url: str, seed: int) -> None:
    dice = random.Random(seed)
    with maru.Pool.create(url + QUERY) as pool, LateDevice(pool) as device:
        sleepers = []
        for number in range(6):
            kind = dice.choice(("reservation", "draft", "part"))
            owner = spawn(ask_for_a_copy, url, device.address, kind, number, dice.choice((0.0, 30.0)))
            assert owner.line() == "asked"
            fate = dice.choice(("kill", "kill", "stop", "discard"))
            if fate == "kill":
                owner.kill()
                owner.__exit__()
            else:
                if fate == "stop":
                    owner.stop()
                else:
                    owner.tell("discard")
                    assert owner.line() == "discarded"
                sleepers.append(owner)
        assert land_while_others_store(pool, device, dice) == []
        for owner in sleepers:
            with owner:
                owner.resume()
        fill(pool, 0)
        assert changed(pool) == []
        pool.reap()
        assert pool.check() == []
