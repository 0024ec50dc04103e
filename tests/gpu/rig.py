"""A worker's things on a fake GPU: blocks, a compute stream, a pool whose memory is registered, a copier."""

from __future__ import annotations

from typing import Any

import maru
from fake_gpu import Fake, device_bytes, write_device
from maru import Outcome
from maru.engine.device_copy import Device, DeviceCopier, Registration, Row
from maru.registered import PIECE_BYTES
from maru.testing.content import bytes_of, key_of

POOL = "?size=8MiB&slab_bytes=1MiB&slots=300&processes=32&gate=off"
BLOCK = 4096
BLOCKS = 256
CHUNK = 8 * BLOCK
DEADLINE_S = 30.0


class Clock:
    """Time that stands still until it is told otherwise; waiting is telling."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pause(self, seconds: float) -> bool:
        self.now += seconds
        return False


class Rig:
    """A context manager."""

    def __init__(
        self,
        fake: Fake,
        pool: maru.Pool,
        copier: type[DeviceCopier] = DeviceCopier,
        register: bool = True,
        piece_bytes: int = PIECE_BYTES,
    ) -> None:
        self.fake = fake
        self.pool = pool
        self.clock = Clock()
        self.device = Device(0)
        self.registration = Registration(pool, self.device, piece_bytes=piece_bytes)
        if register:
            self.registration.begin()
            assert self.registration.wait(DEADLINE_S)
        self.copier = copier(
            self.device, self.registration, DEADLINE_S, poll_s=None, clock=self.clock, pause=self.clock.pause
        )
        with self.device.bound():
            self.compute = self.device.create_stream()
            self.blocks = self.device.allocate(BLOCKS * BLOCK)

    def block(self, number: int) -> int:
        """Where it lies on the device."""
        return self.blocks + number * BLOCK

    def rows(self, offset: int, first_block: int, count: int = CHUNK // BLOCK) -> list[Row]:
        """A chunk's blocks from the last to the first, so that neither side lies in one piece."""
        order = range(count)
        return [(offset + n * BLOCK, self.block(first_block + count - 1 - n), BLOCK) for n in order]

    def put(self, number: int, size: int = CHUNK) -> bytes:
        """Store a chunk by the CPU; its key."""
        key = key_of(number)
        assert self.pool.put(key, bytes_of(key, size)) == Outcome.STORED
        return key

    def offset(self, key: bytes) -> int:
        with self.pool.pin(key) as prefix:
            return int.from_bytes(prefix.extents()[:8], "little")

    def load(self, key: bytes, first_block: int = 0, copier: DeviceCopier | None = None) -> None:
        """As a door does it: pinned by nobody but the copier."""
        prefix = self.pool.pin(key)
        views = prefix.views
        prefix.release()
        (copier or self.copier).load(self.rows(self.offset(key), first_block), views, self.compute)

    def store(self, number: int, first_block: int = 0, outcomes: list[Any] | None = None) -> bytes:
        """As a door does it. What becomes of it is appended to `outcomes`."""
        key = key_of(number)
        reservation = self.pool.reserve(key, CHUNK, device=True)
        assert reservation.outcome == Outcome.RESERVED

        def done(arrived: bool) -> None:
            told = reservation.seal() if arrived else reservation.discard()
            if outcomes is not None:
                outcomes.append(told)

        self.copier.store(self.rows(reservation.offset, first_block), done, self.compute)
        return key

    def write_blocks(self, content: bytes, first_block: int = 0) -> None:
        """So that `store` of these blocks makes a chunk of `content`."""
        count = len(content) // BLOCK
        for n in range(count):
            write_device(self.block(first_block + count - 1 - n), content[n * BLOCK : (n + 1) * BLOCK])

    def read_blocks(self, first_block: int = 0, size: int = CHUNK) -> bytes:
        """What `load` brought to these blocks."""
        count = size // BLOCK
        return b"".join(device_bytes(self.block(first_block + count - 1 - n), BLOCK) for n in range(count))

    def read_pool(self, key: bytes) -> bytes | None:
        view = self.pool.get(key)
        return None if view is None else bytes(view)

    def __enter__(self) -> Rig:
        return self

    def __exit__(self, *_: object) -> None:
        if not self.device.is_lost:
            self.fake.late(False)
            self.copier.close(DEADLINE_S)
            self.registration.close()
