"""The shared words of a very small pool, as cells of a memory tuple, and what must be true of them in every state.

One bucket, one shard, a few slots, units and process numbers. A cell holds what the C++ word of the same name holds,
unpacked: a slot's word is (state, process, generation), an owner word ("P", process, device) or ("S", slot, device) or
FREE or COOLING, and so on. Hints (stamps, child counts, cursors, free counts) are left out: the C++ may find anything
in them.

A unit's bytes are one value, (key, author): what is written by another store differs. Three cells belong to the
surroundings. `streamed` is what a process has written with streaming stores that have not left its write-combining
buffers: any later moment may drain them; a fence, or the kernel's taking the process down, drains them at once. (On x86
every locked instruction drains them too. The model does not count on it, so its seal needs its fence.) `copying` is a
device's copy that was started and has not landed; it lands at any later moment, also after its process's death. `byte`
is the kernel's lock on a process number: held by the process itself, or by who cleans up after it, and let go at the
holder's death. Time is a choice: a deadline may have passed whenever it is asked about. A cooling extent has cooled
down once no device copy is on its way to it, which is what the length of the cooling time stands for.

Cells that no program reads are the beholder's: `held` (who has been given which chunk to read, and its bytes then),
`mine` (units that a process believes to be its own), `inside` (who believes to hold the shard lock), `meant` (the bytes
that whoever sealed a slot meant to publish). They let `fault` say what the pool promises.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

from explorer import Actor, Effects, Memory, Model, Step, System

FREE, RESERVED, SEALED, EVICTING = "FREE", "RESERVED", "SEALED", "EVICTING"
REVOKED, RELEASING, QUARANTINED, SUSPECT = "REVOKED", "RELEASING", "QUARANTINED", "EVICTING, suspect"
COOLING, ACTIVE, DRAINING = "COOLING", "ACTIVE", "DRAINING"
NOBODY = 255

Ghosts = tuple[tuple[int, Callable[[Any], Any]], ...]


class PoolCells:
    """Where each word lies in the memory tuple, and the steps that touch it; every model function's `pool`."""

    def __init__(self, slots: int, units: int, processes: int, changes: frozenset[str], slabs: int = 0) -> None:
        """The highest process number is kept for the one who cleans up after everybody's death.

        `changes`: names of mutants that are on, and of amendments that the C++ does not have yet.
        """
        self.slots, self.units, self.processes, self.changes = range(slots), range(units), range(processes), changes
        self.sweeper = processes - 1
        self.names: list[str] = []
        self.first: list[Any] = []
        each_process, each_slot, each_unit = self.processes, self.slots, self.units
        self.lock = self._cell("shard lock", None)
        self.inside = self._cell("(holders of the shard lock)", frozenset())
        self.live = self._cell("live bits", frozenset())
        self.namespace = self._cell("namespace epoch", 0)
        self.word = [self._cell(f"word of slot {i}", (FREE, NOBODY, 0)) for i in each_slot]
        self.key = [self._cell(f"key of slot {i}", None) for i in each_slot]
        self.extent = [self._cell(f"extent of slot {i}", None) for i in each_slot]
        self.epoch = [self._cell(f"epoch of slot {i}", 0) for i in each_slot]
        self.tag = [self._cell(f"tag of slot {i}", None) for i in each_slot]
        self.parts = [self._cell(f"parts of slot {i}", (1, frozenset())) for i in each_slot]
        self.part_owner = [self._cell(f"part owners of slot {i}", (None, None)) for i in each_slot]
        self.meant = [self._cell(f"(meant bytes of slot {i})", None) for i in each_slot]
        self.owner = [self._cell(f"owner of unit {u}", FREE) for u in each_unit]
        self.header = [self._cell(f"header of unit {u}", None) for u in each_unit]
        self.bytes = [self._cell(f"bytes of unit {u}", None) for u in each_unit]
        self.copying = [self._cell(f"(device copy to unit {u})", None) for u in each_unit]
        self.slab = [self._cell(f"word of slab {s}", (ACTIVE, NOBODY, 1, 0)) for s in range(slabs)]
        self.pin = [[self._cell(f"pin of {p} on slot {i}", 0) for i in each_slot] for p in each_process]
        self.byte = [self._cell(f"byte lock of {p}", None) for p in each_process]
        self.attached = [self._cell(f"attached {p}", 0) for p in each_process]
        self.times = [self._cell(f"epoch of process {p}", 0) for p in each_process]
        self.revoked = [self._cell(f"revoked bytes of {p}", 0) for p in each_process]
        self.streamed = [self._cell(f"(streamed by {p})", ()) for p in each_process]
        self.held = [self._cell(f"(held by {p})", None) for p in each_process]
        self.mine = [self._cell(f"(units of {p})", frozenset()) for p in each_process]

    def _cell(self, name: str, value: Hashable) -> int:
        self.names.append(name)
        self.first.append(value)
        return len(self.names) - 1

    # ---- the scenario's beginning ----

    def attach(self, *processes: int) -> None:
        """These processes have attached already."""
        for p in processes:
            self.first[self.byte[p]], self.first[self.attached[p]], self.first[self.times[p]] = p, 1, 1
            self.first[self.live] = frozenset({*self.first[self.live], p})

    def put(self, slot: int, key: str, unit: int) -> None:
        """This chunk is there from the beginning."""
        content = (key, "before")
        self.first[self.word[slot]], self.first[self.meant[slot]] = (SEALED, NOBODY, 0), content
        self.first[self.key[slot]], self.first[self.tag[slot]], self.first[self.extent[slot]] = key, key, unit
        self.first[self.owner[unit]] = ("S", slot, False)
        self.first[self.header[unit]], self.first[self.bytes[unit]] = key, content

    # ---- steps ----

    def load(self, cell: int, at: str, point: str | None = None) -> Step:
        return Step(lambda m: ((m[cell], m),), f"reads the {self.names[cell]}", at, point)

    def store(self, cell: int, value: Hashable, at: str, point: str | None = None, ghosts: Ghosts = ()) -> Step:
        def run(m: Memory) -> Effects:
            after = list(m)
            after[cell] = value
            for ghost, change in ghosts:
                after[ghost] = change(after[ghost])
            return ((None, tuple(after)),)

        return Step(run, f"stores {_short(value)} as the {self.names[cell]}", at, point)

    def swap(
        self, cell: int, old: Hashable, new: Hashable, at: str, point: str | None = None, ghosts: Ghosts = ()
    ) -> Step:
        """Compare and exchange: returns what was seen, so it succeeded if that is `old`."""

        def run(m: Memory) -> Effects:
            seen = m[cell]
            if seen != old:
                return ((seen, m),)
            after = list(m)
            after[cell] = new
            for ghost, change in ghosts:
                after[ghost] = change(after[ghost])
            return ((seen, tuple(after)),)

        return Step(run, f"swaps the {self.names[cell]} from {_short(old)} to {_short(new)}", at, point)

    def change(self, cell: int, how: Callable[[Any], Any], what: str, at: str, point: str | None = None) -> Step:
        """A fetch-and-modify: returns the old value."""

        def run(m: Memory) -> Effects:
            after = list(m)
            after[cell] = how(m[cell])
            return ((m[cell], tuple(after)),)

        return Step(run, f"{what} the {self.names[cell]}", at, point)

    def do(self, how: Callable[[list[Any]], Any], what: str, at: str, point: str | None = None) -> Step:
        """Several accesses as one step, where nobody else can touch or tell; `how` changes the cells and returns."""

        def run(m: Memory) -> Effects:
            after = list(m)
            result = how(after)
            return ((result, tuple(after)),)

        return Step(run, what, at, point)

    def choose(self, what: str, at: str, answers: Sequence[Hashable] = (True, False)) -> Step:
        """Something that the model leaves open: the clock, the caller's wish."""
        return Step(lambda m: tuple((answer, m) for answer in answers), what, at)

    def when(
        self,
        ready: Callable[[Memory], Any],
        how: Callable[[list[Any]], Any],
        what: str,
        at: str,
        point: str | None = None,
    ) -> Step:
        """As `do`, once `ready`; until then it waits, if need be for ever."""
        act = self.do(how, what, at, point).run
        return Step(lambda m: act(m) if ready(m) else (), what, at, point, patient=True)

    def has(self, change: str) -> bool:
        return change in self.changes

    def owns(self, me: int, unit: int) -> Ghosts:
        return ((self.mine[me], lambda units: units | {unit}),)

    def owns_no_more(self, me: int, unit: int) -> Ghosts:
        return ((self.mine[me], lambda units: units - {unit}),)

    # ---- processes ----

    def actor(self, name: str, number: int, program: Callable[..., Model], *arguments: Hashable) -> Actor:
        return Actor(f"{name} ({number})", lambda: program(self, number, *arguments), lambda m: self.die(m, number))

    def die(self, memory: Memory, number: int) -> Memory:
        """SIGKILL: streamed stores drain, device copies go on, the kernel lets go of the process's locks."""
        m = list(memory)
        self.drain(m, number)
        m[self.held[number]], m[self.mine[number]] = None, frozenset()
        m[self.inside] -= {number}
        for cell in self.byte:
            if m[cell] == number:
                m[cell] = None
        return tuple(m)

    def drain(self, m: list[Any], number: int) -> None:
        for unit, content in m[self.streamed[number]]:
            m[self.bytes[unit]] = content
        m[self.streamed[number]] = ()

    def surroundings(self, memory: Memory) -> list[tuple[str, Memory]]:
        found = []
        for p in self.processes:
            if memory[self.streamed[p]]:
                after = list(memory)
                self.drain(after, p)
                found.append((f"the streaming stores of {p} reach memory", tuple(after)))
        for unit in self.units:
            if memory[self.copying[unit]] is not None:
                after = list(memory)
                after[self.bytes[unit]], after[self.copying[unit]] = memory[self.copying[unit]], None
                found.append((f"the device's copy lands in unit {unit}", tuple(after)))
        return found

    def system(self, actors: list[Actor], mop_up: Callable[[PoolCells, int], Model]) -> System:
        return System(
            tuple(self.first), actors, self.fault, self.surroundings,
            lambda: mop_up(self, self.sweeper), self.untidy,
        )  # fmt: skip

    # ---- what must be true ----

    def fault(self, m: Memory) -> str | None:
        """In every state."""
        bound: set[Any] = set()
        for i in self.slots:
            state, extent = m[self.word[i]][0], m[self.extent[i]]
            if state == SEALED:
                if m[self.owner[extent]][:2] != ("S", i):
                    return f"slot {i} is sealed, but its extent {extent} is not its own"
                if m[self.bytes[extent]] != m[self.meant[i]] or m[self.meant[i]][0] != m[self.key[i]]:
                    return f"the bytes of sealed slot {i} are {m[self.bytes[extent]]}, not {m[self.meant[i]]}"
                if m[self.header[extent]] != m[self.key[i]]:
                    return f"the header of sealed slot {i} says {m[self.header[extent]]}"
            mine = extent is not None and m[self.owner[extent]][:2] == ("S", i)
            if mine and (state in (SEALED, EVICTING) or (state == RESERVED and m[self.tag[i]])):
                if m[self.key[i]] in bound:
                    return f"key {m[self.key[i]]} is bound by two slots"
                bound.add(m[self.key[i]])
        if len(m[self.inside]) > 1:
            return f"processes {sorted(m[self.inside])} are inside the shard lock at once"
        for p in self.processes:
            if m[self.held[p]] is not None:
                key, unit, content = m[self.held[p]]
                if content[0] != key:
                    return f"process {p} asked for {key} and was given the bytes {content}"
                if m[self.bytes[unit]] != content:
                    return f"the bytes under the pin of {p} changed from {content} to {m[self.bytes[unit]]}"
            for unit in m[self.mine[p]]:
                others = [q for q in self.processes if q != p and unit in m[self.mine[q]]]
                if others:
                    return f"unit {unit} is owned by both {p} and {others[0]}"
                is_head = not self.slab or unit % m[self.slab[0]][2] == 0
                if is_head and m[self.owner[unit]] in (FREE, COOLING):
                    return f"unit {unit} is free, yet process {p} owns it"
            if m[self.revoked[p]] < 0:
                return f"the revoked bytes of {p} were counted below zero"
        return None

    def untidy(self, m: Memory) -> str | None:
        """After everybody's death and a newcomer's cleaning: nothing may be left but sealed chunks and free space."""
        for i in self.slots:
            if m[self.word[i]][0] not in (FREE, SEALED):
                return f"slot {i} is left {m[self.word[i]]}"
            if (m[self.word[i]][0] == FREE) != (m[self.tag[i]] is None):
                return f"the tag of slot {i} is {m[self.tag[i]]} and its word {m[self.word[i]]}"
            if any(m[self.pin[p][i]] for p in self.processes):
                return f"a pin of the dead is left on slot {i}"
        for unit in self.units:
            owner = m[self.owner[unit]]
            is_bound = owner[0] == "S" and m[self.word[owner[1]]][0] == SEALED and m[self.extent[owner[1]]] == unit
            if owner not in (FREE, COOLING) and not is_bound:
                return f"unit {unit} leaked: {owner}"
            if owner == FREE and m[self.copying[unit]] is not None:
                return f"unit {unit} is free while a device writes into it"
            if owner in (FREE, COOLING) and m[self.header[unit]] is not None:
                return f"the header of free unit {unit} says {m[self.header[unit]]}"
        if any(m[cell][0] == DRAINING for cell in self.slab):
            return "a slab is left draining"
        if m[self.lock] is not None:
            return "the shard lock is left taken"
        return self.fault(m)


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) == 3 and isinstance(value[2], int) and value[0] not in ("P", "S"):
        return f"{value[0]} {value[2]}" if value[1] == NOBODY else f"{value[0]}|{value[1]} {value[2]}"
    return str(value)
