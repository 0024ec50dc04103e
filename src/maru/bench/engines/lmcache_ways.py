"""The ways of using LMCache with vLLM that are measured beside each other, each as its own documentation recommends.

A way knows which servers it needs, how an engine is configured for it, and whether what one process stored reaches
another. The engines of one way are A, which computes and stores, and B, which hits; where nothing reaches another
process, B is A.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import maru
from maru.bench.engines.vllm_instance import EngineConfig
from maru.errors import MaruError

SERVER_DEADLINE_S = 120.0
CHUNK_TOKENS = 256
CACHE_GIB = 4
_POLL_S = 0.2

Configure = Callable[["Setting", int], tuple[dict[str, Any] | None, dict[str, str]]]
"""From the number of an engine to vLLM's connector configuration and the environment."""


class ServerFailed(MaruError):
    """A server that a way needs did not come up."""

    hint = "its own words are in the log file named above"


@dataclass(frozen=True)
class Setting:
    """What all ways have in common."""

    model: Path
    shims: Path
    """Where the modules lie that let LMCache run without a GPU."""
    folder: Path
    """For configuration and logs."""
    shared_memory: Path
    """For what a rival keeps in memory as files."""
    cache_gib: int = CACHE_GIB
    """Of every cache, or of all servers of one way together."""


@dataclass(frozen=True)
class Way:
    """One way. `crosses`: whether a second process hits what the first one stored."""

    name: str
    title: str
    crosses: bool
    configuration: str
    """In one line, for the reader of the table."""

    def engine(self, setting: Setting, number: int) -> EngineConfig:
        """The configuration of engine A (0) or B (1)."""
        configure: Configure = _CONFIGURE[self.name]
        kv_transfer, environment = configure(setting, number)
        return EngineConfig(
            model=setting.model,
            kv_transfer=kv_transfer,
            environment=environment,
            import_path=(str(setting.shims),),
            core=number,
            prefix_caching=self.name == "prefix-cache",
            log=setting.folder / f"{self.name}-{number}.log",
        )

    @contextmanager
    def servers(self, setting: Setting) -> Iterator[None]:
        """What must run beside the engines. Raises ServerFailed."""
        with ExitStack() as stack:
            for command, ready_url in _SERVERS[self.name](setting) if self.name in _SERVERS else []:
                stack.enter_context(_running(command, ready_url, setting.folder / f"{self.name}-server.log"))
            yield
        if "maru" in self.name:
            maru.Pool.destroy(f"maru:///{_POOL}", force=True)


WAYS = (
    Way("prefix-cache", "vLLM's own prefix cache, one process", False, "enable_prefix_caching"),
    Way("maru-connector", "Maru's own connector, no LMCache", True, "kv_connector: MaruConnector, pool: maru:///NAME"),
    Way(
        "example", "vLLM's example connector, files in /dev/shm", True,
        "kv_connector: ExampleConnector, shared_storage_path: /dev/shm/...",
    ),
    Way(
        "maru", "LMCache + Maru", True,
        f"maru_path: maru:///NAME, maru_pool_size: {CACHE_GIB}, max_local_cpu_size: 0",
    ),
    Way(
        "maru-local-cpu", "LMCache + Maru behind LocalCPU", True,
        f"maru_path: maru:///NAME, local_cpu: true, max_local_cpu_size: {CACHE_GIB}",
    ),
    Way("local-cpu", "LMCache LocalCPU, one process", False, f"local_cpu: true, max_local_cpu_size: {CACHE_GIB}"),
    Way(
        "mp", "LMCache MP mode", True,
        f"lmcache server --l1-size-gb {CACHE_GIB} --no-l1-use-lazy, mp_transfer_mode lmcache_driven",
    ),
    Way(
        "mp-l2-maru", "LMCache MP mode, two servers, Maru as L2", True,
        f"two servers of {CACHE_GIB // 2} GB with the L2 adapter maru_lmcache.l2; A at the first, B at the second",
    ),
    Way(
        "mp-l2-fs", "LMCache MP mode, two servers, fs as L2", True,
        f"two servers of {CACHE_GIB // 2} GB with the L2 adapter fs in /dev/shm; A at the first, B at the second",
    ),
    Way(
        "p2p", "LMCache MP mode, P2P over NIXL/UCX", True,
        f"coordinator, two servers of {CACHE_GIB // 2} GB; A at the first, B at the second",
    ),
)  # fmt: skip
_POOL = f"bench-lmcache-{os.getpid()}"
_PORTS = {"mp": 17601, "server-0": 17611, "server-1": 17612, "coordinator": 17620}


