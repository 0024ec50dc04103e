"""Rows of the process table that live by the clock: what a daemon holds for another host."""

from __future__ import annotations

import json

import pytest

import maru
from maru.errors import LeaseEnded, NotAttached
from maru.native import core
from maru.testing.content import bytes_of, key_of
from maru.testing.crash import spawn
from pools import write_field

KEY = key_of(0)
LONG_S = 60.0


def hold_a_pin(folder: str, lease_s: float) -> None:
    """A daemon, as far as the pool sees: one row for another host, one pin under it."""
    row = core.PoolCore(folder, "another host", False, lease=lease_s)
    prefix = row.pin(KEY)
    print(json.dumps([*row._row(), len(prefix)]), flush=True)
    input()


def hold_a_reservation(folder: str, lease_s: float) -> None:
    row = core.PoolCore(folder, "another host", False, lease=lease_s)
    held = row.reserve(KEY, 4096, device=True)
    print(json.dumps([*row._row(), held.outcome.name]), flush=True)
    input()


def die_holding(pool: maru.Pool, what: object = hold_a_pin, lease_s: float = LONG_S) -> tuple[int, int]:
    """(number, epoch) of a row whose process was killed."""
    with spawn(what, pool.folder, lease_s) as daemon:
        number, epoch, got = json.loads(daemon.line())
        assert got in (1, "RESERVED")
        daemon.kill()
    return number, epoch


def row_of(pool: maru.Pool, number: int) -> dict[str, object] | None:
    return next((row for row in pool.stats()["processes"] if row["number"] == number), None)


def test_pins_of_a_row_outlive_the_process_that_took_them(pool: maru.Pool) -> None:
    pool.put(KEY, bytes_of(KEY, 5000))
    number, _ = die_holding(pool)
    assert pool.reap() == 0
    row = row_of(pool, number)
    assert row is not None
    assert row["alive"]
    assert row["pins"] == 1
    assert pool.remove(KEY) is False
    assert pool.check() == []


def test_pins_of_a_row_end_with_its_lease(pool: maru.Pool) -> None:
    pool.put(KEY, bytes_of(KEY, 5000))
    number, _ = die_holding(pool, lease_s=1e-9)
    pool.reap()
    assert row_of(pool, number) is None
    assert pool.remove(KEY) is True


def test_the_next_daemon_takes_up_a_row_with_all_that_it_holds(pool: maru.Pool) -> None:
    pool.put(KEY, bytes_of(KEY, 5000))
    row = die_holding(pool)
    adopted = core.PoolCore(pool.folder, "next daemon", False, lease=LONG_S, adopt=row)
    assert adopted._row() == row
    assert pool.remove(KEY) is False
    adopted.close()
    assert row_of(pool, row[0]) is None
    assert pool.remove(KEY) is True


def test_a_row_whose_lease_ended_is_not_taken_up(pool: maru.Pool) -> None:
    row = die_holding(pool, lease_s=1e-9) if pool.put(KEY, b"x" * 5000) else (0, 0)
    with pytest.raises(LeaseEnded):
        core.PoolCore(pool.folder, "next daemon", False, lease=LONG_S, adopt=row)


def test_a_row_that_was_given_to_somebody_else_is_fenced_by_its_epoch(pool: maru.Pool) -> None:
    pool.put(KEY, bytes_of(KEY, 5000))
    number, epoch = die_holding(pool, lease_s=1e-9)
    pool.reap()
    again, newer = die_holding(pool)
    assert again == number
    assert newer > epoch
    with pytest.raises(LeaseEnded):
        core.PoolCore(pool.folder, "stale daemon", False, lease=LONG_S, adopt=(number, epoch))


def test_a_row_that_a_living_daemon_holds_is_not_taken_up_by_another(pool: maru.Pool) -> None:
    held = core.PoolCore(pool.folder, "daemon", False, lease=LONG_S)
    with pytest.raises(LeaseEnded):
        core.PoolCore(pool.folder, "second daemon", False, lease=LONG_S, adopt=held._row())
    held.close()


def test_a_row_left_behind_keeps_its_pins_though_their_objects_die(pool: maru.Pool) -> None:
    pool.put(KEY, bytes_of(KEY, 5000))
    daemon = core.PoolCore(pool.folder, "daemon", False, lease=LONG_S)
    prefix = daemon.pin(KEY)
    place = daemon._row()
    daemon._leave_behind()
    prefix.release()
    del prefix, daemon
    pool.reap()
    assert pool.remove(KEY) is False
    core.PoolCore(pool.folder, "next daemon", False, lease=LONG_S, adopt=place).close()
    assert pool.remove(KEY) is True


def test_nobody_is_given_the_number_of_a_row_that_waits_for_its_daemon(pool: maru.Pool) -> None:
    pool.put(KEY, bytes_of(KEY, 5000))
    number, _ = die_holding(pool)
    others = [core.PoolCore(pool.folder, "other", False) for _ in range(4)]
    assert number not in {row["number"] for row in pool.stats()["processes"] if row["name"] == "other"}
    for other in others:
        other.close()
    assert pool.remove(KEY) is False


def test_a_reservation_of_a_row_binds_its_key_until_the_lease_ends(pool: maru.Pool) -> None:
    row = die_holding(pool, hold_a_reservation)
    assert pool.put(KEY, b"y" * 4096) is maru.Outcome.IN_FLIGHT
    core.PoolCore(pool.folder, "next daemon", False, lease=LONG_S, adopt=row).close()
    assert pool.put(KEY, b"y" * 4096) is maru.Outcome.STORED
    assert pool.stats()["counters"]["cooled"] == 1  # The host may still be writing there.


def test_a_lease_that_cannot_be_is_not_believed(pool: maru.Pool) -> None:
    """A torn or hostile word must not keep a row for ever."""
    pool.put(KEY, bytes_of(KEY, 5000))
    number, _ = die_holding(pool)
    write_field(pool, "processes", "ProcessRow", number, "lease_ns", (1 << 64) - 1)
    assert pool.reap() == 1
    assert pool.remove(KEY) is True


def test_an_ordinary_process_has_no_lease(pool: maru.Pool) -> None:
    with pytest.raises(ValueError, match="byte lock"):
        pool._renew_lease(5.0)
    with pytest.raises(ValueError, match="byte lock"):
        pool._leave_behind()


def test_a_lease_is_moved_by_its_holder_alone(pool: maru.Pool) -> None:
    row = core.PoolCore(pool.folder, "daemon", False, lease=1.0)
    number = row._row()[0]
    before = row_of(pool, number)
    row._renew_lease(100.0)
    after = row_of(pool, number)
    assert before is not None
    assert after is not None
    assert after["lease_ns"] > before["lease_ns"] + 90 * 10**9  # type: ignore[operator]
    row.close()
    with pytest.raises(NotAttached):
        row._renew_lease(1.0)
