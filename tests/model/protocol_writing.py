"""Reserve, fill, seal and their ends, step by step: pool/reservation.cpp, pool/claim.cpp and the taking of free extents
in pool/allocator.cpp; slabs that are recut, all at once or bit by bit: pool/recut.cpp.

Merged into one step: the stores with which a claimer fills a slot that its word says is RESERVED by it. Nobody reads
them as facts before the extent's owner word names the slot (is_bound) or the tag is set (look), and both come later; a
reader that still holds the slot's last word reads the word again afterwards. Left out: a reservation's bytes arrive in
one store, because every byte of them is the author's alone until the seal.
"""

from __future__ import annotations

from typing import Any

from explorer import Model
from pool_cells import (
    ACTIVE,
    COOLING,
    EVICTING,
    FREE,
    NOBODY,
    QUARANTINED,
    RELEASING,
    RESERVED,
    REVOKED,
    SEALED,
    PoolCells,
)  # fmt: skip
from protocol_reading import drop_slot, free_extent, is_current, match_tags
from protocol_recovery import (
    device_bit,
    lock_shard,
    process_is_alive,
    release_if_unpinned,
    release_slot,
    resolve_word,
    revoke_parts,
    unlock_shard,
)  # fmt: skip

CLEAR, EXISTS, IN_FLIGHT, JOINED, WAIT = "clear", "EXISTS", "IN_FLIGHT", "joined", "wait"
STORED, LOST, BUSY, FULL = "STORED", "LOST", "BUSY", "FULL"
LOOKS = 2  # How often a claim looks again after kWait. More looks begin as a later claim would.
REVOKED_MAX = 2  # The cap on what may be taken over from one process, in chunks.


def claim_unit(pool: PoolCells, me: int, unit: int, seen: Any, device: bool = False) -> Model:
    """`seen`: the slab's word when the unit was chosen; None where the scenario has no slabs."""
    word = yield _look_at_owner(pool, unit, "claim_unit")
    if word is None:
        return False
    mine = ("P", me, device)
    got = yield pool.swap(pool.owner[unit], word, mine, "claim_unit", "alloc.claimed", _believes(pool, me, unit, seen))
    if got != word:
        return False
    if seen is None:
        return True
    now = yield _look_at_slab(pool, me, unit, seen)
    if now == seen or pool.has("slab_word_not_rechecked"):
        return True
    yield pool.store(pool.owner[unit], FREE, "claim_unit")
    return False


def _believes(pool: PoolCells, me: int, unit: int, seen: Any) -> Any:
    return pool.owns(me, unit) if seen is None else ()


def _look_at_slab(pool: PoolCells, me: int, unit: int, seen: Any) -> Any:
    def look(m: list[Any]) -> Any:
        if m[pool.slab[0]] == seen or pool.has("slab_word_not_rechecked"):
            m[pool.mine[me]] |= {unit}
        return m[pool.slab[0]]

    return pool.do(look, "reads the slab's word again", "claim_unit")


def _look_at_owner(pool: PoolCells, unit: int, at: str) -> Any:
    return pool.do(lambda m: _free_or_cooled(pool, m, unit), f"is unit {unit} free?", at)


def _free_or_cooled(pool: PoolCells, m: list[Any], unit: int) -> Any:
    owner = m[pool.owner[unit]]
    return owner if owner == FREE or (owner == COOLING and m[pool.copying[unit]] is None) else None


def allocate_extent(pool: PoolCells, me: int, device: bool = False) -> Model:
    for unit in pool.units:
        got = yield from claim_unit(pool, me, unit, None, device)
        if got:
            return unit
    return None


