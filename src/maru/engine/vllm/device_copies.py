"""Blocks on a GPU: copied by its copy engines, in the order of streams. Not run on a GPU.

Holds:      the device, its registration of the pool's memory, and the copier, which keep what copies need. What this
            worker stores is taken from the device's own NUMA node first.
Promises:   kernels of a step that loads begin when its loads are done; kernels of the next step begin when this step's
            stores have read their blocks; a chunk is sealed when its bytes have arrived.
Leaves:     the order itself to maru.engine.device_copy, what to load and store to the worker's side.

Whole steps and not layer by layer: waiting inside a step would forbid vLLM its full CUDA graphs.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from maru.engine.device_copy import Device, DeviceCopier, Registration, Row
from maru.engine.vllm.blocks import Blocks, Pieces
from maru.pool import PinnedPrefix, Pool

CLOSE_DEADLINE_S = 30.0


class DeviceCopies:
    """One worker's."""

    to_device = True

    def __init__(
        self,
        pool: Pool,
        blocks: Blocks,
        ordinal: int,
        compute_stream: Callable[[], int],
        copier: type[DeviceCopier] = DeviceCopier,
    ) -> None:
        """`ordinal`: the device that vLLM computes on. `compute_stream`: the handle of the stream that it is using now.

        Raises DeviceUnavailable, DeviceError.
        """
        self.blocks = blocks
        self._compute_stream = compute_stream
        self._device = Device(ordinal)
        pool.prefer_numa_node(self._device.numa_node)
        self._registration = Registration(pool, self._device)
        self._registration.begin()
        self._copier = copier(self._device, self._registration)

    def remote_bytes(self) -> tuple[int, int]:
        counters = self._copier.counters
        return counters.bytes_loaded_remote, counters.bytes_stored_remote

    def before_step(self) -> None:
        self._copier.poll()
        self._copier.before_next_step(self._compute_stream())

    def load(self, pieces: Pieces, keep: list[PinnedPrefix]) -> None:
        self._copier.load(self._rows(pieces), keep, self._compute_stream())

    def before_layer(self, _layer: int) -> None:
        return  # The stream waits.

    def after_layer(self, _layer: int, _storing: Pieces) -> None:
        return

    def store(self, storing: Pieces, done: Callable[[bool], None]) -> None:
        self._copier.store(self._rows(storing), done, self._compute_stream())

    def loads_done(self) -> bool:
        return True  # The stream waits.

    def end_step(self) -> None:
        self._copier.poll()

    def close(self) -> None:
        if self._copier.close(CLOSE_DEADLINE_S):
            self._registration.close()
            self._device.close()

    def _rows(self, pieces: Pieces) -> list[Row]:
        """One row a run: blocks that follow each other on both sides are one copy."""
        size = self.blocks.block_bytes
        rows: list[Row] = []
        for layer in range(self.blocks.layer_count):
            here, there = self.blocks.of_layer(layer, pieces)
            goes_on = (np.diff(here) == size) & (np.diff(there) == size)
            firsts = [0, *(int(at) + 1 for at in np.flatnonzero(~goes_on))]
            for first, end in zip(firsts, [*firsts[1:], len(here)], strict=True):
                rows.append((int(there[first]), int(here[first]), (end - first) * size))
        return rows
