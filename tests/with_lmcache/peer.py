"""One process with LMCache's own MaruBackend in it, and a pipe to drive it by.

A key is a number, and so are the bytes under it: whoever retrieves can tell each bit without being told.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, ClassVar

from engine import EngineProcess

LAYERS, HEADS, HEAD_DIM = 4, 2, 16
CHUNK_TOKENS = 32
REPLY_DEADLINE_S = 60
FATES = ("dropped", "forgotten", "stored", "read", "read later", "pinned", "removed", "failed")


@dataclass(frozen=True)
class Layout:
    """What a backend is made for."""

    dtype: str = "bfloat16"
    worker_id: int = 0
    world_size: int = 1
    use_mla: bool = False
    pool_size_gib: float = 1 / 32
    chunk_tokens: int = CHUNK_TOKENS
    extra: tuple[tuple[str, Any], ...] = ()


class BackendProcess:
    """What runs in the child: LMCache's MaruBackend and its event loop."""

    def __init__(self, path: str, layout: Layout) -> None:
        import torch
        from lmcache.v1.config import LMCacheEngineConfig
        from lmcache.v1.metadata import LMCacheMetadata
        from lmcache.v1.pin_monitor import PinMonitor
        from lmcache.v1.storage_backend.maru_backend import MaruBackend

        self.layout = layout
        self.dtype = getattr(torch, layout.dtype)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        config = LMCacheEngineConfig.from_defaults(
            chunk_size=layout.chunk_tokens,
            local_cpu=False,
            max_local_cpu_size=0,
            maru_path=path,
            maru_pool_size=layout.pool_size_gib,
            extra_config=dict(layout.extra),
        )
        metadata = LMCacheMetadata(
            model_name="a/model",
            world_size=layout.world_size,
            local_world_size=layout.world_size,
            worker_id=layout.worker_id,
            local_worker_id=layout.worker_id,
            kv_dtype=self.dtype,
            kv_shape=(LAYERS, 1 if layout.use_mla else 2, layout.chunk_tokens, HEADS, HEAD_DIM),
            use_mla=layout.use_mla,
            role="worker",
            chunk_size=layout.chunk_tokens,
        )
        self.metadata = metadata
        PinMonitor.GetOrCreate(config)  # LMCache's engine does it; what is pinned asks for it.
        self.backend = MaruBackend(config, metadata, self.loop, "cpu")
        self.held: list[Any] = []

    # What the parent calls. Arguments and answers are plain values.

    def key(self, number: int) -> Any:
        from lmcache.utils import CacheEngineKey

        return CacheEngineKey("a/model", self.layout.world_size, self.layout.worker_id, number, self.dtype)

    def keys(self, numbers: list[int]) -> list[Any]:
        return [self.key(number) for number in numbers]

    def content(self, number: int, byte_count: int) -> Any:
        import torch

        return torch.randint(0, 256, (byte_count,), dtype=torch.uint8, generator=torch.Generator().manual_seed(number))

    def allocate(self, token_counts: list[int]) -> list[Any]:
        """Objects as LMCache's engine allocates them, each with its own number of tokens, None where none came."""
        found = []
        for tokens in token_counts:
            found.append(self.backend.allocate(self.metadata.get_shapes(tokens), self.metadata.get_dtypes(), self.fmt))
        return found

    @property
    def fmt(self) -> Any:
        from lmcache.v1.memory_management import MemoryFormat

        return MemoryFormat.KV_MLA_FMT if self.layout.use_mla else MemoryFormat.KV_2LTD

    def put(self, numbers: list[int], token_counts: list[int] | None = None, how: str = "batched") -> list[bool]:
        """Store as StorageManager.batched_put does; returns which of them were allocated."""
        import torch

        objs = self.allocate(token_counts or [self.layout.chunk_tokens] * len(numbers))
        there = [obj for obj in objs if obj is not None]
        if len(there) < len(objs):  # LMCache stores the leading ones only.
            there = there[: objs.index(None)]
        for number, obj in zip(numbers, there, strict=False):
            obj.raw_tensor.copy_(self.content(number, obj.get_size()))
            assert obj.tensor.shape == obj.get_shape()
            assert obj.tensor.dtype == self.dtype
        assert torch.is_tensor(there[0].tensor) if there else True
        keys = self.keys(numbers[: len(there)])
        futures: list[Any] = []
        if how == "batched":
            futures = self.backend.batched_submit_put_task(keys, there) or []
        else:
            futures = [self.backend.submit_put_task(key, obj) for key, obj in zip(keys, there, strict=True)]
        for obj in there:
            obj.ref_count_down()
        for future in futures:
            future.result(REPLY_DEADLINE_S)
        return [obj is not None for obj in objs]

    def get(self, numbers: list[int], how: str = "batched", hold: bool = False) -> list[str | None]:
        """Retrieve, compare every byte and drop again. None for a miss, else "TOKENS tokens" or what is wrong."""
        keys = self.keys(numbers)
        if how == "batched":
            objs = self.backend.batched_get_blocking(keys)
        elif how == "single":
            objs = [self.backend.get_blocking(key) for key in keys]
        else:
            coroutine = self.backend.batched_get_non_blocking("lookup", keys)
            objs = asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(REPLY_DEADLINE_S)
            for obj in objs:
                obj.unpin()
        found = [self.judge(number, obj) for number, obj in zip(numbers, objs, strict=False)]
        if hold:
            self.held += objs
        else:
            for obj in objs:
                if obj is not None:
                    obj.ref_count_down()
        return found

    def judge(self, number: int, obj: Any) -> str | None:
        import torch

        if obj is None:
            return None
        tensor = obj.tensor
        if tensor.dtype != self.dtype or tensor.shape != obj.get_shape():
            return f"a tensor of {tensor.dtype} {tuple(tensor.shape)}"
        if not torch.equal(tensor.contiguous().view(-1).view(torch.uint8), self.content(number, obj.get_size())):
            return "wrong bytes"
        return f"{obj.get_num_tokens()} tokens"

    def judge_held(self, numbers: list[int]) -> list[str | None]:
        return [self.judge(number, obj) for number, obj in zip(numbers, self.held, strict=True)]

    def drop_held(self) -> int:
        count = len(self.held)
        for obj in self.held:
            obj.ref_count_down()
        self.held.clear()
        return count

    def contains(self, number: int, pin: bool = False) -> bool:
        return bool(self.backend.contains(self.key(number), pin))

    def batched_contains(self, numbers: list[int], pin: bool = False) -> int:
        return int(self.backend.batched_contains(self.keys(numbers), pin))

    def batched_async_contains(self, numbers: list[int], pin: bool = False) -> int:
        coroutine = self.backend.batched_async_contains("lookup", self.keys(numbers), pin)
        return int(asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(REPLY_DEADLINE_S))

    def pin(self, number: int) -> bool:
        return bool(self.backend.pin(self.key(number)))

    def unpin(self, number: int) -> bool:
        return bool(self.backend.unpin(self.key(number)))

    def batched_unpin(self, numbers: list[int]) -> None:
        self.backend.batched_unpin(self.keys(numbers))

    def remove(self, number: int) -> bool:
        return bool(self.backend.remove(self.key(number)))

    def allocate_and_hold(self, count: int, batched: bool = False) -> int:
        """Allocate and store nothing; returns how many came."""
        if batched:
            shapes, dtypes = self.metadata.get_shapes(), self.metadata.get_dtypes()
            objs = self.backend.batched_allocate(shapes, dtypes, count, self.fmt) or []
        else:
            objs = [obj for obj in self.allocate([self.layout.chunk_tokens] * count) if obj is not None]
        self.held += objs
        return len(objs)

    def cycle(self, rounds: int, seed: int) -> None:
        """What LMCache does with objects, at random, aborts included: each of these must leave nothing behind."""
        chance = random.Random(seed)
        shapes, dtypes = self.metadata.get_shapes(), self.metadata.get_dtypes()
        for number in range(rounds):
            keys = self.keys([chance.randrange(400) for _ in range(chance.randint(1, 3))])
            fate = chance.choice(
                ["dropped", "forgotten", "stored", "read", "read later", "pinned", "removed", "failed"]
            )
            if fate in ("dropped", "forgotten", "stored", "failed"):
                objs = [self.backend.allocate(shapes, dtypes, self.fmt) for _ in keys]
                objs = [obj for obj in objs if obj is not None]
                if fate == "stored":
                    futures = self.backend.batched_submit_put_task(keys[: len(objs)], objs)
                    for obj in objs:
                        obj.ref_count_down()
                    for future in futures or []:
                        future.result(REPLY_DEADLINE_S)
                elif fate == "dropped":
                    for obj in objs:
                        obj.ref_count_down()
                elif fate == "failed":  # An engine that stops between allocating and storing, the tensor still in hand.
                    tensors = [obj.tensor for obj in objs]
                    self.backend.memory_allocator.batched_free(objs)
                    del tensors
            elif fate in ("read", "read later"):
                for obj in self.backend.batched_get_blocking(keys):
                    if obj is None:
                        continue
                    tensor = obj.tensor
                    obj.ref_count_down()
                    if fate == "read later":
                        tensor.sum()
            elif fate == "pinned":
                count = self.backend.batched_contains(keys, pin=True)
                for key in keys[:count]:
                    self.backend.unpin(key)
            else:
                self.backend.remove(keys[0])
            if number % 100 == 99:
                self.backend.allocate(shapes, dtypes, self.fmt)  # Nobody even looks at it.

    def empty(self) -> None:
        for key in self.keys(list(range(400))):
            self.backend.remove(key)

    def footprint(self) -> tuple[int, int]:
        """(KiB of this process's own memory, objects that Python tracks)."""
        gc.collect()
        resident, shared = Path("/proc/self/statm").read_text().split()[1:3]
        return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE") // 1024, len(gc.get_objects())

    def pins(self) -> tuple[int, int]:
        """(views held, keys pinned) of this process's handler."""
        handler = self.backend._handler
        return handler.view_pin_count, handler.key_pin_count

    def close(self) -> bool:
        self.backend.close()
        return True

    def end(self) -> None:
        """Nothing of this backend may outlive it in this process."""
        self.held.clear()
        self.backend.close()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(REPLY_DEADLINE_S)
        self.loop.close()


