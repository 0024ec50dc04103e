"""How bytes move between vLLM's blocks and the pool: what the worker's side asks for, wherever the blocks lie.

Two rooms do it: `host_copies` for blocks in memory, `device_copies` for blocks on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from maru.engine.vllm.blocks import Blocks, Pieces
from maru.errors import MaruError
from maru.pool import PinnedPrefix


class CopyLate(MaruError):
    """A copy did not end in time. What it may still touch is nobody else's any more, as long as this process lives."""


class Copies(Protocol):
    """One worker's. Driven by its model runner's thread, step after step."""

    blocks: Blocks
    to_device: bool
    """Does a device write into what is reserved?"""

    def remote_bytes(self) -> tuple[int, int]:
        """Loaded and stored so far on another NUMA node than the device's; (0, 0) without a device."""

    def before_step(self) -> None:
        """vLLM is about to launch a step's work."""

    def load(self, pieces: Pieces, keep: list[PinnedPrefix]) -> None:
        """Begin to fill the blocks. `keep` is released when that is done, not before. Raises MaruError."""

    def before_layer(self, layer: int, /) -> None:
        """Return when this layer's part of all loads is done, or ordered before its computing, or late."""

    def after_layer(self, layer: int, storing: Pieces, /) -> None:
        """This layer is computed, or its computing is launched: storing it may begin."""

    def store(self, storing: Pieces, done: Callable[[bool], None]) -> None:
        """The step is computed, or launched: store what `after_layer` did not begin to.

        `done(True)` when all bytes have arrived, `done(False)` when they will not and nobody writes any more; neither
        while somebody may. From any thread, perhaps before this returns. Raises MaruError.
        """

    def loads_done(self) -> bool:
        """Are all loads of this step done, or ordered before what is computed? Waits, within a deadline."""

    def end_step(self) -> None:
        """The step is over."""

    def close(self) -> None:
        """Finish what was begun, or keep what it may still touch."""
