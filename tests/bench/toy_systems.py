"""Systems that live in the test's own process: replicas answer at once, or as they are told."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from maru.bench.systems.contract import Answer, Deployment, Job, Replica, System, SystemFailed


@dataclass
class ToyReplica(Replica):
    """Answers with the prompt's sum, unless told otherwise."""

    answer_of: Callable[[tuple[int, ...]], tuple[int, ...]] = lambda prompt: (sum(prompt),)
    asked: list[tuple[int, ...]] = field(default_factory=list)
    in_flight: int = 0
    in_flight_most: int = 0
    dies_after: int | None = None
    is_dead: bool = False
    _tickets: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return os.getpid()

    def learn(self, _prompt: Sequence[int]) -> None:
        return

    def post(self, prompt: Sequence[int], _max_tokens: int = 1, **_how: bool) -> int:
        if self.is_dead:
            raise SystemFailed("dead")
        self.in_flight += 1
        self.in_flight_most = max(self.in_flight_most, self.in_flight)
        self._tickets.append(tuple(prompt))
        return len(self._tickets) - 1

    def collect(self, ticket: int) -> Answer:
        if self.dies_after is not None and len(self.asked) >= self.dies_after:
            self.is_dead = True
        if self.is_dead:
            raise SystemFailed("dead")
        prompt = self._tickets[ticket]
        self.in_flight -= 1
        self.asked.append(prompt)
        return Answer(0.25, 0.5, len(prompt), 0, self.answer_of(prompt))

    def is_alive(self) -> bool:
        return not self.is_dead

    def kill(self) -> None:
        self.is_dead = True

    def close(self) -> None:
        self.is_dead = True


@dataclass
class ToyDeployment(Deployment):
    make: Callable[[int], Replica] = field(kw_only=True)
    has_ended: bool = False

    def start(self, number: int) -> Replica:
        return self.make(number)

    def version(self) -> str:
        return "toy 1"

    def end(self) -> None:
        self.has_ended = True


@dataclass
class ToySystem(System):
    name: str
    title: str = "a toy"
    configuration: str = "none"
    crosses: bool = True
    absent: str = ""
    make: Callable[[int], Replica] = lambda _number: ToyReplica()

    def why_not(self) -> str:
        return self.absent

    def deploy(self, job: Job) -> Deployment:
        return ToyDeployment(job, make=self.make)
