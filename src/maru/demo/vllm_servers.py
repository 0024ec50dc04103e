"""The parent's side of one vLLM server: start it as docs/vllm.md says, ask it with OpenAI's client, end it.

Promises:   every wait has a deadline; a server that does not come up is `ServerNotStarted`, one that is lost later
            `ServerLost`, each with the end of its log; nothing that a server started outlives its `with` block.
Leaves:     what is asked, and what the answers are held to, to `vllm_story`.

A server answers the same requests as an `Actor`: "with_pool" false means asked under a `cache_salt` that nobody ever
used, so that neither vLLM nor the pool has anything for it.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import maru
from maru.demo.cast import ActorLost
from maru.demo.model import MODEL_NAME
from maru.errors import MaruError

__all__ = ["Server", "ServerLost", "ServerNotStarted", "command_line", "halves", "kv_transfer"]

# Importing vLLM and loading the model, beside another server that does the same, fit in these on a slow machine.
START_DEADLINE_S = 300.0
ASK_DEADLINE_S = 300.0
LEAVE_DEADLINE_S = 60.0
POLL_S = 0.2
# Long for a signal, short for whoever waits for the stopped.
STOP_S = 0.005
LAST_LINES = 20
# A prompt of the story has at most 4,400 tokens; the KV cache holds several of them.
MAX_MODEL_TOKENS = 8192
KV_CACHE_GIB = 1
# The scheduler's side pins what it found, and the worker's side pins once more what it copies into vLLM's blocks.
PINS_PER_CHUNK = 2


class ServerNotStarted(MaruError):
    """A server ended, or served nothing in time, before it could be asked."""

    hint = "the end of its log is above"


class ServerLost(ActorLost):
    """A server ended, or did not answer in time, when nobody had asked it to."""

    hint = "the end of its log is above; too little memory is the usual cause (`dmesg` tells)"


def kv_transfer(pool_url: str) -> dict[str, Any]:
    """What `--kv-transfer-config` says, as in docs/vllm.md."""
    return {
        "kv_connector": "MaruConnector",
        "kv_connector_module_path": "maru.engine.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {"pool": pool_url},
    }


def command_line(model_folder: Path, pool_url: str, port: int) -> list[str]:
    """vLLM's own API server over the pool, without a prefix cache of its own: what is reused comes from the pool."""
    return [
        sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model_folder),
        "--served-model-name", MODEL_NAME, "--host", "127.0.0.1", "--port", str(port),
        "--kv-transfer-config", json.dumps(kv_transfer(pool_url)),
        "--no-enable-prefix-caching", "--enable-prompt-tokens-details",
        "--dtype", "float32", "--max-model-len", str(MAX_MODEL_TOKENS), "--max-num-seqs", "4",
        "--enforce-eager", "--seed", "0",
    ]  # fmt: skip


