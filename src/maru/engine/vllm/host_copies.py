"""Blocks in memory: copied by the CPU, layer by layer while vLLM computes.

Holds:      the lane that copies, what it was given in this step, and whether vLLM asks for its layers.
Promises:   a layer is loaded in the background only after vLLM was seen to ask for every layer of a step: a model that
            computes a layer without asking would read what is not there yet. Storing needs no such trust, for `store`
            copies whatever was not begun. A copy that does not end in time ends copying in the background, and what
            it may still touch stays for good.
Leaves:     what to load and store to the worker's side.
"""

from __future__ import annotations

from collections.abc import Callable

from maru.engine.vllm.blocks import Addresses, Blocks, Pieces
from maru.engine.vllm.copies import CopyLate
from maru.engine.vllm.lane import CopyLane
from maru.native import core
from maru.pool import PinnedPrefix, Pool

COPY_DEADLINE_S = 30.0

_KEPT: list[object] = []
"""What copies that never ended may still touch."""


class HostCopies:
    """One worker's."""

    to_device = False

    def __init__(self, pool: Pool, blocks: Blocks, in_background: bool) -> None:
        """`in_background`: copy while vLLM computes; else all at once, before and after."""
        self.blocks = blocks
        self._writable, self._readable, _ = pool._data_range()
        self._in_background = in_background
        self._asks_for_layers = False
        self._lane = CopyLane("maru-copies")
        self._asked: list[int] = []
        """Layers that vLLM came to in this step, in its order."""
        self._loading: dict[int, int] = {}
        """The lane's order by layer."""
        self._storing: dict[int, int] = {}
        self._keep: list[PinnedPrefix] = []
        self._is_late = False

    def remote_bytes(self) -> tuple[int, int]:
        return 0, 0  # The CPU that copies is not bound to a node.

    def before_step(self) -> None:
        return

    def load(self, pieces: Pieces, keep: list[PinnedPrefix]) -> None:
        self._keep += keep
        for layer in range(self.blocks.layer_count):
            here, there = self.blocks.of_layer(layer, pieces)
            if self._in_background and self._asks_for_layers:
                self._loading[layer] = self._order(here, _at(self._readable, there))
            else:
                core._copy_pieces(here, _at(self._readable, there), self.blocks.block_bytes)

    def before_layer(self, layer: int) -> None:
        self._asked.append(layer)
        if layer in self._loading:
            self._wait_for_loads(self._loading.pop(layer))

    def after_layer(self, layer: int, storing: Pieces) -> None:
        if self._in_background and storing.count and layer not in self._storing:
            here, there = self.blocks.of_layer(layer, storing)
            self._storing[layer] = self._order(_at(self._writable, there), here)

    def store(self, storing: Pieces, done: Callable[[bool], None]) -> None:
        for layer in range(self.blocks.layer_count):
            if layer not in self._storing:
                here, there = self.blocks.of_layer(layer, storing)
                core._copy_pieces(_at(self._writable, there), here, self.blocks.block_bytes)
        if self._storing and not self._lane.wait(max(self._storing.values()), COPY_DEADLINE_S):
            self._give_lane_up(done)  # Neither sealed nor given back: the copy may still write.
            raise CopyLate(f"a copy took more than {COPY_DEADLINE_S:g} s")
        done(True)

    def loads_done(self) -> bool:
        if self._loading:
            self._wait_for_loads(max(self._loading.values()))
        return not self._is_late

    def end_step(self) -> None:
        for prefix in self._keep:
            prefix.release()
        if self._asked:
            self._asks_for_layers = sorted(self._asked) == list(range(self.blocks.layer_count))
        self._asked, self._loading, self._storing, self._keep, self._is_late = [], {}, {}, [], False

    def close(self) -> None:
        if not self._lane.close(COPY_DEADLINE_S):
            _KEPT.append(self._keep)

    def _order(self, targets: Addresses, sources: Addresses) -> int:
        return self._lane.order(targets, sources, self.blocks.block_bytes)

    def _wait_for_loads(self, order: int) -> None:
        if not self._lane.wait(order, COPY_DEADLINE_S):
            self._give_lane_up(self._keep)
            self._keep, self._loading, self._is_late = [], {}, True

    def _give_lane_up(self, keep: object) -> None:
        _KEPT.append(keep)
        self._lane.close(0.0)  # Its thread ends if its copy ever does.
        self._lane, self._in_background = CopyLane("maru-copies"), False


def _at(base: int, offsets: Addresses) -> Addresses:
    moved: Addresses = offsets + offsets.dtype.type(base)
    return moved
