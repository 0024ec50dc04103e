"""LMCache's connector for vLLM on a machine without a GPU, for tests and measurements: LMCache supports no CPU there.

LMCache 0.5.6 makes its way into vLLM's memory by a function that knows GPUs alone and raises for a CPU. This module's
connector has one more: whole blocks, as bytes. vLLM's CPU kernels keep keys and values packed in a block as they like
(not token by token), so a stored chunk is good for another instance of the same vLLM on the same kind of CPU, and for
nobody else; and LMCache's chunk must be a multiple of vLLM's block.

Everything that imports LMCache does so late: vLLM's start-up walks over all loaded modules and fails on one of those
that LMCache brings.
"""

from __future__ import annotations

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1

from maru_lmcache.salted import SaltedLMCacheConnector


def _block_mover(metadata: Any) -> Any:
    import torch
    from lmcache.v1.gpu_connector import GPUConnectorInterface

    class WholeBlocks(GPUConnectorInterface):
        """Between LMCache's objects and vLLM's blocks [block, heads, tokens, 2 x head_dim], one tensor a layer."""

        def __init__(self) -> None:
            self.layers, _, _, heads, head_dim = metadata.kv_shape
            self.hidden = heads * head_dim
            self.kv: list[Any] = []

        def get_shape(self, num_tokens: int) -> Any:
            return torch.Size([2, self.layers, num_tokens, self.hidden])

        def initialize_kvcaches_ptr(self, **kwargs: Any) -> None:
            if "kvcaches" in kwargs:
                self.kv = kwargs["kvcaches"]

        def _blocks(self, start: int, end: int, kwargs: dict[str, Any]) -> Any:
            self.initialize_kvcaches_ptr(**kwargs)
            block_tokens = self.kv[0].shape[2]
            slots = kwargs["slot_mapping"][start:end]
            if (end - start) % block_tokens or int(slots[0]) % block_tokens:
                raise ValueError(f"tokens {start} to {end} are no whole blocks of {block_tokens}")
            return slots[::block_tokens] // block_tokens

        def to_gpu(self, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
            blocks = self._blocks(start, end, kwargs)
            chunk = memory_obj.tensor.view(-1).view(self.layers, len(blocks), -1)
            for layer, kv in enumerate(self.kv):
                kv.index_copy_(0, blocks, chunk[layer].view(len(blocks), *kv.shape[1:]))

        def from_gpu(self, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
            blocks = self._blocks(start, end, kwargs)
            chunk = memory_obj.tensor.view(-1).view(self.layers, len(blocks), -1)
            for layer, kv in enumerate(self.kv):
                torch.index_select(kv, 0, blocks, out=chunk[layer].view(len(blocks), *kv.shape[1:]))

        def batched_to_gpu(self, memory_objs: Any, starts: Any, ends: Any, **kwargs: Any) -> None:
            for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
                self.to_gpu(memory_obj, start, end, **kwargs)

        def batched_from_gpu(self, memory_objs: Any, starts: Any, ends: Any, **kwargs: Any) -> None:
            for memory_obj, start, end in zip(memory_objs, starts, ends, strict=True):
                self.from_gpu(memory_obj, start, end, **kwargs)

    return WholeBlocks()


def _know_cpus() -> None:
    import lmcache.v1.gpu_connector as gpu_connector

    known = gpu_connector.CreateGPUConnector

    def create(config: Any, metadata: Any, engine: Any, layout_hints: Any = None) -> Any:
        try:
            return known(config, metadata, engine, layout_hints)
        except RuntimeError:
            return _block_mover(metadata)

    gpu_connector.CreateGPUConnector = create


class LMCacheOnCPU(LMCacheConnectorV1):
    """LMCacheConnectorV1 where there is no GPU."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        _know_cpus()
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)


class SaltedLMCacheOnCPU(SaltedLMCacheConnector):
    """Ours around LMCache's, where there is no GPU."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        _know_cpus()
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
