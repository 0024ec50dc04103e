"""The ways of keeping KV with vLLM that are measured beside each other, each as its own documentation recommends:
vLLM's own, Maru's connector, and LMCache's many.

A way knows which servers it needs, how an engine is configured for it, and whether what one process stored reaches
another. The engines of one way are numbered: A (0) computes and stores, B (1) hits; where nothing reaches another
process, B is A.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from maru.bench.engines.vllm_instance import EngineConfig
from maru.bench.engines.way_servers import (
    CHUNK_TOKENS,
    Server,
    ServerFailed,
    Servers,
    lmcache_coordinator,
    lmcache_server,
    maru_daemon,
    redis_server,
)
from maru.bench.rivals.contract import HOST, free_ports
from maru.errors import PoolNotFound
from maru.pool import Pool

__all__ = ["CHUNK_TOKENS", "MARU_BY_DAEMON", "WAYS", "ServerFailed", "Setting", "Way"]

CACHE_GIB = 4
SETTLE_S = 1.0
"""LMCache stores after it answered; a hit is asked for when that is through."""
BLOCK_TOKENS = 128
"""vLLM's block on a CPU."""
NEAR_POOLS_MAX = 2
"""Engines of one way that have a pool of their own in front of a daemon's."""
IN_FLIGHT = 4
"""How many of the longest prompts an engine's own KV memory holds."""
_GIB = 1 << 30
_STAGING_GIB = 1
"""LMCache's memory for what is on its way to or from a backend that is not memory of its own; a prompt has to fit."""
_SHM = Path("/dev/shm")
_numbers = itertools.count()

Transfer = dict[str, Any] | None
"""vLLM's connector configuration; None for no connector."""
Configured = tuple[Transfer, dict[str, str]]
"""The connector's configuration, and the environment."""


@dataclass(frozen=True)
class Setting:
    """What all ways have in common. One deployment of a way has one to itself: its pool and its ports."""

    model: Path
    folder: Path
    """For configuration and logs."""
    shared_memory: Path
    """For what a rival keeps in memory as files."""
    capacity_bytes: int = CACHE_GIB * _GIB
    """Of every cache, or of all servers of one way together."""
    context_tokens_max: int = 8192
    """Of a prompt with its answer."""
    token_bytes: int | None = None
    """KV of one token; None: engines have 1 GiB of KV memory, whatever fits there."""
    pool: str = field(default_factory=lambda: f"bench-engines-{os.getpid()}-{next(_numbers)}")
    pool_options: str = ""
    """Of our pool's URL beyond its size."""
    ports: tuple[int, ...] = field(default_factory=lambda: free_ports(8))

    @property
    def pool_url(self) -> str:
        options = "&".join(part for part in (f"size={self.capacity_bytes}", self.pool_options) if part)
        return f"maru:///{self.pool}?{options}"

    @property
    def capacity_gib(self) -> float:
        return self.capacity_bytes / _GIB

    def near_pool(self, number: int) -> str:
        """The name of the pool that an engine's own host has in front of a daemon's."""
        return f"{self.pool}-near-{number}"

    def memory_of(self, what: str) -> Path:
        """A folder in shared memory, of this deployment alone."""
        folder = self.shared_memory / f"{self.pool}-{what}"
        folder.mkdir(exist_ok=True)
        return folder


def _nothing(_setting: Setting, _number: int) -> Configured:
    return None, {}


def _no_servers(_setting: Setting) -> list[Server]:
    return []


