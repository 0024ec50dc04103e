"""Objects: what was wrapped comes out whatever way its bytes arrive, and anything else is torn."""

from __future__ import annotations

import random
import struct
import threading
import tracemalloc
from itertools import pairwise

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maru.errors import BadSize, TornObject
from maru.native import core
from maru.tier.cipher import Keyring, TenantCipher
from maru.tier.codec import open_codec
from maru.tier.envelope import FRAME_RAW_BYTES, HEADER_BYTES, ChunkFacts, Unwrapping, wrap

KEY, SPACE, PARENT = b"k" * 16, b"n" * 16, b"p" * 16
ALICE = Keyring({"old": b"o" * 32, "new": b"s" * 32}).for_tenant("alice")
BOB = Keyring({"old": b"o" * 32, "new": b"s" * 32}).for_tenant("bob")
SPECS = ("none", "zstd", "blosc2", "blosc2:lz4:5:bitshuffle", "int8:bf16:channels=64", "fp8:fp16:channels=96:rows=64")
WORD_BYTES = 4


def content(size: int, seed: int = 1) -> bytes:
    """Half easy, half impossible to make smaller, and in alternating stretches."""
    source = random.Random(seed)
    stretches = []
    for start in range(0, size, 60_000):
        here = min(60_000, size - start)
        stretches.append(source.randbytes(here) if start // 60_000 % 2 else source.randbytes(50) * (here // 50 + 1))
        stretches[-1] = stretches[-1][:here]
    return b"".join(stretches)


def wrapped(data: bytes, spec: str = "none", cipher: TenantCipher | None = None, frame: int = FRAME_RAW_BYTES) -> bytes:
    facts = ChunkFacts(KEY, SPACE, len(data), PARENT, 123)
    return b"".join(wrap(facts, data, open_codec(spec), cipher, frame_raw_bytes=frame))


def unwrapped(
    whole: bytes,
    cipher: TenantCipher | None = None,
    cuts: tuple[int, ...] = (),
    names: tuple[bytes, bytes] = (KEY, SPACE),
    size_max: int = 4 << 20,
) -> bytes:
    """What a careful reader gets: the chunk, or TornObject."""
    reading = Unwrapping(*names, cipher, accept_lossy=True)
    out = memoryview(b"")
    for start, end in pairwise((0, *sorted(cut % (len(whole) + 1) for cut in cuts), len(whole))):
        reading.feed(whole[start:end])
        if reading.facts and not out:
            assert reading.facts.size_bytes <= size_max
            out = memoryview(bytearray(reading.facts.size_bytes))
            reading.begin(out)
    reading.finish()
    return bytes(out)


def frames_of(whole: bytes) -> list[bytes]:
    """The frames with their words."""
    frames, start = [], HEADER_BYTES
    while start < len(whole):
        (word,) = struct.unpack_from("<I", whole, start)
        end = start + WORD_BYTES + (word & 0x7FFFFFFF)
        frames.append(whole[start:end])
        start = end
    return frames


@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
@pytest.mark.parametrize("spec", SPECS)
@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 3 << 20) | st.integers(1, 5000),
    cuts=st.lists(st.integers(0, 4 << 20) | st.integers(0, 200), max_size=8),
)
@example(size=1, cuts=[])
@example(size=FRAME_RAW_BYTES, cuts=[HEADER_BYTES])
@example(size=FRAME_RAW_BYTES + 1, cuts=[HEADER_BYTES + 1, HEADER_BYTES + 3])
@example(size=(3 << 20), cuts=[1 << 20, 2 << 20])
def test_a_chunk_comes_back_whatever_way_its_object_is_cut(
    spec: str, cipher: TenantCipher | None, size: int, cuts: list[int]
) -> None:
    data = content(size)
    whole = wrapped(data, spec, cipher)
    back = unwrapped(whole, cipher, tuple(cuts))
    assert len(back) == size
    assert back == (data if not open_codec(spec).is_lossy else unwrapped(whole, cipher))
    assert len(whole) <= HEADER_BYTES + size + (size // (FRAME_RAW_BYTES // 2) + 1) * (WORD_BYTES + 16)


@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
def test_bytes_may_arrive_one_at_a_time(cipher: TenantCipher | None) -> None:
    data = content(9000)
    whole = wrapped(data, "zstd", cipher, frame=4096)
    assert unwrapped(whole, cipher, tuple(range(len(whole)))) == data


def test_the_facts_are_there_as_soon_as_the_header_is() -> None:
    whole = wrapped(content(5000), "zstd")
    reading = Unwrapping(KEY, SPACE)
    reading.feed(whole[: HEADER_BYTES - 1])
    assert reading.facts is None
    reading.feed(whole[HEADER_BYTES - 1 : HEADER_BYTES])
    assert reading.facts == ChunkFacts(KEY, SPACE, 5000, PARENT, 123)


def test_the_first_chunk_of_a_prefix_has_no_parent() -> None:
    reading = Unwrapping(KEY, SPACE)
    reading.feed(b"".join(wrap(ChunkFacts(KEY, SPACE, 1), b"x", open_codec("none"))))
    assert reading.facts == ChunkFacts(KEY, SPACE, 1, None, 0)


def test_what_is_not_encoded_is_not_copied() -> None:
    data = bytearray(3 << 20)
    parts = wrap(ChunkFacts(KEY, SPACE, len(data)), data, open_codec("none"))
    assert sum(part.obj is data for part in parts if isinstance(part, memoryview)) == 3


@pytest.mark.parametrize("spec", ["none", "zstd", "int8:bf16:channels=64:rows=8"])
@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
def test_every_single_flipped_bit_of_an_object_is_found(spec: str, cipher: TenantCipher | None) -> None:
    whole = bytearray(wrapped(bytes(4096) + random.Random(5).randbytes(130), spec, cipher, frame=4096))
    for place in range(len(whole)):
        for flip in (1 << place % 8, 0xFF):
            whole[place] ^= flip
            with pytest.raises(TornObject):
                unwrapped(bytes(whole), cipher)
            whole[place] ^= flip
    unwrapped(bytes(whole), cipher)


@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
def test_every_truncation_is_found_and_so_is_anything_behind_the_end(cipher: TenantCipher | None) -> None:
    whole = wrapped(bytes(4096) + random.Random(5).randbytes(130), "zstd", cipher, frame=4096)
    for size in range(len(whole)):
        with pytest.raises(TornObject):
            unwrapped(whole[:size], cipher)
    with pytest.raises(TornObject, match="more bytes"):
        unwrapped(whole + b"\0", cipher)


@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
def test_frames_in_another_order_doubled_or_left_out_are_found(cipher: TenantCipher | None) -> None:
    whole = wrapped(random.Random(2).randbytes(3 * 4096), "none", cipher, frame=4096)
    one, two, three = frames_of(whole)
    for frames in ([two, one, three], [one, one, three], [one, three], [one, two, one], [one, two]):
        with pytest.raises(TornObject):
            unwrapped(whole[:HEADER_BYTES] + b"".join(frames), cipher)


@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
def test_an_object_under_another_name_is_found(cipher: TenantCipher | None) -> None:
    whole = wrapped(b"content", cipher=cipher)
    for names in ((b"x" * 16, SPACE), (KEY, b"x" * 16), (SPACE, KEY)):
        with pytest.raises(TornObject, match="another chunk"):
            unwrapped(whole, cipher, names=names)


def with_header(whole: bytes, place: int, fresh: bytes) -> bytes:
    """The object of somebody who can hash: a field changed, and the header's hash made right again."""
    header = bytearray(whole[: HEADER_BYTES - 8])
    header[place : place + len(fresh)] = fresh
    return bytes(header) + struct.pack("<Q", core.xxh3_64(header)) + whole[HEADER_BYTES:]


def test_a_forger_who_knows_the_format_cannot_rename_a_sealed_object_or_change_what_it_says() -> None:
    whole = wrapped(b"content", cipher=ALICE)
    for place, fresh in (
        (60, b"x" * 16),
        (76, b"y" * 16),
        (28, bytes(8)),
        (36, bytes(8)),
        (124, bytes(32)),
        (15, b"\0"),
    ):
        names = (b"x" * 16, SPACE) if place == 60 else (KEY, SPACE)
        with pytest.raises(TornObject, match="frame 0"):
            unwrapped(with_header(whole, place, fresh), ALICE, names=names)


def test_another_tenant_and_a_keyring_without_the_key_open_nothing() -> None:
    whole = wrapped(b"content", cipher=ALICE)
    with pytest.raises(TornObject, match="another tenant"):
        unwrapped(whole, BOB)
    with pytest.raises(TornObject, match="'new'"):
        unwrapped(whole, Keyring({"old": b"o" * 32}).for_tenant("alice"))
    with pytest.raises(TornObject, match="no keys are given"):
        unwrapped(whole)


def test_an_older_key_still_opens_what_it_sealed() -> None:
    before = Keyring({"old": b"o" * 32}).for_tenant("alice")
    assert unwrapped(wrapped(b"content", cipher=before), ALICE) == b"content"


def test_an_object_that_is_not_sealed_is_refused_where_sealed_ones_are_expected() -> None:
    with pytest.raises(TornObject, match="not encrypted"):
        unwrapped(wrapped(b"content"), ALICE)


def test_a_sealed_object_shows_neither_content_nor_its_hash_nor_the_tenant() -> None:
    data = b"content" * 1000
    plain, sealed = wrapped(data), wrapped(data, cipher=ALICE)
    assert plain[36:44] not in sealed
    assert b"content" not in sealed
    assert b"alice" not in sealed
    assert wrapped(data, cipher=ALICE)[36:44] != sealed[36:44]


@pytest.mark.parametrize(
    ("place", "fresh", "why"),
    [
        (0, b"x", "no object"), (8, b"\2", "version 2"), (10, b"\0", "header"), (12, b"\x63", "codec 99"),
        (13, b"\x63", "cipher 99"), (14, b"\3", "3 bytes"), (15, b"\3", "cannot be"), (16, bytes(4), "cannot be"),
        (16, b"\1\0\0\0", "cannot be"), (16, b"\xff" * 4, "cannot be"), (20, bytes(8), "cannot be"),
        (92, b"\1", "parameters"), (13, b"\1", "no keys"), (36, bytes(8), "hash"),
    ],
)  # fmt: skip
def test_a_header_that_this_version_does_not_know_is_refused_by_name(place: int, fresh: bytes, why: str) -> None:
    with pytest.raises(TornObject, match=why):
        unwrapped(with_header(wrapped(b"content"), place, fresh))


def test_a_header_that_lies_about_sizes_costs_no_memory() -> None:
    whole = wrapped(bytes(1 << 20), "zstd")
    reading = Unwrapping(KEY, SPACE)
    tracemalloc.start()
    try:
        reading.feed(with_header(whole, 20, b"\xff" * 7 + b"\x0f")[: HEADER_BYTES + 100])
        assert reading.facts is not None
        assert reading.facts.size_bytes > 1 << 59
        assert tracemalloc.get_traced_memory()[1] < 1 << 18
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("word", [0, 4097, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000 | 4095])
def test_a_frame_longer_than_what_it_holds_is_refused_before_it_is_awaited(word: int) -> None:
    whole = wrapped(bytes(4096), "zstd", frame=4096)
    reading = Unwrapping(KEY, SPACE)
    reading.feed(whole[:HEADER_BYTES])
    reading.begin(memoryview(bytearray(4096)))
    with pytest.raises(TornObject, match="frame 0"):
        reading.feed(struct.pack("<I", word))


@pytest.mark.parametrize("cipher", [None, ALICE], ids=["plain", "sealed"])
def test_reading_keeps_about_one_frame(cipher: TenantCipher | None) -> None:
    whole = memoryview(wrapped(random.Random(3).randbytes(16 << 20), "none", cipher))
    reading = Unwrapping(KEY, SPACE, cipher)
    reading.feed(whole[:HEADER_BYTES])
    assert reading.facts
    out = memoryview(bytearray(reading.facts.size_bytes))
    reading.begin(out)
    tracemalloc.start()
    try:
        for start in range(HEADER_BYTES, len(whole), 300_000):
            reading.feed(whole[start : start + 300_000])
        reading.finish()
        assert tracemalloc.get_traced_memory()[1] < 5 << 20
    finally:
        tracemalloc.stop()


def test_an_error_that_is_passed_over_stays_one() -> None:
    whole = bytearray(wrapped(random.Random(2).randbytes(3 * 4096), frame=4096))
    whole[-1] ^= 1
    reading = Unwrapping(KEY, SPACE)
    reading.feed(whole[:HEADER_BYTES])
    reading.begin(memoryview(bytearray(3 * 4096)))
    with pytest.raises(TornObject):
        reading.feed(whole[HEADER_BYTES:])
    for again in (reading.finish, lambda: reading.feed(bytes(4096)), reading.finish):
        with pytest.raises(TornObject):
            again()


def test_what_loses_precision_is_refused_where_exact_bytes_are_wanted() -> None:
    whole = wrapped(content(100_000), "int8:bf16:channels=64")
    with pytest.raises(TornObject, match="int8"):
        Unwrapping(KEY, SPACE).feed(whole)


def test_sizes_that_do_not_fit_are_refused() -> None:
    for size, data in ((7, b"8 bytes!"), (0, b"")):
        with pytest.raises(BadSize):
            wrap(ChunkFacts(KEY, SPACE, size), data, open_codec("none"))
    reading = Unwrapping(KEY, SPACE)
    reading.feed(wrapped(b"content"))
    with pytest.raises(BadSize):
        reading.begin(memoryview(bytearray(8)))


def test_threads_wrap_and_unwrap_with_one_codec_and_one_cipher() -> None:
    codec = open_codec("zstd")
    found: list[bool] = []

    def work(seed: int) -> None:
        data = content(1_500_000, seed)
        for _ in range(4):
            parts = wrap(ChunkFacts(KEY, SPACE, len(data)), data, codec, ALICE)
            found.append(unwrapped(b"".join(parts), ALICE) == data)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 16
