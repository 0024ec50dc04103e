"""Mutants that show only when several processes are at particular places: cleaning up, coming back, storing late.

Most of these rules were found missing by the walk through all interleavings (tests/model); here real processes are
stopped at the same places. Each scenario returns what is wrong; with the mutant there must be something, without it
nothing.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import maru
from maru import Identity, Outcome
from maru.native import core
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

pytestmark = pytest.mark.crash

SIZE = 12_000
KEY = key_of(0)
HOUSEKEEPER_BYTE = 1
QUERY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=8&populate=off"

Mutants = tuple[str, ...]


def wrong(pool: maru.Pool, numbers: range) -> list[str]:
    """Chunks that hold other bytes than were stored under their keys."""
    return [
        f"wrong bytes under {n}"
        for n in numbers
        if (view := pool.get(key_of(n))) is not None and not is_right(key_of(n), view)
    ]


@contextmanager
def nobody_sweeps(pool: maru.Pool) -> Iterator[None]:
    """Hold the housekeepers' byte: until the end of this, only who is told to cleans up after the dead."""
    with (Path(pool.stats()["folder"]) / "lock").open("r+b") as lock:
        wanted = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, HOUSEKEEPER_BYTE, 1, 0)
        fcntl.fcntl(lock.fileno(), fcntl.F_OFD_SETLKW, wanted)
        yield


def put(pool: maru.Pool, number: int = 0) -> Outcome:
    return pool.put(key_of(number), bytes_of(key_of(number), SIZE))


def put_and_tell(url: str, stop_at: str = "") -> None:
    with maru.Pool.attach(url) as pool:
        print("ready", flush=True)
        input()
        if stop_at:
            core.arm_crash_point(stop_at, "stop")
        print(put(pool).name, flush=True)


