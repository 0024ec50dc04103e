"""vLLM's blocks and the pool's chunks as addresses: where each piece of a layer lies, here and there.

Holds:      where each layer's blocks lie.
Promises:   an address is inside a registered layer, or inside the part of a chunk that was asked for.
Leaves:     when to copy, and keeping both ends alive meanwhile, to who asks.

A plane is one array of blocks: a layer has one, or two where its keys and values lie apart. One chunk is
[ranks][planes][blocks][bytes of a block]; the same block of all planes is as far apart in every chunk. So one list of
places does for all planes: the next plane's is the same plus a constant on each side.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from maru.engine.vllm.fit import ModelRefused, Shape

Addresses: TypeAlias = "np.ndarray[Any, np.dtype[np.uint64]]"


@dataclass(frozen=True)
class Pieces:
    """Blocks and where they lie in the pool: one entry each, the places for the first plane."""

    blocks: Addresses
    places: Addresses
    """Bytes from the start of the pool's data."""

    @property
    def count(self) -> int:
        return len(self.blocks)


NO_PIECES = Pieces(np.empty(0, np.uint64), np.empty(0, np.uint64))


class Blocks:
    """The KV caches that a worker registered."""

    def __init__(self, shape: Shape, kv_caches: dict[str, torch.Tensor], block_count: int) -> None:
        """`block_count`: vLLM's own. Raises ModelRefused where a block does not lie in one piece, or in one of keys and
        one of values.
        """
        missing = [name for name in shape.layer_names if name not in kv_caches]
        if missing:
            raise ModelRefused(f"vLLM registered no KV cache for {missing[0]}")
        layers = [kv_caches[name] for name in shape.layer_names]
        planes = [_planes_of(layer, block_count) for layer in layers]
        shapes = {(len(of_layer), size) for of_layer in planes for _, size in of_layer}
        if len(shapes) != 1:
            raise ModelRefused("layers with blocks of different sizes")
        ((self.planes_per_layer, self.block_bytes),) = shapes
        self.layer_count = len(layers)
        self.part_bytes = self.layer_count * self.planes_per_layer * shape.blocks_per_chunk * self.block_bytes
        """One rank's part of a chunk."""
        self._per_chunk = shape.blocks_per_chunk
        self._kept = layers
        self._bases = [base for of_layer in planes for base, _ in of_layer]
        self._block_count = block_count

    def pieces(self, offset: int, skip_blocks: int, blocks: tuple[int, ...]) -> Pieces:
        """Blocks `skip_blocks` and on of the part that begins at byte `offset` of the pool's data."""
        if not skip_blocks + len(blocks) <= self._per_chunk or not all(0 <= one < self._block_count for one in blocks):
            raise ValueError(f"blocks {blocks} after {skip_blocks} are not {self._per_chunk} blocks of this cache")
        within: Addresses = np.arange(skip_blocks, skip_blocks + len(blocks), dtype=np.uint64)
        return Pieces(np.array(blocks, np.uint64), np.uint64(offset) + within * np.uint64(self.block_bytes))

    def of_layer(self, layer: int, pieces: Pieces) -> tuple[Addresses, Addresses]:
        """(addresses of the blocks, bytes from the start of the pool's data) for all planes of this layer."""
        planes = range(layer * self.planes_per_layer, (layer + 1) * self.planes_per_layer)
        step = self._per_chunk * self.block_bytes
        here = [np.uint64(self._bases[plane]) + pieces.blocks * np.uint64(self.block_bytes) for plane in planes]
        there = [pieces.places + np.uint64(plane * step) for plane in planes]
        return np.concatenate(here), np.concatenate(there)


def joined(pieces: list[Pieces]) -> Pieces:
    """One list of several."""
    if not pieces:
        return NO_PIECES
    return Pieces(np.concatenate([one.blocks for one in pieces]), np.concatenate([one.places for one in pieces]))


def _planes_of(layer: torch.Tensor, block_count: int) -> list[tuple[int, int]]:
    """(address, bytes of a block) of each plane: [block, ...], or [2, block, ...] with keys and values apart."""
    if not isinstance(layer, torch.Tensor):
        raise ModelRefused(f"a layer's KV cache is a {type(layer).__name__}, not one tensor")
    if layer.shape[0] == block_count:
        planes = [layer]
    elif layer.dim() > 2 and tuple(layer.shape[:2]) == (2, block_count):
        planes = [layer[0], layer[1]]
    else:
        raise ModelRefused(f"a KV cache of shape {tuple(layer.shape)} does not show its {block_count} blocks")
    found = []
    for plane in planes:
        size = plane[0].numel() * plane.element_size()
        if not _is_dense(plane[0]) or (block_count > 1 and plane.stride(0) * plane.element_size() != size):
            raise ModelRefused("a layer's blocks do not lie in one piece each")
        found.append((plane.data_ptr(), size))
    return found


def _is_dense(block: torch.Tensor) -> bool:
    """Its elements lie side by side, in whatever order."""
    reached = 1
    for stride, count in sorted(zip(block.stride(), block.shape, strict=True)):
        if count > 1:
            if stride != reached:
                return False
            reached *= count
    return True
