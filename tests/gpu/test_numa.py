"""Which bytes a copier counts as remote: those whose segment's NUMA node is known and is not the GPU's.

Against a fake driver, with nodes written into a pool's index: not run on a machine of several nodes.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from rig import BLOCK, CHUNK, DEADLINE_S, Rig

import maru
from fake_gpu import Fake
from maru import Outcome
from maru.engine.device_copy import DeviceCopier, DeviceError, driver
from maru.engine.device_copy.remote import RemoteRanges
from maru.testing.content import bytes_of, key_of
from pools import say_numa_nodes

MIB = 1 << 20
OTHER, OWN, UNKNOWN = 0, 1, -1
GPU_NODE = 1


@pytest.fixture
def spread(pool_url: str, tmp_path: Path) -> Iterator[maru.Pool]:
    """Three segments: on another node than the GPU's, on its own, and nobody knows where."""
    files = ",".join(str(tmp_path / name) for name in "abc")
    options = f"size=6MiB&slab_bytes=1MiB&slots=300&processes=32&gate=off&medium=file&data={files}"
    with maru.Pool.create(f"{pool_url.partition('?')[0]}?{options}") as pool:
        say_numa_nodes(pool, OTHER, OWN, UNKNOWN)
        assert pool.wait_ready(20)
        yield pool


@pytest.fixture
def far_rig(fake: Fake, spread: maru.Pool, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    monkeypatch.setattr(driver, "numa_node_of", lambda _: GPU_NODE)
    with Rig(fake, spread) as made:
        yield made


def in_segments(pool: maru.Pool, size: int = CHUNK) -> dict[int, bytes]:
    """A stored chunk in each segment: without a preference they take turns."""
    chunks = {}
    for number in range(3):
        key = key_of(number)
        assert pool.put(key, bytes_of(key, size)) == Outcome.STORED
        with pool.pin(key) as prefix:
            chunks[memoryview(prefix.extents()).cast("Q")[0] // (2 * MIB)] = key
    assert sorted(chunks) == [0, 1, 2]
    return chunks


def test_loads_from_another_node_are_counted_to_the_byte(far_rig: Rig) -> None:
    chunks = in_segments(far_rig.pool)
    counted = []
    for segment in (1, 2, 0, 0):
        far_rig.load(chunks[segment])
        counted.append(far_rig.copier.counters.bytes_loaded_remote)
    assert counted == [0, 0, CHUNK, 2 * CHUNK]
    assert far_rig.copier.counters.bytes_loaded == 4 * CHUNK
    assert far_rig.copier.counters.bytes_stored_remote == 0


def test_stores_to_another_node_are_counted_when_their_bytes_have_arrived(far_rig: Rig) -> None:
    far_rig.fake.late()
    for number in range(3):  # Once to each segment.
        far_rig.store(10 + number)
    assert far_rig.copier.counters.bytes_stored_remote == 0
    far_rig.fake.run()
    far_rig.copier.poll()
    assert far_rig.copier.counters.bytes_stored == 3 * CHUNK
    assert far_rig.copier.counters.bytes_stored_remote == CHUNK
    assert far_rig.copier.counters.bytes_loaded_remote == 0


def test_what_was_not_copied_is_not_counted_as_remote(far_rig: Rig) -> None:
    chunks = in_segments(far_rig.pool)
    far_rig.fake.fail("cuMemcpyBatchAsync", 1)
    with pytest.raises(DeviceError):
        far_rig.load(chunks[0])
    assert far_rig.copier.counters.bytes_loaded_remote == 0
    far_rig.fake.late()
    for number in range(3):
        far_rig.store(10 + number)
    far_rig.clock.pause(DEADLINE_S + 1)
    far_rig.copier.poll()
    far_rig.fake.run()
    far_rig.copier.poll()
    assert far_rig.copier.counters.stores_given_up == 3
    assert far_rig.copier.counters.bytes_stored_remote == 0


def test_remote_bytes_that_take_the_detour_count_too(
    fake: Fake, spread: maru.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "numa_node_of", lambda _: GPU_NODE)
    with Rig(fake, spread, register=False) as rig:
        rig.load(in_segments(spread)[0])
        assert rig.copier.counters.bytes_bounced == rig.copier.counters.bytes_loaded_remote == CHUNK


def test_a_gpu_whose_node_nobody_knows_has_no_remote_bytes(
    fake: Fake, spread: maru.Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "numa_node_of", lambda _: None)
    with Rig(fake, spread) as rig:
        for key in in_segments(spread).values():
            rig.load(key)
        assert rig.copier.counters.bytes_loaded == 3 * CHUNK
        assert rig.copier.counters.bytes_loaded_remote == 0


def test_rows_that_come_once_are_copied_and_counted(far_rig: Rig) -> None:
    key = in_segments(far_rig.pool)[0]
    copier: DeviceCopier = far_rig.copier
    copier.load(iter(far_rig.rows(far_rig.offset(key), 0)), None, far_rig.compute)
    assert copier.counters.bytes_loaded_remote == CHUNK
    assert far_rig.read_blocks() == bytes_of(key, CHUNK)


def test_a_row_across_the_edge_of_a_segment_counts_with_its_remote_part() -> None:
    segments = [
        {"first_byte": 0, "bytes": 2 * MIB, "numa_node": OTHER},
        {"first_byte": 2 * MIB, "bytes": 2 * MIB, "numa_node": OWN},
        {"first_byte": 4 * MIB, "bytes": 2 * MIB, "numa_node": 5},
    ]
    seen = RemoteRanges(segments, GPU_NODE)
    assert seen.bytes_of([(2 * MIB - 10, 0, 30)]) == 10
    assert seen.bytes_of([(4 * MIB - 10, 0, 30), (2 * MIB, 0, BLOCK)]) == 20
    assert seen.bytes_of([(0, 0, 6 * MIB)]) == 4 * MIB
    assert RemoteRanges(segments, None).bytes_of([(0, 0, 6 * MIB)]) == 0


def test_a_door_that_prefers_the_gpus_node_stores_nothing_remote_while_there_is_room(far_rig: Rig) -> None:
    far_rig.pool.prefer_numa_node(far_rig.device.numa_node)
    for number in range(2 * MIB // CHUNK):
        far_rig.store(number)
        far_rig.copier.poll()
    assert far_rig.copier.counters.bytes_stored_remote == 0
    for number in range(2):
        far_rig.store(1000 + number)
        far_rig.copier.poll()
    assert far_rig.copier.counters.bytes_stored_remote == CHUNK
