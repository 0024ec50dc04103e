"""The engine `synthetic` on several hosts: the first keeps the store, each other one is a replica that reaches it.

Every system has hosts of its own, all alike, joined by cables of their own; see `emulated_hosts`.
"""

from __future__ import annotations

import itertools
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from maru.bench.daemons import why_no_daemon
from maru.bench.emulated_hosts import Host, emulated
from maru.bench.rivals.crew import command_of
from maru.bench.rivals.install import why_not
from maru.bench.rivals.roster import Entry
from maru.bench.systems.children import ChildReplica
from maru.bench.systems.contract import Deployment, Job, Replica, System
from maru.bench.systems.stores import SOURCE_BYTES

_CHILD = "maru.bench.systems.stores_child:StoresChild"
_OURS = "maru.bench.rivals.daemon_store"
_numbers = itertools.count()


@dataclass
class HostsSystem(System):
    """A store on the first host, and a way to it."""

    entry: Entry
    name: str
    title: str
    configuration: str
    others: int
    """Hosts beside the first."""
    is_near: bool = False
    """Replicas are processes of the first host: nothing lies between."""
    crosses: bool = True

    def why_not(self) -> str:
        return why_no_daemon() if self.entry.kind.startswith(_OURS) else why_not(self.entry)

    def deploy(self, job: Job) -> Deployment:
        return _Deployed(job, system=self)


@dataclass
class _Deployed(Deployment):
    system: HostsSystem = field(kw_only=True)
    number: int = field(default_factory=lambda: next(_numbers))
    hosts: list[Host] = field(default_factory=list)
    stack: ExitStack = field(default_factory=ExitStack)

    def begin(self) -> None:
        self.hosts = self.stack.enter_context(emulated(self.system.others))
        if self.system.is_near:
            self.hosts = self.hosts[:1] * len(self.hosts)

    def start(self, number: int) -> Replica:
        """The first is on the first host, and keeps the store."""
        job, host = self.job, self.hosts[number]
        begin: dict[str, Any] = {
            "address": self._address_from(host) if number else "",
            "place": str(job.memory / f"hosts-{self.system.name}-{self.number}"),
            "capacity_bytes": job.capacity_bytes, "chunk_tokens": job.chunk_tokens, "chunk_bytes": job.chunk_bytes,
            "context_tokens_max": job.context_tokens_max, "source_bytes": SOURCE_BYTES, "options": host.listen,
        }  # fmt: skip
        name = f"hosts-{self.system.name}-{number}"
        command = [*host.inside, *command_of(sys.executable, _CHILD, self.system.entry.kind)]
        return ChildReplica(name, command, job.folder / f"{name}.log", begin, dict(self.system.entry.variables))

    def _address_from(self, host: Host) -> str:
        return str(self._host_facts()["address"]).replace(host.listen, host.first, 1)

    def _host_facts(self) -> dict[str, Any]:
        first = self.replicas[0]
        assert isinstance(first, ChildReplica)
        return first.facts()

    def version(self) -> str:
        return str(self._host_facts()["version"])

    def end(self) -> None:
        self.stack.close()


def _ours(kind: str) -> Entry:
    return Entry("maru", f"{_OURS}:{kind}")


def hosts_systems(others: int) -> list[HostsSystem]:
    """All ways to a store on another host, ours first."""
    redis = Entry("Redis", "maru.bench.rivals.redis_store:RedisOverTcp", ("redis",), program="redis-server")
    return [
        HostsSystem(_ours("LocalStore"), "maru", "Maru, the same host", "the pool itself", others, is_near=True),
        HostsSystem(
            _ours("MappedStore"), "maru-mapped", "Maru, mapped", "in place, told by messages, caches flushed", others
        ),
        HostsSystem(_ours("WireStore"), "maru-wire", "Maru, over the wire", "verified pieces over TCP, plain", others),
        HostsSystem(_ours("EncryptedStore"), "maru-curve", "Maru, over the wire, CURVE", "the same, encrypted", others),
        HostsSystem(redis, "redis", "Redis", "over TCP, plain", others),
    ]  # fmt: skip
