"""The small worlds in which the pool's protocols are walked: who is there, and what each of them does.

Every world has two or three processes at work, one or two slots and units, and often a cleaner and a newcomer that gets
the number of somebody who died. Everyone can be killed at any step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from explorer import Model, System
from pool_cells import RESERVED, PoolCells
from protocol_reading import drop_slot, evict_slot, free_extent, pin_key, remove_key, unpin
from protocol_recovery import claim_process, clean_dead_processes, lock_shard, sweep, unlock_shard
from protocol_writing import (
    abandon_parts,
    claim_key,
    claim_unit,
    discard_chunk,
    recut_slab,
    reserve_chunk,
    seal_chunk,
    seal_part,
)  # fmt: skip

# ---- what a process does ----


def read(pool: PoolCells, me: int, key: str, with_epochs: bool = False) -> Model:
    i = yield from pin_key(pool, me, key, with_epochs)
    if i is not None:
        yield from unpin(pool, me, i)


def write_bytes(pool: PoolCells, me: int, unit: int, content: Any, how: str) -> Model:
    if how == "device":
        yield pool.store(pool.copying[unit], content, "(caller)")
        yield pool.when(lambda m: m[pool.copying[unit]] is None, id, "waits for its device copy", "(caller)")
    elif how == "streaming":
        yield pool.change(pool.streamed[me], lambda s: (*s, (unit, content)), "adds to", "(caller)")
    else:
        yield pool.store(pool.bytes[unit], content, "(caller)")


def put(pool: PoolCells, me: int, key: str, how: str = "plain", may_discard: bool = False, epoch: int = 1) -> Model:
    outcome, i, word, unit = yield from reserve_chunk(pool, me, epoch, key, device=how == "device")
    if outcome != RESERVED:
        return
    yield from write_bytes(pool, me, unit, (key, me), how)
    if may_discard:
        go_on = yield pool.choose("does it seal?", "(caller)")
        if not go_on:
            yield from discard_chunk(pool, me, i, word)
            return
        del go_on
    yield from seal_chunk(pool, me, i, word, unit, (key, me))


def put_all(pool: PoolCells, me: int, keys: str) -> Model:
    for key in keys:
        yield from put(pool, me, key)


def evict_and_store(pool: PoolCells, me: int, i: int, unit: int, key: str) -> Model:
    """What a put does in a full pool: somebody else's slot and extent for a key of its own."""
    gone = yield from evict_slot(pool, me, i, unit)
    if not gone:
        return
    outcome, i, word = yield from claim_key(pool, me, 1, key, unit, 0, 1, False)
    if outcome != RESERVED:
        yield from free_extent(pool, me, unit, False)
        return
    yield from write_bytes(pool, me, unit, (key, me), "plain")
    yield from seal_chunk(pool, me, i, word, unit, (key, me))


def write_part(pool: PoolCells, me: int, key: str, part: int, may_discard: bool) -> Model:
    outcome, i, word, unit = yield from reserve_chunk(pool, me, 1, key, part, 2)
    if outcome != RESERVED:
        return
    yield pool.change(pool.bytes[unit], lambda b: _with_half(b, key, part, me), f"writes half {part} of", "(caller)")
    if may_discard:
        go_on = yield pool.choose("does it seal?", "(caller)")
        if not go_on:
            yield from abandon_parts(pool, me, i, word)
            return
        del go_on
    yield from seal_part(pool, me, i, word, unit, part, (key, (0, 1)))


def _with_half(before: Any, key: str, part: int, author: int) -> Any:
    halves = list(before[1]) if before is not None and isinstance(before[1], tuple) else [None, None]
    halves[part] = author
    return key, tuple(halves)


def take_unit(pool: PoolCells, me: int, unit: int, units: int) -> Model:
    """Look for a chunk of `units` units at `unit`, keep it for a moment, give it back."""
    seen = yield pool.load(pool.slab[0], "take_from_slab")
    if seen[0] != "ACTIVE" or seen[2] != units:
        return
    got = yield from claim_unit(pool, me, unit, seen)
    if got:
        yield _give_back(pool, me, unit, units)


def give_slab_another_size(pool: PoolCells, me: int, units: int) -> Model:
    first = yield from recut_slab(pool, me, units, evict_slot)
    if first is not None:
        yield _give_back(pool, me, first, units)


