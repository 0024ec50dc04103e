"""Each rule that the pool's safety rests on is taken away once, and a test must notice.

A scenario prints "clean" or what is wrong. It runs with the mutant (and must find a fault) and without it (and must
not), so a scenario that finds faults everywhere, or nowhere, fails too.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import test_mutants_of_recovery
import test_mutants_of_shares

import maru
from maru import Identity, Outcome
from maru.native import core
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import Victim, mutants, spawn

pytestmark = pytest.mark.crash

SIZE = 12_000
QUERY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=8"


def verdict(*faults: str | bool) -> None:
    found = [str(fault) for fault in faults if fault]
    print("; ".join(found) or "clean", flush=True)


def child_dies(act: Callable[[], object]) -> None:
    pid = os.fork()
    if pid == 0:
        held = act()
        os.kill(os.getpid(), signal.SIGKILL)
        del held
    os.waitpid(pid, 0)


def dead_pins(url: str) -> None:
    with maru.Pool.open(url) as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
        child_dies(lambda: pool.get(key_of(0)))
        pool.reap()
        verdict(*pool.check(), not pool.remove(key_of(0)) and "pinned by the dead")


def device_cooling(url: str) -> None:
    with maru.Pool.open(url) as pool:
        child_dies(lambda: pool.reserve(key_of(0), SIZE, device=True))
        pool.reap()
        verdict(pool.stats()["counters"]["cooled"] == 0 and "memory of a dead device writer was not left to rest")


def stale_epoch(url: str) -> None:
    with maru.Pool.open(url) as pool:
        ns = pool.namespace(Identity(model="m", kv_layout="x"))
        pool.put(key_of(0), b"old", namespace=ns)
        ns.bump()
        verdict(pool.get(key_of(0)) is not None and "an invalidated chunk was served")


def last_part(url: str) -> None:
    with maru.Pool.open(url) as pool:
        first = pool.reserve(key_of(0), SIZE, part=0, parts=2)
        second = pool.reserve(key_of(0), SIZE, part=1, parts=2)
        first.seal()
        early = pool.exists(key_of(0))
        second.discard()
        verdict(early and "readable before every part was in")


def revoked_bytes(url: str) -> None:
    with maru.Pool.open(url) as pool:
        slow = pool.reserve(key_of(0), SIZE, deadline=0)
        array = np.frombuffer(slow.buffer, dtype=np.uint8)
        for n in range(4):
            pool.put(key_of(n), bytes_of(key_of(n), SIZE))
        array[:] = 0xEE
        wrong = [n for n in range(4) if not is_right(key_of(n), pool.get(key_of(n)) or b"?")]
        verdict(wrong and f"chunks {wrong} were overwritten by a writer that came too late")


def claim_and_die(pool: maru.Pool) -> None:
    core.arm_crash_point("claim.word_set", "kill")
    pool.reserve(key_of(0), SIZE)


def back_reference(url: str) -> None:
    with maru.Pool.open(url) as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
        pool.remove(key_of(0))
        pool.put(key_of(1), bytes_of(key_of(1), SIZE))  # In the extent that slot 0 still remembers.
        child_dies(lambda: claim_and_die(pool))
        pool.reap()
        verdict(*pool.check())


def apply_changes(scan: core.ChangeScan, known: set[bytes]) -> set[bytes]:
    """What a router knows that knew `known` and reads on."""
    changes, _ = scan.look(1000)
    for at in range(0, len(changes), 64):
        (known.add if changes[at + 56] == 1 else known.discard)(changes[at : at + 16])
    return known


def slot_used_again(url: str) -> None:
    with maru.Pool.open(url) as pool:
        scan, known, wrong = core.ChangeScan(pool), set[bytes](), 0
        for n in range(100):  # Four buckets: now and then one is where the last one was.
            pool.put(key_of(n), b"x")
            wrong += apply_changes(scan, known) != {key_of(n)}
            pool.remove(key_of(n))
        verdict(wrong and f"what is there was not told {wrong} times")


def key_in_another_slot(url: str) -> None:
    with maru.Pool.open(url) as pool:
        scan, known, lost = core.ChangeScan(pool), set[bytes](), 0
        namespaces = [pool.namespace(Identity(model="m", kv_layout=str(n))) for n in range(4)]
        for ns in namespaces:
            pinned = pool.get(key_of(0))  # Keeps the slot that it leaves from being the one it comes to.
            for other in namespaces:
                other.bump()
            pool.put(key_of(0), b"x", namespace=ns)
            lost += key_of(0) not in apply_changes(scan, known)
            del pinned
            pool.reap()
        verdict(lost and "a chunk that is there was told as gone")


LONE = {
    "reuse_not_told": slot_used_again,
    "moved_key_told_as_gone": key_in_another_slot,
    "dead_pins_not_wiped": dead_pins,
    "device_extent_not_cooled": device_cooling,
    "stale_epoch_accepted": stale_epoch,
    "last_part_not_awaited": last_part,
    "extent_reused_at_revoke": revoked_bytes,
    "no_back_reference_check": back_reference,
}


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + QUERY


@pytest.mark.parametrize("mutant", LONE)
def test_a_lone_process_shows_it(mutant: str, url: str) -> None:
    with spawn(LONE[mutant], url) as healthy:
        assert healthy.line() == "clean"
    maru.Pool.destroy(url, force=True)
    with spawn(LONE[mutant], url, mutants=(mutant,)) as sick:
        assert sick.line() not in ("clean", "")


@contextmanager
def stopped(target: Callable[..., object], url: str, point: str, mutant: str | None) -> Iterator[Victim]:
    """A process that runs `target` and has stopped itself at `point`."""
    with spawn(target, url, die_at=point, action="stop", mutants=(mutant,) if mutant else ()) as victim:
        victim.wait_stopped()
        yield victim


def read_and_hold(url: str) -> None:
    """Get chunk 0, say so, and look at it again when told to."""
    with maru.Pool.attach(url) as pool:
        view = pool.get(key_of(0))
        print("miss" if view is None else "hit", flush=True)
        input()
        verdict(view is not None and not is_right(key_of(0), view) and "wrong bytes under a pin")


def remove_one(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        print(pool.remove(key_of(0)), flush=True)


def store_sized(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        print(pool.put(key_of(50), bytes_of(key_of(50), 3 * 4096)).name, flush=True)


@pytest.mark.parametrize("mutant", [None, "no_recheck_after_pin"])
def test_a_reader_that_was_slow_to_pin_looks_again(mutant: str | None, url: str) -> None:
    with maru.Pool.open(url) as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
        with stopped(read_and_hold, url, "pin.before", mutant) as reader:
            assert pool.remove(key_of(0))
            pool.put(key_of(1), bytes_of(key_of(1), SIZE))  # In the same extent.
            reader.resume()
            outcome = reader.line()
            reader.tell("look")
            assert (reader.line() == "clean") == (mutant is None)
            assert outcome == ("miss" if mutant is None else "hit")


@pytest.mark.parametrize("mutant", [None, "no_pin_recheck_after_evicting"])
def test_an_evictor_that_was_slow_to_mark_looks_again(mutant: str | None, url: str) -> None:
    with maru.Pool.open(url) as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
        with stopped(remove_one, url, "evict.before_mark", mutant) as evictor, spawn(read_and_hold, url) as reader:
            assert reader.line() == "hit"
            evictor.resume()
            assert evictor.line() == ("False" if mutant is None else "True")
            pool.put(key_of(1), bytes_of(key_of(1), SIZE))
            reader.tell("look")
            assert (reader.line() == "clean") == (mutant is None)


@pytest.mark.parametrize("mutant", [None, "evicting_treated_as_absent"])
def test_what_is_being_evicted_may_come_back(mutant: str | None, url: str) -> None:
    with maru.Pool.open(url) as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
        with (
            stopped(remove_one, url, "evict.marked", None),
            spawn(store_again, url, mutants=(mutant,) if mutant else ()) as rival,
        ):
            assert rival.line() == ("BUSY" if mutant is None else "STORED")


def store_again(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        print(pool.put(key_of(0), bytes_of(key_of(0), SIZE)).name, flush=True)


@pytest.mark.parametrize("mutant", [None, "slab_word_not_rechecked"])
def test_an_allocator_that_was_slow_to_claim_looks_again(mutant: str | None, url: str) -> None:
    with maru.Pool.open(url.replace("size=1MiB&slab_bytes=64KiB", "size=1MiB&slab_bytes=1MiB")) as pool:
        assert pool.stats()["slab_count"] == 1
        for n in (10, 11):
            pool.put(key_of(n), bytes_of(key_of(n), 3 * 4096))
        for n in (10, 11):
            pool.remove(key_of(n))  # The slab is all free, and its second chunk is the next to be taken.
        with stopped(store_sized, url, "alloc.before_claim", mutant) as slow:
            large = key_of(1)
            assert pool.put(large, bytes_of(large, 5 * 4096)) == Outcome.STORED  # The slab has another size now.
            slow.resume()
            assert slow.line() == "STORED"
            view = pool.get(large)  # Gone is right too: there is one slab for both.
            broken = pool.check() != [] or (view is not None and not is_right(large, view))
            assert broken == (mutant is not None)


def test_every_mutant_is_hunted() -> None:
    in_company = {"no_recheck_after_pin", "no_pin_recheck_after_evicting"}
    in_company |= {"evicting_treated_as_absent", "slab_word_not_rechecked"}
    in_company |= {"cooled_extent_not_wiped"}  # In test_zeroed.py.
    assert (
        set(mutants())
        == set(LONE) | in_company | set(test_mutants_of_recovery.SCENARIOS) | test_mutants_of_shares.SCENARIOS
    )
