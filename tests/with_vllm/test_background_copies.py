"""Promises of copies that run while vLLM computes: no layer is read before it is filled, nothing sealed too early."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from test_worker_side import SHAPE, Engine, keys, no_thread_stays

import maru
from maru.engine.vllm import host_copies, lane
from maru.engine.vllm.plan import Load, Save
from maru.native import core

__all__ = ["no_thread_stays"]  # For every test here too.

LAYERS = SHAPE.layer_names
SAVE = Save("r", keys(3), None, (0, 1, 2, 3, 4, 5))
LOAD = Load("s", keys(3), (6, 7, 8, 9, 10, 11))


class Gate:
    """Holds back the lane's copies until they are let through, one by one."""

    def __init__(self) -> None:
        self.allowed = threading.Semaphore(0)
        self.begun = threading.Semaphore(0)

    def __getattr__(self, name: str) -> Any:
        return getattr(core, name)

    def _copy_pieces(self, *order: Any) -> None:
        self.begun.release()
        assert self.allowed.acquire(timeout=30)
        core._copy_pieces(*order)

    def let_through(self, count: int = 1) -> None:
        self.allowed.release(count)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    held = Gate()
    monkeypatch.setattr(lane, "core", held)
    yield held
    held.let_through(1000)  # No thread stays behind.


def engine_that_asks(pool: maru.Pool, seed: int) -> Engine:
    """One that has seen vLLM come to all layers."""
    engine = Engine(pool, seed)
    engine.compute([], [])
    return engine


def test_a_layer_is_waited_for_until_its_blocks_are_filled(pool: maru.Pool, gate: Gate) -> None:
    a, b = Engine(pool, 1), engine_that_asks(pool, 2)
    a.save([SAVE])
    b.side.begin([LOAD])
    for number, name in enumerate(LAYERS):
        waited = threading.Thread(target=b.side.before_layer, args=(name, []))
        waited.start()
        assert gate.begun.acquire(timeout=30)
        assert waited.is_alive()
        gate.let_through()
        waited.join(30)
        for mine, theirs in zip(LOAD.blocks, SAVE.blocks, strict=True):
            assert (b.layers[name][mine] == a.layers[name][theirs]).all(), number
        b.side.after_layer(name, [])
    b.side.end([])
    assert b.side.take_invalid() == set()


def test_what_is_being_loaded_stays_pinned_until_it_is_copied(pool: maru.Pool, gate: Gate) -> None:
    a, b = Engine(pool, 1), engine_that_asks(pool, 2)
    a.save([SAVE])
    b.side.begin([LOAD])
    assert gate.begun.acquire(timeout=30)
    assert not pool.remove(keys(1))
    assert b.side.take_done() is None
    gate.let_through(len(LAYERS))
    b.side.end([])
    assert pool.remove(keys(1))
    assert b.side.take_done() is not None


def test_a_worker_loads_at_once_until_it_has_seen_vllm_ask_for_every_layer(pool: maru.Pool, gate: Gate) -> None:
    """The gate is shut: whatever is filled was not filled by the lane."""
    a, b = Engine(pool, 1), Engine(pool, 2)
    a.save([SAVE])
    for asked in (LAYERS[:2], LAYERS[:1] * 3):
        for name in asked:
            b.side.before_layer(name, [])
        b.side.end([])
        b.layers[LAYERS[0]].zero_()
        b.side.begin([LOAD])
        assert b.has(6, a, 0)
        b.side.end([])
    b.compute([], [])
    b.layers[LAYERS[0]].zero_()
    b.side.begin([LOAD])
    assert not b.has(6, a, 0)
    gate.let_through(len(LAYERS))
    b.side.end([])
    assert b.has(6, a, 0)


