"""A tour through everything a pool can do, so that a process can be killed at every crash point on the way.

Each stop is a function of its own and leaves the pool as any user might. `walk` visits all of them; run it in a
process of its own (crash.spawn), because its children are forked and killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import struct
import time
from collections.abc import Callable

from maru.errors import PoolBusy, PoolMismatch
from maru.key import Identity
from maru.native import core
from maru.pool import Outcome, Pool
from maru.testing.content import bytes_of, is_right, key_of

# Without a gate, since what is stored must be stored; with room for a segment that comes later.
POOL_QUERY = "?size=4MiB&slab_bytes=512KiB&slots=2048&processes=16&gate=off&spare=512KiB"
TINY, SMALL, LARGE = 4_000, 9_000, 60_000


# What a tour may leave, and how many keys there are of each kind.
FAMILIES = {
    "prefix": 8, "tour": 10, "batch": 4, "parts": 8, "large": 160, "small": 500, "tiny": 1200, "dead": 20, "left": 1,
    "shared": 40,
}  # fmt: skip
TRANSIENT = ("reserved", "evicting", "revoked", "releasing")


def store(pool: Pool, number: int, size: int, family: str = "tour") -> Outcome:
    key = key_of(number, family)
    return pool.put(key, bytes_of(key, size))


def visit_storing(pool: Pool) -> None:
    """put, put_many, a second put of the same key, remove."""
    keys = [key_of(n, "prefix") for n in range(8)]
    pool.put_many(b"".join(keys), [bytes_of(key, SMALL) for key in keys])
    store(pool, 1, SMALL)
    store(pool, 1, SMALL)
    pool.remove(key_of(1, "tour"))


def visit_reading(pool: Pool) -> None:
    """lookup, pin, views, get, read_into."""
    keys = b"".join(key_of(n, "prefix") for n in range(8))
    pool.lookup(keys)
    with pool.pin(keys) as prefix:
        views = prefix.views
    view = pool.get(keys[:16])
    del views, view
    pool.read_into(keys, [bytearray(SMALL) for _ in range(8)])


def visit_leaving(pool: Pool) -> None:
    """What leaves next is held for being copied away, and let go."""
    scan = core.LeavingScan(pool)
    packed = scan.look(1 << 40, 4)
    for at in range(0, len(packed), 96):
        slot, generation = struct.unpack_from("<QQ", packed, at + 56)
        view = scan.hold(slot, generation)
        scan.keep(slot, generation)
        del view


def visit_reserving(pool: Pool) -> None:
    """reserve and seal, reserve and leave, a batch."""
    key = key_of(2, "tour")
    with pool.reserve(key, SMALL) as r:
        if r.outcome == Outcome.RESERVED:
            r.buffer[:] = bytes_of(key, SMALL)
            r.seal()
    with pool.reserve(key_of(3, "tour"), SMALL, device=True):
        pass
    keys = [key_of(n, "batch") for n in range(4)]
    with pool.reserve_many(b"".join(keys), SMALL) as batch:
        for key, buffer in zip(keys, batch.buffers, strict=True):
            if buffer is not None:
                buffer[:] = bytes_of(key, SMALL)
        batch.seal()


def visit_drafts(pool: Pool) -> None:
    """allocate, publish; allocate, discard."""
    key = key_of(4, "tour")
    draft = pool.allocate(SMALL)
    if draft is not None:
        draft.buffer[:] = bytes_of(key, SMALL)
        draft.publish(key)
    draft = pool.allocate(SMALL)
    if draft is not None:
        draft.discard()


def visit_parts(pool: Pool) -> None:
    """Two parts of one chunk, sealed; two parts of another, one given up."""
    for number, gives_up in ((5, False), (6, True)):
        key = key_of(number, "parts")
        content = bytes_of(key, SMALL)
        half = SMALL // 2
        first = pool.reserve(key, SMALL, part=0, parts=2)
        second = pool.reserve(key, SMALL, part=1, parts=2)
        for part, r in enumerate((first, second)):
            if r.outcome == Outcome.RESERVED:
                r.buffer[:] = content[part * half : (part + 1) * half]
        if gives_up:
            first.discard()
        elif first.outcome == Outcome.RESERVED:
            first.seal()
        if second.outcome == Outcome.RESERVED:
            second.seal()


def visit_deadlines(pool: Pool) -> None:
    """A reservation whose deadline has passed is taken over by a rival; its owner finds LOST."""
    key = key_of(7, "tour")
    slow = pool.reserve(key, SMALL, deadline=0)
    store(pool, 7, SMALL)
    if slow.outcome == Outcome.RESERVED:
        slow.buffer[:] = bytes_of(key, SMALL)
        slow.seal()


def visit_namespaces(pool: Pool) -> None:
    """Register, store, invalidate, store again."""
    ns = pool.namespace(Identity(model="tour", kv_layout="bytes", tenant=str(os.getpid())), ttl=30)
    key = key_of(8, "tour")
    pool.put(key, bytes_of(key, SMALL), namespace=ns)
    ns.bump()
    pool.put(key, bytes_of(key, SMALL), namespace=ns)


def visit_shares(pool: Pool) -> None:
    """A tenant with a share and a limit, whose chunks are overwritten as they leave."""
    with contextlib.suppress(PoolBusy):
        pool.set_share("shared", 64 << 10, 128 << 10)
    ns = pool.namespace(Identity(model="tour", kv_layout="bytes", tenant="shared"), policy=["zeroed"])
    for number in range(40):
        key = key_of(number, "shared")
        pool.put(key, bytes_of(key, SMALL), namespace=ns)
    pool.remove(key_of(39, "shared"))


def visit_eviction(pool: Pool) -> None:
    """More than fits, in three sizes, with chunks pinned: eviction, and slabs that change their size or cannot."""
    pinned = pool.get(key_of(0, "prefix"))
    for n in range(80):
        store(pool, n, LARGE, "large")
    for n in range(500):
        store(pool, n, SMALL, "small")
    for n in range(1200):
        store(pool, n, TINY, "tiny")
    # Every other chunk: a slab's value is judged by a sample, so some slabs look free and turn out not to be.
    views = [pool.get(key_of(n, "tiny")) for n in range(1, 1200, 2)]
    for n in range(80, 100):
        store(pool, n, LARGE, "large")
    del pinned, views
    for n in range(100, 160):
        store(pool, n, LARGE, "large")


def _die_with(pool: Pool, act: Callable[[Pool], object]) -> None:
    """Fork a child that does `act` and is killed holding whatever it then holds."""
    pid = os.fork()
    if pid == 0:
        held = act(pool)
        os.kill(os.getpid(), signal.SIGKILL)
        del held
    os.waitpid(pid, 0)


def visit_the_dead(pool: Pool) -> None:
    """A child dies with a reservation, a draft, a pin; its key is wanted at once; then the sweep."""
    for attempt in range(20):
        key = key_of(attempt, "dead")

        def hold(child: Pool, key: bytes = key) -> object:
            rest = (
                child.reserve(key_of(0, "left"), SMALL),
                child.allocate(SMALL),
                child.get(key_of(0, "prefix")),
            )
            return child.reserve(key, SMALL), rest

        _die_with(pool, hold)
        pool.put(key, bytes_of(key, SMALL))
        pool.reap()
        if core.crash_points().get("resolve.begin", 1) > 0:
            break


def visit_segments(pool: Pool) -> None:
    """More memory, once in the pool's life."""
    with contextlib.suppress(PoolMismatch, PoolBusy):  # It has it, or somebody is just adding it.
        Pool.add_segment(pool.config.url, f"{pool.folder}/segment-added")
    pool.reap()