def missing_for(way: Way) -> str:
    """What has to be installed before this way can be measured; empty when nothing."""
    if way.name == "p2p" and importlib.util.find_spec("nixl") is None:
        return "pip install --no-deps nixl==1.5.1 nixl-cu12==1.5.1"
    return ""


def _in_process(setting: Setting, way: str, settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """LMCache inside the engine's process, by its YAML file."""
    file = setting.folder / f"{way}.yaml"
    lines = {"chunk_size": CHUNK_TOKENS, **settings}
    file.write_text("".join(f"{name}: {json.dumps(value)}\n" for name, value in lines.items()))
    connector = {"kv_connector": "LMCacheOnCPU", "kv_connector_module_path": "lmcache_on_cpu", "kv_role": "kv_both"}
    return connector, {"LMCACHE_CONFIG_FILE": str(file)}


def _maru(setting: Setting, _number: int) -> tuple[dict[str, Any], dict[str, str]]:
    address = {"maru_path": f"maru:///{_POOL}", "maru_pool_size": setting.cache_gib}
    return _in_process(setting, "maru", {"local_cpu": False, "max_local_cpu_size": 0, **address})


def _maru_local_cpu(setting: Setting, _number: int) -> tuple[dict[str, Any], dict[str, str]]:
    address = {"maru_path": f"maru:///{_POOL}", "maru_pool_size": setting.cache_gib}
    local = {"local_cpu": True, "max_local_cpu_size": setting.cache_gib}
    return _in_process(setting, "maru-local-cpu", {**local, **address})


def _local_cpu(setting: Setting, _number: int) -> tuple[dict[str, Any], dict[str, str]]:
    return _in_process(setting, "local-cpu", {"local_cpu": True, "max_local_cpu_size": setting.cache_gib})


def _own_connector(setting: Setting, _number: int) -> tuple[dict[str, Any], dict[str, str]]:
    return {
        "kv_connector": "MaruConnector",
        "kv_connector_module_path": "maru.engine.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {
            "pool": f"maru:///{_POOL}?size={setting.cache_gib}GiB",
            "chunk_tokens": CHUNK_TOKENS,
        },
    }, {}


def _example(setting: Setting, _number: int) -> tuple[dict[str, Any], dict[str, str]]:
    return {
        "kv_connector": "ExampleConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {"shared_storage_path": str(setting.shared_memory / "example")},
    }, {}


def _none(_setting: Setting, _number: int) -> tuple[None, dict[str, str]]:
    return None, {}


def _server_client(port: int) -> tuple[dict[str, Any], dict[str, str]]:
    extra = {
        "lmcache.mp.host": "tcp://127.0.0.1",
        "lmcache.mp.port": port,
        # The only mode that a server without a GPU answers; the automatic one waits for ever.
        "lmcache.mp.mp_transfer_mode": "lmcache_driven",
    }
    return {
        "kv_connector": "LMCacheMPConnector",
        "kv_connector_module_path": "lmcache_mp_on_cpu",
        "kv_role": "kv_both",
        "kv_connector_extra_config": extra,
    }, {}


