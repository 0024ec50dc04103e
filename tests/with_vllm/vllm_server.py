"""An OpenAI API server of vLLM's, started as a user starts it: processes for the API, the engine, and computing.

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
from pathlib import Path
from typing import Any

START_DEADLINE_S = 300
ANSWER_DEADLINE_S = 120


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


class Server:
    """One `python -m vllm.entrypoints.openai.api_server`, with everything it starts in a group of its own."""

    def __init__(self, model: Path, pool: str, cores: str, log: Path, more: tuple[str, ...] = ()) -> None:
        """`cores`: one a rank, as vLLM writes them: "0|1". `more`: further arguments."""
        self.port = free_port()
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
            "--kv-transfer-config", json.dumps(transfer), *more,
        ]  # fmt: skip
        environment = os.environ | {
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": cores,
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "HF_HUB_OFFLINE": "1",
        }
        # LMCache, once imported, has all later processes count into one folder: then each server tells of all of them.
        environment.pop("PROMETHEUS_MULTIPROC_DIR", None)
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

    def ask(self, prompt: list[int], max_tokens: int = 8, **more: Any) -> tuple[list[int], int]:
        """(tokens of the answer, prompt tokens that were not computed). `more`: stands in the request's body too."""
        with urllib.request.urlopen(self.request(prompt, max_tokens, **more), timeout=ANSWER_DEADLINE_S) as answer:
            said: dict[str, Any] = json.load(answer)
        details = said["usage"].get("prompt_tokens_details") or {}
        return said["choices"][0]["token_ids"], details.get("cached_tokens") or 0

    def request(self, prompt: list[int], max_tokens: int, **more: Any) -> urllib.request.Request:
        body = {
            "model": "m", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": True,
            "return_token_ids": True, **more,
        }  # fmt: skip
        url = f"http://127.0.0.1:{self.port}/v1/completions"
        return urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def kill(self) -> None:
        """SIGKILL for all of it."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(30)

    def metrics(self) -> dict[str, float]:
        """What /metrics says of this door: name without vllm:maru_, and value."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=ANSWER_DEADLINE_S) as answer:
            lines = answer.read().decode().splitlines()
        rows = [line.split(" ") for line in lines if line.startswith("vllm:maru_")]
        return {name.split("{")[0].removeprefix("vllm:maru_"): float(value) for name, value in rows}
