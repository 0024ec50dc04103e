"""What the dead leave behind, step by step: pool/cleaner.cpp, the releasing half of pool/reservation.cpp, the shard
lock of pool/chunk_index.cpp, and joining under a number that a dead process had (pool/process_table.cpp).
"""

from __future__ import annotations

from typing import Any

from explorer import Model
from pool_cells import (
    ACTIVE,
    DRAINING,
    EVICTING,
    FREE,
    NOBODY,
    QUARANTINED,
    RELEASING,
    RESERVED,
    REVOKED,
    SEALED,
    SUSPECT,
    PoolCells,
)  # fmt: skip
from protocol_reading import drop_slot, free_extent, is_current, is_pinned


def process_is_alive(pool: PoolCells, me: int, process: int) -> Model:
    """Whoever cleans up after a process holds its byte lock too, and then it counts as alive."""
    if process == me:
        return True
    holder = yield pool.load(pool.byte[process], "process_is_alive")
    return holder is not None


def lock_shard(pool: PoolCells, me: int, epoch: int) -> Model:
    """False: BUSY. Waiting first is the same as beginning later, so the lock is asked for once."""
    mine = (me, 0 if pool.has("lock_word_without_epoch") else epoch)
    seen = yield pool.load(pool.lock, "lock_shard")
    if seen is not None:
        alive = yield from process_is_alive(pool, me, seen[0])
        if alive:
            return False
    got = yield pool.swap(
        pool.lock, seen, mine, "lock_shard", "lock.taken", ((pool.inside, lambda inside: inside | {me}),)
    )
    return got == seen


def unlock_shard(pool: PoolCells, me: int) -> Model:
    yield pool.store(pool.lock, None, "unlock_shard", None, ((pool.inside, lambda inside: inside - {me}),))


def is_bound(pool: PoolCells, i: int) -> Model:
    extent = yield pool.load(pool.extent[i], "is_bound")
    if extent is None:
        return False
    owner = yield pool.load(pool.owner[extent], "is_bound")
    return owner[:2] == ("S", i)


def release_slot(pool: PoolCells, me: int, i: int, device: bool) -> Model:
    word = yield pool.load(pool.word[i], "release_slot")
    unit = yield pool.load(pool.extent[i], "release_slot")
    if unit is not None:
        owner = yield pool.load(pool.owner[unit], "release_slot")
        if owner[:2] == ("S", i) or pool.has("no_back_reference_check"):
            yield from free_extent(pool, me, unit, device)
    yield pool.store(pool.tag[i], None, "clear_tag", "release.tag_cleared")
    yield pool.store(pool.word[i], (FREE, NOBODY, word[2] + 1), "release_slot", "release.done")


def revoke_parts(pool: PoolCells, i: int, reserved: Any) -> Model:
    word = yield pool.load(pool.word[i], "revoke_parts")
    if word[2] != reserved[2] or word[0] != RESERVED:
        return False
    seen = yield pool.swap(pool.word[i], word, (REVOKED, NOBODY, word[2]), "revoke_parts")
    if seen != word:
        return False
    yield pool.store(pool.tag[i], None, "clear_tag")
    return True


def release_if_unpinned(pool: PoolCells, me: int, i: int) -> Model:
    word = yield pool.load(pool.word[i], "release_if_unpinned")
    if word[:2] != (REVOKED, NOBODY):
        return
    pinned = yield from is_pinned(pool, i)
    if pinned:
        return
    seen = yield pool.swap(pool.word[i], word, (RELEASING, me, word[2]), "release_if_unpinned")
    if seen != word:
        return
    device = yield from device_bit(pool, i)
    yield from release_slot(pool, me, i, device)


def device_bit(pool: PoolCells, i: int) -> Model:
    extent = yield pool.load(pool.extent[i], "device_bit")
    owner = yield pool.load(pool.owner[extent], "device_bit")
    return owner != FREE and owner[-1] is True


