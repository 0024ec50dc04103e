"""One process with LMCache's whole engine in it: token database, storage manager, MaruBackend; no serving engine.

The KV cache that it stores and loads is a tensor that follows from the tokens, so that any process can tell whether
what it got is right.
"""

from __future__ import annotations

import os
import time
from typing import Any

SETTLE_DEADLINE_S = 30
LAYERS, HEADS, HEAD_DIM, CHUNK_TOKENS = 4, 2, 16, 32


def make_connector() -> Any:
    """LMCache's way between its objects and an engine's memory, here a plain tensor [2, layers, tokens, hidden]."""
    import torch
    from lmcache.v1.gpu_connector import GPUConnectorInterface

    class PlainTensors(GPUConnectorInterface):  # type: ignore[misc]
        def get_shape(self, num_tokens: int) -> Any:
            return torch.Size([2, LAYERS, num_tokens, HEADS * HEAD_DIM])

        def to_gpu(self, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
            kwargs["kv"][:, :, start:end].copy_(memory_obj.tensor)

        def from_gpu(self, memory_obj: Any, start: int, end: int, **kwargs: Any) -> None:
            memory_obj.tensor.copy_(kwargs["kv"][:, :, start:end])
            if "in_the_middle" in kwargs:
                kwargs["in_the_middle"]()

        def batched_to_gpu(self, memory_objs: Any, starts: Any, ends: Any, **kwargs: Any) -> None:
            for obj, start, end in zip(memory_objs, starts, ends, strict=True):
                self.to_gpu(obj, start, end, **kwargs)
                if "in_the_middle" in kwargs:
                    kwargs["in_the_middle"]()

        def batched_from_gpu(self, memory_objs: Any, starts: Any, ends: Any, **kwargs: Any) -> None:
            for obj, start, end in zip(memory_objs, starts, ends, strict=True):
                self.from_gpu(obj, start, end, **kwargs)

        def initialize_kvcaches_ptr(self, **_: Any) -> None:
            return

    return PlainTensors()


class EngineProcess:
    """What runs in the child."""

    def __init__(self, path: str, pool_size_gib: float = 1 / 32, config: dict[str, Any] | None = None) -> None:
        import torch
        from lmcache.v1.cache_engine import LMCacheEngineBuilder
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.metadata import LMCacheMetadata

        self.name = f"engine-{os.getpid()}-{path}"
        settings: dict[str, Any] = {
            "chunk_size": CHUNK_TOKENS,
            "local_cpu": False,
            "max_local_cpu_size": 0,
            "maru_path": path,
            "maru_pool_size": pool_size_gib,
            "save_unfull_chunk": True,
        }
        metadata = LMCacheMetadata(
            model_name="a/model",
            world_size=1,
            local_world_size=1,
            worker_id=0,
            local_worker_id=0,
            kv_dtype=torch.float32,
            kv_shape=(LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_DIM),
            role="worker",
            chunk_size=CHUNK_TOKENS,
        )
        self.engine = LMCacheEngineBuilder.get_or_create(
            self.name,
            LMCacheEngineConfig.from_defaults(**(settings | (config or {}))),
            metadata,
            make_connector(),
            lambda _tensor, _source: None,
            lambda value, _source: value,
        )
        self.engine.post_init()
        self.lookups = 0

    def backends(self) -> list[str]:
        return list(self.engine.storage_manager.storage_backends)

    def tokens(self, prompt: int, count: int) -> Any:
        """A prompt's tokens: those of the same prompt begin alike, whatever their number."""
        import torch

        return torch.randint(0, 50_000, (20_000,), generator=torch.Generator().manual_seed(prompt))[:count]

    def kv(self, prompt: int, count: int) -> Any:
        """What an engine would have computed for these tokens."""
        import torch

        generator = torch.Generator().manual_seed(prompt + 1_000_000)
        by_token = torch.randn(20_000, 2 * LAYERS * HEADS * HEAD_DIM, generator=generator)[:count]
        return by_token.reshape(count, 2, LAYERS, HEADS * HEAD_DIM).permute(1, 2, 0, 3).contiguous()

    def store(self, prompt: int, count: int, skip: int = 0, die_after: int = 0) -> None:
        """Store a prompt, the first `skip` tokens left out as LMCache's mask says; die at the n-th chunk written."""
        import torch

        mask = torch.ones(count, dtype=torch.bool)
        mask[:skip] = False
        extra = {"in_the_middle": _dying_after(die_after)} if die_after else {}
        self.engine.store(self.tokens(prompt, count), mask=mask, kv=self.kv(prompt, count), **extra)
        self.settle()

    def settle(self) -> None:
        """Wait until LMCache's background puts are through."""
        deadline = time.monotonic() + SETTLE_DEADLINE_S
        for backend in self.engine.storage_manager.storage_backends.values():
            while getattr(backend, "put_tasks", None):
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{backend} still stores")
                time.sleep(0.001)

    def lookup(self, prompt: int, count: int) -> int:
        """How many leading tokens are there, pinned and unpinned again as LMCache's scheduler does."""
        self.lookups += 1
        found = self.engine.lookup(self.tokens(prompt, count), lookup_id=f"l{self.lookups}", pin=True)
        self.engine.lookup_unpin(f"l{self.lookups}")
        return int(found)

    def retrieve(self, prompt: int, count: int, die_after: int = 0) -> tuple[int, bool]:
        """(tokens that came, whether every one of them is right and the rest untouched)."""
        import torch

        self.lookups += 1
        name = f"r{self.lookups}"
        self.engine.lookup(self.tokens(prompt, count), lookup_id=name, pin=True)
        into = torch.zeros(2, LAYERS, count, HEADS * HEAD_DIM)
        extra = {"in_the_middle": _dying_after(die_after)} if die_after else {}
        mask = self.engine.retrieve(self.tokens(prompt, count), kv=into, **extra)
        self.engine.lookup_unpin(name)
        came = int(mask.sum())
        right = torch.equal(into[:, :, :came], self.kv(prompt, count)[:, :, :came]) and not into[:, :, came:].any()
        return came, bool(right)

    def clear(self, prompt: int, count: int) -> int:
        return int(self.engine.clear(tokens=self.tokens(prompt, count)))

    def pins(self) -> tuple[int, int]:
        handler = self.engine.storage_manager.storage_backends["MaruBackend"]._handler
        return handler.view_pin_count, handler.key_pin_count

    def end(self) -> None:
        from lmcache.v1.cache_engine import LMCacheEngineBuilder

        LMCacheEngineBuilder.destroy(self.name)


def _dying_after(count: int) -> Any:
    left = [count]

    def step() -> None:
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), 9)

    return step
