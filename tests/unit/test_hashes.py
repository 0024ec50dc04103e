"""The native hashes and chunk keys: equal to their specifications, on every path this CPU has.

Proven against constants from the official BLAKE3 test vectors, the `blake3` and `xxhash` packages of PyPI,
and for chunk keys, a naive model in Python. The golden keys here may never change: keys live on disk and wire.
"""

from __future__ import annotations

import array
import random
from collections.abc import Sequence
from typing import Any

import blake3 as blake3_reference
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from maru import _native

# The official vectors' input: bytes 0 to 250 over and over.
VECTOR_INPUT = bytes(i % 251 for i in range(102_400))
VECTOR_SIZES = [
    *(
        0,
        1,
        2,
        3,
        4,
        5,
        6,
        7,
        8,
        63,
        64,
        65,
        127,
        128,
        129,
        1023,
        1024,
        1025,
        2048,
        2049,
        3072,
        3073,
        4096,
        4097,
    ),
    *(5120, 5121, 6144, 6145, 7168, 7169, 8192, 8193, 16_384, 31_744, 102_400),
]
OFFICIAL_DIGESTS = {
    0: "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262",
    1: "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213",
    63: "e9bc37a594daad83be9470df7f7b3798297c3d834ce80ba85d6e207627b7db7b",
    64: "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98",
    65: "de1e5fa0be70df6d2be8fffd0e99ceaa8eb6e8c93a63f2d8d1c30ecb6b263dee",
    1023: "10108970eeda3eb932baac1428c7a2163b0e924c9a9e25b35bba72b28f70bd11",
    1024: "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7",
    1025: "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444",
    2048: "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a",
    2049: "5f4d72f40d7a5f82b15ca2b2e44b1de3c2ef86c426c95c1af0b6879522563030",
    3072: "b98cb0ff3623be03326b373de6b9095218513e64f1ee2edd2525c7ad1e5cffd2",
    8193: "bab6c09cb8ce8cf459261398d2e7aef35700bf488116ceb94a36d0f5f1b7bc3b",
    16_384: "f875d6646de28985646f34ee13be9a576fd515f76b5b0a26bb324735041ddde4",
    31_744: "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47",
    102_400: "bc3e3d41a1146b069abffad3c0d44860cf664390afce4d9661f7902e7943e085",
}
GOLDEN_XXH3 = {
    1: 0xC44BDFF4074EECDB,
    3: 0x5F4299FC161C9CBB,
    4: 0x60DAB036A58211F2,
    8: 0x3A1C2D7C85AF88F8,
    9: 0xE9612598145BB9DC,
    16: 0x8355E3A6F61770DB,
    17: 0x9EF341A99DE37328,
    100: 0x004E4F921A64BD1C,
    128: 0x85C6174C7FF4C46B,
    129: 0xEC7642B431BA3E5A,
    240: 0x375A384D957FE865,
    241: 0x02E8CD95421C6D02,
    1_024: 0xE5D78BAFA45B2AA5,
    1_025: 0xE95C42288F28186E,
    102_400: 0x1428E17F1CAC2837,
}
NOISE = random.Random(20).randbytes(1 << 20)
PATHS = _native.hash_paths()
SEED = bytes(range(16))
REPEATABLE = settings(derandomize=True, deadline=None, max_examples=200)


def reference_blake3(data: bytes, size: int = 32) -> bytes:
    return blake3_reference.blake3(data).digest(length=size)


def reference_keys(tokens: Sequence[int], chunk_tokens: int, seed: bytes) -> bytes:
    keys, key = [], seed
    for start in range(0, len(tokens) - chunk_tokens + 1, chunk_tokens):
        ids = b"".join(token.to_bytes(4, "little") for token in tokens[start : start + chunk_tokens])
        key = reference_blake3(key + reference_blake3(ids))[:16]
        keys.append(key)
    return b"".join(keys)


# ---- BLAKE3


@pytest.mark.parametrize("size", OFFICIAL_DIGESTS)
def test_blake3_gives_the_official_digests(size: int) -> None:
    assert _native.blake3(VECTOR_INPUT[:size]).hex() == OFFICIAL_DIGESTS[size]


@pytest.mark.parametrize("size", VECTOR_SIZES)
def test_blake3_extends_its_output_as_the_reference_does(size: int) -> None:
    data = VECTOR_INPUT[:size]
    for out_size in (0, 1, 16, 31, 32, 33, 63, 64, 65, 131, 1000):
        assert _native.blake3(data, out_size) == reference_blake3(data, out_size)


@REPEATABLE
@given(st.integers(0, 20_000), st.integers(0, 300), st.integers(0, 200))
def test_blake3_equals_the_reference_on_any_size_and_alignment(size: int, start: int, out_size: int) -> None:
    data = memoryview(NOISE)[start : start + size]
    assert _native.blake3(data, size=out_size) == reference_blake3(bytes(data), out_size)