def remove_and_tell(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        print(pool.remove(KEY), flush=True)


def mark_and_die(url: str) -> None:
    core.arm_crash_point("evict.before_mark", "stop")
    core.arm_crash_point("evict.marked", "kill")
    with maru.Pool.attach(url) as pool:
        input()
        pool.remove(KEY)


def a_number_comes_back(url: str, mutants: Mutants) -> list[str]:
    """A resolver sleeps over the death it saw; by the time it wakes, the same word is a living process's."""
    with maru.Pool.create(url + QUERY) as pool, nobody_sweeps(pool), spawn(mark_and_die, url) as evictor:
        put(pool)
        evictor.tell("go")
        evictor.wait_stopped()  # It has the lowest free number, which is given out again first.
        pin = pool.get(KEY)
        with spawn(put_and_tell, url, "resolve.begin", mutants=mutants) as resolver:
            resolver.line()
            evictor.resume()
            evictor.wait()  # EVICTING, by a dead process, and pinned.
            resolver.tell("go")
            resolver.wait_stopped()
            assert pool.reap() == 1
            del pin
            with spawn(remove_and_tell, url, die_at="evict.marked", action="stop") as newcomer:
                newcomer.wait_stopped()  # The same word: same number, same generation.
                resolver.resume()
                resolver.line()
                answer = put(pool)  # The newcomer lives, and has neither taken the chunk nor given it back.
                newcomer.resume()
                newcomer.line()
    return [] if answer == Outcome.BUSY else [f"a living process's word was taken: {answer.name}"]


def overdue(url: str, size: int) -> None:
    with maru.Pool.attach(url) as pool:
        reservation = pool.reserve(KEY, size, deadline=0.0)
        print(reservation.outcome.name, flush=True)
        input()


def reap_and_tell(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        print("ready", flush=True)
        input()
        core.arm_crash_point("clean.before_word", "stop")
        print(pool.reap(), flush=True)


def a_rival_revokes_the_dead(url: str, mutants: Mutants) -> list[str]:
    """Between a cleaner's look at a dead writer's word and its swap, a rival that saw the writer alive revokes it."""
    with maru.Pool.create(url + QUERY) as pool, nobody_sweeps(pool):
        with spawn(overdue, url, SIZE) as writer, spawn(reap_and_tell, url, mutants=mutants) as cleaner:
            writer.line()
            cleaner.line()
            with spawn(put_and_tell, url, "revoke.before_word") as rival:
                rival.line()
                rival.tell("go")
                rival.wait_stopped()
                writer.kill()
                cleaner.tell("go")
                cleaner.wait_stopped()
                rival.resume()
                rival.line()
                cleaner.resume()
                cleaner.line()
        pool.reap()
        return pool.check()


def a_sum_passes_zero(url: str, mutants: Mutants) -> list[str]:
    """A writer is cleaned up after between a rival's adding to its revoked bytes and taking them back."""
    with maru.Pool.create(url + QUERY) as pool, nobody_sweeps(pool), spawn(overdue, url, SIZE) as writer:
        writer.line()  # It has the lowest free number, which is given out again first.
        with spawn(put_and_tell, url, "revoke.before_word", mutants=mutants) as rival:
            rival.line()
            rival.tell("go")
            rival.wait_stopped()
            writer.kill()
            assert pool.reap() == 1
            rival.resume()
            rival.line()
            pool.remove(KEY)
            with spawn(overdue, url, SIZE // 3) as next_writer:
                next_writer.line()
                answer = put(pool)
    return [] if answer == Outcome.STORED else [f"an overdue reservation cannot be taken over: {answer.name}"]


def namespace_of(pool: maru.Pool) -> maru.Namespace:
    return pool.namespace(Identity(model="m", kv_layout="x"))


def stop_twice_removing(url: str) -> None:
    core.arm_crash_point("evict.before_mark", "stop")
    core.arm_crash_point("evict.marked", "stop")
    remove_and_tell(url)


def put_over_stale(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        input()
        print(pool.put(KEY, bytes_of(KEY, SIZE), namespace=namespace_of(pool)).name, flush=True)


def a_stale_chunk_comes_back(url: str, mutants: Mutants) -> list[str]:
    """A writer finds an invalidated chunk under its key that an evictor has marked and will give back: it is pinned."""
    with maru.Pool.create(url + QUERY) as pool, nobody_sweeps(pool):
        namespace = namespace_of(pool)
        pool.put(KEY, b"old" * 4000, namespace=namespace)
        with (
            spawn(stop_twice_removing, url) as evictor,
            spawn(put_over_stale, url, die_at="stale.before_drop", action="stop", mutants=mutants) as writer,
        ):
            evictor.wait_stopped()  # It saw no pin, and has not marked yet.
            pin = pool.get(KEY)
            namespace.bump()
            writer.tell("go")
            writer.wait_stopped()  # It saw a sealed chunk that no longer counts.
            evictor.resume()
            evictor.wait_stopped()  # Marked.
            writer.resume()
            answer = writer.line()
            evictor.resume()
            evictor.line()  # It found the pin, and gave the chunk back.
            faults = pool.check()
            del pin
        return [*faults, *([] if answer == "BUSY" else [f"the writer did not wait: {answer}"])]


def read_slowly(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        view = pool.get(KEY)
        print("miss" if view is None else "right" if is_right(KEY, view) else "wrong", flush=True)


def replace(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        assert pool.remove(KEY)
        for n in range(1, 30):
            put(pool, n)


def a_slot_lives_again(url: str, mutants: Mutants) -> list[str]:
    """A reader that compared the key wakes when its slot binds another one. Only the generation tells it."""
    with maru.Pool.create(url + QUERY) as pool:
        put(pool)
        with spawn(read_slowly, url, die_at="pin.before", action="stop") as reader:
            reader.wait_stopped()
            with spawn(replace, url, mutants=mutants) as other:
                assert other.wait() == 0
            reader.resume()
            got = reader.line()
        return [] if got == "miss" else [f"the reader got {got} bytes"]


def fill_late(url: str, finish: str, another: int) -> None:
    """Fill a reservation with stores that are late, end it, let somebody else have the memory, then let them land."""
    with maru.Pool.attach(url) as pool:
        reservation = pool.reserve(KEY, SIZE)
        address = np.frombuffer(reservation.buffer, dtype=np.uint8).ctypes.data
        core.store_late(address, bytes_of(KEY, SIZE))
        print(getattr(reservation, finish)(), flush=True)
        if another:
            put(pool, another)
        input()
        core.land_late_stores()
        print("landed", flush=True)
        input()


def _late(url: str, mutants: Mutants, finish: str, another: int, seen: range) -> list[str]:
    with maru.Pool.create(url + QUERY) as pool:
        for n in range(20, 24):  # So that memory that nobody wrote to is not zero, nor right by chance.
            put(pool, n)
        for n in range(20, 24):
            pool.remove(key_of(n))
        with spawn(fill_late, url, finish, another, mutants=mutants) as writer:
            writer.line()
            before = wrong(pool, seen)
            writer.tell("land")
            writer.line()
            return [*before, *wrong(pool, seen)]


def stores_are_late_to_a_seal(url: str, mutants: Mutants) -> list[str]:
    return _late(url, mutants, "seal", 0, range(1))


def stores_are_late_to_a_discard(url: str, mutants: Mutants) -> list[str]:
    return _late(url, mutants, "discard", 1, range(1, 2))


def hold_for_another_host(folder: str) -> None:
    row = core.PoolCore(folder, "another host", False, lease=60.0)
    held = row.pin(KEY)
    print(len(held), flush=True)
    input()


def a_daemon_dies_and_its_hosts_read_on(url: str, mutants: Mutants) -> list[str]:
    """What another host reads by a lease is pinned though the daemon that pinned it is dead."""
    with maru.Pool.create(url + QUERY) as pool, nobody_sweeps(pool):
        put(pool)
        with spawn(hold_for_another_host, pool.folder) as daemon:
            assert daemon.line() == "1"
            daemon.kill()
        with spawn(reap_at_once, url, mutants=mutants) as cleaner:
            cleaner.line()
        return ["a chunk that another host reads was removed"] if pool.remove(KEY) else []


def reap_at_once(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        print(pool.reap(), flush=True)


SCENARIOS: dict[str, Callable[[str, Mutants], list[str]]] = {
    "resolver_without_the_byte": a_number_comes_back,
    "cleaner_looks_once": a_rival_revokes_the_dead,
    "revoked_bytes_wrap": a_sum_passes_zero,
    "stale_not_awaited": a_stale_chunk_comes_back,
    "generation_not_bumped": a_slot_lives_again,
    "sealed_before_fence": stores_are_late_to_a_seal,
    "discarded_before_fence": stores_are_late_to_a_discard,
    "lease_not_asked": a_daemon_dies_and_its_hosts_read_on,
}


@pytest.mark.parametrize("mutant", SCENARIOS)
def test_the_core_passes_and_the_mutant_is_caught(mutant: str, pool_url: str) -> None:
    url = pool_url.partition("?")[0]
    assert SCENARIOS[mutant](url, ()) == []
    maru.Pool.destroy(url, force=True)
    assert SCENARIOS[mutant](url, (mutant,)) != []
