"""The systems of the engine `transformers`: a real model, computed by Hugging Face transformers."""

from __future__ import annotations

import importlib.util
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from maru.bench.rivals.crew import command_of
from maru.bench.systems.children import ChildReplica
from maru.bench.systems.contract import Deployment, Job, Replica, System
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
    keep: Literal["nothing", "own", "pool"]
    crosses: bool = False

    def why_not(self) -> str:
        absent = [name for name in _NEEDS if importlib.util.find_spec(name) is None]
        return f"needs {', '.join(absent)}: pip install 'maru-kvcache[demo]'" if absent else ""

    def deploy(self, job: Job) -> Deployment:
        return _Deployed(job, system=self)


@dataclass
class _Deployed(Deployment):
    system: TransformersSystem = field(kw_only=True)
    url: str = ""

    def begin(self) -> None:
        if self.system.keep == "pool":
            self.url = pool_url(self.job)
            Pool.create(self.url).close()

    def start(self, number: int) -> Replica:
        job, cores = self.job, sorted(os.sched_getaffinity(0))
        begin: dict[str, Any] = {
            "model": str(job.model), "model_name": job.model_name, "keep": self.system.keep, "pool": self.url,
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

    def end(self) -> None:
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
