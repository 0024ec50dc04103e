"""The worker's side: the copies between vLLM's blocks and the pool's chunks.

Holds:      each layer's blocks as bytes, and which blocks could not be filled.
Promises:   a block is filled with the whole of what its key says, or reported so that vLLM computes it; a chunk is
            sealed with the whole of what was computed, or never seen. What was computed upon blocks that could not be
            filled is not stored. Any trouble with the pool is that report, or nothing stored.
Leaves:     which chunks and blocks to the scheduler's side.

One chunk: [layers][blocks][bytes of a block]. With tensor parallelism each rank writes its part of one entry, and the
last one seals it.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from maru.engine.vllm.fit import ModelRefused, Shape
from maru.engine.vllm.plan import Done, Load, Save
from maru.errors import MaruError
from maru.pool import Namespace, Outcome, Pool

KEY_BYTES = 16


@dataclass
class WorkerCounters:
    """What this worker did."""

    tokens_loaded: int = 0
    bytes_loaded: int = 0
    load_s: float = 0.0
    tokens_stored: int = 0
    bytes_stored: int = 0
    store_s: float = 0.0
    blocks_failed: int = 0


class WorkerSide:
    """One a worker process, driven by its model runner's thread."""

    def __init__(
        self,
        pool: Pool,
        namespace: Namespace,
        shape: Shape,
        rank: int,
        ranks: int,
        failed: Callable[[str, Exception], None],
    ) -> None:
        self._pool = pool
        self._namespace = namespace
        self._shape = shape
        self._rank = rank
        self._ranks = ranks
        self._failed = failed
        self._layers: list[torch.Tensor] = []
        self._block_bytes = 0
        self._invalid: set[int] = set()
        self._spoilt: set[str] = set()
        """Requests of this step whose loading failed."""
        self._done = Done()
        self.counters = WorkerCounters()
        _spend_read_only_warning()

    @property
    def part_bytes(self) -> int:
        """One rank's part of a chunk."""
        return len(self._layers) * self._shape.blocks_per_chunk * self._block_bytes

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Each layer's blocks, block index first. Raises ModelRefused where a block does not lie in one piece."""
        missing = [name for name in self._shape.layer_names if name not in kv_caches]
        if missing:
            raise ModelRefused(f"vLLM registered no KV cache for {missing[0]}")
        layers = [kv_caches[name] for name in self._shape.layer_names]
        sizes = set()
        for layer in layers:
            if not isinstance(layer, torch.Tensor) or layer.device.type != "cpu":
                raise ModelRefused("KV caches on a GPU are not supported yet")
            if not layer.is_contiguous():
                raise ModelRefused("a layer's blocks do not lie in one piece each")
            sizes.add(layer[0].numel() * layer.element_size())
        if len(sizes) != 1:
            raise ModelRefused("layers with blocks of different sizes")
        self._block_bytes = sizes.pop()
        self._layers = [layer.view(torch.uint8).view(layer.shape[0], -1) for layer in layers]

    def load(self, loads: list[Load]) -> None:
        """Fill the blocks; those that could not be are reported. Begins a step."""
        self._spoilt.clear()
        for load in loads:
            begun = time.monotonic()
            try:
                filled = self._fill(load)
            except MaruError as error:
                self._failed("load a prefix", error)
                filled = 0
            if filled < len(load.blocks):
                self._invalid.update(load.blocks[filled:])
                self._spoilt.add(load.request_id)
            self.counters.blocks_failed += len(load.blocks) - filled
            self.counters.tokens_loaded += filled * self._shape.block_tokens
            self.counters.bytes_loaded += filled * self._block_bytes * len(self._layers)
            self.counters.load_s += time.monotonic() - begun
            self._done.loaded[load.request_id] = 1

    def save(self, saves: list[Save]) -> None:
        """Store what was computed, chunk after chunk, until there is no room."""
        for save in saves:
            if save.request_id in self._spoilt:
                continue
            begun = time.monotonic()
            try:
                self._store(save)
            except MaruError as error:
                self._failed("store a prompt", error)
            self.counters.store_s += time.monotonic() - begun

    def take_invalid(self) -> set[int]:
        """Blocks that vLLM has to compute, told once."""
        invalid, self._invalid = self._invalid, set()
        return invalid

    def take_done(self) -> Done | None:
        """Requests loaded since the last call."""
        done, self._done = self._done, Done()
        return done if done.loaded else None

    def _fill(self, load: Load) -> int:
        """How many leading blocks were filled."""
        per_chunk = self._shape.blocks_per_chunk
        filled = 0
        with self._pool.pin(load.keys) as prefix:
            for number, view in enumerate(prefix.views):
                if view.nbytes != self.part_bytes * self._ranks:
                    break
                skip = load.skip_blocks if number == 0 else 0
                blocks = load.blocks[filled : filled + per_chunk - skip]
                self._copy_out(view, skip, blocks)
                filled += len(blocks)
        return filled

    def _copy_out(self, view: memoryview, skip: int, blocks: tuple[int, ...]) -> None:
        part = view[self._rank * self.part_bytes : (self._rank + 1) * self.part_bytes]
        chunk = torch.frombuffer(part, dtype=torch.uint8)
        chunk = chunk.view(len(self._layers), self._shape.blocks_per_chunk, self._block_bytes)
        for layer, source in zip(self._layers, chunk, strict=True):
            for at, block in enumerate(blocks, start=skip):
                layer[block].copy_(source[at])

    def _store(self, save: Save) -> None:
        per_chunk = self._shape.blocks_per_chunk
        parent = save.parent
        for number in range(len(save.keys) // KEY_BYTES):
            key = save.keys[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            blocks = save.blocks[number * per_chunk : (number + 1) * per_chunk]
            outcome = self._store_one(key, parent, blocks)
            if outcome in (Outcome.FULL, Outcome.BUSY, Outcome.LOST):
                return  # Without this one nobody could reach those after it.
            parent = key

    def _store_one(self, key: bytes, parent: bytes | None, blocks: tuple[int, ...]) -> Outcome:
        size = self.part_bytes * self._ranks
        with self._pool.reserve(
            key, size, namespace=self._namespace, parent=parent, part=self._rank, parts=self._ranks
        ) as reservation:
            if reservation.outcome != Outcome.RESERVED:
                return reservation.outcome
            self._copy_in(reservation.buffer, blocks)
            outcome = reservation.seal()
        if outcome == Outcome.STORED:
            self.counters.tokens_stored += self._shape.chunk_tokens
            self.counters.bytes_stored += self.part_bytes
        return outcome

    def _copy_in(self, buffer: Any, blocks: tuple[int, ...]) -> None:
        """A frame of its own: the tensor over the reservation ends with it, before the seal."""
        chunk = torch.frombuffer(buffer, dtype=torch.uint8)
        chunk = chunk.view(len(self._layers), self._shape.blocks_per_chunk, self._block_bytes)
        for layer, target in zip(self._layers, chunk, strict=True):
            for at, block in enumerate(blocks):
                target[at].copy_(layer[block])


def _spend_read_only_warning() -> None:
    """Torch cannot mark a tensor read-only and says so, once in a process: have it said here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(memoryview(b"\0"), dtype=torch.uint8)