def revoke(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    _, process, generation = word
    parts = yield pool.load(pool.parts[i], "revoke")
    if parts[0] > 1:
        revoked = yield from revoke_parts(pool, i, word)
        if revoked:
            yield from release_if_unpinned(pool, me, i)
        return revoked
    held = yield pool.load(pool.revoked[process], "revoke")
    if held + 1 > REVOKED_MAX:
        return False
    yield pool.change(pool.revoked[process], lambda n: n + 1, "adds 1 to", "revoke", "revoke.before_word")
    seen = yield pool.swap(pool.word[i], word, (REVOKED, process, generation), "revoke", "revoke.after_word")
    if seen != word:
        floor = -1 if pool.has("revoked_bytes_wrap") else 0
        yield pool.change(pool.revoked[process], lambda n: max(floor, n - 1), "takes 1 from", "uncount_revoked")
        return False
    yield pool.store(pool.tag[i], None, "clear_tag")
    if pool.has("extent_reused_at_revoke"):
        unit = yield pool.load(pool.extent[i], "revoke")
        yield from free_extent(pool, me, unit, False)
    return True


def retire_stale(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    """True: it binds nothing any more."""
    gone = yield from drop_slot(pool, me, i)
    if gone:
        return True
    seen = yield pool.swap(pool.word[i], word, (QUARANTINED, NOBODY, word[2]), "retire_stale")
    if seen == word:
        yield pool.store(pool.tag[i], None, "clear_tag")
    return seen == word


def join(pool: PoolCells, me: int, i: int, word: Any, part: int, total: int, device: bool) -> Model:
    parts = yield pool.load(pool.parts[i], "join")
    if total < 2 or parts[0] != total:
        return False
    owners = yield pool.load(pool.part_owner[i], "join")
    if owners[part] is not None:
        return False
    extent = yield pool.load(pool.extent[i], "join")
    yield pool.change(pool.pin[me][i], lambda n: n + 1, "adds 1 to", "join")
    yield pool.change(pool.part_owner[i], lambda o: (*o[:part], me, *o[part + 1 :]), "enters", "join", "part.joined")
    if device:
        yield pool.change(pool.owner[extent], _with_device, "adds the device bit to", "join")
    again = yield pool.load(pool.word[i], "join")
    if again != word:
        yield pool.change(pool.pin[me][i], lambda n: n - 1, "takes 1 from", "unpin")
        yield from release_if_unpinned(pool, me, i)
        return False
    return True


def _with_device(owner: Any) -> Any:
    return (owner[0], owner[1], True) if owner not in (FREE, COOLING) else owner


def look(pool: PoolCells, me: int, key: str, part: int, total: int, device: bool) -> Model:
    """The verdict, and the slot and word that were joined."""
    slots = yield from match_tags(pool, key)
    for i in slots:
        word = yield pool.load(pool.word[i], "look")
        if word[0] not in (RESERVED, SEALED, EVICTING):
            continue
        held = yield pool.load(pool.key[i], "look")
        if held != key:
            continue
        if word[0] == SEALED:
            current = yield from is_current(pool, i)
            if current:
                return EXISTS, i, word
            retired = yield from retire_stale(pool, me, i, word)
            if not retired and not pool.has("stale_not_awaited"):
                return WAIT, i, word
            del current, retired
            continue
        if word[0] == EVICTING and pool.has("evicting_treated_as_absent"):
            continue
        if word[0] == RESERVED:
            joined = yield from join(pool, me, i, word, part, total, device)
            if joined:
                return JOINED, i, word
            del joined
        alive = yield from process_is_alive(pool, me, word[1])
        if not alive:
            yield from resolve_word(pool, me, i, word)
            return WAIT, i, word
        if word[0] == EVICTING:
            return WAIT, i, word
        late = yield pool.choose(f"is the reservation of slot {i} overdue?", "look")
        if late:
            revoked = yield from revoke(pool, me, i, word)
            if revoked:
                continue
        return IN_FLIGHT, i, word
    return CLEAR, None, None


def find_free_slot(pool: PoolCells, key: str) -> Model:
    for i in pool.slots:
        word = yield pool.load(pool.word[i], "find_free_slot")
        if word[0] == FREE:
            return i
    return None


def take_slot(pool: PoolCells, me: int, key: str, i: int, unit: int, part: int, total: int, device: bool) -> Model:
    free = yield pool.load(pool.word[i], "take_slot")
    word = (RESERVED, me, free[2])
    if free[0] != FREE:
        return None
    seen = yield pool.swap(pool.word[i], free, word, "take_slot", "claim.word_set")
    if seen != free:
        return None
    yield _fill(pool, me, key, i, unit, part, total)
    if total > 1:
        yield pool.change(pool.pin[me][i], lambda n: n + 1, "adds 1 to", "take_slot")
    yield pool.store(pool.owner[unit], ("S", i, device), "take_slot", "claim.extent_given", pool.owns_no_more(me, unit))
    yield pool.store(pool.tag[i], key, "take_slot", "claim.tag_set")
    return word


def _fill(pool: PoolCells, me: int, key: str, i: int, unit: int, part: int, total: int) -> Any:
    def fill(m: list[Any]) -> None:
        m[pool.key[i]], m[pool.extent[i]], m[pool.epoch[i]] = key, unit, m[pool.namespace]
        m[pool.parts[i]] = (total, frozenset())
        owners: list[int | None] = [None, None]
        if total > 1:
            owners[part] = me
        m[pool.part_owner[i]] = tuple(owners)

    return pool.do(fill, f"fills slot {i} with {key} in unit {unit}", "take_slot", "claim.fields_set")


def claim_key(
    pool: PoolCells, me: int, epoch: int, key: str, unit: int | None, part: int, total: int, device: bool
) -> Model:
    """(RESERVED or JOINED, slot, word), or (why not, None, None). Without a unit it only joins (join_chunk)."""
    for _ in range(LOOKS):
        locked = yield from lock_shard(pool, me, epoch)
        if not locked:
            return BUSY, None, None
        verdict, i, word = yield from look(pool, me, key, part, total, device)
        if verdict == CLEAR and unit is not None:
            i = yield from find_free_slot(pool, key)
            word = None
            if i is not None:
                word = yield from take_slot(pool, me, key, i, unit, part, total, device)
            verdict = FULL if i is None else BUSY if word is None else RESERVED
        yield from unlock_shard(pool, me)
        if verdict != WAIT:
            return verdict, i, word
        del locked, verdict, i, word
    return BUSY, None, None


def reserve_chunk(
    pool: PoolCells, me: int, epoch: int, key: str, part: int = 0, total: int = 1, device: bool = False
) -> Model:
    """(RESERVED, slot, word, unit), or the reason why not and three times None."""
    if total > 1:
        joined, i, word = yield from claim_key(pool, me, epoch, key, None, part, total, device)
        if joined == JOINED:
            unit = yield pool.load(pool.extent[i], "join")
            return RESERVED, i, word, unit
        if joined != CLEAR:
            return joined, None, None, None
        del joined, i, word
    unit = yield from allocate_extent(pool, me, device)
    if unit is None:
        return FULL, None, None, None
    outcome, i, word = yield from claim_key(pool, me, epoch, key, unit, part, total, device)
    if outcome != RESERVED:
        yield from free_extent(pool, me, unit, False)
    if outcome == JOINED:
        unit = yield pool.load(pool.extent[i], "join")
    if outcome in (RESERVED, JOINED):
        return RESERVED, i, word, unit
    return outcome, None, None, None


def prepare_to_seal(pool: PoolCells, me: int, i: int, unit: int) -> Model:
    if not pool.has("sealed_before_fence"):
        yield pool.do(lambda m: pool.drain(m, me), "drains its streaming stores", "prepare_to_seal")
    yield pool.store(pool.owner[unit], ("S", i, False), "prepare_to_seal")
    current = yield from is_current(pool, i)
    if not current:
        return False
    key = yield pool.load(pool.key[i], "write_header")
    yield pool.store(pool.header[unit], key, "write_header", "seal.before_word")
    return True


def _seal_word(pool: PoolCells, me: int, i: int, word: Any, content: Any) -> Any:
    ghosts = ((pool.meant[i], lambda _: content),)
    sealed = (SEALED, NOBODY, word[2])
    return pool.swap(pool.word[i], word, sealed, "seal_chunk", "seal.after_word", ghosts)


def seal_chunk(pool: PoolCells, me: int, i: int, word: Any, unit: int, content: Any) -> Model:
    current = yield from prepare_to_seal(pool, me, i, unit)
    if current:
        seen = yield _seal_word(pool, me, i, word, content)
        if seen == word:
            return STORED
        del seen
    yield from release_own(pool, me, i, word, False)
    return LOST


def release_own(pool: PoolCells, me: int, i: int, word: Any, device: bool) -> Model:
    releasing, revoked = (RELEASING, me, word[2]), (REVOKED, me, word[2])
    seen = yield pool.swap(pool.word[i], word, releasing, "release_own")
    if seen != word:
        if seen != revoked:
            return
        again = yield pool.swap(pool.word[i], revoked, releasing, "release_own", "discard.releasing")
        if again != revoked:
            return
        yield pool.change(pool.revoked[me], lambda n: max(0, n - 1), "takes 1 from", "uncount_revoked")
    yield from release_slot(pool, me, i, device)


def discard_chunk(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    if not pool.has("discarded_before_fence"):
        yield pool.do(lambda m: pool.drain(m, me), "drains its streaming stores", "discard_chunk")
    device = yield from device_bit(pool, i)
    yield from release_own(pool, me, i, word, device)


def abandon_parts(pool: PoolCells, me: int, i: int, word: Any) -> Model:
    yield from revoke_parts(pool, i, word)
    yield pool.change(pool.pin[me][i], lambda n: n - 1, "takes 1 from", "unpin", "part.revoked")
    yield from release_if_unpinned(pool, me, i)


def seal_part(pool: PoolCells, me: int, i: int, reserved: Any, unit: int, part: int, content: Any) -> Model:
    before = yield pool.change(
        pool.parts[i], lambda p: (p[0], p[1] | {part}), f"sets bit {part} of", "seal_part", "part.done"
    )
    word = yield pool.load(pool.word[i], "seal_part")
    outcome = STORED
    if word[2] != reserved[2] or word[0] != RESERVED:
        outcome = LOST
    elif len(before[1] | {part}) == before[0] or pool.has("last_part_not_awaited"):
        current = yield from prepare_to_seal(pool, me, i, unit)
        seen = None
        if current:
            seen = yield _seal_word(pool, me, i, word, content)
        outcome = STORED if seen == word else LOST
    if outcome == LOST:
        yield from abandon_parts(pool, me, i, reserved)
    else:
        yield pool.change(pool.pin[me][i], lambda n: n - 1, "takes 1 from", "unpin")
    return outcome


def claim_chunks(pool: PoolCells, me: int, units: int, evict: Any) -> Model:
    claimed = 0
    for unit in range(0, len(pool.units), units):
        owner = yield pool.load(pool.owner[unit], "claim_chunks")
        ok = False
        if owner in (FREE, COOLING):
            free = yield _look_at_owner(pool, unit, "claim_chunks")
            if free is not None:
                got = yield pool.swap(
                    pool.owner[unit], free, ("P", me, False), "claim_chunks", None, pool.owns(me, unit)
                )
                ok = got == free
                del got
            del free
        elif owner[0] == "S":
            ok = yield from evict(pool, me, owner[1], unit)
        if not ok:
            break
        claimed += 1
    if claimed * units == len(pool.units):
        return True
    for n in range(claimed):
        unit = n * units
        yield pool.store(pool.owner[unit], FREE, "set_back", None, pool.owns_no_more(me, unit))
    return False


def recut_slab(pool: PoolCells, me: int, units: int, evict: Any) -> Model:
    """The only slab gets chunks of `units` units; its first chunk is ours, or None."""
    word = yield pool.load(pool.slab[0], "mark_draining")
    if word[0] != ACTIVE or word[2] == units:
        return None
    held, generation = word[2], word[3]
    seen = yield pool.swap(pool.slab[0], word, ("DRAINING", me, held, generation), "mark_draining", "reclass.draining")
    if seen != word:
        return None
    whole = yield from claim_chunks(pool, me, held, evict)
    if not whole:
        yield pool.store(pool.slab[0], (ACTIVE, NOBODY, held, generation + 1), "set_back")
        return None
    yield _switch(pool, me, units, generation + 1)
    for unit in range(held, len(pool.units), held):
        yield pool.store(pool.owner[unit], FREE, "switch_size")
    return 0


def _switch(pool: PoolCells, me: int, units: int, generation: int) -> Any:
    first_chunk = frozenset(range(units))
    word = (ACTIVE, NOBODY, units, generation)
    ghosts = ((pool.mine[me], lambda _: first_chunk),)
    return pool.store(pool.slab[0], word, "switch_size", "reclass.switched", ghosts)