_CONFIGURE: dict[str, Configure] = {
    "prefix-cache": _none,
    "maru-connector": _own_connector,
    "example": _example,
    "maru": _maru,
    "maru-local-cpu": _maru_local_cpu,
    "local-cpu": _local_cpu,
    "mp": lambda _setting, _number: _server_client(_PORTS["mp"]),
    "p2p": lambda _setting, number: _server_client(_PORTS[f"server-{number}"]),
    "mp-l2-maru": lambda _setting, number: _server_client(_PORTS[f"server-{number}"]),
    "mp-l2-fs": lambda _setting, number: _server_client(_PORTS[f"server-{number}"]),
}


def _lmcache_server(port: int, size_gb: float, *more: str) -> tuple[list[str], str]:
    command = [
        str(Path(sys.executable).with_name("lmcache")), "server", "--host", "127.0.0.1", "--port", str(port),
        "--chunk-size", str(CHUNK_TOKENS), "--l1-size-gb", f"{size_gb:g}", "--no-l1-use-lazy",
        "--http-port", str(port + 1000), "--disable-observability", "--eviction-policy", "LRU", *more,
    ]  # fmt: skip
    return command, f"http://127.0.0.1:{port + 1000}/healthcheck"


def _mp_servers(setting: Setting) -> list[tuple[list[str], str]]:
    return [_lmcache_server(_PORTS["mp"], setting.cache_gib)]


def _p2p_servers(setting: Setting) -> list[tuple[list[str], str]]:
    port = _PORTS["coordinator"]
    coordinator = [
        str(Path(sys.executable).with_name("lmcache")), "coordinator", "--host", "127.0.0.1", "--port", str(port),
        "--disable-metrics",
    ]  # fmt: skip
    peers = [
        _lmcache_server(
            _PORTS[f"server-{number}"], setting.cache_gib / 2, "--instance-id", f"server-{number}",
            "--coordinator-url", f"http://127.0.0.1:{port}", "--coordinator-advertise-ip", "127.0.0.1",
            "--p2p-advertise-url", f"127.0.0.1:{port + 1 + number}",
        )
        for number in (0, 1)
    ]  # fmt: skip
    return [(coordinator, f"tcp://127.0.0.1:{port}"), *peers]


def _l2_servers(setting: Setting, l2: dict[str, Any]) -> list[tuple[list[str], str]]:
    return [
        _lmcache_server(_PORTS[f"server-{number}"], setting.cache_gib / 2, "--l2-adapter", json.dumps(l2))
        for number in (0, 1)
    ]


def _l2_maru_servers(setting: Setting) -> list[tuple[list[str], str]]:
    place = {"module_path": "maru_lmcache.l2", "class_name": "MaruL2Adapter"}
    pool = {"pool": f"maru:///{_POOL}?size={setting.cache_gib}GiB"}
    return _l2_servers(setting, {"type": "plugin", "shared": True, **place, "adapter_params": pool})


def _l2_fs_servers(setting: Setting) -> list[tuple[list[str], str]]:
    return _l2_servers(setting, {"type": "fs", "base_path": str(setting.shared_memory / "l2-fs")})


_SERVERS: dict[str, Callable[[Setting], list[tuple[list[str], str]]]] = {
    "mp": _mp_servers,
    "mp-l2-maru": _l2_maru_servers,
    "mp-l2-fs": _l2_fs_servers,
    "p2p": _p2p_servers,
}


@contextmanager
def _running(command: list[str], ready_url: str, log: Path) -> Iterator[None]:
    """The server runs until the block ends. Raises ServerFailed when it is not ready in time."""
    environment = os.environ | {"LMCACHE_TRACK_USAGE": "false", "PYTHONHASHSEED": "0"}
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
    try:
        deadline = time.monotonic() + SERVER_DEADLINE_S
        while not _answers(ready_url):
            if process.poll() is not None:
                raise ServerFailed(f"{command[1]} ended with {process.returncode}; log: {log}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{command[1]} did not answer in {SERVER_DEADLINE_S:.0f} s; log: {log}")
            time.sleep(_POLL_S)
        yield
    finally:
        process.terminate()
        try:
            process.wait(15)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(15)


def _answers(url: str) -> bool:
    if url.startswith("tcp://"):
        host, port = url.removeprefix("tcp://").split(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False
