"""The protocol between hosts whose caches know nothing of each other, on emulated caches.

The daemon's own code and the client's own code run unchanged; what lies in shared memory goes through the caches of
emulated hosts. Everything else is deterministic: no sockets, no threads, a clock of the test's own.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from serving import LIMITS, Clock, Talker, bytes_for

import maru
from maru import Outcome, coherence, wire
from maru.client.channel import Channel
from maru.client.remote import RemotePool
from maru.daemon.control import Control
from maru.errors import MaruError
from maru.native import core
from maru.testing.noncoherent import Fabric, Faults, Host
from pools import with_force_gone

QUERY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=16&populate=off&cooling=0"
SIZE = 4096 + 40
KEYS = [bytes([number]) * 16 for number in range(6)]
BALLAST = 112
"""Of the 128 chunks that the pool has room for: the rest is used again and again."""
SEEDS = range(12)
STEPS = 100


class DirectChannel(Channel):
    """Requests go straight into a Control, as frames would."""

    def __init__(self, control: Control) -> None:
        super().__init__("direct", None, True, 1.0)
        self._context.term()
        self.talker = Talker(control, mapped=True)
        self.welcome = self.talker.welcome
        self.held_until_s = float("inf")

    def exchange(
        self, requests: object, deadline_s: float | None = None
    ) -> Iterator[tuple[Any, Any, list[memoryview]]]:  # type: ignore[override]
        assert deadline_s is None or deadline_s > 0
        for request, body in requests:  # type: ignore[attr-defined]
            answer, out = self.talker.ask(request, bytes(body))
            self.answered += 1
            yield request, answer, [memoryview(out)] if out else []

    def close(self) -> None:
        """Nothing to close."""


class LocalProcess:
    """An engine on the daemon's host. It knows nothing of other hosts, and flushes nothing."""

    def __init__(self, pool: maru.Pool, caches: Host) -> None:
        self.pool, self.caches = pool, caches

    def put(self, key: bytes, data: bytes) -> Outcome:
        with self.pool.reserve(key, len(data)) as reservation:
            if reservation.outcome is not Outcome.RESERVED:
                return reservation.outcome
            self.caches.store(reservation.offset, data)
            return reservation.seal()

    def get(self, key: bytes) -> bytes | None:
        with self.pool.pin(key) as prefix:
            if not len(prefix):
                return None
            offset, size = memoryview(prefix.extents()).cast("Q")
            return bytes(self.caches.view(offset, size))


class Rack:
    """A daemon's host with a local process, two other hosts that write and read, and one that only reads."""

    def __init__(
        self, pool: maru.Pool, seed: int, faults: Faults | None = None, readers_faults: Faults | None = None
    ) -> None:
        self.fabric = Fabric(pool.stats()["size_bytes"], seed)
        self.chance = random.Random(seed + 1000)
        caches = self.fabric.host()
        self.clock = Clock()
        self.control = Control(pool, LIMITS, os.urandom(16), "test", self.clock, memory=caches)
        self.pool = pool
        self.ballast = [pool.allocate(SIZE) for _ in range(BALLAST)]
        self.local = LocalProcess(pool, caches)
        self.faults = faults
        self.remotes = [self.new_remote(), self.new_remote()]
        self.reader = RemotePool(DirectChannel(self.control), self.fabric.host(readers_faults), keeps_leases=False)
        self.contents: dict[bytes, bytes] = {}
        """What was stored last under each key: whoever finds the key reads exactly this."""
        self.wrong: list[str] = []
        self.stored = self.read = self.lost = 0

    def new_remote(self) -> RemotePool:
        return RemotePool(DirectChannel(self.control), self.fabric.host(self.faults), keeps_leases=False)

    @property
    def refused(self) -> int:
        return sum(one.failures.get("bytes_refused", 0) for one in (*self.remotes, self.reader)) + self.lost

    def step(self) -> None:
        key = self.chance.choice(KEYS)
        what = self.chance.choice(["put", "put", "get", "view", "get", "view", "remove", "local put", "local get"])
        remote = self.chance.choice(self.remotes)
        data = bytes_for(self.chance.randrange(200), SIZE)
        if what == "put":
            outcome = remote.put(key, data)
            if outcome is Outcome.STORED:
                self.contents[key] = data
            self.stored += outcome is Outcome.STORED
            self.lost += outcome is Outcome.LOST
        elif what == "get":
            view = self.chance.choice([remote, self.reader]).get(key)
            self.judge("another host", key, None if view is None else bytes(view))
        elif what == "view":
            with self.chance.choice([remote, self.reader]).pin(key) as prefix:
                for view in prefix.views:
                    self.judge("another host, in place", key, bytes(view))
        elif what == "remove":
            self.pool.remove(key)
        elif what == "local put":
            if self.local.put(key, data) is Outcome.STORED:
                self.contents[key] = data
        else:
            self.judge("the daemon's host", key, self.local.get(key))

    def judge(self, who: str, key: bytes, got: bytes | None) -> None:
        if got is not None:
            self.read += 1
            if got != self.contents[key]:
                self.wrong.append(f"{who} read other bytes than were stored under {key[0]}")


