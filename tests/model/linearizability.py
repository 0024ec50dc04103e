"""Is there an order of the calls in which a single dict would have answered the same?

The claim (linearizability): each call can be given one moment between its beginning and its end at which it happens all
at once, so that in the order of these moments every answer is the one that a plain dict would have given. Keys do not
influence each other's answers, and linearizability is local: a history is linearizable if each key's part of it is. So
the search is per key, over a state that is one value: absent, or the content that was stored.

The search (after Wing and Gong, in the form of Lowe's just-in-time linearization) goes through beginnings and ends in
order of time and keeps every possible belief: a value, and which of the open calls have happened already. When a call
ends, only the beliefs survive in which it has happened; open calls may happen before, in any order that the answers
allow. A call that changes nothing happens as soon as its answer is right: earlier never hurts it and nobody else. When
no belief is left, no order exists, and the call at whose end that became clear is reported.

What a dict does not do, and the pool says it does:

* A store may answer IN_FLIGHT, BUSY, FULL or LOST, or be given up: nothing happens. IN_FLIGHT and LOST need another
  writer beside it, LOST a reservation that was overdue, FULL a pool in which space can run out.
* A remove answers False also for a chunk that somebody reads. This needs somebody who held it, or another remove.
* While a remove is finding out that somebody reads the chunk, the chunk is a miss for others, and then is there again.
  A miss of something that is there needs such a remove beside it: one that answered False, or died.
* Where space can run out, any chunk may vanish at any moment, and a miss is always right. A hit never is by itself.
* The last call of a killed process happened at any moment until it was cleaned up after, or never.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from maru.testing.history import DIED, Call

ABSENT: str | None = None
NOTHING_HAPPENED = {"IN_FLIGHT", "BUSY", "FULL", "LOST", "RESERVED"}


@dataclass(frozen=True)
class Verdict:
    """The first key without an order, and the call at whose end that was clear."""

    key: int
    call: Call
    beside: list[Call]

    def __str__(self) -> str:
        lines = [f"key {self.key}: no order of calls explains {_told(self.call)}; beside it:"]
        return "\n".join([*lines, *(f"  {_told(call)}" for call in self.beside)])


def judge(calls: Iterable[Call], space_can_run_out: bool) -> Verdict | None:
    """None when the history is linearizable."""
    per_key: dict[int, list[Call]] = {}
    for call in calls:
        per_key.setdefault(call.key, []).append(call)
    for key in sorted(per_key):
        wrong = _Key(per_key[key], space_can_run_out).first_without_order()
        if wrong is not None:
            beside = [call for call in per_key[key] if call is not wrong and _meet(call, wrong)]
            return Verdict(key, wrong, sorted(beside, key=lambda call: call.called_ns))
    return None


Belief = tuple[str | None, frozenset[int]]


class _Key:
    def __init__(self, calls: list[Call], space_can_run_out: bool) -> None:
        self.calls = sorted(calls, key=lambda call: call.called_ns)
        self.space_can_run_out = space_can_run_out
        self.begins = [call.called_ns for call in self.calls]
        self.longest_ns = max(call.let_go_ns - call.called_ns for call in self.calls)
        self.excused = [self.is_excused(call) for call in self.calls]

    def first_without_order(self) -> Call | None:
        events = [(call.called_ns, 0, n) for n, call in enumerate(self.calls)]
        events += [(call.returned_ns, 1, n) for n, call in enumerate(self.calls)]
        open_calls: set[int] = set()
        beliefs: set[Belief] = {(ABSENT, frozenset())}
        for _, ended, n in sorted(events):
            if not ended:
                open_calls.add(n)
                continue
            call = self.calls[n]
            survivors = {
                (value, happened - {n})
                for value, happened in self.spread(beliefs, open_calls)
                if n in happened or call.answer == DIED
            }
            if not survivors:
                return call
            open_calls.remove(n)
            beliefs = survivors
        return None

    def spread(self, beliefs: set[Belief], open_calls: set[int]) -> set[Belief]:
        """All beliefs that open calls can lead to."""
        seen = {self.with_what_changes_nothing(belief, open_calls) for belief in beliefs}
        waiting = list(seen)
        while waiting:
            value, happened = waiting.pop()
            further = [(self.calls[n].content, n) for n in open_calls - happened if self.stores(n, value)]
            further += [(ABSENT, n) for n in open_calls - happened if self.removes(n, value)]
            following = [(after, happened | {n}) for after, n in further]
            if self.space_can_run_out and value is not ABSENT:
                following.append((ABSENT, happened))
            for belief in following:
                settled = self.with_what_changes_nothing(belief, open_calls)
                if settled not in seen:
                    seen.add(settled)
                    waiting.append(settled)
        return seen

    def with_what_changes_nothing(self, belief: Belief, open_calls: set[int]) -> Belief:
        value, happened = belief
        return value, happened | {n for n in open_calls - happened if self.changes_nothing(n, value)}

    def stores(self, n: int, value: str | None) -> bool:
        call = self.calls[n]
        return call.kind == "store" and call.answer in ("STORED", DIED) and value is ABSENT

    def removes(self, n: int, value: str | None) -> bool:
        call = self.calls[n]
        return call.kind == "remove" and call.answer in ("REMOVED", DIED) and value is not ABSENT

    def changes_nothing(self, n: int, value: str | None) -> bool:
        """Is this call, with the answer it gave, right for `value` and without effect?"""
        call = self.calls[n]
        if call.answer == "HIT":
            return value is not ABSENT and call.content in (value, None)
        if call.answer in ("MISS", "NOT REMOVED"):
            return value is ABSENT or self.excused[n]
        if call.answer == "EXISTS":
            return value is not ABSENT
        return call.answer in NOTHING_HAPPENED and self.excused[n]

    def is_excused(self, call: Call) -> bool:
        """Was there something beside this call that allows its answer whatever the key's state was?"""
        if call.answer in ("BUSY", "RESERVED"):
            return True
        if call.answer == "FULL":
            return self.space_can_run_out
        if call.answer == "LOST" and not call.overdue:
            return False
        if call.answer in ("IN_FLIGHT", "LOST"):
            return self.has_beside(call, lambda other: other.kind == "store")
        if call.answer == "MISS":
            return self.space_can_run_out or self.has_beside(
                call, lambda other: other.kind == "remove" and other.answer in ("NOT REMOVED", DIED)
            )
        if call.answer == "NOT REMOVED":
            return self.space_can_run_out or self.has_beside(call, lambda other: other.kind in ("get", "remove"))
        return False

    def has_beside(self, call: Call, fits: Callable[[Call], bool]) -> bool:
        first = bisect_left(self.begins, call.called_ns - self.longest_ns)
        last = bisect_right(self.begins, call.returned_ns)
        near = (self.calls[n] for n in range(first, last))
        return any(other is not call and fits(other) and _meet(other, call) for other in near)


def _meet(one: Call, other: Call) -> bool:
    return one.called_ns <= other.returned_ns and other.called_ns <= one.let_go_ns


def _told(call: Call) -> str:
    content = f" {call.content}" if call.content else ""
    return f"{call.kind}{content} -> {call.answer} in [{call.called_ns}, {call.returned_ns}]"