@pytest.mark.parametrize("run_count", range(1, 10))
@pytest.mark.parametrize("extra", [-1025, -1, 0, 1, 1024, 1025])
def test_blake3_joins_its_64_kib_runs_into_the_same_tree(run_count: int, extra: int) -> None:
    data = NOISE[: run_count * 65_536 + extra]
    assert _native.blake3(data) == reference_blake3(data)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_hashes_equal_inputs_like_single_ones(path: str) -> None:
    sizes = [
        1,
        4,
        63,
        64,
        65,
        128,
        960,
        1000,
        1024,
        1025,
        1088,
        2048,
        2049,
        3072,
        4096,
        5000,
        7168,
        16_384,
        65_536,
        65_537,
    ]
    for input_size in sizes:
        for count in {0, 1, 2, 3, 4, 5, 8, 9, 15, 16, 17, 32, 33, 40} if input_size <= 4096 else {1, 3, 9}:
            inputs = NOISE[7 : 7 + input_size * count]
            expected = b"".join(reference_blake3(inputs[i * input_size : (i + 1) * input_size]) for i in range(count))
            assert _native.blake3_equal_inputs_with(path, inputs, input_size) == expected, (input_size, count)


@pytest.mark.parametrize("path", PATHS)
def test_every_path_hashes_long_inputs_like_the_reference(path: str) -> None:
    for size in (65_536 * 3, 65_536 * 8 + 1, 1 << 20):
        assert _native.blake3_equal_inputs_with(path, NOISE[:size], size) == reference_blake3(NOISE[:size])


def test_blake3_refuses_what_it_cannot_hash() -> None:
    with pytest.raises(ValueError, match="-1"):
        _native.blake3(b"", -1)
    with pytest.raises(TypeError):
        _native.blake3("text")
    with pytest.raises(ValueError, match="no path named 'abacus'"):
        _native.blake3_equal_inputs_with("abacus", b"", 1)


# ---- XXH3


def test_xxh3_gives_known_values() -> None:
    assert _native.xxh3_64(b"") == 0x2D06800538D394C2
    for size, value in GOLDEN_XXH3.items():
        assert _native.xxh3_64(VECTOR_INPUT[:size]) == value, size


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B185EBCA87, 2**64 - 1])
def test_every_path_gives_the_xxh3_of_every_short_length(path: str, seed: int) -> None:
    for size in range(1026):
        data = NOISE[size : 2 * size]
        assert _native.xxh3_64_with(path, data, seed) == xxhash.xxh3_64_intdigest(data, seed), size


@pytest.mark.parametrize("path", PATHS)
def test_every_path_gives_the_xxh3_of_lengths_around_whole_blocks(path: str) -> None:
    for blocks in (2, 3, 16, 1000):
        for size in (blocks * 1024 + extra for extra in (-65, -64, -63, -1, 0, 1, 63, 64, 65)):
            assert _native.xxh3_64_with(path, NOISE[:size], 5) == xxhash.xxh3_64_intdigest(NOISE[:size], 5), size


@REPEATABLE
@given(st.integers(0, 10_000), st.integers(0, 300), st.integers(0, 2**64 - 1))
def test_xxh3_equals_the_reference_on_any_size_and_alignment(size: int, start: int, seed: int) -> None:
    data = memoryview(NOISE)[start : start + size]
    assert _native.xxh3_64(data, seed) == xxhash.xxh3_64_intdigest(data, seed)
    assert _native.xxh3_64(data) == xxhash.xxh3_64_intdigest(data)


# ---- Chunk keys


def test_chunk_keys_never_change() -> None:
    tokens = np.arange(1024, dtype=np.int32) * 7919 % 128_256
    assert _native.chunk_keys(tokens, 256, bytes(16)).hex(" ", 16).split() == [
        "5ffb5a3457f07cc631c5dc12ffa2bbed",
        "25a1ce8518ddd9e02aae1c0da17166ec",
        "a0c5bab8f1a70651ee302f6d535e0af1",
        "d8ffffccc8f50417c5cf05ca9d607707",
    ]
    assert _native.chunk_keys(tokens, 256, SEED)[-16:].hex() == "50f18548c1ecd4199e3347f5d210aad8"
    assert _native.chunk_keys(tokens, 16, SEED)[-16:].hex() == "81b1e77e5df6bb14c2f23307c83bd72c"
    assert _native.chunk_keys(tokens, 1000, SEED).hex() == "c4db785042e5b575d25e7f04dd3b1cc2"


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.uint64])
@pytest.mark.parametrize(
    ("token_count", "chunk_tokens"),
    [(0, 1), (1, 1), (700, 1), (100, 7), (5000, 16), (1023, 64), (255, 256), (5120, 256), (5375, 256),
     (9000, 300), (4096, 1024), (40_000, 4096), (16_384, 16_384), (50_000, 16_385), (120_000, 50_000)],
)  # fmt: skip
def test_chunk_keys_follow_their_definition_for_every_type(dtype: Any, token_count: int, chunk_tokens: int) -> None:
    tokens = random.Random(token_count).choices(range(2**31), k=token_count)
    keys = _native.chunk_keys(np.array(tokens, dtype=dtype), chunk_tokens, SEED)
    assert keys == reference_keys(tokens, chunk_tokens, SEED)
    assert len(keys) == token_count // chunk_tokens * 16