@dataclass(frozen=True)
class Way:
    """One way. `crosses`: whether a second process hits what the first one stored."""

    name: str
    title: str
    crosses: bool
    configuration: str
    """In one line, for the reader of the table."""
    configure: Callable[[Setting, int], Configured] = _nothing
    serve: Callable[[Setting], list[Server]] = _no_servers
    settles: Literal["at once", "later", "in later steps"] = "later"
    """When what was answered is also stored; vLLM's offloading goes on only while the engine has something to do."""
    needs: tuple[str, ...] = ("vllm",)
    """What has to be importable."""
    program: str = ""
    """What has to be installed beside, as a command."""

    def why_not(self) -> str:
        """Why it cannot be measured here, with what to do about it; "" if it can."""
        absent = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if absent == ["nixl"]:
            return "needs nixl: pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1"
        if absent:
            return f"needs {', '.join(absent)}: `make engines`, then .venv-engines/bin/maru bench ..."
        if self.program and shutil.which(self.program) is None:
            return f"there is no {self.program} (a system package of that name on Debian and Ubuntu)"
        return ""

    def engine(self, setting: Setting, number: int) -> EngineConfig:
        """The configuration of one engine."""
        transfer, environment = self.configure(setting, number)
        cores = sorted(os.sched_getaffinity(0))
        config = EngineConfig(
            model=setting.model,
            kv_transfer=transfer,
            environment=environment,
            core=cores[number % len(cores)],
            prefix_caching=self.name == "prefix-cache",
            max_tokens=setting.context_tokens_max,
            # The example connector stores whole prompts, so nobody's may be cut.
            chunked_prefill=self.name != "example",
            log=setting.folder / f"{self.name}-{number}.log",
        )
        return config if setting.token_bytes is None else self._with_memory(config, setting, setting.token_bytes)

    def _with_memory(self, config: EngineConfig, setting: Setting, token_bytes: int) -> EngineConfig:
        """KV memory of an engine: its cache if that is its own, else room for what it works on."""
        wanted = IN_FLIGHT * setting.context_tokens_max
        if self.name == "prefix-cache":
            wanted = max(setting.context_tokens_max, setting.capacity_bytes // token_bytes)
        blocks = -(-wanted // BLOCK_TOKENS) + 1
        return replace(config, block_count=blocks, kv_gib=-(-blocks * BLOCK_TOKENS * token_bytes // _GIB))

    @contextmanager
    def servers(self, setting: Setting) -> Iterator[Servers]:
        """What must run beside the engines; the pool and the files of this setting go with it. Raises ServerFailed."""
        try:
            with Servers(self.serve(setting), setting.folder / f"{self.name}-server.log") as running:
                yield running
        finally:
            for name in (setting.pool, *(setting.near_pool(number) for number in range(NEAR_POOLS_MAX))):
                with suppress(PoolNotFound):
                    Pool.destroy(f"maru:///{name}", force=True)
            for folder in setting.shared_memory.glob(f"{setting.pool}-*"):
                shutil.rmtree(folder, ignore_errors=True)

    def clean_up(self, setting: Setting, number: int, pid: int | None) -> None:
        """Remove what an engine leaves in shared memory when its process does not end by itself."""
        rows = _SHM.glob(f"vllm_offload_{setting.pool}-{number}*.mmap")
        for file in (*_SHM.glob(f"lmcache_kv_{pid}_*"), *rows):
            file.unlink(missing_ok=True)


def _maru_connector(setting: Setting, _number: int) -> Configured:
    return {
        "kv_connector": "MaruConnector",
        "kv_connector_module_path": "maru.engine.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"pool": setting.pool_url, "chunk_tokens": CHUNK_TOKENS},
    }, {}


def _example(setting: Setting, _number: int) -> Configured:
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(setting.memory_of("example"))},
    }, {}


def _offloading(setting: Setting, number: int) -> Configured:
    extra = {
        "spec_name": "CpuTieringSpec",
        "spec_module_path": "maru.bench.engines.on_cpu.offloading_spec",
        "cpu_bytes_to_use": setting.capacity_bytes,
        "secondary_tiers": [{"type": "fs", "root_dir": str(setting.memory_of("offloading"))}],
    }
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "engine_id": f"{setting.pool}-{number}",  # Names the file of its rows, which has to be removed afterwards.
        "kv_connector_extra_config": extra,
    }, {}


def _in_process(name: str, settings: Callable[[Setting, int], dict[str, Any]]) -> Callable[[Setting, int], Configured]:
    """LMCache inside the engine's process, by its YAML file."""

    def configure(setting: Setting, number: int) -> Configured:
        file = setting.folder / f"{name}-{number}.yaml"
        lines = {"chunk_size": CHUNK_TOKENS, **settings(setting, number)}
        file.write_text("".join(f"{key}: {json.dumps(value)}\n" for key, value in lines.items()))
        return {
            "kv_connector": "LMCacheOnCPU",
            "kv_connector_module_path": "maru.bench.engines.on_cpu.lmcache_in_process",
            "kv_role": "kv_both",
        }, {"LMCACHE_CONFIG_FILE": str(file)}

    return configure


def _pool_of(setting: Setting) -> dict[str, Any]:
    return {"maru_path": setting.pool_url, "maru_pool_size": setting.capacity_gib}


def _maru(setting: Setting, _number: int) -> dict[str, Any]:
    return {"local_cpu": False, "max_local_cpu_size": 0, **_pool_of(setting)}


def _maru_by_daemon(setting: Setting, number: int) -> dict[str, Any]:
    near = f"maru://{HOST}:{setting.ports[0]}/{setting.near_pool(number)}?mode=wire"
    return {**_maru(setting, number), "maru_path": near}


def _maru_servers(setting: Setting) -> list[Server]:
    return [maru_daemon(setting.ports[0], setting.pool_url)]


def _maru_local_cpu(setting: Setting, _number: int) -> dict[str, Any]:
    return {"local_cpu": True, "max_local_cpu_size": setting.capacity_gib, **_pool_of(setting)}


def _local_cpu(setting: Setting, _number: int) -> dict[str, Any]:
    return {"local_cpu": True, "max_local_cpu_size": setting.capacity_gib}


def _dax(setting: Setting, number: int) -> dict[str, Any]:
    """A file for each process: what lies where is known to the process alone."""
    device = setting.memory_of("dax") / f"device-{number}"
    with device.open("wb") as file:
        file.truncate(setting.capacity_bytes)
    plugin = {"module_path": "lmcache.v1.storage_backend.plugins.dax_backend", "class_name": "DaxBackend"}
    options = {"device_path": str(device), "max_dax_size": setting.capacity_gib, "async_put": False}
    return {
        "local_cpu": False,
        "max_local_cpu_size": _STAGING_GIB,
        "storage_plugins": ["dax"],
        "extra_config": {
            **{f"storage_plugin.dax.{name}": value for name, value in plugin.items()},
            **{f"dax.{name}": value for name, value in options.items()},
        },
    }


def _remote(url: str) -> dict[str, Any]:
    return {"local_cpu": False, "max_local_cpu_size": _STAGING_GIB, "remote_url": url, "remote_serde": "naive"}


def _redis(setting: Setting, _number: int) -> dict[str, Any]:
    return _remote(f"redis://{HOST}:{setting.ports[0]}")


def _fs(setting: Setting, _number: int) -> dict[str, Any]:
    return _remote(f"fs://localhost:0/{setting.memory_of('fs')}")


def _redis_servers(setting: Setting) -> list[Server]:
    return [redis_server(setting.ports[0], setting.capacity_bytes, setting.folder)]


def _client_of_server(first_port: int) -> Callable[[Setting, int], Configured]:
    """An engine at an LMCache server: engine N at the port `first_port + N`; all at the first when that is 0."""

    def configure(setting: Setting, number: int) -> Configured:
        extra = {
            "lmcache.mp.host": f"tcp://{HOST}",
            "lmcache.mp.port": setting.ports[first_port + number % 2 if first_port else 0],
            # What a server answers unless told otherwise; the client's automatic choice on a CPU waits for ever.
            "lmcache.mp.mp_transfer_mode": "lmcache_driven",
        }
        return {
            "kv_connector": "LMCacheMPConnector",
            "kv_connector_module_path": "maru.bench.engines.on_cpu.lmcache_mp",
            "kv_role": "kv_both",
            "kv_connector_extra_config": extra,
        }, {}

    return configure


def _mp_servers(setting: Setting) -> list[Server]:
    return [lmcache_server(setting.ports[0], setting.ports[3], setting.capacity_bytes)]


_FIRST_OF_TWO = 1


def _two_servers(setting: Setting, more: Callable[[int], tuple[str, ...]]) -> list[Server]:
    """A's and B's, with half of the capacity each."""
    return [
        lmcache_server(
            setting.ports[_FIRST_OF_TWO + number], setting.ports[3 + number], setting.capacity_bytes // 2, *more(number)
        )
        for number in (0, 1)
    ]


def _p2p_servers(setting: Setting) -> list[Server]:
    coordinator = setting.ports[0]

    def more(number: int) -> tuple[str, ...]:
        return (
            "--instance-id", f"server-{number}", "--coordinator-url", f"http://{HOST}:{coordinator}",
            "--coordinator-advertise-ip", HOST, "--p2p-advertise-url", f"{HOST}:{setting.ports[5 + number]}",
        )  # fmt: skip

    return [lmcache_coordinator(coordinator), *_two_servers(setting, more)]


def _l2_maru_servers(setting: Setting) -> list[Server]:
    place = {"module_path": "maru_lmcache.l2", "class_name": "MaruL2Adapter"}
    l2 = {"type": "plugin", "shared": True, **place, "adapter_params": {"pool": setting.pool_url}}
    return _two_servers(setting, lambda _: ("--l2-adapter", json.dumps(l2)))


def _l2_fs_servers(setting: Setting) -> list[Server]:
    l2 = {"type": "fs", "base_path": str(setting.memory_of("l2-fs"))}
    return _two_servers(setting, lambda _: ("--l2-adapter", json.dumps(l2)))


_LMCACHE = ("vllm", "lmcache")
WAYS = (
    Way("recompute", "recompute", False, "enable_prefix_caching: false, no connector", settles="at once"),
    Way("prefix-cache", "vLLM's own prefix cache, one process", False, "enable_prefix_caching", settles="at once"),
    Way(
        "maru-connector", "Maru's own connector, no LMCache", True, "kv_connector: MaruConnector, pool: maru:///NAME",
        _maru_connector,
    ),
    Way(
        "example", "vLLM's example connector, files in /dev/shm", True,
        "kv_connector: ExampleConnector, shared_storage_path: /dev/shm/...; removes nothing", _example,
    ),
    Way(
        "offloading", "vLLM's offloading connector, fs tier in /dev/shm", True,
        "kv_connector: OffloadingConnector, cpu_bytes_to_use, secondary_tiers: fs; vLLM's TieringOffloadingSpec with a "
        "worker for CPUs, which its own refuses", _offloading, settles="in later steps",
    ),
    Way(
        "maru", "LMCache + Maru", True, "maru_path: maru:///NAME, maru_pool_size, max_local_cpu_size: 0",
        _in_process("maru", _maru), needs=_LMCACHE,
    ),
    Way(
        "maru-local-cpu", "LMCache + Maru behind LocalCPU", True,
        "maru_path: maru:///NAME, local_cpu: true, max_local_cpu_size",
        _in_process("maru-local-cpu", _maru_local_cpu), needs=_LMCACHE,
    ),
    Way(
        "local-cpu", "LMCache LocalCPU, one process", False, "local_cpu: true, max_local_cpu_size",
        _in_process("local-cpu", _local_cpu), needs=_LMCACHE,
    ),
    Way(
        "mp", "LMCache MP mode", True,
        "lmcache server --l1-size-gb --no-l1-use-lazy, mp_transfer_mode lmcache_driven",
        _client_of_server(0), _mp_servers, needs=_LMCACHE,
    ),
    Way(
        "mp-l2-maru", "LMCache MP mode, two servers, Maru as L2", True,
        "two servers of half the size with the L2 adapter maru_lmcache.l2; A at the first, B at the second",
        _client_of_server(_FIRST_OF_TWO), _l2_maru_servers, needs=_LMCACHE,
    ),
    Way(
        "mp-l2-fs", "LMCache MP mode, two servers, fs as L2", True,
        "two servers of half the size with the L2 adapter fs in /dev/shm; A at the first, B at the second",
        _client_of_server(_FIRST_OF_TWO), _l2_fs_servers, needs=_LMCACHE,
    ),
    Way(
        "p2p", "LMCache MP mode, P2P over NIXL/UCX", True,
        "coordinator, two servers of half the size; A at the first, B at the second",
        _client_of_server(_FIRST_OF_TWO), _p2p_servers, needs=(*_LMCACHE, "nixl"),
    ),
    Way(
        "dax", "LMCache DAX backend on a mapped file, one process", False,
        "storage_plugins: [dax], dax.device_path: /dev/shm/..., dax.max_dax_size, dax.async_put: false",
        _in_process("dax", _dax), needs=_LMCACHE,
    ),
    Way(
        "redis", "LMCache remote, Redis", True,
        "remote_url: redis://127.0.0.1, remote_serde: naive; redis-server with maxmemory, allkeys-lru, save ''",
        _in_process("redis", _redis), _redis_servers, needs=(*_LMCACHE, "redis"), program="redis-server",
    ),
    Way(
        "fs", "LMCache remote, files in /dev/shm", True,
        "remote_url: fs://localhost/dev/shm/..., remote_serde: naive; removes nothing",
        _in_process("fs", _fs), needs=_LMCACHE,
    ),
)  # fmt: skip

MARU_BY_DAEMON = Way(
    "maru-wire", "LMCache + Maru, over the wire", True,
    "maru_path: maru://HOST:PORT/NEAR?mode=wire, maru_pool_size; a `maru serve` on the loopback, plain; a near pool "
    "for each engine, as hosts of their own would have",
    _in_process("maru-wire", _maru_by_daemon), _maru_servers, needs=_LMCACHE,
)  # fmt: skip
"""Ours as another host has it; measured where daemons die."""
