"""Two OpenAI API servers over one pool, each as a user starts it: processes for the API, the engine, and computing.

Here the scheduler's side and the worker's side live in different processes.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import maru

CHUNK = 256
START_DEADLINE_S = 300
ANSWER_DEADLINE_S = 120
ASK = """
import sys, urllib.request as web
web.urlopen(web.Request(sys.argv[1], sys.stdin.buffer.read(), {"Content-Type": "application/json"}))
"""

pytestmark = [pytest.mark.engines, pytest.mark.crash, pytest.mark.timeout(900)]


class Server:
    """One `python -m vllm.entrypoints.openai.api_server`, with everything it starts in a group of its own."""

    def __init__(self, model: Path, pool: str, core: int, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        transfer = {
            "kv_connector": "MaruConnector",
            "kv_connector_module_path": "maru.engine.vllm",
            "kv_role": "kv_both",
            "kv_load_failure_policy": "recompute",
            "kv_connector_extra_config": {"pool": f"maru:///{pool}?size=1GiB"},
        }
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model),
            "--served-model-name", "m", "--host", "127.0.0.1",
            "--port", str(self.port), "--dtype", "float32", "--max-model-len", "4096",
            "--max-num-seqs", "4", "--no-enable-prefix-caching", "--enforce-eager", "--seed", "0",
            "--kv-transfer-config", json.dumps(transfer),
        ]  # fmt: skip
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": str(core),
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with log.open("ab") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)

    def wait_ready(self) -> None:
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health", timeout=2):
                    return
            except OSError:
                self.process_wait(0.5)
        raise AssertionError("the server did not start")

    def process_wait(self, seconds: float) -> None:
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return

    def ask(self, prompt: list[int], max_tokens: int = 8) -> tuple[list[int], int]:
        """(tokens of the answer, prompt tokens that were not computed)."""
        with urllib.request.urlopen(self.request(prompt, max_tokens), timeout=ANSWER_DEADLINE_S) as answer:
            said: dict[str, Any] = json.load(answer)
        details = said["usage"].get("prompt_tokens_details") or {}
        return said["choices"][0]["token_ids"], details.get("cached_tokens") or 0

    def request(self, prompt: list[int], max_tokens: int) -> urllib.request.Request:
        body = {
            "model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True,
        }  # fmt: skip
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def kill(self) -> None:
        """SIGKILL for all of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)


@pytest.fixture(scope="module")
def two(model: Path, pool_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    folder = tmp_path_factory.mktemp("servers")
    servers = [Server(model, pool_of_module, core, folder / f"server-{core}.log") for core in (0, 1)]
    try:
        for server in servers:
            server.wait_ready()
        yield servers
    finally:
        for server in servers:
            server.kill()


def stored(pool_name: str) -> int:
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        return int(pool.stats()["counters"]["stored"])


def loaded_chunks(pool_name: str) -> int:
    """Chunks read in place since the pool was made: by schedulers that pinned them, and by workers that copied them."""
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        return int(pool.stats()["counters"]["pinned"])


def test_what_one_server_computed_the_other_answers_from(
    two: list[Server], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    prompt = text_ids[: 4 * CHUNK + 20]
    computed, _ = a.ask(prompt)
    assert stored(pool_of_module) >= 4
    before = loaded_chunks(pool_of_module)
    answered, _ = b.ask(prompt)
    assert answered == computed
    assert loaded_chunks(pool_of_module) == before + 8  # Four by the scheduler, four by the worker.


def test_a_server_killed_in_a_store_leaves_the_other_untouched(
    two: list[Server], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    prompt = text_ids[5_000 : 5_000 + 8 * CHUNK + 20]
    known, _ = b.ask(text_ids[: 4 * CHUNK + 20])
    before = stored(pool_of_module)
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        request = a.request(prompt, 1)
        asking = subprocess.Popen(
            [sys.executable, "-c", ASK, request.full_url], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert asking.stdin is not None
        asking.stdin.write(request.data or b"")  # type: ignore[arg-type]
        asking.stdin.close()
        deadline = time.monotonic() + ANSWER_DEADLINE_S
        while pool.stats()["counters"]["stored"] == before and time.monotonic() < deadline:
            pool.wait(b"nobody's".ljust(16), 0.0005)
        a.kill()
        asking.wait(30)
        # The server's children die a moment after it: gigabytes of mappings are taken down first.
        deadline = time.monotonic() + ANSWER_DEADLINE_S
        while pool.stats()["reservations"] and time.monotonic() < deadline:
            pool.wait(b"nobody's".ljust(16), 0.01)
        pool.reap()
        assert pool.stats()["reservations"] == []
        assert pool.check() == []
    assert b.ask(text_ids[: 4 * CHUNK + 20])[0] == known
    computed, _ = b.ask(prompt)
    assert b.ask(prompt)[0] == computed
