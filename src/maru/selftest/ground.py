"""What the self-test stands on: a pool, a GPU, the copier between them, and a way to look at the GPU's memory.

Every wait has a deadline; reaching it is DeviceLate.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

from maru.engine.device_copy import Device, DeviceCopier, DeviceLate, Registration, Row
from maru.pool import Outcome, Pool
from maru.selftest.content import bytes_of, chunk_bytes_in

BLOCKS_PER_CHUNK = 8
DEADLINE_S = 120.0
_STEP_S = 0.00005


class Ground:
    """A context manager: closed at its end, except for what a device does not give back."""

    def __init__(self, pool: Pool, ordinal: int, pieces: bool = False) -> None:
        """`pieces`: register in small pieces, so that there are edges to copy across."""
        self.pool = pool
        self.slab_bytes = int(pool.stats()["slab_bytes"])
        self.chunk_bytes = chunk_bytes_in(self.slab_bytes)
        self.block_bytes = self.chunk_bytes // BLOCKS_PER_CHUNK
        self.device = Device(ordinal)
        self.registration = (
            Registration(pool, self.device, piece_bytes=2 * self.slab_bytes)
            if pieces
            else Registration(pool, self.device)
        )
        self.copier = DeviceCopier(self.device, self.registration, poll_s=None)
        with self.device.bound():
            self.compute = self.device.create_stream()
            self._event = self.device.create_event()
            self.blocks = self.device.allocate(self.slab_bytes)
            self.pinned = self.device.allocate_pinned(self.slab_bytes)

    def rows(self, offset: int) -> list[Row]:
        """A chunk's blocks in opposite orders on the two sides."""
        size, last = self.block_bytes, BLOCKS_PER_CHUNK - 1
        return [(offset + n * size, self.blocks + (last - n) * size, size) for n in range(BLOCKS_PER_CHUNK)]

    def write_blocks(self, content: bytes) -> None:
        """So that storing these blocks makes a chunk of `content`."""
        size = self.block_bytes
        turned = b"".join(content[n * size : (n + 1) * size] for n in reversed(range(BLOCKS_PER_CHUNK)))
        ctypes.memmove(self.pinned, turned, len(turned))
        with self.device.bound():
            self.device.copy_to_device([(self.blocks, self.pinned, len(turned))], self.compute)
        self.finish(self.compute)

    def read_blocks(self) -> bytes:
        """What loading brought to these blocks."""
        size = self.block_bytes
        turned = self.read_device(self.chunk_bytes)
        return b"".join(turned[n * size : (n + 1) * size] for n in reversed(range(BLOCKS_PER_CHUNK)))

    def read_device(self, size_bytes: int) -> bytes:
        """The first bytes of the blocks, by way of pinned memory."""
        with self.device.bound():
            self.device.copy_to_host([(self.pinned, self.blocks, size_bytes)], self.compute)
        self.finish(self.compute)
        return ctypes.string_at(self.pinned, size_bytes)

    def store(self, key: bytes) -> Outcome:
        """Have the GPU compute a chunk, and store it without waiting. RESERVED, or why not."""
        reservation = self.pool.reserve(key, self.chunk_bytes, device=True)
        if reservation.outcome != Outcome.RESERVED:
            return reservation.outcome
        self.copier.before_next_step(self.compute)
        self.write_blocks(bytes_of(key, self.chunk_bytes))
        self.copier.store(
            self.rows(reservation.offset),
            lambda arrived: reservation.seal() if arrived else reservation.discard(),
            self.compute,
        )
        return Outcome.RESERVED

    def finish(self, stream: int) -> None:
        """Wait for all that was given to a stream. Raises DeviceLate, DeviceError."""
        with self.device.bound():
            self.device.record(self._event, stream)
            self._wait(lambda: self.device.is_done(self._event))

    def drain(self) -> None:
        """Wait for all copies. Raises DeviceLate."""
        self._wait(lambda: self.copier.poll() == 0)

    def _wait(self, is_over: Callable[[], bool]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not is_over():
            if time.monotonic() > deadline:
                raise DeviceLate(f"the GPU was not done after {DEADLINE_S:.0f} s", result="late")
            time.sleep(_STEP_S)

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *_: object) -> None:
        """A device that broke or hangs keeps what it has; the end of the process is the only way then."""
        if not self.copier.close(DEADLINE_S) or self.device.is_lost:
            return
        with self.device.bound():
            self.device.free_pinned(self.pinned)
            self.device.free(self.blocks)
            self.device.destroy_event(self._event)
            self.device.destroy_stream(self.compute)
        self.registration.close()
        self.device.close()
