"""The streaming copy: every byte it is asked for and none beside, by every path this CPU has."""

from __future__ import annotations

import random
import threading

import numpy as np
import pytest

from maru import _native

PATHS = _native.stream_copy_paths()
NOISE = np.frombuffer(random.Random(81).randbytes(1 << 20), dtype=np.uint8)
GUARD_SIZE = 128
GUARD = 0xEE


def check_copy(path: str | None, size: int, dst_offset: int, src_offset: int) -> None:
    """Copy between places `offset` bytes past a cache line; compare, with guards on both sides."""
    dst = line_aligned(GUARD_SIZE + dst_offset + size + GUARD_SIZE)
    dst[:] = GUARD
    src = line_aligned(src_offset + size)
    src[src_offset:] = np.resize(NOISE, size)
    begin, end = GUARD_SIZE + dst_offset, GUARD_SIZE + dst_offset + size
    if path is None:
        _native.stream_copy(dst[begin:end], src[src_offset:])
    else:
        _native.stream_copy_with(path, dst[begin:end], src[src_offset:])
    where = (path, size, dst_offset, src_offset)
    assert dst[begin:end].tobytes() == src[src_offset:].tobytes(), where
    assert (dst[:begin] == GUARD).all(), where
    assert (dst[end:] == GUARD).all(), where


def line_aligned(size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    room = np.empty(size + 64, dtype=np.uint8)
    start = -room.ctypes.data % 64
    return room[start : start + size]


def check_hashing_copy(path: str | None, size: int, dst_offset: int, src_offset: int) -> None:
    """As check_copy; what comes back is the hash of the bytes."""
    room = line_aligned(GUARD_SIZE + dst_offset + size + GUARD_SIZE)
    room[:] = GUARD
    begin, end = GUARD_SIZE + dst_offset, GUARD_SIZE + dst_offset + size
    src = line_aligned(src_offset + size)[src_offset:]
    src[:] = np.resize(NOISE, size)
    if path is None:
        found = _native.xxh3_64_copying(room[begin:end], src)
    else:
        found = _native.xxh3_64_copying_with(path, room[begin:end], src)
    where = (path, size, dst_offset, src_offset)
    assert found == _native.xxh3_64(src), where
    assert room[begin:end].tobytes() == src.tobytes(), where
    assert (room[:begin] == GUARD).all(), where
    assert (room[end:] == GUARD).all(), where


@pytest.mark.parametrize("path", _native.hash_paths())
def test_a_copy_that_hashes_copies_exactly_and_hashes_what_it_copied(path: str) -> None:
    for size in (*range(1024, 1160), *range(2040, 2056), *range(3060, 3140), 131_072, 131_073, (1 << 20) + 77):
        for dst_offset, src_offset in ((0, 0), (0, 9), (16, 16), (32, 5), (48, 0), (17, 0), (63, 1), (size % 64, 33)):
            check_hashing_copy(path, size, dst_offset, src_offset)


@pytest.mark.parametrize("path", _native.hash_paths())
@pytest.mark.parametrize("dst_offset", [0, 16, 9])
def test_what_arrives_is_what_was_hashed_while_somebody_writes_the_source(path: str, dst_offset: int) -> None:
    """The source may be memory that another host, or a process that woke up, stores into: then the hash is of that."""
    size = (1 << 20) + 77
    source = np.resize(NOISE, size)
    room = line_aligned(dst_offset + size)[dst_offset:]
    is_over = threading.Event()

    def scribble() -> None:
        while not is_over.is_set():
            np.bitwise_xor(source, 1, out=source)

    scribbler = threading.Thread(target=scribble)
    scribbler.start()
    try:
        for _ in range(100):
            assert _native.xxh3_64_copying_with(path, room, source) == _native.xxh3_64(room)
    finally:
        is_over.set()
        scribbler.join()


@pytest.mark.parametrize("size", [0, 1, 240, 241, 1023, 131_071, 131_072, (2 << 20) + 5])
def test_whoever_asks_for_a_hashing_copy_need_not_know_its_limits(size: int) -> None:
    for dst_offset in (0, 5):
        check_hashing_copy(None, size, dst_offset, 3)


@pytest.mark.parametrize("path", [None, *PATHS])
def test_every_size_is_copied_exactly_at_unaligned_places(path: str | None) -> None:
    for size in range(1101):
        check_copy(path, size, dst_offset=size * 7 % 64, src_offset=size * 13 % 64)
        check_copy(path, size, dst_offset=0, src_offset=1)
        check_copy(path, size, dst_offset=63, src_offset=0)


@pytest.mark.parametrize("path", [None, *PATHS])
@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 200])
def test_every_pair_of_alignments_is_copied_exactly(path: str | None, size: int) -> None:
    for dst_offset in range(64):
        for src_offset in (0, 1, 15, 16, 17, 31, 32, 33, 48, 63):
            check_copy(path, size, dst_offset, src_offset)


@pytest.mark.parametrize("path", [None, *PATHS])
@pytest.mark.parametrize("size", [4096, 65_535, 65_536, 131_071, 131_072, 131_073, 1 << 20, (8 << 20) + 5])
def test_large_copies_are_exact(path: str | None, size: int) -> None:
    for dst_offset, src_offset in ((0, 0), (0, 9), (17, 0), (33, 63)):
        check_copy(path, size, dst_offset, src_offset)


def test_the_path_in_use_is_the_best_one_here() -> None:
    assert _native.stream_copy_path() == PATHS[0]
    assert PATHS[-1] == "memcpy"


def test_bad_buffers_are_refused() -> None:
    with pytest.raises(ValueError, match="4 bytes, src is 5"):
        _native.stream_copy(bytearray(4), bytes(5))
    with pytest.raises(BufferError):
        _native.stream_copy(bytes(4), bytes(4))
    room = memoryview(bytearray(100))
    with pytest.raises(ValueError, match="overlap"):
        _native.stream_copy(room[10:60], room[50:])
    with pytest.raises(ValueError, match="no path named 'paste'"):
        _native.stream_copy_with("paste", bytearray(4), bytes(4))


def test_buffers_that_touch_do_not_overlap() -> None:
    room = bytearray(b"ab" * 50 + bytes(100))
    _native.stream_copy(memoryview(room)[100:], memoryview(room)[:100])
    assert room == b"ab" * 100


@pytest.mark.parametrize("size", [1, 64, 4096, 200_000])
def test_pieces_go_where_each_is_told_and_nowhere_else(size: int) -> None:
    count = 12
    room, source = line_aligned(3 * count * size), line_aligned(count * size)
    room[:] = GUARD
    source[:] = np.resize(NOISE, count * size)
    # The first five lie in order in both, the next two only in the source, the rest in neither.
    places = [0, 1, 2, 3, 4, 9, 30, 20, 33, 11, 35, 7]
    origins = [0, 1, 2, 3, 4, 5, 6, 9, 8, 7, 11, 10]
    targets = np.array([room.ctypes.data + at * size for at in places], dtype=np.uint64)
    sources = np.array([source.ctypes.data + at * size for at in origins], dtype=np.uint64)
    _native._copy_pieces(targets, sources, size)
    wanted = np.full((3 * count, size), GUARD, dtype=np.uint8)
    wanted[places] = source.reshape(count, size)[origins]
    assert (room.reshape(3 * count, size) == wanted).all()


def test_lists_of_pieces_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="equally many"):
        _native._copy_pieces(np.zeros(2, dtype=np.uint64), np.zeros(1, dtype=np.uint64), 1)
    _native._copy_pieces(np.zeros(0, dtype=np.uint64), np.zeros(0, dtype=np.uint64), 1)
