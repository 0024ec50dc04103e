"""The process of the engine `transformers`: a real model on Hugging Face transformers, answering greedily.

What it does about KV is one of four: nothing (recompute), keep the caches of its own latest prompts (the engine's own
prefix reuse), or Maru's door, on a pool of this host or on one behind a daemon. All of them run the same greedy loop.
"""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import DynamicCache

import maru
from maru.bench.systems.children import EngineChild, Question
from maru.engine.transformers import Counters, PoolCache, generate_greedy

POOL_READY_S = 60.0


class TransformersChild(EngineChild):
    """The model, and one way of keeping KV."""

    def begin(self, **job: Any) -> dict[str, Any]:
        torch.set_num_threads(int(job["threads"]))
        os.sched_setaffinity(0, job["cores"])
        torch.manual_seed(0)
        self.model = AutoModelForCausalLM.from_pretrained(
            job["model"], dtype=torch.float32, attn_implementation="sdpa"
        ).eval()
        self._pool: Any = None
        self._door: Any = None
        if job["keep"] in ("pool", "daemon"):
            attach = maru.Pool.attach if job["keep"] == "pool" else maru.connect
            self._pool = attach(job["pool"])  # What a daemon brings has the same calls.
            self._pool.wait_ready(POOL_READY_S)
            self._door = PoolCache(
                self._pool, self.model, model_name=job["model_name"], tokenizer_name=job["model_name"],
                chunk_tokens=int(job["chunk_tokens"]),
            )  # fmt: skip
        elif job["keep"] == "own":
            self._door = OwnCaches(self.model, int(job["capacity_bytes"]) // int(job["token_bytes"]))
        # Thread pools and lazy imports are paid here and not by whoever is asked first.
        generate_greedy(self.model, list(range(100, 164)), max_new_tokens=2)
        version = f"transformers {_version('transformers')}, torch {torch.__version__}, float32, SDPA"
        return {"version": version, "address": ""}

    def respond(self, prompt: list[int], question: Question) -> dict[str, Any]:
        waited_s = (time.monotonic_ns() - question.sent_ns) * 1e-9
        made = generate_greedy(self.model, prompt, max_new_tokens=question.max_tokens, door=self._door)
        return {
            "ttft_s": waited_s + made.ttft_s,
            "total_s": waited_s + made.total_s,
            "prompt_tokens": made.prompt_tokens,
            "cached_tokens": made.reused_tokens,
            "output": made.output_ids,
            "loaded_bytes": made.bytes_loaded,
            "stored_bytes": made.bytes_stored,
        }

    def end(self) -> None:
        if getattr(self, "_pool", None) is not None:
            self._pool.close()


@dataclass
class _Kept:
    tokens: tuple[int, ...]
    past: Any


class OwnCaches:
    """The engine's own reuse: the caches of its latest prompts, of which the longest common prefix is copied.

    What a user of transformers writes who keeps `past_key_values` between calls; it sees one process only.
    """

    def __init__(self, model: Any, tokens_max: int) -> None:
        self._model, self._tokens_max = model, tokens_max
        self._kept: OrderedDict[int, _Kept] = OrderedDict()
        self._number = 0
        self.counters = Counters()
        self.prefill_clock = None  # Nothing lies below, so nobody asks what computing costs.

    def load(self, input_ids: Any) -> tuple[Any, int]:
        """A new cache with the longest prefix that is kept; the last token is always left out."""
        tokens = tuple(int(token) for token in input_ids)
        best, length = None, 0
        for number, kept in self._kept.items():
            common = min(_common(kept.tokens, tokens), len(tokens) - 1)
            if common > length:
                best, length = number, common
        past = DynamicCache(config=self._model.config)
        if best is None:
            return past, 0
        self._kept.move_to_end(best)
        for layer, source in zip(past.layers, self._kept[best].past.layers, strict=True):
            keys, values = source.keys[:, :, :length].clone(), source.values[:, :, :length].clone()
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
            self.counters.bytes_loaded += keys.nbytes + values.nbytes
        return past, length

    def store(self, input_ids: Any, past: Any) -> int:
        """Keep this cache as it grows, and let the oldest go."""
        self._number += 1
        self._kept[self._number] = _Kept(tuple(int(token) for token in input_ids), past)
        while sum(len(kept.tokens) for kept in self._kept.values()) > self._tokens_max and len(self._kept) > 1:
            self._kept.popitem(last=False)
        return 0


def _common(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    length = min(len(a), len(b))
    if a[:length] == b[:length]:
        return length
    return next(at for at in range(length) if a[at] != b[at])


def _version(package: str) -> str:
    from importlib.metadata import version

    return version(package)
