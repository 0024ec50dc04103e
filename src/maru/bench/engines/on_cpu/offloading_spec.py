"""vLLM's tiering offload where it computes on a CPU, which its own spec refuses. For tests and measurements: it copies
a second time for nothing, since the blocks lie in memory that any process could read.

    "spec_name": "CpuTieringSpec", "spec_module_path": "maru.bench.engines.on_cpu.offloading_spec"

One block a chunk, and each copy is done when the call that asks for it returns.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from vllm.v1.kv_offload.base import OffloadingWorker, TransferResult
from vllm.v1.kv_offload.cpu.shared_offload_region import SharedOffloadRegion
from vllm.v1.kv_offload.tiering.spec import TieringOffloadingSpec


class BlockCopies(OffloadingWorker):
    """Between vLLM's blocks and the rows of its offloading region."""

    def __init__(self, kv_caches: Any, region: SharedOffloadRegion) -> None:
        self._region = region
        self._places = [
            (cache.tensor, region.create_next_worker_view(cache.page_size_bytes)) for cache in kv_caches.tensors
        ]
        self._done: list[TransferResult] = []

    def submit_store(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        begun = time.monotonic()
        blocks, rows = _numbers(src_spec), _numbers(dst_spec)
        for cache, row_view in self._places:
            row_view[rows] = cache[blocks]
        return self._finish(job_id, len(rows), begun)

    def submit_load(self, job_id: int, src_spec: Any, dst_spec: Any) -> bool:
        begun = time.monotonic()
        rows, blocks = _numbers(src_spec), _numbers(dst_spec)
        for cache, row_view in self._places:
            cache[blocks] = row_view[rows]
        return self._finish(job_id, len(rows), begun)

    def _finish(self, job_id: int, row_count: int, begun: float) -> bool:
        size = row_count * sum(int(row_view.shape[1]) for _, row_view in self._places)
        self._done.append(TransferResult(job_id, True, size, time.monotonic() - begun))
        return True

    def get_finished(self) -> list[TransferResult]:
        done, self._done = self._done, []
        return done

    def wait(self, job_ids: set[int]) -> None:
        """Nothing is under way."""

    def shutdown(self) -> None:
        self._places.clear()
        self._region.cleanup()


class CpuTieringSpec(TieringOffloadingSpec):
    """vLLM's own but for the worker."""

    _worker: Any

    def get_worker(self, kv_caches: Any) -> OffloadingWorker:
        if self._worker is None:
            assert self.blocks_per_chunk == 1
            region = SharedOffloadRegion(
                engine_id=self.config.engine_id,
                num_chunks=self.num_chunks,
                rank=self.config.parallel.rank,
                kv_bytes_per_chunk=self.kv_bytes_per_chunk,
                cpu_page_size=self.cpu_page_size_per_worker,
            )
            self._worker = BlockCopies(kv_caches, region)
        return self._worker


def _numbers(spec: Any) -> torch.Tensor:
    return torch.from_numpy(spec.block_ids).long()