def test_a_chunk_is_sealed_only_when_all_its_layers_are_copied(pool: maru.Pool, gate: Gate) -> None:
    a = Engine(pool, 1)
    for name in LAYERS:
        a.side.before_layer(name, [SAVE])
        a.side.after_layer(name, [SAVE])
    ended = threading.Thread(target=a.side.end, args=([SAVE],))
    ended.start()
    for _ in LAYERS:
        assert gate.begun.acquire(timeout=30)
        assert ended.is_alive()
        assert not pool.exists(keys(1))
        gate.let_through()
    ended.join(30)
    assert pool.lookup(keys(3)) == 3
    b = Engine(pool, 2)
    b.load([LOAD])
    assert all(b.has(mine, a, theirs) for mine, theirs in zip(LOAD.blocks, SAVE.blocks, strict=True))


def test_a_layer_that_vllm_never_told_of_is_stored_all_the_same(pool: maru.Pool) -> None:
    a, b = Engine(pool, 1), Engine(pool, 2)
    a.side.before_layer(LAYERS[1], [SAVE])
    a.side.after_layer(LAYERS[1], [SAVE])
    a.side.end([SAVE])
    b.load([LOAD])
    assert all(b.has(mine, a, theirs) for mine, theirs in zip(LOAD.blocks, SAVE.blocks, strict=True))


def test_what_a_step_will_store_is_reserved_before_its_first_layer_is_computed(pool: maru.Pool) -> None:
    a = Engine(pool, 1)
    a.side.before_layer(LAYERS[0], [SAVE])
    with pool.reserve(keys(1), 8) as rival:
        assert rival.outcome == maru.Outcome.IN_FLIGHT
    a.side.end([SAVE])
    assert pool.lookup(keys(3)) == 3


def test_a_load_that_never_ends_is_reported_and_what_it_may_touch_stays(
    pool: maru.Pool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_copies, "COPY_DEADLINE_S", 0.01)
    a, b = Engine(pool, 1), engine_that_asks(pool, 2)
    a.save([SAVE])
    later = Save("s", keys(1, first=9), keys(1, first=3), (2, 3))
    b.side.begin([LOAD])
    for name in LAYERS:
        b.side.before_layer(name, [later])
        b.side.after_layer(name, [later])
    b.side.end([later])
    assert b.side.take_invalid() == set(LOAD.blocks)
    assert b.failures == ["load a prefix"]
    assert not pool.exists(keys(1, first=9))
    assert not pool.remove(keys(1))  # Pinned for good.


def test_a_store_that_never_ends_is_never_sealed_nor_given_back(
    pool: maru.Pool, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host_copies, "COPY_DEADLINE_S", 0.01)
    a = Engine(pool, 1)
    a.compute([], [SAVE])
    assert a.failures == ["store a prompt"]
    assert pool.lookup(keys(3)) == 0
    assert len(pool.stats()["reservations"]) == 3
    a.compute([], [Save("t", keys(1, first=9), None, (6, 7))])  # All at once, by nobody's lane.
    assert pool.exists(keys(1, first=9))


def test_without_background_copies_nothing_is_left_to_the_lane(pool: maru.Pool, gate: Gate) -> None:
    a, b = Engine(pool, 1, in_background=False), Engine(pool, 2, in_background=False)
    b.compute([], [])
    a.compute([], [SAVE])
    b.compute([LOAD], [])
    assert all(b.has(mine, a, theirs) for mine, theirs in zip(LOAD.blocks, SAVE.blocks, strict=True))


def test_a_lane_that_is_closed_has_carried_out_its_orders(pool: maru.Pool, gate: Gate) -> None:
    a = Engine(pool, 1)
    threads_before = set(threading.enumerate())
    for name in LAYERS:
        a.side.before_layer(name, [SAVE])
        a.side.after_layer(name, [SAVE])
    assert set(threading.enumerate()) != threads_before
    gate.let_through(len(LAYERS))
    a.side.close()
    assert set(threading.enumerate()) == threads_before
    a.side.end([SAVE])
    assert pool.lookup(keys(3)) == 3