def _give_back(pool: PoolCells, me: int, unit: int, units: int) -> Any:
    ghosts = ((pool.mine[me], lambda mine: mine - set(range(unit, unit + units))),)
    return pool.store(pool.owner[unit], "FREE", "free_extent", "free.owner_cleared", ghosts)


def hold_lock(pool: PoolCells, me: int, epoch: int = 1) -> Model:
    locked = yield from lock_shard(pool, me, epoch)
    if locked:
        yield from unlock_shard(pool, me)


def come_again(pool: PoolCells, me: int, act: Callable[..., Model], *arguments: Any) -> Model:
    """Attach under a number whose owner died, then act."""
    yield from claim_process(pool, me)
    yield from act(pool, me, *arguments)


def bump(pool: PoolCells, me: int) -> Model:
    yield pool.change(pool.namespace, lambda n: n + 1, "adds 1 to", "bump_namespace")


def newcomer_cleans(pool: PoolCells, me: int) -> Model:
    """Attach and sweep, alone in the world: what must suffice after any deaths."""
    yield from claim_process(pool, me)
    yield from sweep(pool, me)


# ---- the worlds ----


def pinning_and_eviction(changes: frozenset[str]) -> System:
    """(1) Read A while another evicts it and takes its slot and extent for B; a cleaner for either's death."""
    pool = PoolCells(1, 1, 4, changes)
    pool.attach(0, 1, 2)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("reader", 0, read, "A"),
        pool.actor("evictor", 1, evict_and_store, 0, 0, "B"),
        pool.actor("cleaner", 2, clean_dead_processes),
    ]
    return pool.system(actors, newcomer_cleans)


def eviction_and_the_same_key(changes: frozenset[str]) -> System:
    """(1) Evict A, read A, and put A again, with room beside it: what comes back must not be bound twice."""
    pool = PoolCells(2, 2, 4, changes)
    pool.attach(0, 1, 2)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("reader", 0, read, "A"),
        pool.actor("evictor", 1, drop_slot, 0),
        pool.actor("writer", 2, put, "A"),
    ]
    return pool.system(actors, newcomer_cleans)


def everybody_on_one_key(changes: frozenset[str]) -> System:
    """(1) A is read, removed and put again, and whoever dies of these is cleaned up after at once."""
    pool = PoolCells(2, 2, 5, changes)
    pool.attach(0, 1, 2, 3)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("reader", 0, read, "A"),
        pool.actor("evictor", 1, remove_key, "A"),
        pool.actor("writer", 2, put, "A"),
        pool.actor("cleaner", 3, clean_dead_processes),
    ]
    return pool.system(actors, newcomer_cleans)


def two_evictors(changes: frozenset[str]) -> System:
    """(1) Two want the slot and extent of A for keys of their own, beside a reader."""
    pool = PoolCells(1, 1, 4, changes)
    pool.attach(0, 1, 2)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("reader", 0, read, "A"),
        pool.actor("evictor", 1, evict_and_store, 0, 0, "B"),
        pool.actor("other evictor", 2, evict_and_store, 0, 0, "C"),
    ]
    return pool.system(actors, newcomer_cleans)


def a_number_comes_back(changes: frozenset[str]) -> System:
    """(1) An evictor dies, a writer of the same key resolves its word, and a newcomer has the evictor's number."""
    pool = PoolCells(1, 1, 4, changes)
    pool.attach(0, 1, 2)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("reader", 0, read, "A"),
        pool.actor("evictor", 1, drop_slot, 0),
        pool.actor("writer", 2, claim_key, 1, "A", None, 0, 1, False),
        pool.actor("newcomer", 1, come_again, drop_slot, 0),
    ]
    return pool.system(actors, newcomer_cleans)


def a_writers_number_comes_back(changes: frozenset[str]) -> System:
    """(2) A writer dies, a rival for its key resolves its word, and a newcomer has the writer's number."""
    pool = PoolCells(2, 2, 4, changes)
    pool.attach(0, 1)
    actors = [
        pool.actor("writer", 0, put, "A"),
        pool.actor("rival", 1, put, "A"),
        pool.actor("newcomer", 0, come_again, put, "A", "plain", False, 2),
    ]
    return pool.system(actors, newcomer_cleans)


def taking_over(how: str, keys: str = "A") -> Callable[[frozenset[str]], System]:
    """(2) Reserve, overdue at any time, taken over by a rival; seal, discard, death; bytes that come late."""

    def world(changes: frozenset[str]) -> System:
        pool = PoolCells(2, 2, 4, changes)
        pool.attach(0, 1, 2)
        actors = [
            pool.actor("writer", 0, put, "A", how, len(keys) == 1),
            pool.actor("rival", 1, put_all, keys),
            pool.actor("cleaner", 2, clean_dead_processes),
        ]
        return pool.system(actors, newcomer_cleans)

    return world


