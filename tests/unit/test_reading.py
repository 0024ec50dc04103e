"""Reading: what a lookup promises, what a pin holds, and for how long."""

from __future__ import annotations

import gc
import threading

import numpy as np
import pytest

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of

SIZE = 10_000


def keys_of(count: int) -> bytes:
    return b"".join(key_of(n) for n in range(count))


def store_prefix(pool: maru.Pool, count: int) -> bytes:
    keys = keys_of(count)
    outcomes = pool.put_many(keys, [bytes_of(key_of(n), SIZE) for n in range(count)])
    assert outcomes == [Outcome.STORED] * count
    return keys


def test_lookup_counts_the_leading_run_only(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 6)
    assert pool.lookup(keys) == 6
    assert pool.remove(key_of(3))
    assert pool.lookup(keys) == 3
    assert pool.lookup(keys[16 * 4 :]) == 2
    assert pool.lookup(b"") == 0


def test_a_pinned_prefix_shows_every_byte_in_place(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 5)
    with pool.pin(keys + key_of(99)) as prefix:
        assert len(prefix) == 5
        assert prefix.nbytes == 5 * SIZE
        for number, view in enumerate(prefix.views):
            assert view.readonly
            assert is_right(key_of(number), view)
    assert len(prefix) == 5
    with pytest.raises(ValueError, match="released"):
        _ = prefix.views


def test_extents_name_offset_and_size_of_each_chunk(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 3)
    with pool.pin(keys) as prefix:
        extents = np.frombuffer(prefix.extents(), dtype=np.uint64).reshape(-1, 2)
        assert (extents[:, 1] == SIZE).all()
        assert len(set(extents[:, 0].tolist())) == 3


def test_views_keep_their_chunks_after_the_batch_is_released(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 2)
    with pool.pin(keys) as prefix:
        views = prefix.views
    assert not pool.remove(key_of(0))
    assert is_right(key_of(0), views[0])
    del views
    assert pool.remove(key_of(0))


def test_anything_made_from_a_view_holds_the_pin(pool: maru.Pool) -> None:
    store_prefix(pool, 1)
    view = pool.get(key_of(0))
    assert view is not None
    array = np.frombuffer(view, dtype=np.uint8)[100:200]
    del view
    gc.collect()
    assert not pool.remove(key_of(0))
    assert bytes(array) == bytes_of(key_of(0), SIZE)[100:200]
    del array
    assert pool.remove(key_of(0))


def test_a_view_cannot_be_written_to(pool: maru.Pool) -> None:
    store_prefix(pool, 1)
    view = pool.get(key_of(0))
    assert view is not None
    with pytest.raises(TypeError):
        view[0] = 1
    with pytest.raises(ValueError, match="WRITEABLE"):
        np.frombuffer(view, dtype=np.uint8).flags.writeable = True


def test_get_of_an_absent_key_is_none(pool: maru.Pool) -> None:
    assert pool.get(key_of(0)) is None
    assert not pool.exists(key_of(0))
    assert not pool.remove(key_of(0))


def test_keys_may_be_any_contiguous_buffer(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 4)
    as_array = np.frombuffer(keys, dtype=np.uint8).reshape(4, 16)
    for form in (keys, bytearray(keys), memoryview(keys), as_array):
        assert pool.lookup(form) == 4
    assert pool.get(as_array[1]) is not None


def test_two_handles_share_one_pool(pool: maru.Pool, pool_url: str) -> None:
    store_prefix(pool, 3)
    with maru.Pool.attach(pool_url) as other:
        view = other.get(key_of(1))
        assert view is not None
        assert is_right(key_of(1), view)
        assert not pool.remove(key_of(1))
        del view
        assert pool.remove(key_of(1))


def test_a_reader_in_another_thread_holds_its_own_pin(pool: maru.Pool) -> None:
    store_prefix(pool, 1)
    taken, may_end = threading.Event(), threading.Event()

    def read() -> None:
        view = pool.get(key_of(0))
        taken.set()
        may_end.wait(20)
        assert view is not None

    thread = threading.Thread(target=read)
    thread.start()
    assert taken.wait(20)
    assert not pool.remove(key_of(0))
    may_end.set()
    thread.join(20)
    assert pool.remove(key_of(0))


def test_wait_sees_a_seal_and_a_change_of_mind(pool: maru.Pool) -> None:
    reservation = pool.reserve(key_of(0), SIZE)
    assert not pool.wait(key_of(0), 0.0)
    waiter_result: list[bool] = []
    waiter = threading.Thread(target=lambda: waiter_result.append(pool.wait(key_of(0), 20)))
    waiter.start()
    reservation.buffer[:] = bytes_of(key_of(0), SIZE)
    assert reservation.seal() == Outcome.STORED
    waiter.join(20)
    assert waiter_result == [True]
    abandoned = pool.reserve(key_of(1), SIZE)
    assert [pool.being_written(key_of(number)) for number in (0, 1, 2)] == [False, True, False]
    abandoned.discard()
    assert not pool.being_written(key_of(1))
    assert not pool.wait(key_of(1), 20)  # Nobody is writing it any more: no need to wait for the end.