def halves(cpus: list[int]) -> tuple[list[int], list[int]]:
    """The CPUs of two servers side by side; the same one for both where there is only one."""
    middle = max(1, len(cpus) // 2)
    return cpus[:middle], cpus[middle:] or cpus


class Server:
    """One `vllm.entrypoints.openai.api_server`, with everything it starts in a process group of its own."""

    def __init__(self, name: str, model_folder: Path, pool_url: str, *, cpus: list[int], folder: Path) -> None:
        self.name = name
        self.port = 0
        self._model_folder = model_folder
        self._pool_url = pool_url
        self._cpus = cpus
        self._folder = folder
        self._log = folder / f"{name}.log"
        self._held = socket.socket()
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = False
        self._client: Any = None

    def __enter__(self) -> Self:
        """Start it; `wait_ready` waits."""
        # The port is held until the end by a socket that does not listen: as both ask for SO_REUSEADDR the server may
        # bind it too, and nobody else gets it.
        self._held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._held.bind(("127.0.0.1", 0))
        self.port = self._held.getsockname()[1]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                command_line(self._model_folder, self._pool_url, self.port),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
                # Ctrl-C reaches the parent alone, which then ends its servers in order.
                start_new_session=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        if self._client is not None:
            self._client.close()
        self._held.close()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def owns(self, pid: int) -> bool:
        """Whether the living process `pid` is this server or was started by it."""
        try:
            return os.getpgid(pid) == self.pid
        except ProcessLookupError:
            return False

    def wait_ready(self) -> None:
        """Wait until it serves, and let it answer something short. Raises ServerNotStarted."""
        deadline = time.monotonic() + START_DEADLINE_S
        while not self._is_listening():
            if not self._lives_on(POLL_S):
                raise ServerNotStarted(self._told("ended before it served anything"))
            if time.monotonic() > deadline:
                raise ServerNotStarted(self._told(f"served nothing for {START_DEADLINE_S:.0f} s"))
        import openai

        self._client = openai.OpenAI(
            base_url=f"http://127.0.0.1:{self.port}/v1",
            api_key="none",
            max_retries=0,
            timeout=ASK_DEADLINE_S,
            # A proxy that the environment names does not lead to this machine.
            http_client=openai.DefaultHttpxClient(trust_env=False),
        )
        try:
            # Thread pools and lazy imports are paid here and not by whichever way is measured first.
            self._stream([{"role": "user", "content": "Hello."}], 2, salt=None)
        except ServerLost as error:
            raise ServerNotStarted(error.message) from None

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Answer greedily, streaming, and report as a worker does. Raises ServerLost."""
        before = self._pinned_bytes()
        report = self._stream(
            request["messages"], request["max_new_tokens"], salt=None if request["with_pool"] else secrets.token_hex(16)
        )
        loaded = (self._pinned_bytes() - before) // PINS_PER_CHUNK
        return {**report, "bytes_loaded": loaded, "bytes_stored": None, "bytes_through_syscalls": None}

    def ask_in_vain(self, messages: list[dict[str, str]]) -> threading.Thread:
        """Ask something that nobody ever asked, in a thread that ends with the answer or with the server."""

        def ask() -> None:
            # As its caller means it to end; the log may be gone by then.
            with suppress(ServerLost, OSError):
                self._stream(messages, 1, salt=secrets.token_hex(16))

        thread = threading.Thread(target=ask, daemon=True)
        thread.start()
        return thread

    def kill(self) -> int:
        """SIGKILL for all of it; return the exit status, -9 unless it had ended before."""
        assert self._process is not None
        if not self._ended:  # Afterwards the group's number may be somebody else's.
            with suppress(ProcessLookupError):  # The last of the group had ended.
                os.killpg(self.pid, signal.SIGKILL)
        self._ended = True
        return self._process.wait(LEAVE_DEADLINE_S)

    def stop(self) -> None:
        """SIGSTOP for all of it, and a moment for the signal to arrive."""
        os.killpg(self.pid, signal.SIGSTOP)
        time.sleep(STOP_S)

    def go_on(self) -> None:
        os.killpg(self.pid, signal.SIGCONT)

    def leave(self) -> None:
        """Let it end in its own way. Raises ServerLost."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(LEAVE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise ServerLost(self._told(f"did not leave within {LEAVE_DEADLINE_S:.0f} s")) from None
        self.kill()  # What it started and left behind.

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, self._cpus)),
            # The model is a folder on disk: nothing may be looked up, reported, or left lying about. A killed server
            # does not remove its sockets.
            "TMPDIR": str(self._folder),
            "HF_HUB_OFFLINE": "1",
            "VLLM_NO_USAGE_STATS": "1",
            "DO_NOT_TRACK": "1",
            "VLLM_CACHE_ROOT": str(self._folder / f"{self.name}-cache"),
            "VLLM_CONFIG_ROOT": str(self._folder / f"{self.name}-config"),
        }

    def _stream(self, messages: list[dict[str, str]], max_new_tokens: int, *, salt: str | None) -> dict[str, Any]:
        text, usage, ttft_s = "", None, None
        output_ids: list[int] = []
        begun = time.perf_counter()
        try:
            chunks = self._client.chat.completions.create(
                model=MODEL_NAME,
                messages=messages,
                max_tokens=max_new_tokens,
                temperature=0,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"return_token_ids": True, **({"cache_salt": salt} if salt else {})},
            )
            for chunk in chunks:
                if time.perf_counter() - begun > ASK_DEADLINE_S:
                    raise ServerLost(self._told(f"took more than {ASK_DEADLINE_S:.0f} s to answer"))
                usage = chunk.usage or usage
                for choice in chunk.choices:
                    ids = (choice.model_extra or {}).get("token_ids") or []
                    if ids and ttft_s is None:
                        ttft_s = time.perf_counter() - begun
                    output_ids += ids
                    text += choice.delta.content or ""
        except ServerLost:
            raise
        # An answer that breaks off is an error of the client's HTTP library, and which one that is differs by version.
        except Exception as error:
            raise ServerLost(self._told(f"gave no answer ({type(error).__name__}: {error})")) from None
        if usage is None or ttft_s is None:
            raise ServerLost(self._told("broke its answer off"))
        details = usage.prompt_tokens_details
        return {
            "prompt_tokens": usage.prompt_tokens,
            "reused_tokens": (details.cached_tokens or 0) if details else 0,
            "ttft_s": ttft_s,
            "total_s": time.perf_counter() - begun,
            "output_ids": output_ids,
            "answer": text.strip(),
        }

    def _pinned_bytes(self) -> int:
        with maru.Pool.attach(self._pool_url) as pool:
            return int(pool.stats()["counters"]["pinned_bytes"])

    def _is_listening(self) -> bool:
        """vLLM listens when its engine is ready."""
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=POLL_S).close()
        except OSError:
            return False
        return True

    def _lives_on(self, seconds: float) -> bool:
        assert self._process is not None
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def _told(self, what: str) -> str:
        last_lines = "\n".join(self._log.read_text(errors="replace").rstrip().splitlines()[-LAST_LINES:])
        return f"server {self.name} (pid {self.pid}) {what}; its log ends with:\n{last_lines}"