def run(url: str, seed: int, faults: Faults | None = None, readers_faults: Faults | None = None) -> Rack:
    with maru.Pool.create(url) as pool:
        rack = Rack(pool, seed, faults, readers_faults)
        for _ in range(STEPS):
            rack.step()
        for remote in (*rack.remotes, rack.reader):
            remote.channel.talker.ask(wire.Goodbye(0))  # type: ignore[attr-defined]
        if pool.check(verify_bytes=False):
            rack.wrong += pool.check(verify_bytes=False)
    with_force_gone(url.partition("?")[0])
    return rack


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + QUERY


@pytest.mark.parametrize("seed", SEEDS)
def test_what_was_stored_is_read_whole_by_every_host(url: str, seed: int) -> None:
    rack = run(url, seed)
    assert rack.wrong == []
    assert rack.refused == 0  # Not one reading had to be given up.
    assert rack.stored > 0
    assert rack.read > 0


@pytest.mark.parametrize("seed", SEEDS)
def test_flushes_that_a_reader_drops_cost_it_hits_and_never_a_wrong_byte(url: str, seed: int) -> None:
    """A writer that drops its own cannot be helped: its lines land on whatever lies there later."""
    rack = run(url, seed, readers_faults=Faults(flush_dropped=0.5))
    assert rack.wrong == []
    assert rack.lost == 0


def test_the_same_seed_does_the_same_again(url: str) -> None:
    first, second = run(url, 3), run(url, 3)
    assert bytes(first.fabric.memory) == bytes(second.fabric.memory)
    assert (first.stored, first.read) == (second.stored, second.read)


@pytest.mark.parametrize("seed", SEEDS)
def test_hosts_that_lose_power_leave_nothing_wrong_and_nothing_held(url: str, seed: int) -> None:
    with maru.Pool.create(url) as pool:
        rack = Rack(pool, seed)
        for number in range(STEPS):
            rack.step()
            if number % 10 == 5:
                dead = rack.chance.randrange(2)
                victim = rack.remotes[dead]
                held = victim.reserve(bytes([99, number]) * 8, SIZE)
                assert held.outcome is not Outcome.BUSY
                offset = next(iter(held._batch._holds.values()), (0, 0))[1]
                victim.memory.store(offset, bytes_for(1, SIZE))  # type: ignore[union-attr]  # In the middle of a store,
                victim.pin(KEYS[0])  # ... and of a read.
                victim.memory.die()  # type: ignore[union-attr]
                rack.clock.go(LIMITS.lease_s + LIMITS.guard_s + 1)
                for other in (rack.remotes[1 - dead], rack.reader):
                    other.channel.talker.session.heard_s = rack.clock()  # type: ignore[attr-defined]
                assert rack.control.expire() == 1
                rack.remotes[dead] = rack.new_remote()
        assert rack.wrong == []
        assert rack.refused == 0
        figures = pool.stats()
        assert figures["chunks"]["reserved"] == 0
        assert not any(row["pins"] for row in figures["processes"])
        assert pool.check(verify_bytes=False) == []
    with_force_gone(url.partition("?")[0])


