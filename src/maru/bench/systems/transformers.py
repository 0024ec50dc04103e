"""The systems of the engine `transformers`: a real model, computed by Hugging Face transformers."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from maru.bench.daemons import why_no_daemon
from maru.bench.engines.way_servers import ServerFailed, Servers, maru_daemon
from maru.bench.rivals.contract import HOST, free_ports
from maru.bench.rivals.crew import command_of
from maru.bench.systems.children import ChildReplica
from maru.bench.systems.contract import Deployment, Job, Replica, System, SystemFailed
from maru.bench.systems.pools import pool_url
from maru.errors import PoolNotFound
from maru.pool import Pool

_CHILD = "maru.bench.systems.transformers_child:TransformersChild"
_NEEDS = ("torch", "transformers", "gguf", "tokenizers", "safetensors")
# The model is a folder on disk: nothing is looked up anywhere. Threads that wait for their peers sleep, which costs
# nothing on an idle machine and helps everybody on a busy one.
_VARIABLES = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_WAIT_POLICY": "PASSIVE",
}


@dataclass
class TransformersSystem(System):
    name: str
    title: str
    configuration: str
    keep: Literal["nothing", "own", "pool", "daemon"]
    """Where KV stays: nowhere, in the process, in a pool of this host, or in one that a daemon brings over the wire."""
    crosses: bool = False

    def why_not(self) -> str:
        absent = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        if absent:
            return f"needs {', '.join(absent)}: pip install 'maru-kvcache[demo]'"
        return why_no_daemon() if self.keep == "daemon" else ""

    def deploy(self, job: Job) -> Deployment:
        return _Deployed(job, system=self)


@dataclass
class _Deployed(Deployment):
    system: TransformersSystem = field(kw_only=True)
    url: str = ""
    address: str = ""
    """Where replicas attach to."""
    _servers: Servers | None = None

    def begin(self) -> None:
        if self.system.keep in ("pool", "daemon"):
            self.address = self.url = pool_url(self.job)
            Pool.create(self.url).close()
        if self.system.keep == "daemon":
            self._serve(*free_ports(1))

    def _serve(self, port: int) -> None:
        servers = Servers([maru_daemon(port, self.url)], self.job.folder / f"{self.system.name}-server.log")
        try:
            self._servers = servers.__enter__()
        except ServerFailed as error:
            raise SystemFailed(f"{self.system.name}: {error}") from None
        self.address = (
            f"maru://{HOST}:{port}?mode=wire"  # Else the daemon hands out the pool itself, and is asked no more.
        )

    def start(self, number: int) -> Replica:
        job, cores = self.job, sorted(os.sched_getaffinity(0))
        begin: dict[str, Any] = {
            "model": str(job.model), "model_name": job.model_name, "keep": self.system.keep, "pool": self.address,
            "chunk_tokens": job.chunk_tokens, "token_bytes": job.token_bytes, "capacity_bytes": job.capacity_bytes,
            # One core each: replicas of a system are asked at once, and a figure must not depend on how many there are.
            "threads": 1, "cores": [cores[number % len(cores)]],
        }  # fmt: skip
        name = f"{self.system.name}-{number}"
        return ChildReplica(name, command_of(sys.executable, _CHILD), job.folder / f"{name}.log", begin, _VARIABLES)

    def version(self) -> str:
        replica = self.replicas[0]
        assert isinstance(replica, ChildReplica)
        return str(replica.facts()["version"])

    def server_pids(self) -> list[int]:
        return self._servers.pids() if self._servers else []

    def kill_server(self) -> bool:
        try:
            return self._servers is not None and self._servers.kill_one()
        except ServerFailed as error:
            raise SystemFailed(f"{self.system.name}: {error}") from None

    def end(self) -> None:
        if self._servers is not None:
            self._servers.__exit__(None, None, None)
        if self.url:
            with suppress(PoolNotFound):
                Pool.destroy(self.url, force=True)


SYSTEMS: tuple[System, ...] = (
    TransformersSystem("recompute", "recompute", "every prompt is computed whole", "nothing"),
    TransformersSystem(
        "prefix-cache", "own prefix cache", "past_key_values of the latest prompts kept in the process", "own"
    ),
    TransformersSystem("maru", "Maru", "maru.engine.transformers.PoolCache on maru:///NAME", "pool", crosses=True),
)

BY_DAEMON: System = TransformersSystem(
    "maru-wire", "Maru, over the wire",
    "the same door on maru.connect('maru://HOST:PORT?mode=wire'), a `maru serve` on the loopback, plain", "daemon",
    crosses=True,
)  # fmt: skip
"""Ours as another host has it."""
