"""Real `lmcache server` processes with the pool as their second level, driven by the client of LMCache's own benchmark.

That client registers CPU tensors with a server and stores and retrieves them as a serving engine would, so no engine is
needed to see whether every bit comes back.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lmcache.cli.commands.bench.server_bench.client import ServerBenchClient
from lmcache.cli.commands.bench.server_bench.config import BenchConfig

import maru

pytestmark = [pytest.mark.engines, pytest.mark.crash]

CHUNK_TOKENS, CHUNKS = 256, 4
DEADLINE_S = 90.0

_numbers = itertools.count()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.02)


class Server:
    """One `lmcache server`, in a process of its own."""

    def __init__(self, pool_url: str, log: Path) -> None:
        self.port, self.http_port, self.log = free_port(), free_port(), log
        adapter = {
            "type": "plugin",
            "shared": True,
            "module_path": "maru_lmcache.l2",
            "class_name": "MaruL2Adapter",
            "adapter_params": {"pool": pool_url},
        }
        options = {
            "--host": "127.0.0.1",
            "--port": self.port,
            "--http-port": self.http_port,
            "--chunk-size": CHUNK_TOKENS,
            "--l1-size-gb": 0.1,
            "--eviction-policy": "LRU",
            "--l2-adapter": json.dumps(adapter),
        }
        switches = ["--no-l1-use-lazy", "--disable-observability"]
        arguments = [str(part) for option in options.items() for part in option]
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                [Path(sys.executable).parent / "lmcache", "server", *switches, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | {"LMCACHE_LOG_LEVEL": "WARNING"},
            )

    def wait_ready(self) -> None:
        """It listens for HTTP last."""
        eventually(self._answers, f"a server; see {self.log}")

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.http_port)) == 0

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(DEADLINE_S)


class Client:
    """Two ranks of an engine without a model: their KV is random, and follows from the rank."""

    def __init__(self, server: Server) -> None:
        self.bench = ServerBenchClient(
            BenchConfig(
                rpc_url=f"tcp://127.0.0.1:{server.port}",
                http_url=f"http://127.0.0.1:{server.http_port}",
                mode="cpu",
                transfer_mode="lmcache_driven",
                tp_size=2,
                use_mla=False,
                num_tokens=CHUNKS * CHUNK_TOKENS,
                kvcache_shape_spec="(2,128,16,2,64):float16:3",
                num_blocks=128,
                block_size=16,
            ),
            lambda _: None,
        )
        self.bench.start()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.bench.close()

    def _tensors(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(a layer's memory, what belongs there) of every rank."""
        for worker in self.bench._workers:
            generator = torch.Generator().manual_seed(worker.spec.rank)
            for memory in worker.kv_caches.values():
                yield memory, torch.randn(memory.shape, generator=generator).to(memory.dtype)

    def look_up(self, prompt: int) -> tuple[Any, int]:
        """(the request, how many of its chunks the server has)."""
        request = self.bench.create_request(prompt, f"request-{os.getpid()}-{next(_numbers)}", "test")
        result = self.bench.lookup(request)
        assert result.succeeded
        return request, result.hit_chunks

    def store(self, prompt: int) -> None:
        request, found = self.look_up(prompt)
        assert found == 0
        for memory, content in self._tensors():
            memory.copy_(content)
        stored = self.bench.store(request, 0, request.num_full_tokens)
        assert stored is not None
        assert stored.succeeded

    def retrieves_every_bit(self, prompt: int) -> bool:
        request, found = self.look_up(prompt)
        assert found == CHUNKS
        for memory, _ in self._tensors():
            memory.zero_()
        retrieved = self.bench.retrieve(request, 0, request.num_full_tokens)
        assert retrieved is not None
        assert retrieved.succeeded
        blocks = slice(request.block_offset, request.block_offset + request.num_blocks)
        return all(torch.equal(memory[:, blocks], content[:, blocks]) for memory, content in self._tensors())


@pytest.fixture
def start(pool_name: str, tmp_path: Path) -> Iterator[Callable[[], Server]]:
    servers: list[Server] = []

    def start() -> Server:
        servers.append(Server(f"maru:///{pool_name}?size=128MiB", tmp_path / f"server-{len(servers)}.log"))
        return servers[-1]

    yield start
    for server in servers:
        if server.process.poll() is None:
            server.kill()


def sealed(pool_name: str) -> int:
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        return int(pool.stats()["chunks"]["sealed"])


def test_two_servers_share_one_pool_and_a_killed_one_finds_everything_again(
    start: Callable[[], Server], pool_name: str
) -> None:
    first, second = start(), start()
    first.wait_ready()
    second.wait_ready()
    with Client(first) as client:
        client.store(prompt=1)
    eventually(lambda: sealed(pool_name) == 2 * CHUNKS, "both ranks' chunks in the pool")
    with Client(second) as client:
        assert client.retrieves_every_bit(prompt=1), "stored through the first, retrieved through the second"
        client.store(prompt=2)
    eventually(lambda: sealed(pool_name) == 4 * CHUNKS, "the second server's chunks in the pool")

    first.kill()
    second.kill()
    again = start()
    again.wait_ready()
    with Client(again) as client:
        assert client.retrieves_every_bit(prompt=1)
        assert client.retrieves_every_bit(prompt=2)
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        assert pool.check() == []
        assert all(process["pins"] == 0 for process in pool.stats()["processes"]), "every lock was taken off"


def test_a_server_whose_pool_is_on_another_host_does_not_start(tmp_path: Path) -> None:
    server = Server("maru://10.1.2.3:6555", tmp_path / "server.log")
    try:
        assert server.process.wait(DEADLINE_S) != 0
        assert "NoDaemon" in server.log.read_text()
    finally:
        if server.process.poll() is None:
            server.kill()