def visit_housekeeping(pool: Pool) -> None:
    """Let the housekeeper sweep once, if nobody else's does it first."""
    deadline = time.monotonic() + 1
    while core.crash_points().get("sweep.elected", 1) == 0 and time.monotonic() < deadline:
        pool.wait_ready(0.1)
        pool.wait(key_of(0, "nobody"), 0.1)


def see_everything(url: str, wait_for_sweep: bool = False) -> None:
    """Open a pool, creating it if there is none, and stop everywhere once."""
    with Pool.open(url) as pool:
        pool.wait_ready(10)
        visit_storing(pool)
        visit_reading(pool)
        visit_leaving(pool)
        visit_reserving(pool)
        visit_drafts(pool)
        visit_parts(pool)
        visit_deadlines(pool)
        visit_namespaces(pool)
        visit_shares(pool)
        visit_eviction(pool)
        visit_the_dead(pool)
        visit_segments(pool)
        if wait_for_sweep:
            visit_housekeeping(pool)


def walk(url: str) -> None:
    """See everything, then destroy the pool."""
    see_everything(url, wait_for_sweep=True)
    Pool.destroy(url, force=True)


def walk_and_tell(url: str) -> None:
    """Walk, then print the points that were reached, one a line."""
    walk(url)
    for name, hits in core.crash_points().items():
        if hits:
            print(name, flush=True)


def faults_of(pool: Pool) -> list[str]:
    """With every other process gone: does anything leak, is any readable byte wrong, does life go on?"""
    pool.reap()
    faults = pool.check()
    for family, count in FAMILIES.items():
        for number in range(count):
            key = key_of(number, family)
            view = pool.get(key)
            if view is not None and not is_right(key, view):
                faults.append(f"wrong bytes under {family} {number}")
    fresh = key_of(0, "after")
    outcome = pool.put(fresh, bytes_of(fresh, SMALL))
    if outcome not in (Outcome.STORED, Outcome.EXISTS):
        faults.append(f"nothing can be stored any more: {outcome.name}")
    view = pool.get(fresh)
    if view is None or not is_right(fresh, view):
        faults.append("what was stored just now cannot be read")
    states = pool.stats()["chunks"]
    faults += [f"{states[name]} chunks left {name}" for name in TRANSIENT if states[name]]
    return faults
