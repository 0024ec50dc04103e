"""Every interleaving of a few small processes over one shared memory, walked state by state.

What is written. A process is a Python generator that yields one `Step` for each access to shared memory, in the order
in which the C++ does it, and is sent what the access returned. So the text of a model function can be laid beside the
text of the C++ function of the same name. A step is atomic; between two steps anything may happen: any other process
goes on, any process is killed, and the surroundings (a store buffer, a device) do something.

How it is walked. Generators can be neither copied nor compared, so they are turned into automata. What a generator does
next depends only on its local variables and on the place where it stands in its code (and in the functions it is
inside). Both can be read from its frames and together name a local state; two histories that end in the same local
state are one. The automaton (local state, result) -> local state is filled in as it is needed, by running a fresh
generator through a recorded history once. From then on a step is two look-ups in a dict, and a state of the whole
system is a tuple of shared cells and a tuple of small numbers.

Two rules follow for the text of a model, and `forbidden_yields` checks them: a `yield` stands alone or is the whole
right side of an assignment (a value parked in the middle of an expression would be in no local variable), and a local
variable holds plain values only, since a function made on the spot equals no other and would keep equal states apart.

What is promised. The search is breadth first and complete: when it ends, every reachable state has been seen, with any
of the processes killed at any step, all of them if need be. A process that is stopped for ever needs no case of its
own: the other processes' steps are explored without it, from every state. The first fault found is one that needs the
fewest steps, and its trace is told in words. And from every memory that was reached, everybody is killed and a newcomer
alone cleans up, so that what can leak is found at the moment from which it leaks.

What is left out. Steps are sequentially consistent. On x86 that is what the C++ asks for wherever order matters: its
read-modify-writes and its plain `store()`s of words are seq_cst (locked instructions, which drain the store buffer),
x86 keeps stores in order and loads in order, and a release store that lingers in the store buffer (`clear_tag`,
`unlock_shard`) can only make a hint or an unlocking come later, which is also explored: as a process that was slow.
The one kind of store that x86 does not keep in order, the streaming store, is modelled with a buffer of its own. ARM
may reorder plain accesses that x86 keeps in order; the acquire fences before the second reading of a slot's word are
there for that, and this model says nothing about whether they suffice.
"""

from __future__ import annotations

import ast
import gc
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

Memory = tuple[Any, ...]
Effects = Sequence[tuple[Any, Memory]]
Model = Generator["Step", Any, Any]

DEAD, DONE = -1, -2
STATES_MAX = 1_500_000  # A walk that grows beyond this has a mistake in its scenario.


@dataclass(frozen=True, slots=True)
class Step:
    """One atomic access. `run` gives each possible (result, memory afterwards); none: it must wait.

    `at`: the C++ function this stands for; `point`: the crash point that follows it there, if there is one. `patient`:
    it is no fault if this waits for ever.
    """

    run: Callable[[Memory], Effects]
    what: str
    at: str
    point: str | None = None
    patient: bool = False


@dataclass(frozen=True, slots=True)
class Actor:
    """A process: what it does, and how the kernel takes its locks and its memory away when it dies."""

    name: str
    program: Callable[[], Model]
    die: Callable[[Memory], Memory]


class Automaton:
    """The local states of one program, discovered as they are needed."""

    def __init__(self, program: Callable[[], Model]) -> None:
        self._program = program
        self._numbers: dict[Hashable, int] = {}
        self._histories: list[tuple[Any, ...]] = []
        self.steps: list[Step] = []
        self._next: dict[tuple[int, Hashable], int] = {}
        self.start = self._after(())

    def after(self, local: int, result: Hashable) -> int:
        """The local state that follows when the step of `local` returned `result`."""
        found = self._next.get((local, result))
        if found is None:
            found = self._next[local, result] = self._after((*self._histories[local], result))
        return found

    def _after(self, history: tuple[Any, ...]) -> int:
        model = self._program()
        try:
            step = next(model)
            for result in history:
                step = model.send(result)
        except StopIteration:
            return DONE
        name = tuple(_frames(model))
        if name not in self._numbers:
            self._numbers[name] = len(self.steps)
            self.steps.append(step)
            self._histories.append(history)
        return self._numbers[name]


