"""Promises about pins by key: they are counted, they end, and they end by themselves."""

from __future__ import annotations

import gc
import os
import threading

import pytest

from maru.key_pins import KeyPins

A, B = b"a" * 16, b"b" * 16


class Told:
    """What the pins told, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        self.counts: list[tuple[int, float]] = []
        self.expired = 0

    def tell(self, count: int, oldest_age_s: float) -> None:
        self.counts.append((count, oldest_age_s))

    def tell_expired(self, count: int) -> None:
        self.expired += count


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def pins(told: Told) -> KeyPins:
    return KeyPins(10.0, told.tell, told.tell_expired, lambda: told.now)


def view() -> memoryview:
    return memoryview(b"chunk")


def test_each_pin_is_dropped_once(pins: KeyPins) -> None:
    pins.add([A, B, A], [view(), view(), view()])
    assert len(pins) == 3
    assert [pins.drop(A), pins.drop(A), pins.drop(A)] == [True, True, False]
    assert len(pins) == 1


def test_a_dropped_pin_holds_nothing(pins: KeyPins) -> None:
    held = view()
    pins.add([A], [held])
    pins.drop(A)
    held.release()  # A view that something still exports could not be released.
    assert len(pins) == 0


def test_what_is_too_old_is_dropped_and_counted(pins: KeyPins, told: Told) -> None:
    pins.add([A], [view()])
    told.now += 6
    pins.add([B], [view()])
    told.now += 4
    assert pins.expire() == 1
    assert (pins.drop(A), pins.drop(B)) == (False, True)
    assert told.expired == 1


def test_nothing_young_is_dropped(pins: KeyPins, told: Told) -> None:
    pins.add([A], [view()])
    told.now += 9.9
    assert pins.expire() == 0
    assert told.expired == 0


def test_after_every_change_count_and_age_of_the_oldest_are_told(pins: KeyPins, told: Told) -> None:
    pins.add([A], [view()])
    told.now += 3
    pins.add([B], [view()])
    pins.drop(A)
    assert told.counts == [(1, 0.0), (2, 3.0), (1, 0.0)]


def test_the_next_look_is_when_the_oldest_is_due(pins: KeyPins, told: Told) -> None:
    assert pins.seconds_to_next() == 10
    pins.add([A], [view()])
    told.now += 4
    pins.add([B], [view()])
    assert pins.seconds_to_next() == 6


def test_pins_end_by_themselves_though_nobody_calls(told: Told) -> None:
    """The one test here by the real clock: it waits for the thread, with a deadline."""
    over = threading.Event()
    pins = KeyPins(0.01, told.tell, lambda _: over.set())
    pins.add([A, B], [view(), view()])
    assert over.wait(10)
    pins.close()


def test_closing_drops_all_and_ends_the_watch(pins: KeyPins, told: Told) -> None:
    pins.add([A], [view()])
    watch = pins._watch
    pins.close()
    assert len(pins) == 0
    assert told.counts[-1] == (0, 0.0)
    assert watch is not None
    watch.join(10)
    assert not watch.is_alive()


def test_the_watch_keeps_nobody_alive(told: Told) -> None:
    pins = KeyPins(0.01, told.tell, told.tell_expired)
    pins.add([A], [view()])
    watch = pins._watch
    del pins
    gc.collect()
    assert watch is not None
    watch.join(10)
    assert not watch.is_alive()


def test_a_forked_child_begins_with_none(pins: KeyPins) -> None:
    pins.add([A], [view()])
    child = os.fork()
    if child == 0:
        good = len(pins) == 0 and not pins.drop(A)
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(pins) == 1
    pins.close()
