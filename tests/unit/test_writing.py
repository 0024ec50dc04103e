"""Writing: reservations, drafts, parts, deadlines, and memory that cannot be taken back."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest

import maru
from maru import Outcome
from maru.errors import BadSize, ChunkTooLarge, NotReserved
from maru.testing.content import bytes_of, is_right, key_of

SIZE = 12_000


def test_put_answers_stored_then_exists(pool: maru.Pool) -> None:
    assert pool.put(key_of(0), b"abc") == Outcome.STORED
    assert pool.put(key_of(0), b"xyz") == Outcome.EXISTS
    view = pool.get(key_of(0))
    assert view is not None
    assert bytes(view) == b"abc"


@pytest.mark.parametrize(
    "data", [b"x" * 5, bytearray(b"x" * 5), np.full(5, ord("x"), dtype=np.uint8), memoryview(b"xxxxx")]
)
def test_anything_with_a_contiguous_buffer_can_be_stored(pool: maru.Pool, data: object) -> None:
    assert pool.put(key_of(0), data) == Outcome.STORED
    view = pool.get(key_of(0))
    assert view is not None
    assert bytes(view) == b"xxxxx"


def test_a_strided_array_is_refused(pool: maru.Pool) -> None:
    with pytest.raises((BufferError, ValueError)):
        pool.put(key_of(0), np.arange(10)[::2])
    assert pool.put(key_of(0), b"still free") == Outcome.STORED


def test_a_reservation_is_invisible_until_sealed(pool: maru.Pool) -> None:
    with pool.reserve(key_of(0), SIZE) as r:
        assert r.outcome == Outcome.RESERVED
        assert len(r.buffer) == SIZE
        r.buffer[:] = bytes_of(key_of(0), SIZE)
        assert pool.lookup(key_of(0)) == 0
        assert pool.put(key_of(0), b"rival") == Outcome.IN_FLIGHT
        assert r.seal() == Outcome.STORED
    assert pool.lookup(key_of(0)) == 1


def test_leaving_without_seal_discards(pool: maru.Pool) -> None:
    with contextlib.suppress(RuntimeError), pool.reserve(key_of(0), SIZE) as r:
        r.buffer[:100] = b"x" * 100
        raise RuntimeError("in the middle of a store")
    assert pool.lookup(key_of(0)) == 0
    assert pool.put(key_of(0), b"again") == Outcome.STORED
    assert pool.stats()["chunks"]["reserved"] == 0


def test_sealing_while_an_array_could_still_write_is_refused(pool: maru.Pool) -> None:
    r = pool.reserve(key_of(0), SIZE)
    array = np.frombuffer(r.buffer, dtype=np.uint8)
    with pytest.raises(BufferError, match="could still write"):
        r.seal()
    assert pool.lookup(key_of(0)) == 0
    array[:] = 7
    del array
    assert r.seal() == Outcome.STORED
    view = pool.get(key_of(0))
    assert view is not None
    assert bytes(view) == b"\x07" * SIZE


@pytest.mark.parametrize("make", [memoryview, lambda b: b[10:20], lambda b: np.frombuffer(b, np.int16)[3:9]])
def test_every_kind_of_export_is_noticed(pool: maru.Pool, make: object) -> None:
    r = pool.reserve(key_of(0), SIZE)
    held = make(r.buffer)  # type: ignore[operator]
    with pytest.raises(BufferError):
        r.seal()
    del held
    assert r.seal() == Outcome.STORED


def test_exports_may_be_allowed_by_name(pool: maru.Pool) -> None:
    r = pool.reserve(key_of(0), SIZE)
    array = np.frombuffer(r.buffer, dtype=np.uint8)
    array[:] = 1
    assert r.seal(allow_exports=True) == Outcome.STORED
    assert array[0] == 1


def test_a_buffer_is_released_by_seal(pool: maru.Pool) -> None:
    r = pool.reserve(key_of(0), SIZE)
    buffer = r.buffer
    buffer[:] = bytes_of(key_of(0), SIZE)
    assert r.seal() == Outcome.STORED
    assert buffer.released
    with pytest.raises(NotReserved):
        buffer[0:4] = b"late"
    with pytest.raises(BufferError, match="released"):
        memoryview(buffer)
    with pytest.raises(NotReserved):
        r.seal()
    with pytest.raises(NotReserved):
        _ = r.buffer


def test_discarded_memory_waits_for_the_last_array(pool: maru.Pool) -> None:
    r = pool.reserve(key_of(0), SIZE)
    array = np.frombuffer(r.buffer, dtype=np.uint8)
    r.discard()
    assert pool.stats()["chunks"]["reserved"] == 1  # The array could still write into it.
    del array
    assert pool.stats()["chunks"]["reserved"] == 0
    assert pool.check() == []


def test_a_buffer_takes_only_what_fits(pool: maru.Pool) -> None:
    with pool.reserve(key_of(0), 8) as r:
        with pytest.raises(ValueError, match="9 bytes into a slice of 8"):
            r.buffer[:] = b"123456789"
        with pytest.raises(ValueError, match="contiguous"):
            r.buffer[::2] = b"1234"
        r.buffer[0:4] = b"abcd"
        r.buffer[4:8] = np.array([1], dtype=np.int32)
        r.buffer[7] = 9
        assert r.seal() == Outcome.STORED
    view = pool.get(key_of(0))
    assert view is not None
    assert bytes(view) == b"abcd\x01\0\0\x09"


def test_put_many_links_each_key_to_the_one_before(pool: maru.Pool) -> None:
    keys = b"".join(key_of(n) for n in range(4))
    assert pool.put_many(keys, [b"a", b"bb", b"ccc", b"dddd"]) == [Outcome.STORED] * 4
    assert pool.put_many(keys, [b"a", b"bb", b"ccc", b"dddd"]) == [Outcome.EXISTS] * 4
    assert pool.stats()["chunks"]["leaves"] == 1
    with pytest.raises(ValueError, match="4 keys and 1 buffers"):
        pool.put_many(keys, [b"a"])


def test_a_batch_reserves_and_seals_a_whole_prefix(pool: maru.Pool) -> None:
    keys = [key_of(n) for n in range(5)]
    pool.put(keys[2], b"there already")
    with pool.reserve_many(b"".join(keys), SIZE) as batch:
        assert batch.outcomes == [Outcome.RESERVED] * 2 + [Outcome.EXISTS] + [Outcome.RESERVED] * 2
        for key, buffer in zip(keys, batch.buffers, strict=True):
            if buffer is not None:
                buffer[:] = bytes_of(key, SIZE)
        del buffer
        assert batch.seal() == [Outcome.STORED] * 2 + [Outcome.EXISTS] + [Outcome.STORED] * 2
    assert pool.lookup(b"".join(keys)) == 5


def test_a_draft_gets_its_name_later(pool: maru.Pool) -> None:
    draft = pool.allocate(SIZE)
    assert draft is not None
    draft.buffer[:] = bytes_of(key_of(0), SIZE)
    pool.put(key_of(1), b"taken")
    assert draft.publish(key_of(1)) == Outcome.EXISTS  # Still ours.
    assert draft.publish(key_of(0)) == Outcome.STORED
    view = pool.get(key_of(0))
    assert view is not None
    assert is_right(key_of(0), view)
    with pytest.raises(NotReserved):
        draft.publish(key_of(2))
    assert pool.check() == []


def test_a_dropped_draft_gives_its_memory_back(pool: maru.Pool) -> None:
    drafts = [pool.allocate(400_000) for _ in range(16)]
    assert all(drafts)
    assert pool.allocate(400_000) is None  # 8 MiB in slabs of 512 KiB: full of drafts, and nothing to evict.
    del drafts
    assert pool.allocate(400_000) is not None


def test_a_deadline_that_passed_lets_a_rival_take_the_key_but_not_the_bytes(pool: maru.Pool) -> None:
    slow = pool.reserve(key_of(0), SIZE, deadline=0)
    array = np.frombuffer(slow.buffer, dtype=np.uint8)
    rival = pool.reserve(key_of(0), SIZE)
    assert rival.outcome == Outcome.RESERVED
    rival.buffer[:] = bytes_of(key_of(0), SIZE)
    assert rival.seal() == Outcome.STORED
    array[:] = 0xEE  # The slow one still writes, into what is still its own.
    del array
    assert slow.seal() == Outcome.LOST
    view = pool.get(key_of(0))
    assert view is not None
    assert is_right(key_of(0), view)
    assert pool.stats()["counters"]["revoked"] == 1
    assert pool.check() == []


def test_a_renewed_reservation_is_not_taken_over(pool: maru.Pool) -> None:
    r = pool.reserve(key_of(0), SIZE, deadline=0)
    assert r.renew(30)
    assert pool.reserve(key_of(0), SIZE).outcome == Outcome.IN_FLIGHT
    r.buffer[:] = bytes_of(key_of(0), SIZE)
    assert r.seal() == Outcome.STORED


def test_taken_over_bytes_are_capped_per_process(pool: maru.Pool) -> None:
    held = [pool.reserve(key_of(0), 400_000, deadline=0) for _ in range(8)]
    outcomes = [r.outcome for r in held]
    # An eighth of 8 MiB may be taken over from one process; then rivals wait.
    assert outcomes[:3] == [Outcome.RESERVED] * 3
    assert outcomes[3:] == [Outcome.IN_FLIGHT] * 5
    for r in held:
        r.discard()
    assert pool.check() == []


def test_the_last_part_seals_the_chunk(pool: maru.Pool) -> None:
    content = bytes_of(key_of(0), SIZE)
    parts = [pool.reserve(key_of(0), SIZE, part=n, parts=3) for n in range(3)]
    assert [p.outcome for p in parts] == [Outcome.RESERVED] * 3
    assert pool.reserve(key_of(0), SIZE, part=1, parts=3).outcome == Outcome.IN_FLIGHT  # That part is taken.
    for n in (2, 0, 1):
        assert pool.lookup(key_of(0)) == 0
        parts[n].buffer[:] = content[n * 4000 : (n + 1) * 4000]
        assert parts[n].seal() == Outcome.STORED
    view = pool.get(key_of(0))
    assert view is not None
    assert is_right(key_of(0), view)
    del view
    assert pool.remove(key_of(0))
    assert pool.check() == []


def test_a_part_given_up_discards_the_whole(pool: maru.Pool) -> None:
    first = pool.reserve(key_of(0), SIZE, part=0, parts=2)
    second = pool.reserve(key_of(0), SIZE, part=1, parts=2)
    first.discard()
    assert pool.put(key_of(0), b"the key is free") == Outcome.STORED
    assert second.seal() == Outcome.LOST
    assert pool.check() == []
    chunks = pool.stats()["chunks"]
    assert chunks["revoked"] + chunks["releasing"] + chunks["reserved"] == 0


@pytest.mark.parametrize(("size", "part", "parts"), [(SIZE, 2, 2), (SIZE, 0, 0), (SIZE, 0, 17), (SIZE + 1, 0, 2)])
def test_impossible_parts_are_refused(pool: maru.Pool, size: int, part: int, parts: int) -> None:
    with pytest.raises(BadSize):
        pool.reserve(key_of(0), size, part=part, parts=parts)


def test_sizes_that_cannot_be_are_refused_with_their_numbers(pool: maru.Pool) -> None:
    with pytest.raises(ChunkTooLarge) as refused:
        pool.reserve(key_of(0), 1 << 40)
    assert refused.value.wanted_bytes == 1 << 40
    assert refused.value.slab_bytes == pool.stats()["slab_bytes"]
    for size in (0, -1, -(1 << 62), -(1 << 70), 1 << 63, 1 << 70):
        with pytest.raises(BadSize):
            pool.reserve(key_of(0), size)
        with pytest.raises(BadSize):
            pool.allocate(size)
    with pytest.raises(BadSize):
        pool.put(key_of(0), b"")


def test_device_memory_rests_after_a_discard(pool_url: str) -> None:
    with maru.Pool.create(pool_url + "&cooling=3600") as pool:
        for n in range(16):
            pool.reserve(key_of(n), 400_000, device=True).discard()
        assert pool.stats()["counters"]["cooled"] == 16
        assert pool.put(key_of(99), b"x" * 400_000) == Outcome.FULL  # All of it may still be written by a device.
        assert pool.check() == []
    maru.Pool.destroy(pool_url)
    with maru.Pool.create(pool_url + "&cooling=0") as pool:
        for n in range(40):
            pool.reserve(key_of(n), 400_000, device=True).discard()
        assert pool.put(key_of(99), b"x" * 400_000) == Outcome.STORED


def test_a_256_mib_chunk_fits_a_pool_of_4_gib(pool_url: str) -> None:
    with maru.Pool.create(pool_url.partition("?")[0] + "?size=4GiB&populate=off") as pool:
        r = pool.reserve(key_of(0), 256 << 20)
        assert r.outcome == Outcome.RESERVED
        r.discard()


def test_what_was_published_held_is_the_chunk_and_stays(pool: maru.Pool) -> None:
    draft = pool.allocate(4096)
    assert draft is not None
    draft.buffer[:] = b"h" * 4096
    outcome, view = draft.publish_held(b"held".ljust(16))
    assert outcome == maru.Outcome.STORED
    assert view is not None
    assert view.readonly
    assert not pool.remove(b"held".ljust(16))
    assert bytes(view) == b"h" * 4096
    del view
    assert pool.remove(b"held".ljust(16))


def test_a_key_that_is_there_is_not_held_by_who_came_second(pool: maru.Pool) -> None:
    key = b"twice".ljust(16)
    pool.put(key, b"first")
    draft = pool.allocate(4096)
    assert draft is not None
    assert draft.publish_held(key) == (maru.Outcome.EXISTS, None)
    draft.discard()
    assert pool.remove(key)
    assert pool.check() == []


def test_a_draft_says_where_it_lies_until_it_ends(pool: maru.Pool) -> None:
    draft = pool.allocate(4096)
    assert draft is not None
    offset = draft.offset
    draft.publish(b"lies".ljust(16))
    with pool.pin(b"lies".ljust(16)) as prefix:
        assert int.from_bytes(prefix.extents()[:8], "little") == offset
    with pytest.raises(maru.errors.NotReserved):
        _ = draft.offset