def _frames(model: Any) -> Iterator[Hashable]:
    while model is not None:
        frame = model.gi_frame
        # A model function's first parameter is the scenario's constants, the same object everywhere.
        variables = tuple(sorted((k, v) for k, v in frame.f_locals.items() if k != "pool"))
        yield frame.f_code.co_name, frame.f_lasti, variables
        model = model.gi_yieldfrom


@dataclass
class Found:
    """What a walk came to: how much there was to see, and the first fault with the way to it."""

    states: int
    fault: str | None = None
    trace: list[str] = field(default_factory=list)
    functions: set[str] = field(default_factory=set)  # The C++ functions and crash points whose steps were met.
    points: set[str] = field(default_factory=set)

    def __str__(self) -> str:
        if self.fault is None:
            return f"{self.states} states, no fault"
        lines = [f"{number:3}. {line}" for number, line in enumerate(self.trace, 1)]
        return "\n".join([f"{self.fault}, after", *lines, f"({self.states} states)"])


@dataclass
class System:
    """A scenario: memory at the beginning, processes, and what must hold.

    `surroundings`: what may happen by itself, as (words, memory afterwards). `fault`: what is wrong with a memory, in
    words, or None; asked in every state. `mop_up`: a program that recovers from a death of everyone, and `untidy`: what
    is wrong afterwards; asked from every memory that is reachable.
    """

    memory: Memory
    actors: list[Actor]
    fault: Callable[[Memory], str | None]
    surroundings: Callable[[Memory], Sequence[tuple[str, Memory]]]
    mop_up: Callable[[], Model]
    untidy: Callable[[Memory], str | None]

    def explore(self) -> Found:
        """Walk everything; stop at the first fault."""
        collects = gc.isenabled()
        gc.disable()  # A walk makes millions of tuples and no cycle: looking for cycles would double its time.
        try:
            return _Walk(self).run()
        finally:
            if collects:
                gc.enable()


