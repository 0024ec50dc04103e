"""vLLM's blocks and the pool's chunks as addresses: where each piece of a layer lies, here and there.

Holds:      each layer's blocks, and where the pool's memory is mapped.
Promises:   an address is inside a registered layer, or inside the part of a chunk that was asked for.
Leaves:     when to copy, and keeping both ends alive meanwhile, to who asks.

One chunk is [ranks][layers][blocks][bytes of a block]; the same block of all layers is as far apart in every chunk. So
one list of addresses does for all layers: the next layer's is the same plus a constant on each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from maru.engine.vllm.fit import ModelRefused, Shape
from maru.pool import Pool

Addresses: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"


@dataclass(frozen=True)
class Pieces:
    """Blocks and where they lie in the pool: one entry each, the pool's addresses for the first layer."""

    blocks: Addresses
    places: Addresses

    @property
    def count(self) -> int:
        return len(self.blocks)


NO_PIECES = Pieces(np.empty(0, np.uint64), np.empty(0, np.uint64))


class Blocks:
    """The KV caches that a worker registered, and the maps of one pool."""

    def __init__(self, pool: Pool, shape: Shape, kv_caches: dict[str, torch.Tensor]) -> None:
        """Block index first in each layer. Raises ModelRefused where a block does not lie in one piece."""
        missing = [name for name in shape.layer_names if name not in kv_caches]
        if missing:
            raise ModelRefused(f"vLLM registered no KV cache for {missing[0]}")
        layers = [kv_caches[name] for name in shape.layer_names]
        sizes = set()
        for layer in layers:
            if not isinstance(layer, torch.Tensor) or layer.device.type != "cpu":
                raise ModelRefused("KV caches on a GPU are not supported yet")
            if not layer.is_contiguous():
                raise ModelRefused("a layer's blocks do not lie in one piece each")
            sizes.add(layer[0].numel() * layer.element_size())
        if len(sizes) != 1:
            raise ModelRefused("layers with blocks of different sizes")
        self.block_bytes = sizes.pop()
        self.layer_count = len(layers)
        self.part_bytes = self.layer_count * shape.blocks_per_chunk * self.block_bytes
        """One rank's part of a chunk."""
        self._per_chunk = shape.blocks_per_chunk
        self._kept = layers
        self._bases = [layer.data_ptr() for layer in layers]
        self._block_count = min(layer.shape[0] for layer in layers)
        self._writable, self._readable, _ = pool._data_range()

    def to_read(self, offset: int, skip_blocks: int, blocks: tuple[int, ...]) -> Pieces:
        """Blocks `skip_blocks` and on of the part that begins at byte `offset` of the pool's data."""
        return self._pieces(self._readable + offset, skip_blocks, blocks)

    def to_write(self, offset: int, blocks: tuple[int, ...]) -> Pieces:
        """All blocks of the part that begins at byte `offset` of the pool's data."""
        return self._pieces(self._writable + offset, 0, blocks)

    def _pieces(self, start: int, skip_blocks: int, blocks: tuple[int, ...]) -> Pieces:
        if not skip_blocks + len(blocks) <= self._per_chunk or not all(0 <= one < self._block_count for one in blocks):
            raise ValueError(f"blocks {blocks} after {skip_blocks} are not {self._per_chunk} blocks of this cache")
        within: Addresses = np.arange(skip_blocks, skip_blocks + len(blocks), dtype=np.uint64)
        return Pieces(np.array(blocks, np.uint64), np.uint64(start) + within * np.uint64(self.block_bytes))

    def of_layer(self, layer: int, pieces: Pieces) -> tuple[Addresses, Addresses]:
        """(addresses of the blocks, addresses in the pool) for this layer."""
        here = np.uint64(self._bases[layer]) + pieces.blocks * np.uint64(self.block_bytes)
        return here, pieces.places + np.uint64(layer * self._per_chunk * self.block_bytes)


def joined(pieces: list[Pieces]) -> Pieces:
    """One list of several."""
    if not pieces:
        return NO_PIECES
    return Pieces(np.concatenate([one.blocks for one in pieces]), np.concatenate([one.places for one in pieces]))
