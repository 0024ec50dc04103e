"""Keeps replicas busy with sessions: each session asks its next prompt when its last one was answered.

Holds:      who asks whom, and when: a router, and at most so many prompts in flight at each replica.
Promises:   prompts of one session are asked in their order; every answer is told with when it was asked and came. A
            replica that fails gives back what it had in flight: its successor is asked again.
Leaves:     what prompts are to `streams` and `contexts`, what answers mean to the figure.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from maru.bench.systems.contract import Answer, Replica, SystemFailed


@dataclass(frozen=True)
class Turn:
    """One prompt of a session. `wait_s`: how long after its session's last answer, or the beginning, it comes."""

    session: int
    number: int
    prompt: tuple[int, ...]
    max_tokens: int = 1
    wait_s: float = 0.0


@dataclass(frozen=True)
class Served:
    """A turn and its answer; seconds since the drive began.

    A turn comes when its session's last answer did, or when it is due. Until it is asked it waits for a place among
    those in flight, and where its replica died for the successor: `asked_s` is of the question that was answered.
    """

    turn: Turn
    replica: int
    answer: Answer
    asked_s: float
    done_s: float
    came_s: float = 0.0

    @property
    def user_ttft_s(self) -> float:
        """From when it came to its first token."""
        return self.asked_s - self.came_s + self.answer.ttft_s


Router = Callable[[Turn, int], int]
"""From a turn and how many replicas there are to the replica that it goes to."""


def by_turn(turn: Turn, replicas: int) -> int:
    """A session comes to another replica with every turn: the router knows nothing of caches."""
    return (turn.session + turn.number) % replicas


class _Lane:
    """One replica's waiting turns, and those in flight."""

    def __init__(self) -> None:
        self.waiting: deque[tuple[Turn, float]] = deque()
        """With when each came."""
        self.in_flight: deque[tuple[Turn, float, int, float]] = deque()
        """With when each came, its ticket, and when it was asked."""


class Drive:
    """One run of sessions over replicas."""

    def __init__(
        self,
        replicas: Sequence[Replica],
        in_flight_max: int = 1,
        router: Router = by_turn,
        *,
        is_checked: bool = True,
        give_up_s: float = 3600.0,
        on_failure: Callable[[int], Replica | None] = lambda _number: None,
    ) -> None:
        """`on_failure` gets the number of a replica that failed and gives its successor; None ends the drive."""
        self._replicas = list(replicas)
        self._in_flight_max = in_flight_max
        self._router, self._is_checked, self._give_up_s = router, is_checked, give_up_s
        self._on_failure = on_failure
        self._lanes = [_Lane() for _ in replicas]
        self._changed = threading.Condition()
        self._left = 0
        self._error: BaseException | None = None
        self.served: list[Served] = []

    def run(self, sessions: Sequence[Sequence[Turn]], deadline_s: float | None = None) -> list[Served]:
        """Every turn of every session, or as many as come before the deadline.

        Raises SystemFailed, also when there is no deadline and everything takes longer than `give_up_s`.
        """
        self._sessions = [list(session) for session in sessions]
        self._left = sum(map(len, self._sessions))
        self._begun = time.monotonic()
        self._deadline = self._begun + (self._give_up_s if deadline_s is None else deadline_s)
        for session in self._sessions:
            if session:
                self._come(session[0])
        threads = [threading.Thread(target=self._serve, args=(n,), daemon=True) for n in range(len(self._replicas))]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                thread.join()
        except BaseException as error:  # Ctrl-C: no thread begins anything new.
            self._give_up(error)
            raise
        if self._error is not None:
            raise self._error
        if self._left and deadline_s is None:
            raise SystemFailed(f"{self._left} prompts were not answered in {self._give_up_s:.0f} s")
        return self.served

    def _give_up(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._changed.notify_all()

    def _enqueue(self, turn: Turn) -> None:
        with self._changed:
            self._lanes[self._router(turn, len(self._replicas))].waiting.append((turn, time.monotonic()))
            self._changed.notify_all()

    def _come(self, turn: Turn) -> None:
        if turn.wait_s > 0:
            timer = threading.Timer(turn.wait_s, self._enqueue, args=(turn,))
            timer.daemon = True
            timer.start()
        else:
            self._enqueue(turn)

    def _is_over(self) -> bool:
        return self._left == 0 or self._error is not None or time.monotonic() > self._deadline

    def _serve(self, number: int) -> None:
        """The thread of one replica."""
        lane = self._lanes[number]
        try:
            while not self._is_over():
                try:
                    self._fill(number, lane)
                    if lane.in_flight:
                        self._take_answer(number, lane)
                except SystemFailed as error:
                    self._replace(number, lane, error)
        except BaseException as error:
            self._give_up(error)

    def _fill(self, number: int, lane: _Lane) -> None:
        """Ask as much as may be in flight; wait a moment when there is nothing to do."""
        while len(lane.in_flight) < self._in_flight_max:
            with self._changed:
                if not lane.waiting:
                    if not lane.in_flight and not self._is_over():
                        self._changed.wait(0.05)
                    return
                turn, came = lane.waiting[0]
            self._replicas[number].learn(turn.prompt)  # A new process is ready after that, and the question short.
            asked = time.monotonic()
            ticket = self._replicas[number].post(turn.prompt, turn.max_tokens, is_checked=self._is_checked)
            with self._changed:
                lane.waiting.popleft()
            lane.in_flight.append((turn, came, ticket, asked))

    def _take_answer(self, number: int, lane: _Lane) -> None:
        turn, came, ticket, asked = lane.in_flight[0]
        answer = self._replicas[number].collect(ticket)
        done = time.monotonic()
        lane.in_flight.popleft()
        session = self._sessions[turn.session]
        with self._changed:
            self.served.append(
                Served(turn, number, answer, asked - self._begun, done - self._begun, came - self._begun)
            )
            self._left -= 1
            self._changed.notify_all()
        if turn.number + 1 < len(session):
            self._come(session[turn.number + 1])

    def _replace(self, number: int, lane: _Lane, error: SystemFailed) -> None:
        """What was in flight is asked again, first of all; when it is over nobody is started any more."""
        if self._is_over():
            return
        successor = self._on_failure(number)
        if successor is None:
            raise error
        self._replicas[number] = successor
        with self._changed:
            for turn, came, _, _ in reversed(lane.in_flight):
                lane.waiting.appendleft((turn, came))
            lane.in_flight.clear()