def end_parts(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    yield pool.change(pool.pin[me][i], lambda n: n + 1, "adds 1 to", "end_parts")
    yield from revoke_parts(pool, i, word)
    yield pool.change(pool.pin[me][i], lambda n: n - 1, "takes 1 from", "end_parts")
    yield from release_if_unpinned(pool, me, i)


def finish_dead(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    state, _, generation = word
    ours = yield from is_bound(pool, i)
    if state in (EVICTING, SUSPECT) and ours:
        pinned = yield from is_pinned(pool, i)
        if pinned:
            back = (QUARANTINED if state == SUSPECT else SEALED, NOBODY, generation)
            yield pool.swap(pool.word[i], word, back, "finish_dead")
            return
        del pinned
    if state == RESERVED and ours:
        parts = yield pool.load(pool.parts[i], "finish_dead")
        if parts[0] > 1:
            yield from end_parts(pool, me, i, word)
            return
        del parts
    seen = yield pool.swap(pool.word[i], word, (RELEASING, me, generation), "finish_dead", "clean.word_taken_over")
    if seen != word:
        return
    device = False
    if ours:
        device = yield from device_bit(pool, i)
    yield from release_slot(pool, me, i, device)


def resolve_word(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    held = not pool.has("resolver_without_the_byte")
    if held:
        got = yield _take_byte_of_the_dead(pool, me, word[1])
        if not got:
            return
        del got
    seen = yield pool.load(pool.word[i], "resolve_word")
    if seen == word:
        yield from finish_dead(pool, me, i, word)
    if held:
        yield pool.store(pool.byte[word[1]], None, "resolve_word")


def has_unfinished_part(pool: PoolCells, i: int, process: int) -> Model:
    total, done = yield pool.load(pool.parts[i], "has_unfinished_part")
    owners = yield pool.load(pool.part_owner[i], "has_unfinished_part")
    return any(owners[part] == process for part in range(total) if part not in done)


def is_complete(pool: PoolCells, i: int) -> Model:
    total, done = yield pool.load(pool.parts[i], "is_complete")
    return total > 1 and len(done) == total


def clean_slots(pool: PoolCells, me: int, process: int) -> Model:
    for i in pool.slots:
        word = yield pool.load(pool.word[i], "clean_slots")
        if word[0] in (FREE, SEALED, QUARANTINED):
            continue
        if word[1] == process:
            yield from finish_dead(pool, me, i, word)
            if not pool.has("cleaner_looks_once"):
                word = yield pool.load(pool.word[i], "clean_slots")
                if word[:2] == (REVOKED, process):
                    yield from finish_dead(pool, me, i, word)
        elif word[0] == RESERVED:
            bound = yield from is_bound(pool, i)
            if not bound:
                continue
            unfinished = yield from has_unfinished_part(pool, i, process)
            complete = False
            if not unfinished:
                complete = yield from is_complete(pool, i)
            if unfinished or complete:
                yield from end_parts(pool, me, i, word)
        elif word[:2] == (REVOKED, NOBODY):
            yield from release_if_unpinned(pool, me, i)


def clean_slabs(pool: PoolCells, process: int) -> Model:
    for cell in pool.slab:
        word = yield pool.load(cell, "clean_slabs")
        if word[:2] == (DRAINING, process):
            yield pool.swap(cell, word, (ACTIVE, NOBODY, word[2], word[3] + 1), "clean_slabs", "clean.slab")


def clean_owners(pool: PoolCells, me: int, process: int) -> Model:
    for unit in pool.units:
        word = yield pool.load(pool.owner[unit], "clean_owners")
        if word[:2] == ("P", process):
            yield from free_extent(pool, me, unit, word[2])


def clean_process(pool: PoolCells, me: int, process: int) -> Model:
    """The caller holds the byte lock of `process`."""
    if not pool.has("dead_pins_not_wiped"):
        for i in pool.slots:
            pins = yield pool.load(pool.pin[process][i], "clean_process")
            if pins:
                yield pool.store(pool.pin[process][i], 0, "clean_process")
            del pins
    owner = yield pool.load(pool.lock, "clean_locks")
    if owner is not None and owner[0] == process:
        yield pool.swap(pool.lock, owner, None, "clean_locks")
    del owner
    yield from clean_slots(pool, me, process)
    yield from clean_slabs(pool, process)
    yield from clean_owners(pool, me, process)
    yield pool.store(pool.revoked[process], 0, "clean_process")
    bit = frozenset({process})
    yield pool.change(pool.live, lambda live: live - bit, f"takes {process} from", "clean_process", "clean.before_row")
    yield pool.store(pool.attached[process], 0, "clean_process")


def clean_dead_processes(pool: PoolCells, me: int) -> Model:
    for process in pool.processes:
        if process == me:
            continue
        cleaned = yield _take_byte_of_the_dead(pool, me, process)
        if cleaned:
            yield from clean_process(pool, me, process)
            yield pool.store(pool.byte[process], None, "clean_dead_processes")


def _take_byte_of_the_dead(pool: PoolCells, me: int, process: int) -> Any:
    """try_lock, and then `attached` again: with the lock held nobody else can change it, so both are one step."""

    def take(m: list[Any]) -> bool:
        if m[pool.byte[process]] is not None or not m[pool.attached[process]]:
            return False
        m[pool.byte[process]] = me
        return True

    return pool.do(take, f"takes the byte lock of {process} if it is dead", "clean_dead_processes")


def claim_process(pool: PoolCells, me: int) -> Model:
    """Attach under number `me`; returns the epoch. Waits until the kernel has let go of the number."""
    was_attached = yield pool.when(
        lambda m: m[pool.byte[me]] is None, lambda m: _tie(pool, m, me),
        f"ties the byte lock of {me}", "claim_process", "claim.byte_locked",
    )  # fmt: skip
    if was_attached:
        yield from clean_process(pool, me, me)
    return (yield pool.do(lambda m: _enter(pool, m, me), "enters the process table", "claim_process", "claim.live"))


def _tie(pool: PoolCells, m: list[Any], me: int) -> bool:
    m[pool.byte[me]] = me
    return bool(m[pool.attached[me]])


def _enter(pool: PoolCells, m: list[Any], me: int) -> int:
    m[pool.attached[me]], m[pool.live], m[pool.times[me]] = 1, m[pool.live] | {me}, m[pool.times[me]] + 1
    return int(m[pool.times[me]])


def sweep(pool: PoolCells, me: int) -> Model:
    yield from clean_dead_processes(pool, me)
    for i in pool.slots:
        word = yield pool.load(pool.word[i], "sweep")
        if word[0] == QUARANTINED:
            yield from drop_slot(pool, me, i)
        elif word[0] == REVOKED:
            yield from release_if_unpinned(pool, me, i)
        elif word[0] == SEALED:
            current = yield from is_current(pool, i)
            if not current:
                yield from drop_slot(pool, me, i)
            del current
        del word


def newcomer_cleans(pool: PoolCells, me: int) -> Model:
    """Attach and sweep, alone in the world: what must suffice after any deaths."""
    yield from claim_process(pool, me)
    yield from sweep(pool, me)
