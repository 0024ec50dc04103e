"""What tests of late device copies share: a small pool that others keep storing into while copies land."""

from __future__ import annotations

import random

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.late_device import LateDevice

SIZE = 60_000
CHUNKS = 100  # Twice what fits.
QUERY = "?size=3MiB&slab_bytes=1MiB&slots=300&processes=32&gate=off"


def fill(pool: maru.Pool, first: int, count: int = CHUNKS) -> None:
    for n in range(first, first + count):
        assert pool.put(key_of(n), bytes_of(key_of(n), SIZE)) == Outcome.STORED


def changed(pool: maru.Pool, count: int = 10 * CHUNKS) -> list[int]:
    """Sealed chunks that no longer hold what was stored."""
    return [n for n in range(count) if (view := pool.get(key_of(n))) is not None and not is_right(key_of(n), view)]


def land_while_others_store(pool: maru.Pool, device: LateDevice, dice: random.Random) -> list[int]:
    """Copies land out of order, one between every few stores that go once round the pool."""
    waiting = device.pending()
    dice.shuffle(waiting)
    wrong: list[int] = []
    for step, number in enumerate(waiting):
        fill(pool, 30 * step, 30)
        device.land([number])
        wrong += changed(pool)
    fill(pool, 500)
    return wrong + changed(pool)
