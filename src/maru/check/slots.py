"""Rules about slots: the word, the way from a key to its slot, and the way from a slot to its extent.

Holds what is said about one slot and what it points to. What owner words say about themselves is in extents.py. A
slot's fields are believed only where its word makes them somebody's: not while it is FREE or being claimed.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterable

from maru.check.clock import host_boot_ns
from maru.check.finding import Finding, Severity, Suspects
from maru.check.tables import Row, Tables

_LOW64 = (1 << 64) - 1
_MIX_LO, _MIX_HI, _SPREAD = 0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0xFF51AFD7ED558CCD
_STEP = 1 << 16
Progress = Callable[[str, int, int], None]


def no_progress(_what: str, _done: int, _total: int) -> None:
    """For callers that show none."""


class SlotRules:
    """The rules, bound to the tables of one look. `states` counts slots by state as they are looked at."""

    def __init__(self, tables: Tables, suspects: Suspects) -> None:
        layout = tables.layout
        self.tables, self._suspects = tables, suspects
        self.states = [0] * len(layout.slot_states)
        number_of = {name: number for number, name in enumerate(layout.slot_states)}
        self._free, self._sealed, self._quarantined = (number_of[n] for n in ("FREE", "SEALED", "QUARANTINED"))
        self._reserved, self._evicting, self._revoked = (number_of[n] for n in ("RESERVED", "EVICTING", "REVOKED"))
        self._word = layout.words["slot"]
        self._nobody = layout.constants["nobody"]
        self._bucket_slots = layout.constants["bucket_slots"]
        self._buckets_probed = layout.constants["buckets_probed"]
        self._bucket_words = layout.sizes["Bucket"] // 4
        self._overflowed = layout.offset("Bucket", "overflowed") // 4
        owner = layout.words["owner"]
        self._slot_owner = owner.make(kind=layout.owner_kinds.index("SLOT"))
        # What an owner word says of an extent besides whose it is.
        self._aside = owner.make(device=1, wiped=1, tenant=owner.field("tenant")[1])
        self._total, self._done = layout.words["parts"].field("total"), layout.words["parts"].field("done")
        self._slab_state, self._slab_units = (layout.words["slab"].field(n) for n in ("state", "chunk_units"))
        self._segment, self._offset = (layout.words["extent"].field(n) for n in ("segment", "offset"))
        self._lone = layout.words["parts"].make(total=1)
        self._active = {layout.slab_states.index(name) for name in ("ACTIVE", "DRAINING")}
        self._now_ns = host_boot_ns()
        self._keys: dict[tuple[int, int], tuple[int, int]] = {}
        self._keys_shard = -1

    def _say(
        self, severity: Severity, code: str, number: int, what: str, field: str, *words: int,
        advice: str = "restore", rival: int = -1,
    ) -> None:  # fmt: skip
        if self.word_now(number) != words[0]:
            return  # It has moved on since it was read: common in a pool in use, and not worth a second look.
        name = "SlotHot" if field in self.tables.layout.places["SlotHot"] else "SlotCold"
        section = self.tables.geometry.sections["slots_hot" if name == "SlotHot" else "slots_cold"]
        place = section.place(number) + self.tables.layout.offset(name, field)
        self._suspects.add(Finding(severity, code, "slot", number, what, "index", place, advice, words, rival))

    def look(self, numbers: Iterable[int], progress: Progress = no_progress) -> None:
        """Judge these slots, given in ascending order."""
        tables = self.tables
        hot, tags, states = tables.hot, tables.tags, self.states
        slot_count, bucket_slots, bucket_words = tables.geometry.slot_count, self._bucket_slots, self._bucket_words
        shift, mask = self._word.field("state")
        low = (1 << self._word.field("generation")[0]) - 1
        sealed = self._word.make(state=self._sealed, process=self._nobody)
        for i in numbers:
            if not i % _STEP:
                progress("slots", i, slot_count)
            row = hot[i]
            word = row[0]
            state = word >> shift & mask
            bucket, place = divmod(i, bucket_slots)
            tag = tags[bucket * bucket_words + place]
            if word & low == sealed:
                states[state] += 1
                self._look_at_extent(i, row)
                self._look_at_key(i, row, bucket, tag)
                self._look_at_parts(i, word)
            elif word & low == 0:
                states[0] += 1
                if tag:
                    self._say("error", "slot.tag-of-free", i, f"a free slot has the tag {tag:08x}", "word", word, tag)
            else:
                self._look_at_word(i, row, state, tag)

    def _look_at_word(self, i: int, row: Row, state: int, tag: int) -> None:
        """A word that is neither free nor sealed: legal, and naming somebody who ends its state."""
        word = row[0]
        process = self._word.get("process", word)
        if state >= len(self.states):
            self._say("error", "slot.state", i, f"state {state} does not exist", "word", word)
            return
        self.states[state] += 1
        name = self.tables.layout.slot_states[state]
        suspect = self._word.get("suspect", word) and state != self._evicting
        if state in (self._free, self._sealed) or suspect or word & self._word.spare:
            self._say("error", "slot.word", i, f"{name} with bits that mean nothing ({word:#018x})", "word", word)
        elif state == self._quarantined:
            if process != self._nobody:
                self._say("error", "slot.word", i, f"{name} names {self.tables.name_of(process)}", "word", word)
            self._look_at_extent(i, row)
        elif state == self._revoked and process == self._nobody:
            self._look_at_revoked(i, word)
        elif not self.tables.is_alive(process):
            self._look_at_dead(i, word, name, process)
        elif state == self._reserved:
            self._look_at_reservation(i, row, process, tag)
        elif state == self._revoked:
            what = f"taken over from {self.tables.name_of(process)}, which has not given the bytes back"
            self._say("note", "slot.revoked", i, what, "word", word, advice="look")

    def _look_at_dead(self, i: int, word: int, name: str, process: int) -> None:
        if self.tables.is_attached(process):
            what = f"{name} by {self.tables.name_of(process)}"
            self._say("leftover", "slot.dead", i, what, "word", word, advice="reap")
        else:
            what = f"{name} by {self.tables.name_of(process)}, after whom nobody will clean up"
            self._say("error", "slot.stranded", i, what, "word", word, advice="destroy")

    def _look_at_revoked(self, i: int, word: int) -> None:
        """REVOKED and nobody's: it goes with the last pin of those who still write a part."""
        section = self.tables.geometry.sections["pins"]
        for process in self.tables.alive or ():
            place = section.place(process * self.tables.geometry.slot_count + i)
            if self.tables.index.read(place, 2).strip(b"\0"):
                return
        if self.tables.alive is not None:
            self._say("leftover", "slot.revoked-by-all", i, "a reservation that nobody holds any more", "word", word,
                      advice="reap")  # fmt: skip

    def _look_at_reservation(self, i: int, row: Row, process: int, tag: int) -> None:
        """RESERVED by a living process. A tag says that it is bound; before that its fields are of its last life."""
        word = row[0]
        if not tag or not self._is_bound(i, row):
            return
        mixed = _mix(row[1], row[2])
        self._meet_key(i, row, mixed & self.tables.geometry.shard_count - 1)
        _, deadline_ns, _, parts, owners, _ = self.tables.cold[i]
        bits = self.tables.layout.words["parts"]
        total, done = bits.get("total", parts), bits.get("done", parts)
        if total > 1:
            raw = bytes(owners)
            for part, owner in enumerate(raw[:total]):
                if owner and not done >> part & 1 and not self.tables.is_alive(owner - 1):
                    what = f"part {part} was being written by {self.tables.name_of(owner - 1)}"
                    self._say("leftover", "slot.dead-part", i, what, "part_owner", word, advice="reap")
        late_ns = self._now_ns - deadline_ns
        if late_ns > 0:
            what = f"reserved by {self.tables.name_of(process)}, {late_ns / 1e9:,.1f} s past its deadline"
            self._say("note", "slot.overdue", i, what, "deadline_ns", word, advice="look")

    def word_now(self, slot: int) -> int:
        """The slot's word at this moment, whenever the tables were read."""
        tables = self.tables
        return int.from_bytes(tables.index.read(tables.geometry.sections["slots_hot"].place(slot), 8), "little")

    def state_of(self, word: int) -> int:
        return self._word.get("state", word)

    def unit_of(self, extent: int, size: int) -> int:
        """The unit an extent begins at, -1 for one that no honest writer could have stored."""
        geometry = self.tables.geometry
        number = extent >> self._segment[0] & self._segment[1]
        offset = extent >> self._offset[0] & self._offset[1]
        if number >= len(geometry.segments):
            return -1
        segment = geometry.segments[number]
        room = segment.slab_count * geometry.slab_bytes
        if offset % geometry.unit_bytes or offset >= room or not 0 < size <= min(room - offset, geometry.slab_bytes):
            return -1
        return segment.first_slab * geometry.units_per_slab + offset // geometry.unit_bytes

    def _is_bound(self, i: int, row: Row) -> bool:
        unit = self.unit_of(row[3], row[4])
        return unit >= 0 and self.tables.owners[unit] & ~self._aside == self._slot_owner | i

    def _look_at_extent(self, i: int, row: Row) -> None:
        word, _, _, extent, size, namespace, *_ = row
        tables = self.tables
        geometry = tables.geometry
        if namespace >= geometry.namespace_limit or tables.digests[namespace] is None:
            what = f"namespace {namespace} is not in use"
            self._say("error", "slot.namespace", i, what, "namespace_id", word, namespace)
        unit = self.unit_of(extent, size)
        if unit < 0:
            what = f"{size:,} bytes at extent {extent:#018x} do not lie in a segment"
            self._say("error", "slot.extent", i, what, "extent", word, extent, size)
            return
        owner = tables.owners[unit]
        if owner & ~self._aside != self._slot_owner | i:
            what = f"the owner word of its extent (unit {unit}) is {owner:#018x}, not this slot"
            self._say("error", "slot.owner", i, what, "extent", word, extent, owner)
        slab, within = divmod(unit, geometry.units_per_slab)
        slab_word, real = tables.slabs[slab]
        units = slab_word >> self._slab_units[0] & self._slab_units[1]
        state = slab_word >> self._slab_state[0] & self._slab_state[1]
        wanted = -(-size // geometry.unit_bytes)
        if state not in self._active or units != wanted or within % units:
            what = f"{wanted} units at unit {within} of slab {slab}, whose chunks have {units}"
            self._say("error", "slot.slab", i, what, "size_bytes", word, extent, size, slab_word)
        elif within * geometry.unit_bytes + size > real:
            what = f"its bytes end beyond the {real:,} bytes of slab {slab} that the medium has given"
            self._say("error", "slot.unreal", i, what, "extent", word, extent, real)

    def _look_at_key(self, i: int, row: Row, bucket: int, tag: int) -> None:
        """Does a lookup of its key come here?"""
        geometry = self.tables.geometry
        word, key_lo, key_hi = row[0], row[1], row[2]
        mixed = _mix(key_lo, key_hi)
        shard = mixed & geometry.shard_count - 1
        per_shard = geometry.buckets_per_shard
        first = shard * per_shard
        home = first + (((mixed * _SPREAD & _LOW64) * per_shard) >> 64)
        if tag != (mixed >> 32 or 1):
            what = f"its tag is {tag:08x}, its key's is {mixed >> 32 or 1:08x}: no lookup finds it"
            self._say("error", "slot.tag", i, what, "key_lo", word, tag)
        if bucket != home:
            passed = (bucket - home) % per_shard if shard == bucket // per_shard else per_shard
            if passed >= self._buckets_probed:
                what = f"its key belongs to bucket {home}, it lies in {bucket}: no lookup finds it"
                self._say("error", "slot.bucket", i, what, "key_lo", word, key_lo, key_hi)
                passed = 0
            for n in range(passed):
                before = first + (home - first + n) % per_shard
                if not self.tables.tags[before * self._bucket_words + self._overflowed]:
                    what = f"it lies behind its own bucket, and bucket {before} does not say so: no lookup finds it"
                    self._say("error", "slot.overflow", i, what, "key_lo", word, before)
        self._meet_key(i, row, shard)

    def _meet_key(self, i: int, row: Row, shard: int) -> None:
        """No key twice. Equal keys are of one shard, whose slots lie side by side: older shards can be forgotten."""
        here = i // (self.tables.geometry.buckets_per_shard * self._bucket_slots)
        if here != self._keys_shard:
            self._keys.clear()
            self._keys_shard = here
        if shard != here:
            return
        first, first_word = self._keys.setdefault((row[1], row[2]), (i, row[0]))
        if first != i:
            what = f"it binds the same key as slot {first}"
            self._say("error", "slot.twice", i, what, "key_lo", row[0], first_word, rival=first)

    def _look_at_parts(self, i: int, word: int) -> None:
        parts = self.tables.cold[i][3]
        if parts == self._lone:  # By far the most.
            return
        total, done = parts >> self._total[0] & self._total[1], parts >> self._done[0] & self._done[1]
        limit = self.tables.layout.constants["part_limit"]
        if not 1 <= total <= limit or parts & self.tables.layout.words["parts"].spare:
            self._say("error", "slot.parts", i, f"sealed, with an impossible parts word {parts:#018x}", "parts", word,
                      parts)  # fmt: skip
        elif total > 1 and done != (1 << total) - 1:
            what = f"sealed, with {done.bit_count()} of {total} parts in"
            self._say("error", "slot.parts", i, what, "parts", word, parts)


def _mix(key_lo: int, key_hi: int) -> int:
    product = (key_lo ^ _MIX_LO) * (key_hi ^ _MIX_HI)
    return product & _LOW64 ^ product >> 64


def count_children(tables: Tables, suspects: Suspects) -> None:
    """Child counts are hints, and wrong ones cost time only. Worth a look only while nobody changes them."""
    layout, slot_count = tables.layout, tables.geometry.slot_count
    shift, mask = layout.words["slot"].field("state")
    generation = layout.words["slot"].field("generation")[0]
    sealed = layout.slot_states.index("SEALED")
    said, counted = array("I", bytes(4 * slot_count)), array("I", bytes(4 * slot_count))
    parents: list[int] = []
    bits = layout.words["parent"]
    current = array("I", bytes(4 * slot_count))
    is_sealed = bytearray(slot_count)
    for i in range(slot_count):
        row = tables.hot[i]
        word = row[0]
        current[i] = word >> generation & 0xFFFFFFFF
        if word >> shift & mask == sealed:
            is_sealed[i] = 1
            said[i] = row[7]
            parent = tables.cold[i][2]
            if parent:
                parents.append(parent)
    for parent in parents:
        slot = bits.get("slot_plus_one", parent) - 1
        if 0 <= slot < slot_count and current[slot] == bits.get("generation", parent):
            counted[slot] += 1
    wrong = sum(1 for i in range(slot_count) if is_sealed[i] and said[i] != counted[i])
    if wrong:
        what = f"{wrong:,} slots say another number of children than they have: a hint, counted anew after a death"
        suspects.add(Finding("note", "hint.children", "pool", -1, what, advice="none"))
