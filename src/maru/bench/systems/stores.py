"""The systems of the engine `synthetic`: KV of a named model's size moves, and nothing is computed."""

from __future__ import annotations

import itertools
import secrets
from dataclasses import dataclass, field
from typing import Any

from maru.bench.rivals.crew import command_of, variables_of
from maru.bench.rivals.install import interpreter_of, why_not
from maru.bench.rivals.roster import ENTRIES, OURS, Entry
from maru.bench.systems.children import ChildReplica
from maru.bench.systems.contract import Deployment, Job, Replica, System
from maru.bench.systems.pools import pool_options

_CHILD = "maru.bench.systems.stores_child:StoresChild"
SOURCE_BYTES = 128 << 20


@dataclass
class StoreSystem(System):
    entry: Entry
    name: str
    title: str
    configuration: str = "see docs/benchmarks.md, the rivals"
    crosses: bool = True

    def why_not(self) -> str:
        return why_not(self.entry)

    def deploy(self, job: Job) -> Deployment:
        return _Deployed(job, system=self)


@dataclass
class _Deployed(Deployment):
    system: StoreSystem = field(kw_only=True)
    address: str = ""
    number: int = field(default_factory=itertools.count().__next__)
    """Of all deployments of this process: two of one store may run side by side."""
    password: str = field(default_factory=lambda: secrets.token_hex(32))

    def start(self, number: int) -> Replica:
        entry, job = self.system.entry, self.job
        begin: dict[str, Any] = {
            "address": self._host_address() if number else "",
            "place": str(job.memory / f"{self.system.name}-{self.number}"),
            "capacity_bytes": job.capacity_bytes, "chunk_tokens": job.chunk_tokens, "chunk_bytes": job.chunk_bytes,
            "context_tokens_max": job.context_tokens_max, "source_bytes": SOURCE_BYTES,
            "options": pool_options(job) if self.system.name == OURS else "",
        }  # fmt: skip
        name = f"{self.system.name}-{number}"
        command = command_of(str(interpreter_of(entry)), _CHILD, entry.kind, apart=bool(entry.folder))
        variables = variables_of(entry, self.password)
        return ChildReplica(name, command, job.folder / f"{name}.log", begin, variables)

    def _host_address(self) -> str:
        """The first replica hosts the store; the others wait for its address."""
        host = self.replicas[0]
        assert isinstance(host, ChildReplica)
        return str(host.facts()["address"])

    def version(self) -> str:
        host = self.replicas[0]
        assert isinstance(host, ChildReplica)
        return str(host.facts()["version"])


SYSTEMS: tuple[System, ...] = tuple(
    StoreSystem(entry, name, "Maru" if name == OURS else entry.title) for name, entry in ENTRIES.items()
)