def publish_unflushed(memory: coherence.Memory, offset: int, size: int, checksum: int) -> bool:
    return core.xxh3_64(memory.view(offset, size)) == checksum


def publish_unseen(memory: coherence.Memory, offset: int, size: int, checksum: int) -> bool:
    memory.flush(offset, size)
    return True


def show_unflushed(memory: coherence.Memory, offset: int, size: int) -> int:
    return core.xxh3_64(memory.view(offset, size))


def read_unflushed(memory: coherence.Memory, offset: int, size: int, checksum: int) -> memoryview | None:
    view = memory.view(offset, size)
    return view if core.xxh3_64(view) == checksum else None


def read_unseen(memory: coherence.Memory, offset: int, size: int, checksum: int) -> memoryview | None:
    memory.flush(offset, size)
    return memory.view(offset, size)


def copy_unflushed(memory: coherence.Memory, offset: int, buffer: memoryview, checksum: int) -> bool:
    return core.xxh3_64_copying(buffer, memory.view(offset, len(buffer))) == checksum


def copy_unseen(memory: coherence.Memory, offset: int, buffer: memoryview, checksum: int) -> bool:
    memory.flush(offset, len(buffer))
    core.stream_copy(buffer, memory.view(offset, len(buffer)))
    return True


def write_unflushed(memory: coherence.Memory, offset: int, data: bytes) -> int:
    memory.store(offset, data)
    return core.xxh3_64(data)


def hand_out_unflushed(memory: coherence.Memory, offset: int, size: int) -> None:
    """What local processes stored there stays in the daemon's caches, and is written back at any time."""


def is_caught(url: str, faults: Faults | None = None) -> bool:
    """Does some seed show it: a wrong byte, a reading or a store that had to be refused?"""
    for seed in range(40):
        rack = run(url, seed, faults)
        if rack.wrong or rack.refused:
            return True
    return False


DROPPED = Faults(flush_dropped=0.3)
MUTANTS: dict[str, tuple[str, Callable[..., object], Faults | None, Faults | None]] = {
    "the daemon does not flush what it hands out": ("maru.daemon.control.hand_out", hand_out_unflushed, None, None),
    "the writer does not flush": ("maru.client.remote.write_for_others", write_unflushed, None, None),
    "the daemon does not flush before it publishes": ("maru.daemon.control.publishable", publish_unflushed, None, None),
    "the daemon does not flush what it tells of": ("maru.daemon.control.show_to_others", show_unflushed, None, None),
    "the reader does not flush": ("maru.client.holds.read_of_others", read_unflushed, None, None),
    "the reader does not flush what it copies": ("maru.client.holds.copy_of_others", copy_unflushed, None, None),
    "the reader does not compare what it copies": ("maru.client.holds.copy_of_others", copy_unseen, None, DROPPED),
    "the daemon does not compare": ("maru.daemon.control.publishable", publish_unseen, DROPPED, None),
    "the reader does not compare": ("maru.client.holds.read_of_others", read_unseen, None, DROPPED),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_without_any_one_flush_or_comparison_it_fails(mutant: str, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    place, instead, faults, readers_faults = MUTANTS[mutant]
    monkeypatch.setattr(place, instead)
    if faults is None and readers_faults is None:
        assert is_caught(url)
    else:
        assert any(run(url, seed, faults, readers_faults).wrong for seed in range(40))


@pytest.mark.parametrize(
    "faults", [Faults(first_fence_missing=True), Faults(last_fence_missing=True)], ids=["first", "last"]
)
def test_without_any_one_fence_it_fails(faults: Faults, url: str) -> None:
    assert is_caught(url, faults)


def test_an_error_of_the_daemon_is_not_a_wrong_answer(url: str) -> None:
    """The direct channel raises as a real one does."""
    with maru.Pool.create(url) as pool:
        rack = Rack(pool, 1)
        with pytest.raises(MaruError):
            rack.remotes[0].channel.call(wire.Read(0, 1, 0, 0, 1))
    with_force_gone(url.partition("?")[0])