@REPEATABLE
@given(st.lists(st.integers(0, 2**31 - 1), max_size=300), st.integers(1, 90), st.binary(min_size=16, max_size=16))
def test_chunk_keys_follow_their_definition(tokens: list[int], chunk_tokens: int, seed: bytes) -> None:
    expected = reference_keys(tokens, chunk_tokens, seed)
    assert _native.chunk_keys(np.array(tokens, np.int32), chunk_tokens, seed) == expected
    assert _native.chunk_keys(np.array(tokens, np.int64), chunk_tokens, seed) == expected


def test_a_longer_prompt_keeps_the_keys_of_its_prefix() -> None:
    ids = list(range(174_080))
    tokens = np.array(ids, dtype=np.int32)
    keys = _native.chunk_keys(tokens, 256, SEED)
    assert len(keys) == 680 * 16
    assert keys == reference_keys(ids, 256, SEED)
    for count in (256, 255 + 256 * 100, 256 * 679):
        assert _native.chunk_keys(tokens[:count], 256, SEED) == keys[: count // 256 * 16]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
@pytest.mark.parametrize("offset", [1, 2, 3, 5])
def test_tokens_may_lie_at_any_address(dtype: type[np.int32 | np.int64], offset: int) -> None:
    ids = list(range(3000))
    moved = bytearray(offset) + np.array(ids, dtype=dtype).tobytes()
    unaligned = np.frombuffer(moved, dtype=dtype, offset=offset)
    assert _native.chunk_keys(unaligned, 256, SEED) == reference_keys(ids, 256, SEED)


def test_64_bit_tokens_may_use_all_32_bits() -> None:
    tokens = [2**32 - 1, 2**31, 0, 5]
    assert _native.chunk_keys(np.array(tokens, np.int64), 2, SEED) == reference_keys(tokens, 2, SEED)
    assert _native.chunk_keys(np.array(tokens, np.uint64), 2, SEED) == reference_keys(tokens, 2, SEED)


@pytest.mark.parametrize(
    ("dtype", "bad"),
    [(np.int32, -1), (np.int32, -(2**31)), (np.uint32, 2**31), (np.uint32, 2**32 - 1), (np.int64, -1),
     (np.int64, 2**32), (np.int64, -(2**63)), (np.uint64, 2**32), (np.uint64, 2**64 - 1)],
)  # fmt: skip
@pytest.mark.parametrize("chunk_tokens", [1, 256, 20_000, 10**6])
def test_the_first_bad_token_id_is_named(dtype: Any, bad: int, chunk_tokens: int) -> None:
    for index in (0, 1, 8191, 8192, 16_384, 39_990, 39_999):
        tokens = np.ones(40_000, dtype=dtype)
        tokens[index:] = bad
        with pytest.raises(ValueError, match=rf"index {index} "):
            _native.chunk_keys(tokens, chunk_tokens, SEED)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.float32, np.float64, np.bool_, ">i4", ">i8", "S4"])
def test_other_item_types_are_refused(dtype: Any) -> None:
    with pytest.raises(TypeError, match="int32"):
        _native.chunk_keys(np.zeros(8, dtype=dtype), 4, SEED)


def test_other_bad_arguments_are_refused() -> None:
    tokens = np.zeros(8, np.int32)
    for chunk_tokens in (0, -1):
        with pytest.raises(ValueError, match="chunk_tokens"):
            _native.chunk_keys(tokens, chunk_tokens, SEED)
    for seed in (b"", bytes(15), bytes(17)):
        with pytest.raises(ValueError, match="seed"):
            _native.chunk_keys(tokens, 4, seed)
    with pytest.raises(ValueError, match="2 dimensions"):
        _native.chunk_keys(tokens.reshape(2, 4), 4, SEED)
    with pytest.raises((ValueError, BufferError)):
        _native.chunk_keys(tokens[::2], 4, SEED)
    with pytest.raises(TypeError):
        _native.chunk_keys([1, 2, 3, 4], 4, SEED)


@pytest.mark.parametrize("typecode", ["i", "I", "q", "Q", "l", "L"])
def test_arrays_of_the_standard_library_are_tokens_too(typecode: str) -> None:
    tokens = array.array(typecode, range(64))
    assert _native.chunk_keys(tokens, 16, SEED) == reference_keys(tokens, 16, SEED)


@given(key=st.binary(min_size=32, max_size=32), data=st.binary(max_size=64), size=st.integers(0, 100))
def test_a_keyed_hash_is_that_of_the_specification(key: bytes, data: bytes, size: int) -> None:
    assert _native.blake3_keyed(key, data, size) == blake3_reference.blake3(data, key=key).digest(size)


@pytest.mark.parametrize(("key", "data", "size"), [(31, 16, 32), (33, 16, 32), (32, 65, 32), (32, 16, -1)])
def test_a_keyed_hash_of_other_sizes_is_refused(key: int, data: int, size: int) -> None:
    with pytest.raises(ValueError, match=r"32 bytes|64 bytes|negative"):
        _native.blake3_keyed(bytes(key), bytes(data), size)
