"""One inference process of the demo: loads the model, attaches to the pool, does what its parent asks.

`python -m maru.demo.worker --model FOLDER --pool URL`; requests come in on stdin and reports go out
on stdout, one JSON object a line. What is said there is words and figures only: KV bytes travel through the
pool or not at all, and every answer reports how many bytes this thread moved through read() and write()
while it was computed.

Requests, by their "do":
    answer      messages, max_new_tokens, with_pool → the answer and what it took
    store_half  messages → reserves the prompt's first chunk, writes half of it, says so, waits to be killed
    inspect     key → what the pool says about itself and about that key
    leave       → ends the process
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import maru
from maru.demo.model import MODEL_NAME
from maru.engine.transformers import PoolCache, generate_greedy

__all__ = ["main"]

CHUNK_TOKENS = 256
THREAD_IO = Path("/proc/thread-self/io")


class Worker:
    """The model, the door and the pool of one process."""

    def __init__(self, model_folder: Path, pool_url: str) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.model = AutoModelForCausalLM.from_pretrained(
            model_folder, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self.pool = maru.Pool.attach(pool_url)
        self.pool.wait_ready(30.0)
        self.door = PoolCache(
            self.pool, self.model, model_name=MODEL_NAME, tokenizer_name=MODEL_NAME, chunk_tokens=CHUNK_TOKENS
        )
        # Thread pools and lazy imports are paid here and not by whichever way is measured first.
        generate_greedy(self.model, list(range(100, 164)), max_new_tokens=2)
        self.pool.lookup(bytes(16))
        _bytes_through_syscalls()

    def answer(self, messages: list[dict[str, str]], max_new_tokens: int, with_pool: bool) -> dict[str, Any]:
        """Answer greedily, cold or through the pool, and report times, tokens and bytes."""
        prompt = self.prompt(messages)
        moved_before = _bytes_through_syscalls()
        made = generate_greedy(self.model, prompt, max_new_tokens=max_new_tokens, door=self.door if with_pool else None)
        moved = _bytes_through_syscalls()
        return {
            "prompt_tokens": made.prompt_tokens,
            "reused_tokens": made.reused_tokens,
            "ttft_s": made.ttft_s,
            "total_s": made.total_s,
            "bytes_loaded": made.bytes_loaded,
            "bytes_stored": made.bytes_stored,
            "bytes_through_syscalls": None if moved is None or moved_before is None else moved - moved_before,
            "output_ids": made.output_ids,
            "answer": self.tokenizer.decode(made.output_ids, skip_special_tokens=True).strip(),
        }

    def store_half(self, messages: list[dict[str, str]]) -> dict[str, Any]:
        """Reserve a chunk, fill half of it and leave it so. The caller is expected to kill this process."""
        prompt = self.prompt(messages)[:CHUNK_TOKENS]
        key = self.door.keys(prompt)
        reservation = self.pool.reserve(key, self.door.chunk_bytes, namespace=self.door.namespace)
        half = self.door.chunk_bytes // 2
        with reservation:
            reservation.buffer[:half] = b"\x5a" * half
            _say({"event": "half written", "key": key.hex(), "bytes": half})
            sys.stdin.read()  # Until SIGKILL; end of file means that the parent died first.
        return {"event": "left alone"}

    def inspect(self, key: bytes) -> dict[str, Any]:
        """Reap, then report what is left of `key` and whether the pool's invariants hold."""
        reaped = self.pool.reap()
        readable = self.pool.lookup(key)
        with self.pool.reserve(key, self.door.chunk_bytes, namespace=self.door.namespace) as reservation:
            outcome = reservation.outcome.name  # Left without a seal: discarded again.
        return {
            "reaped": reaped,
            "readable": readable,
            "reservation": outcome,
            "violations": [str(one) for one in self.pool.check()],
        }

    def prompt(self, messages: list[dict[str, str]]) -> list[int]:
        """The conversation as token ids, ready for the assistant's turn."""
        text = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pool", required=True)
    arguments = parser.parse_args()
    worker = Worker(arguments.model, arguments.pool)
    _say({"event": "ready", "pid": os.getpid(), "threads": torch.get_num_threads()})
    for line in sys.stdin:
        request = json.loads(line)
        doing = request.pop("do")
        if doing == "answer":
            _say({"event": "answer", **worker.answer(**request)})
        elif doing == "store_half":
            _say(worker.store_half(**request))
        elif doing == "inspect":
            _say({"event": "inspected", **worker.inspect(bytes.fromhex(request["key"]))})
        elif doing == "leave":
            break
        else:
            raise ValueError(f"unknown request {doing}")
    worker.pool.close()
    return 0


def _take_stdout() -> TextIO:
    """Keep stdout for reports alone: what libraries print goes to stderr from here on."""
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    return reports


def _say(report: dict[str, Any]) -> None:
    _reports.write(json.dumps(report) + "\n")


def _bytes_through_syscalls() -> int | None:
    """Bytes this thread has moved through read(), write() and their kin; None where Linux does not tell.

    Reading the figure is itself such a read; it shows in the next figure and is taken off there.
    """
    global _own_bytes
    try:
        text = THREAD_IO.read_text()
    except OSError:
        return None
    figures = dict(line.split(": ") for line in text.splitlines())
    total = int(figures["rchar"]) + int(figures["wchar"]) - _own_bytes
    _own_bytes += len(text)
    return total


_own_bytes = 0
_reports: TextIO = sys.stdout


if __name__ == "__main__":
    _reports = _take_stdout()
    sys.exit(main())
