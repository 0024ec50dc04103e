"""What a system has to do to be compared: deploy what it needs, start replicas, and have them answer prompts.

A *replica* is one inference process; a *system* is one way of keeping KV for replicas under one engine. Whatever a
system starts ends with its deployment. Times are taken where the work is done, from the moment at which the parent sent
the prompt, so that waiting in a replica's queue counts and the parent's own scheduling does not.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from maru.errors import MaruError


class SystemFailed(MaruError):
    """A system did not start, died, or did not answer in time."""

    hint = "its own words are in the log that is named above; the run goes on without it"


@dataclass(frozen=True)
class Job:
    """What all systems of a run have in common."""

    folder: Path
    """For logs, sockets and configuration."""
    memory: Path
    """A folder in shared memory, for what a rival keeps in memory as files."""
    model_name: str
    model: Path | None
    """The model's folder; None where nothing is computed."""
    token_bytes: int
    """KV of one token, all layers."""
    chunk_tokens: int
    context_tokens_max: int
    capacity_bytes: int
    """Of the cache; every system has as much."""
    pool_options: str = ""
    """Of our pool's URL beyond its size, for example "huge=always"."""
    pool_place: str = ""
    """`data=` of our pool's URL: a file or device; "" for shared memory."""

    @property
    def chunk_bytes(self) -> int:
        return self.token_bytes * self.chunk_tokens


@dataclass(frozen=True)
class Answer:
    """One prompt's answer and what it took."""

    ttft_s: float
    """From the parent's sending to the first token; where nothing is computed, to the prefix being in place."""
    total_s: float
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that were not computed."""
    output: tuple[int, ...] = ()
    """What was generated; whoever knows what it must be compares."""
    store_s: float = 0.0
    loaded_bytes: int = 0
    stored_bytes: int = 0
    compared: int = 0
    """Chunks whose every byte the replica compared with what had been stored."""
    wrong: int = 0


class Replica(ABC):
    """One inference process. Answers come in the order of the questions."""

    @property
    @abstractmethod
    def pid(self) -> int: ...

    @abstractmethod
    def learn(self, prompt: Sequence[int]) -> None:
        """Give it the prompt's tokens beforehand, so that asking is short. Raises SystemFailed."""

    @abstractmethod
    def post(self, prompt: Sequence[int], max_tokens: int = 1, *, is_checked: bool = True) -> int:
        """Ask and return at once, with a ticket. Raises SystemFailed.

        Where nothing is computed, a checked answer compares every byte, which costs whoever waits behind it.
        """

    @abstractmethod
    def collect(self, ticket: int) -> Answer:
        """Wait for an answer. Raises SystemFailed."""

    def ask(self, prompt: Sequence[int], max_tokens: int = 1) -> Answer:
        """Raises SystemFailed."""
        return self.collect(self.post(prompt, max_tokens))

    def settle(self) -> None:
        """Wait until what was answered is also stored. Raises SystemFailed."""
        return  # Where that is before the answer.

    @abstractmethod
    def is_alive(self) -> bool: ...

    @abstractmethod
    def kill(self) -> None:
        """SIGKILL, as a machine out of memory would."""

    @abstractmethod
    def close(self) -> None:
        """End it, by force if need be."""


@dataclass
class Deployment(ABC):
    """A system at work. A context manager: everything it started ends with it."""

    job: Job
    replicas: list[Replica] = field(default_factory=list)

    @abstractmethod
    def version(self) -> str:
        """What exactly takes part, once a replica runs."""

    def begin(self) -> None:
        """Start what replicas need. Raises SystemFailed."""
        return  # Many need nothing.

    @abstractmethod
    def start(self, number: int) -> Replica:
        """Begin a replica, which may not be ready yet: its first answer waits for that. Raises SystemFailed."""

    def add(self) -> Replica:
        """The next replica. Raises SystemFailed."""
        replica = self.start(len(self.replicas))
        self.replicas.append(replica)
        return replica

    def restart(self, number: int) -> Replica:
        """A new process in the place of one that was killed. Raises SystemFailed."""
        self.replicas[number].close()
        self.replicas[number] = self.start(number)
        return self.replicas[number]

    def server_pids(self) -> list[int]:
        """Processes beside the replicas."""
        return []

    def kill_server(self) -> bool:
        """SIGKILL to the cache's server, and a new one in its place. False when it has none. Raises SystemFailed."""
        return False

    def pids(self) -> list[int]:
        return [*(replica.pid for replica in self.replicas), *self.server_pids()]

    def facts(self) -> dict[str, Any]:
        """What can be said of the medium that KV lies in."""
        return {}

    def end(self) -> None:
        """End what begin() started."""
        return

    def __enter__(self) -> Self:
        try:
            self.begin()
        except BaseException:
            self.end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            for replica in reversed(self.replicas):
                replica.close()
        finally:
            self.end()


class System(ABC):
    """One way of keeping KV."""

    name: str
    title: str
    configuration: str
    crosses: bool
    """Does one process hit what another one stored?"""

    @abstractmethod
    def why_not(self) -> str:
        """Why it cannot take part here, with what to do about it; "" if it can."""

    @abstractmethod
    def deploy(self, job: Job) -> Deployment:
        """Not begun yet."""