class _Walk:
    """Memories are numbered like local states, so that a state is small, and a step of one process in one memory is
    taken once, however many places the others may be in."""

    def __init__(self, system: System) -> None:
        self.system = system
        self.automata = [Automaton(actor.program) for actor in system.actors]
        self.mop_up = Automaton(system.mop_up)
        self.mopped: set[tuple[Memory, int]] = set()
        self.memories: list[Memory] = []
        self.numbers: dict[Memory, int] = {}
        self.verdicts: list[str | None] = []
        self.taken: dict[tuple[int, int, int], list[tuple[str, int, int]]] = {}

    def number(self, memory: Memory) -> int:
        found = self.numbers.get(memory)
        if found is None:
            found = self.numbers[memory] = len(self.memories)
            self.memories.append(memory)
            self.verdicts.append(self.system.fault(memory) or self.after_a_death_of_all(memory))
        return found

    def run(self) -> Found:
        start = (self.number(self.system.memory), tuple(automaton.start for automaton in self.automata))
        came_from: dict[Any, Any] = {start: None}
        level = [start]
        while level:
            further = []
            for state in level:
                wrong = self.verdicts[state[0]]
                moves = [] if wrong else list(self.moves(state))
                if not wrong and not moves and self.somebody_waits(state[1]):
                    wrong = "everybody waits for ever"
                if wrong:
                    return self.found(came_from, wrong, state)
                for _, following in (*moves, *self.deaths(state)):
                    if following not in came_from:
                        came_from[following] = state
                        further.append(following)
            assert len(came_from) < STATES_MAX, "this scenario is too large to be walked"
            level = further
        return self.found(came_from)

    def found(self, came_from: dict[Any, Any], wrong: str | None = None, state: Any = None) -> Found:
        steps = [step for automaton in (*self.automata, self.mop_up) for step in automaton.steps]
        return Found(
            len(came_from), wrong, self.trace(came_from, state) if wrong else [],
            {step.at for step in steps if not step.at.startswith("(")}, {step.point for step in steps if step.point},
        )  # fmt: skip

    def moves(self, state: Any) -> Iterator[tuple[str, Any]]:
        """What may happen next, in words, and the state after it."""
        memory, locals_ = state
        for n, local in enumerate(locals_):
            if local >= 0:
                before, behind = locals_[:n], locals_[n + 1 :]
                effects = self.taken.get((memory, n, local))
                for words, changed, after in self.take(memory, n, local) if effects is None else effects:
                    yield words, (changed, (*before, after, *behind))
        effects = self.taken.get((memory, -1, 0))
        for words, changed, _ in self.take_surroundings(memory) if effects is None else effects:
            yield words, (changed, locals_)

    def take(self, memory: int, n: int, local: int) -> list[tuple[str, int, int]]:
        automaton, name = self.automata[n], self.system.actors[n].name
        step = automaton.steps[local]
        self.taken[memory, n, local] = [
            (f"{name}, {_told(step, result)}", self.number(changed), automaton.after(local, result))
            for result, changed in step.run(self.memories[memory])
        ]
        return self.taken[memory, n, local]

    def take_surroundings(self, memory: int) -> list[tuple[str, int, int]]:
        changes = self.system.surroundings(self.memories[memory])
        self.taken[memory, -1, 0] = [(words, self.number(changed), 0) for words, changed in changes]
        return self.taken[memory, -1, 0]

    def deaths(self, state: Any) -> Iterator[tuple[str, Any]]:
        memory, locals_ = state
        for n, (local, actor) in enumerate(zip(locals_, self.system.actors, strict=True)):
            # Who has not begun yet holds nothing: killing it then is the same as never letting it run.
            if local >= 0 and local != self.automata[n].start:
                effects = self.taken.get((memory, n, DEAD))
                if effects is None:
                    changed = self.number(actor.die(self.memories[memory]))
                    effects = self.taken[memory, n, DEAD] = [(f"{actor.name} is killed", changed, DEAD)]
                yield effects[0][0], (effects[0][1], (*locals_[:n], DEAD, *locals_[n + 1 :]))

    def somebody_waits(self, locals_: tuple[int, ...]) -> bool:
        pairs = zip(self.automata, locals_, strict=True)
        return any(local >= 0 and not automaton.steps[local].patient for automaton, local in pairs)

    def trace(self, came_from: dict[Any, Any], state: Any) -> list[str]:
        lines: list[str] = []
        while (before := came_from[state]) is not None:
            ways = (*self.moves(before), *self.deaths(before))
            lines.append(next(words for words, following in ways if following == state))
            state = before
        return lines[::-1]

    def after_a_death_of_all(self, memory: Memory) -> str | None:
        for actor in self.system.actors:
            memory = actor.die(memory)
        waiting = [(memory, self.mop_up.start)]
        while waiting:
            place = waiting.pop()
            if place in self.mopped:
                continue
            self.mopped.add(place)
            memory, local = place
            if local == DONE:
                wrong = self.system.untidy(memory)
                if wrong:
                    return f"{wrong}, when everybody dies here and a newcomer cleans up"
                continue
            effects = self.mop_up.steps[local].run(memory)
            if not effects:
                return f"{self.mop_up.steps[local].what} waits for the dead"
            waiting += [(changed, self.mop_up.after(local, result)) for result, changed in effects]
        return None


def _told(step: Step, result: object) -> str:
    value = "" if result is None else f" -> {result}"
    return f"{step.at}: {step.what}{value}" + (f"  [{step.point}]" if step.point else "")


def forbidden_yields(source: str) -> list[int]:
    """Lines of a model on which a `yield` stands inside a larger expression."""
    tree = ast.parse(source)
    alone: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr | ast.Assign | ast.Return) and node.value is not None:
            alone.add(node.value)
    yields = (node for node in ast.walk(tree) if isinstance(node, ast.Yield | ast.YieldFrom))
    return [node.lineno for node in yields if node not in alone]
