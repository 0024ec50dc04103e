"""A device copy outlives the process that asked for it: what it writes late must land in nobody's sealed chunk.

The "device" here is this process, which holds the same memory mapped and writes where it was told, after the owner's
death. No GPU is involved: not run on hardware.
"""

from __future__ import annotations

import ctypes
import signal

import numpy as np
import pytest

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

pytestmark = pytest.mark.crash

SIZE = 60_000
CHUNKS = 100  # Twice what fits.


def hold_device_memory(url: str, as_draft: bool) -> None:
    """Take memory for a device, say where it lies, and wait to be killed."""
    with maru.Pool.attach(url) as pool:
        held = pool.allocate(SIZE, device=True) if as_draft else pool.reserve(key_of(0, "device"), SIZE, device=True)
        assert held is not None
        address = np.frombuffer(held.buffer, dtype=np.uint8).ctypes.data
        print(address - pool._data_range()[0], flush=True)
        input()


def land_late(pool: maru.Pool, offset: int) -> None:
    ctypes.memset(pool._data_range()[0] + offset, 0xDD, SIZE)


@pytest.mark.parametrize("as_draft", [False, True])
def test_a_copy_that_lands_after_its_owners_death_changes_no_sealed_chunk(pool_url: str, as_draft: bool) -> None:
    with maru.Pool.create(pool_url.partition("?")[0] + "?size=3MiB&slab_bytes=1MiB&slots=300") as pool:
        with spawn(hold_device_memory, pool_url.partition("?")[0], as_draft) as owner:
            offset = int(owner.line())
            owner.process.send_signal(signal.SIGKILL)
            owner.wait()
        assert pool.reap() == 1
        assert pool.stats()["counters"]["cooled"] == 1
        if not as_draft:  # The key is free at once; only the memory rests.
            key = key_of(0, "device")
            assert pool.put(key, bytes_of(key, SIZE)) == Outcome.STORED
        for n in range(CHUNKS):
            assert pool.put(key_of(n), bytes_of(key_of(n), SIZE)) == Outcome.STORED
            land_late(pool, offset)
        present = [n for n in range(CHUNKS) if pool.exists(key_of(n))]
        assert len(present) > 20
        for n in present:
            view = pool.get(key_of(n))
            assert view is not None
            assert is_right(key_of(n), view)
        assert pool.check() == []


def test_a_stopped_owner_keeps_its_memory_when_it_loses_its_key(pool_url: str) -> None:
    with maru.Pool.create(pool_url.partition("?")[0] + "?size=3MiB&slab_bytes=1MiB&slots=300") as pool:
        with spawn(hold_overdue, pool_url.partition("?")[0]) as owner:
            offset = int(owner.line())
            owner.process.send_signal(signal.SIGSTOP)
            owner.wait_stopped()
            key = key_of(0, "device")
            assert pool.put(key, bytes_of(key, SIZE)) == Outcome.STORED  # Taken over: the key, not the memory.
            for n in range(CHUNKS):
                assert pool.put(key_of(n), bytes_of(key_of(n), SIZE)) == Outcome.STORED
                land_late(pool, offset)
            wrong = [n for n in range(CHUNKS) if not is_right(key_of(n), pool.get(key_of(n)) or b"")]
            assert wrong == []
            owner.resume()
            owner.tell("seal")
            assert owner.line() == "LOST"
            assert owner.wait() == 0
        assert pool.check() == []


def hold_overdue(url: str) -> None:
    """A reservation that is overdue at once; sealed when told to."""
    with maru.Pool.attach(url) as pool:
        held = pool.reserve(key_of(0, "device"), SIZE, device=True, deadline=0)
        print(np.frombuffer(held.buffer, dtype=np.uint8).ctypes.data - pool._data_range()[0], flush=True)
        input()
        print(held.seal().name, flush=True)