def test_what_is_counted_adds_up(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 4)
    pool.lookup(keys + key_of(50))
    with pool.pin(keys):
        pass
    counters = pool.stats()["counters"]
    assert counters["stored"] == 4
    assert counters["stored_bytes"] == 4 * SIZE
    assert counters["lookup_keys"] == 5 + 4
    assert counters["hit_keys"] == 4 + 4
    assert counters["pinned_bytes"] == 4 * SIZE


def test_always_checked_bytes_that_changed_are_a_miss(pool_url: str) -> None:
    with maru.Pool.create(pool_url + "&checksum=always") as pool:
        keys = store_prefix(pool, 3)
        assert pool.lookup(keys) == 3
        with pool.pin(keys[16:32]) as prefix:
            offset = int.from_bytes(prefix.extents()[:8], "little")
        scribble(pool, offset + 5)
        assert pool.check() != []
        assert pool.get(key_of(1)) is None
        assert pool.lookup(keys) == 1
        assert pool.stats()["counters"]["quarantined"] == 1
        assert pool.put(key_of(1), bytes_of(key_of(1), SIZE)) == Outcome.STORED  # The key is free again.
        pool.reap()
        assert pool.check() == []


def scribble(pool: maru.Pool, offset: int) -> None:
    """Change one byte of the pool's data behind its back."""
    import ctypes

    writable, _, _ = pool._data_range()
    byte = ctypes.c_uint8.from_address(writable + offset)
    byte.value ^= 0xFF


def roomy(pool_url: str, checksum: str, threads: int) -> str:
    place = pool_url.partition("?")[0]
    return f"{place}?size=64MiB&slab_bytes=16MiB&slots=1024&checksum={checksum}&copy_threads={threads}"


def buffers_of(sizes: list[int]) -> list[bytearray]:
    return [bytearray(size) for size in sizes]


@pytest.mark.parametrize("checksum", ["always", "boundary"])
@pytest.mark.parametrize("threads", [1, 4])
def test_reading_into_buffers_brings_the_leading_run_whole(pool_url: str, checksum: str, threads: int) -> None:
    size = 5_000_003  # More than one thread's share, no whole number of lines.
    with maru.Pool.create(roomy(pool_url, checksum, threads)) as pool:
        keys = keys_of(3)
        assert pool.put_many(keys, [bytes_of(key_of(n), size) for n in range(3)]) == [Outcome.STORED] * 3
        buffers = buffers_of([size] * 4)
        assert pool.read_into(keys + key_of(99), buffers) == 3
        assert all(is_right(key_of(n), memoryview(buffers[n])) for n in range(3))
        assert bytes(buffers[3]) == bytes(size)
        assert pool.read_into(key_of(99) + keys, buffers) == 0
        assert pool.read_into(b"", []) == 0
        assert all(pool.remove(key_of(n)) for n in range(3)), "something is still pinned"


@pytest.mark.parametrize("threads", [1, 4])
def test_a_read_stops_before_the_chunk_whose_bytes_changed(pool_url: str, threads: int) -> None:
    size = 3 << 20
    with maru.Pool.create(roomy(pool_url, "always", threads)) as pool:
        keys = keys_of(5)
        pool.put_many(keys, [bytes_of(key_of(n), size) for n in range(5)])
        with pool.pin(keys[32:48]) as prefix:
            offset = int.from_bytes(prefix.extents()[:8], "little")
        scribble(pool, offset + size - 1)
        buffers = buffers_of([size] * 5)
        assert pool.read_into(keys, buffers) == 2
        assert is_right(key_of(1), memoryview(buffers[1]))
        assert pool.lookup(keys) == 2, "it was not quarantined"
        assert pool.stats()["counters"]["quarantined"] == 1


def test_a_buffer_of_another_size_is_refused_before_anything_is_copied(pool: maru.Pool) -> None:
    keys = store_prefix(pool, 2)
    buffers = buffers_of([SIZE, SIZE + 1])
    with pytest.raises(maru.errors.BadSize, match="chunk 1 has 10000 bytes, its buffer 10001"):
        pool.read_into(keys, buffers)
    assert bytes(buffers[0]) == bytes(SIZE)
    with pytest.raises(ValueError, match="2 keys and 1 buffers"):
        pool.read_into(keys, buffers[:1])
    with pytest.raises(BufferError):
        pool.read_into(keys, [bytes(SIZE), bytes(SIZE)])
    assert pool.remove(key_of(0)), "a refused read left its pin behind"