def parts(changes: frozenset[str]) -> System:
    """(3) Two writers of one chunk, a rival that comes when they are late, death of either."""
    pool = PoolCells(2, 2, 4, changes)
    pool.attach(0, 1, 2)
    actors = [
        pool.actor("first rank", 0, write_part, "A", 0, True),
        pool.actor("second rank", 1, write_part, "A", 1, False),
        pool.actor("cleaner", 2, clean_dead_processes),
    ]
    return pool.system(actors, newcomer_cleans)


def parts_overdue(changes: frozenset[str]) -> System:
    """(3) Two writers of one chunk, and a third process that takes the key over."""
    pool = PoolCells(2, 2, 4, changes)
    pool.attach(0, 1, 2)
    actors = [
        pool.actor("first rank", 0, write_part, "A", 0, False),
        pool.actor("second rank", 1, write_part, "A", 1, False),
        pool.actor("rival", 2, put, "A"),
    ]
    return pool.system(actors, newcomer_cleans)


def another_chunk_size(changes: frozenset[str]) -> System:
    """(4) One slab of two units, A in the first: cut anew for chunks of two, and again for one, beside allocations."""
    pool = PoolCells(1, 2, 5, changes, slabs=1)
    pool.attach(0, 1, 2, 3)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("slow allocator", 0, take_unit, 1, 1),
        pool.actor("re-classer", 1, give_slab_another_size, 2),
        pool.actor("reader", 2, read, "A"),
        pool.actor("cleaner", 3, clean_dead_processes),
    ]
    return pool.system(actors, newcomer_cleans)


def another_size_and_back(changes: frozenset[str]) -> System:
    """(4) As before with an empty slab, and somebody who cuts it back."""
    pool = PoolCells(1, 2, 5, changes, slabs=1)
    pool.attach(0, 1, 2, 3)
    actors = [
        pool.actor("slow allocator", 0, take_unit, 1, 1),
        pool.actor("re-classer", 1, give_slab_another_size, 2),
        pool.actor("other re-classer", 2, give_slab_another_size, 1),
        pool.actor("cleaner", 3, clean_dead_processes),
    ]
    return pool.system(actors, newcomer_cleans)


def the_shard_lock(changes: frozenset[str]) -> System:
    """(5) A holder dies; two take over at once, a cleaner too, and a newcomer has the holder's number."""
    pool = PoolCells(1, 1, 5, changes)
    pool.attach(0, 1, 2, 3)
    actors = [
        pool.actor("holder", 0, hold_lock),
        pool.actor("thief", 1, hold_lock),
        pool.actor("other thief", 2, hold_lock),
        pool.actor("cleaner", 3, clean_dead_processes),
        pool.actor("newcomer", 0, come_again, hold_lock, 2),
    ]
    return pool.system(actors, newcomer_cleans)


def invalidated(changes: frozenset[str]) -> System:
    """(1) A namespace is bumped while A is read, evicted and stored again."""
    pool = PoolCells(2, 2, 5, changes)
    pool.attach(0, 1, 2, 3)
    pool.put(0, "A", 0)
    actors = [
        pool.actor("reader", 0, read, "A", True),
        pool.actor("evictor", 1, remove_key, "A"),
        pool.actor("writer", 2, put, "A"),
        pool.actor("administrator", 3, bump),
    ]
    return pool.system(actors, newcomer_cleans)


WORLDS: dict[str, Callable[[frozenset[str]], System]] = {
    "pinning and eviction": pinning_and_eviction,
    "eviction and the same key": eviction_and_the_same_key,
    "two evictors": two_evictors,
    "everybody on one key": everybody_on_one_key,
    "a number comes back": a_number_comes_back,
    "a writer's number comes back": a_writers_number_comes_back,
    "taking over": taking_over("plain"),
    "taking over, streaming stores": taking_over("streaming"),
    "taking over, device": taking_over("device"),
    "taking over, and another key": taking_over("plain", "AB"),
    "parts": parts,
    "parts, overdue": parts_overdue,
    "another chunk size": another_chunk_size,
    "another chunk size, and back": another_size_and_back,
    "the shard lock": the_shard_lock,
    "an invalidated chunk": invalidated,
}
