"""One instance as `MaruTier` sees it: vLLM's configuration, rows of memory, and the calls of its tiering manager."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
from vllm.v1.kv_offload.base import LookupResult, ReqContext, make_offload_key
from vllm.v1.kv_offload.config import (
    OffloadingCacheConfig,
    OffloadingConfig,
    OffloadingGroupConfig,
    OffloadingModelConfig,
    OffloadingParallelConfig,
)
from vllm.v1.kv_offload.tiering.base import JobResult, TransferJob
from vllm.v1.kv_offload.tiering.factory import SecondaryTierFactory

from maru.engine.vllm.tier import MaruTier

ROW_BYTES = 64 << 10
ROWS = 48
CHUNK_TOKENS = 256

CONFIG = OffloadingConfig(
    groups=(OffloadingGroupConfig(tokens_per_block=16, layer_names=("model.0", "model.1"), group_id=0),),
    worker_kv_bytes_per_block=ROW_BYTES // 16,
    enable_kv_cache_events=False,
    extra_config={},
    engine_id="one",
    model=OffloadingModelConfig(name="owner/model", dtype="bfloat16"),
    cache=OffloadingCacheConfig(tokens_per_hash=16, blocks_per_chunk=16),
    parallel=OffloadingParallelConfig(
        rank=0, world_size=1, tp_size=1, pp_size=1, pcp_size=1, dcp_size=1, data_parallel_index=0,
        data_parallel_size=1, data_parallel_rank_local=None, is_parallelism_agnostic=False,
    ),
    kv_cache_layout="LBNHC",
)  # fmt: skip


def spec_of(**change: Any) -> Any:
    """vLLM's OffloadingSpec, as far as a tier looks; `change`: fields of its configuration."""
    config = replace(CONFIG, **change)
    return SimpleNamespace(config=config, blocks_per_chunk=config.cache.blocks_per_chunk, replicated_layout=False)


def key_of(number: int, prompt: str = "p", group: int = 0) -> bytes:
    """vLLM's key of a prompt's chunk."""
    return bytes(make_offload_key(f"{prompt} {number}".encode().ljust(32, b"."), group))


def keys_of(numbers: Iterable[int], prompt: str = "p") -> list[bytes]:
    return [key_of(number, prompt) for number in numbers]


def content_of(number: int, prompt: str = "p", size: int = ROW_BYTES) -> np.ndarray[Any, Any]:
    """The bytes of a chunk; no two chunks agree in them."""
    seed = int.from_bytes(key_of(number, prompt), "big")
    return np.random.default_rng(seed).integers(-128, 128, size, dtype=np.int8)


def request_of(prompt: str = "p", chunks: int = 400, name: str = "") -> ReqContext:
    """A request as vLLM's scheduler keeps it: it knows at which token each chunk of the prompt ends."""
    request = ReqContext(req_id=name or f"request {prompt}")
    for number in range(chunks):
        request.set_offload_key_position(key_of(number, prompt), (number + 1) * CHUNK_TOKENS)
    return request


class Instance:
    """A tier made by vLLM's own factory, over rows of its own."""

    def __init__(self, url: str, spec: Any = None, row_bytes: int = ROW_BYTES, **params: Any) -> None:
        self.memory = np.zeros((ROWS, row_bytes), dtype=np.int8)
        self.view = memoryview(self.memory)
        named = {"type": "MaruTier", "module_path": "maru.engine.vllm.tier", "pool": url, "revision": "r", **params}
        self.tier: MaruTier = SecondaryTierFactory.create_secondary_tier(named, self.view, spec or spec_of())
        self.job_ids = 0

    def job(self, keys: Collection[bytes], rows: Sequence[int], request: ReqContext, is_load: bool) -> TransferJob:
        self.job_ids += 1
        return TransferJob(self.job_ids, keys, np.array(rows, dtype=np.int32), is_load, request)

    def submit_store(self, numbers: Sequence[int], prompt: str = "p", request: ReqContext | None = None) -> int:
        """Fill rows with these chunks and hand them over, as a set, as vLLM does."""
        number_of = {key_of(number, prompt): number for number in numbers}
        keys = set(number_of)
        for row, key in enumerate(keys):
            self.memory[row] = content_of(number_of[key], prompt, self.memory.shape[1])
        job = self.job(keys, range(len(keys)), request or request_of(prompt), False)
        self.tier.submit_store(job)
        return job.job_id

    def store(self, numbers: Sequence[int], prompt: str = "p") -> JobResult:
        """Store these chunks of one request; its result."""
        request = request_of(prompt)
        job_id = self.submit_store(numbers, prompt, request)
        result = self.result_of(job_id)
        self.tier.on_request_finished(request)
        return result

    def lookup(self, numbers: Sequence[int], prompt: str = "p", request: ReqContext | None = None) -> list[int]:
        """Which of these chunks are a hit; without a `request`, for one that comes and goes in a step of its own."""
        asking = request or request_of(prompt)
        answers = {number: self.tier.lookup(key_of(number, prompt), asking) for number in numbers}
        assert set(answers.values()) <= {LookupResult.HIT, LookupResult.MISS}
        if request is None:
            self.tier.on_schedule_end(None)
            self.tier.on_request_finished(asking)
        return [number for number, answer in answers.items() if answer is LookupResult.HIT]

    def load(self, numbers: Sequence[int], prompt: str = "p", request: ReqContext | None = None) -> list[int]:
        """Load these chunks into rows 0, 1, ...: which came, by the job's result; each is looked at bit by bit."""
        keys = keys_of(numbers, prompt)
        self.memory[:] = 77
        job = self.job(keys, range(len(keys)), request or request_of(prompt), True)
        self.tier.submit_load(job)
        result = self.result_of(job.job_id)
        loaded = set(keys if result.success else result.successful_keys or ())
        for row, number in enumerate(numbers):
            wanted = content_of(number, prompt) if keys[row] in loaded else np.int8(77)
            assert (self.memory[row] == wanted).all(), "a row holds its chunk, or what it held before"
        return [number for number, key in zip(numbers, keys, strict=True) if key in loaded]

    def result_of(self, job_id: int) -> JobResult:
        self.tier.drain_jobs()
        results = list(self.tier.get_finished_jobs())
        assert [result.job_id for result in results] == [job_id]
        return results[0]
