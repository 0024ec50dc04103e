"""Systems that live in the test's own process: replicas answer at once, or as they are told."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

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
class ToyStoreReplica(ToyReplica):
    """Keeps prompts' prefixes in `kept`, which replicas may share; what it loads can be wrong, or be forgotten."""

    kept: set[tuple[int, ...]] = field(default_factory=set)
    chunk_tokens: int = 64
    generates: bool = True
    lies: bool = False
    forgets: bool = False
    is_silent: bool = False
    _checked: list[bool] = field(default_factory=list)

    def post(self, prompt: Sequence[int], _max_tokens: int = 1, *, is_checked: bool = True, **_how: bool) -> int:
        self._checked.append(is_checked)
        return super().post(prompt)

    def collect(self, ticket: int) -> Answer:
        plain = super().collect(ticket)
        prompt = self._tickets[ticket]
        ends = range(self.chunk_tokens, len(prompt) + 1, self.chunk_tokens)
        cached = 0
        for end in ends:
            if prompt[:end] not in self.kept:
                break
            cached = end
        if not self.forgets:
            self.kept.update(prompt[:end] for end in ends)
        wrong = bool(self.lies and cached)
        stored = len(prompt) - cached
        answer = replace(plain, cached_tokens=cached, loaded_bytes=cached, stored_bytes=stored, store_s=0.1)
        if self.generates:
            return replace(answer, output=() if self.is_silent else (sum(prompt) + wrong,))
        if not self._checked[ticket]:
            return replace(answer, output=())
        return replace(answer, output=(), compared=cached // self.chunk_tokens, wrong=int(wrong))


def replicas_that(chunk_tokens: int, **habits: bool) -> Callable[[int], Replica]:
    """Makes replicas of one system, which share what they keep."""
    kept: set[tuple[int, ...]] = set()
    return lambda _number: ToyStoreReplica(kept=kept, chunk_tokens=chunk_tokens, **habits)


@dataclass
class ToyDeployment(Deployment):
    make: Callable[[int], Replica] = field(kw_only=True)
    has_server: bool = False
    has_ended: bool = False

    def start(self, number: int) -> Replica:
        return self.make(number)

    def version(self) -> str:
        return "toy 1"

    def server_pids(self) -> list[int]:
        return [os.getpid()] if self.has_server else []

    def kill_server(self) -> bool:
        return self.has_server

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
