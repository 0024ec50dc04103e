"""Replicas that are children of ours: one process each, asked by lines of JSON over its standard input.

Holds:      the parent's side of a replica, and the child's side that every engine of this kind shares.
Promises:   a child that dies or does not answer in time is a SystemFailed with its last words; it ends when its parent
            does. Prompts can be told beforehand, so that a question is a few bytes.
Leaves:     what an answer is made of to the engine's own child.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maru.bench.rivals.contract import Answering, RivalFailed
from maru.bench.rivals.crew import Member
from maru.bench.systems.contract import Answer, Replica, SystemFailed


class ChildReplica(Replica):
    """The parent's side."""

    def __init__(
        self, name: str, command: Sequence[str], log: Path, begin: Mapping[str, Any], variables: Mapping[str, str]
    ) -> None:
        """Start it; `begin` is its first request, whose answer the first question waits for."""
        self._name, self._log = name, log
        self._member = Member(command, log, variables)
        self._prompts: dict[tuple[int, ...], int] = {}
        self._in_flight = 0
        self._begun: dict[str, Any] | None = None
        self._beginning = self._post("begin", **begin)

    @property
    def pid(self) -> int:
        return self._member.process.pid

    def facts(self) -> dict[str, Any]:
        """What it said of itself when it was ready. Raises SystemFailed."""
        if self._begun is None:
            self._begun = dict(self._collect(self._beginning))
        return self._begun

    def learn(self, prompt: Sequence[int]) -> None:
        self.facts()
        known = tuple(prompt)
        if known in self._prompts:
            return
        ticket = self._post("learn", prompt=list(known))
        self._prompts[known] = len(self._prompts)
        if not self._in_flight:  # Else its answer is passed over on the way to those that are waited for.
            self._collect(ticket)

    def post(self, prompt: Sequence[int], max_tokens: int = 1, *, is_checked: bool = True) -> int:
        self.learn(prompt)
        number = self._prompts[tuple(prompt)]
        self._in_flight += 1
        return self._post(
            "ask", prompt=number, max_tokens=max_tokens, sent_ns=time.monotonic_ns(), is_checked=is_checked
        )

    def collect(self, ticket: int) -> Answer:
        told = self._collect(ticket)
        self._in_flight -= 1
        return Answer(**{**told, "output": tuple(told.get("output", ()))})

    def settle(self) -> None:
        self._collect(self._post("settle"))

    def is_alive(self) -> bool:
        return self._member.process.poll() is None

    def kill(self) -> None:
        self._member.process.kill()
        self._member.process.wait()

    def close(self) -> None:
        self._member.let_go()
        self._member.await_end()

    def _post(self, do: str, **what: Any) -> int:
        try:
            return self._member.post(do, **what)
        except RivalFailed as error:
            raise self._failed(error) from None

    def _collect(self, ticket: int) -> Any:
        try:
            return self._member.collect(ticket)
        except RivalFailed as error:
            raise self._failed(error) from None

    def _failed(self, error: RivalFailed) -> SystemFailed:
        return SystemFailed(f"{self._name}: {error} (log: {self._log})")


@dataclass(frozen=True)
class Question:
    """How a prompt is asked."""

    max_tokens: int
    sent_ns: int
    """When the parent sent it, by time.monotonic_ns()."""
    is_checked: bool


class EngineChild(Answering):
    """The child's side: prompts by their number, times from when the parent sent the question."""

    def __init__(self) -> None:
        self._prompts: list[list[int]] = []

    def answer(self, request: dict[str, Any]) -> Any:
        do = request.pop("do")
        if do == "begin":
            return self.begin(**request)
        if do == "learn":
            self._prompts.append(request["prompt"])
            return None
        if do == "ask":
            return self.respond(self._prompts[request.pop("prompt")], Question(**request))
        if do == "settle":
            return self.settle()
        raise ValueError(f"nobody knows how to {do!r}")

    @abstractmethod
    def begin(self, **job: Any) -> dict[str, Any]:
        """Get ready; returns facts, among them "version"."""

    @abstractmethod
    def respond(self, prompt: list[int], question: Question) -> dict[str, Any]:
        """The fields of an Answer, whose times count from `question.sent_ns`."""

    def settle(self) -> None:
        """Wait until what was answered is also stored."""
        return  # It was, before it was answered.

    def end(self) -> None:
        """Give everything back."""
        return
