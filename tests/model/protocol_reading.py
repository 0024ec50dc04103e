"""Pins and eviction, step by step: pool/pins.h, pool/eviction.cpp, and the part of pool/allocator.cpp that frees.

The look for pins before an evictor marks its victim (the first line of evict_slot) is left out. It only saves a
needless mark; a model that always goes on to mark does everything that the C++ can do, and more.

A reader's hold begins with the second reading of the word and ends with its unpin; in between it may look at the bytes
whenever it likes, which is asked in every state by PoolCells.fault and needs no step of its own.
"""

from __future__ import annotations

from typing import Any

from explorer import Model
from pool_cells import COOLING, EVICTING, FREE, NOBODY, QUARANTINED, SEALED, SUSPECT, PoolCells

PIN_TRIES = 2  # Four in the C++; the third goes through the same states as the second.


def match_tags(pool: PoolCells, key: str) -> Model:
    """The bucket is one cache line: its tags are read as one."""
    return (yield pool.do(lambda m: _tags(pool, m, key), f"looks for tags of {key}", "match_tags"))


def _tags(pool: PoolCells, m: list[Any], key: str) -> tuple[int, ...]:
    return tuple(i for i in pool.slots if m[pool.tag[i]] == key)


def is_current(pool: PoolCells, i: int) -> Model:
    epoch = yield pool.load(pool.namespace, "is_current")
    stored = yield pool.load(pool.epoch[i], "is_current")
    return epoch == stored or pool.has("stale_epoch_accepted")


def is_pinned(pool: PoolCells, i: int) -> Model:
    live = yield pool.load(pool.live, "is_pinned")
    for process in sorted(live):
        pins = yield pool.load(pool.pin[process][i], "is_pinned")
        if pins:
            return True
    return False


def pin_key(pool: PoolCells, me: int, key: str, with_epochs: bool = False) -> Model:
    """The slot that is pinned now, or None."""
    since = None
    if with_epochs:
        since = yield pool.load(pool.namespace, "(beholder)")
    slots = yield from match_tags(pool, key)
    for i in slots:
        for _ in range(PIN_TRIES):
            word = yield pool.load(pool.word[i], "pin_key")
            if word[0] != SEALED:
                break
            held = yield pool.load(pool.key[i], "pin_key", "pin.before")
            if held != key:
                break
            yield pool.change(pool.pin[me][i], lambda n: n + 1, "adds 1 to", "pin_key", "pin.taken")
            extent = yield pool.load(pool.extent[i], "pin_key")
            usable = True
            if with_epochs:
                usable = yield from is_current(pool, i)
            same = yield _read_again(pool, me, i, key, word, extent, usable, since)
            if same and usable:
                return i
            yield pool.change(pool.pin[me][i], lambda n: n - 1, "takes 1 from", "unpin")
            if same:
                break
    return None


def _read_again(pool: PoolCells, me: int, i: int, key: str, word: Any, extent: int, usable: bool, since: Any) -> Any:
    def look(m: list[Any]) -> bool:
        if m[pool.word[i]] != word and not pool.has("no_recheck_after_pin"):
            return False
        if usable:
            stale = since is not None and m[pool.epoch[i]] < since
            m[pool.held[me]] = (
                key,
                extent,
                ("what was invalidated before it asked",) if stale else m[pool.bytes[extent]],
            )
        return True

    return pool.do(look, f"reads the word of slot {i} again: still {word}?", "pin_key")


def unpin(pool: PoolCells, me: int, i: int) -> Model:
    yield pool.do(lambda m: _let_go(pool, m, me, i), f"lets go of slot {i}", "unpin")


def _let_go(pool: PoolCells, m: list[Any], me: int, i: int) -> None:
    m[pool.held[me]] = None
    m[pool.pin[me][i]] -= 1


def clear_header(pool: PoolCells, unit: int) -> Model:
    yield pool.store(pool.header[unit], None, "clear_header")


def free_extent(pool: PoolCells, me: int, unit: int, device: bool) -> Model:
    yield from clear_header(pool, unit)
    rests = device and not pool.has("device_extent_not_cooled")
    word = COOLING if rests else FREE
    yield pool.store(pool.owner[unit], word, "free_extent", "free.owner_cleared", pool.owns_no_more(me, unit))


def evict_slot(pool: PoolCells, me: int, i: int, unit: int, device: bool = False) -> Model:
    """True: the slot is free and its extent `unit` belongs to `me`."""
    word = yield pool.load(pool.word[i], "evict_slot", "evict.before_mark")
    state, _, generation = word
    if state not in (SEALED, QUARANTINED):
        return False
    mark = (SUSPECT if state == QUARANTINED else EVICTING, me, generation)
    seen = yield pool.swap(pool.word[i], word, mark, "evict_slot", "evict.marked")
    if seen != word:
        return False
    extent = yield pool.load(pool.extent[i], "evict_slot")
    in_place = extent == unit
    if in_place:
        owner = yield pool.load(pool.owner[unit], "evict_slot")
        in_place = owner[:2] == ("S", i)
        del owner
    stays = not in_place
    if in_place and not pool.has("no_pin_recheck_after_evicting"):
        stays = yield from is_pinned(pool, i)
    if stays:
        yield pool.store(pool.word[i], (state, NOBODY, generation), "evict_slot")
        return False
    owned = ("P", me, device)
    yield pool.store(pool.owner[unit], owned, "evict_slot", "evict.extent_taken", pool.owns(me, unit))
    yield from clear_header(pool, unit)
    yield pool.store(pool.tag[i], None, "clear_tag", "evict.tag_cleared")
    following = generation if pool.has("generation_not_bumped") else generation + 1
    yield pool.store(pool.word[i], (FREE, NOBODY, following), "evict_slot", "evict.done")
    return True


def drop_slot(pool: PoolCells, me: int, i: int) -> Model:
    unit = yield pool.load(pool.extent[i], "drop_slot")
    if unit is None:
        return False
    gone = yield from evict_slot(pool, me, i, unit)
    if gone:
        yield from free_extent(pool, me, unit, False)
    return gone


def remove_key(pool: PoolCells, me: int, key: str) -> Model:
    slots = yield from match_tags(pool, key)
    for i in slots:
        word = yield pool.load(pool.word[i], "remove_key")
        held = yield pool.load(pool.key[i], "remove_key")
        if word[0] == SEALED and held == key:
            return (yield from drop_slot(pool, me, i))
    return False