def _serve(conn: Connection) -> None:
    """Whatever the parent asks, one backend after the other: importing LMCache takes seconds, a backend does not."""
    backend: BackendProcess | EngineProcess | None = None
    while True:
        try:
            name, args, kwargs = conn.recv()
        except EOFError:
            return
        try:
            if name == "open":
                kind = EngineProcess if kwargs.pop("engine") else BackendProcess
                backend = kind(*args, **kwargs)
                conn.send((True, None))
            elif name == "end":
                if backend:
                    backend.end()
                backend = None
                conn.send((True, None))
            else:
                conn.send((True, getattr(backend, name)(*args, **kwargs)))
        except BaseException as error:  # The parent must hear of anything.
            conn.send((False, f"{type(error).__name__}: {error}"))


class Peer:
    """The parent's end: `peer.put([1, 2])` runs in the other process."""

    _idle: ClassVar[list[Peer]] = []

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._conn, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()

    @classmethod
    def take(cls, path: str, layout: Layout | None = None) -> Peer:
        """A backend on the pool at `path`, in a process of its own. Raises AssertionError with what LMCache said."""
        peer = cls._idle_one()
        peer.send("open", path, layout or Layout(), engine=False)
        peer.answer()
        return peer

    @classmethod
    def take_engine(cls, path: str, **settings: Any) -> Peer:
        """The same with LMCache's whole engine."""
        peer = cls._idle_one()
        peer.send("open", path, engine=True, **settings)
        peer.answer()
        return peer

    @classmethod
    def _idle_one(cls) -> Peer:
        while cls._idle and not cls._idle[-1].process.is_alive():
            cls._idle.pop()
        return cls._idle.pop() if cls._idle else cls()

    def give_back(self) -> None:
        """Close the backend; the process may serve the next one."""
        if not self.process.is_alive():
            return
        try:
            self.send("end")
            self.answer()
        except (AssertionError, TimeoutError, OSError):
            self.kill()
            raise
        self._idle.append(self)

    def answer(self) -> Any:
        if not self._conn.poll(REPLY_DEADLINE_S):
            raise TimeoutError("the other process does not answer")
        good, value = self._conn.recv()
        if not good:
            raise AssertionError(value)
        return value

    def send(self, name: str, *args: Any, **kwargs: Any) -> None:
        self._conn.send((name, args, kwargs))

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self.send(name, *args, **kwargs)
            return self.answer()

        return call

    def kill(self) -> None:
        self.process.kill()
        self.process.join(REPLY_DEADLINE_S)
