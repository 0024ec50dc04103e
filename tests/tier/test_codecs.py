"""Codecs: what goes in comes out, a hostile frame is refused before it costs anything, and losses are what they are."""

from __future__ import annotations

import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard

from maru.errors import BadUrl, MissingPackage, TornObject
from maru.tier import codec as codecs
from maru.tier.codec import Codec, codec_of, open_codec
from maru.tier.lossy import FORMATS, ScaledCodec, measure_error

LOSSLESS = ("none", "zstd", "zstd:-3", "zstd:5", "blosc2", "blosc2:lz4:5:bitshuffle", "blosc2:zlib", "blosc2:lz4hc:3")
LOSSY = ("int8:bf16:channels=192", "int8:fp16:channels=64:rows=32", "fp8:bf16:channels=192", "fp8:fp16:channels=64")
FRAME_BYTES = 192 * 1024


def kv_like(item_format: str = "bf16", channels: int = 192, rows: int = 512, seed: int = 7) -> bytes:
    """Items with what makes KV hard: channels of very unlike sizes, and neighbours in a channel that are alike."""
    random = np.random.default_rng(seed)
    sizes = np.exp(random.normal(0, 0.6, channels))
    sizes[:3] *= 12
    values = random.normal(0, 0.4, (rows, channels)) * sizes + random.normal(0, 1, channels) * sizes
    if item_format == "fp16":
        return values.astype("<f2").tobytes()
    return (values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes()


def decoded(codec: Codec, data: bytes) -> bytes:
    out = memoryview(bytearray(len(data)))
    codec.decode_into(memoryview(codec.encode(memoryview(data))).cast("B"), out)
    return bytes(out)


@pytest.mark.parametrize("spec", LOSSLESS)
@pytest.mark.parametrize("size", [1, 2, 3, 31, 33, 4097, FRAME_BYTES])
def test_a_lossless_codec_gives_back_what_it_was_given(spec: str, size: int) -> None:
    codec = open_codec(spec)
    data = kv_like()[:size]
    assert decoded(codec, data) == data
    reader = codec_of(codec.number, codec.item_bytes, codec.parameters)
    out = memoryview(bytearray(size))
    reader.decode_into(memoryview(codec.encode(memoryview(data))), out)
    assert out == data


def test_the_default_of_blosc2_makes_kv_clearly_smaller_where_plain_zstd_makes_less_of_it() -> None:
    data = memoryview(kv_like())
    sizes = {spec: len(memoryview(open_codec(spec).encode(data))) for spec in ("zstd", "blosc2", "blosc2:lz4")}
    assert sizes["blosc2"] < 0.8 * len(data)
    assert sizes["blosc2"] == min(sizes.values())


@pytest.mark.parametrize(
    "spec",
    ["", "gzip", "none:1", "zstd:20", "zstd:x", "zstd:1:2", "blosc2:snappy", "blosc2:lz4:0", "blosc2:lz4:1:sort",
     "int8", "int8:channels=0", "int8:channels=x", "int8:channels=8:channels=9", "fp8:fp32:channels=8",
     "fp8:channels=99999999", "int8:channels=4096:rows=4096"],
)  # fmt: skip
def test_a_codec_that_cannot_be_read_is_a_bad_url(spec: str) -> None:
    with pytest.raises(BadUrl):
        open_codec(spec)


def test_the_error_lists_what_there_is() -> None:
    with pytest.raises(BadUrl, match=r"gzip.*none, zstd.*blosc2.*int8.*fp8"):
        open_codec("gzip")
    with pytest.raises(BadUrl, match="not 4"):
        open_codec("int8:channels=8", item_bytes=4)
    with pytest.raises(BadUrl, match="items of 3 bytes"):
        open_codec("none", item_bytes=3)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(MissingPackage, match=r"zstandard.*maru-kvcache\[tiers\]"):
        open_codec("zstd")


def test_a_codec_of_the_future_is_named() -> None:
    with pytest.raises(TornObject, match="codec 77"):
        codec_of(77, 2, bytes(16))
    with pytest.raises(TornObject, match="parameters"):
        codec_of(1, 2, b"\1" * 16)


@pytest.mark.parametrize("parameters", [bytes(16), b"\xff" * 16, b"\1" * 16, b"", b"\1\0\0\0\1\0\0\0\2" + bytes(7)])
@pytest.mark.parametrize("number", [3, 4])
def test_lossy_parameters_that_cannot_be_are_torn(number: int, parameters: bytes) -> None:
    with pytest.raises(TornObject, match="parameters"):
        codec_of(number, 2, parameters)


def bomb_of_zstd() -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(64 << 20))


def bomb_without_a_size() -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(bytes(64 << 20))


def two_frames_of_zstd() -> bytes:
    return zstandard.ZstdCompressor().compress(bytes(4096)) * 2


@pytest.mark.parametrize("bomb", [bomb_of_zstd, bomb_without_a_size, two_frames_of_zstd])
def test_a_zstd_frame_of_another_size_is_refused_with_what_surrounds_it_untouched(bomb: Callable[[], bytes]) -> None:
    room = bytearray(b"\xab" * 12288)
    codec, frame = open_codec("zstd"), memoryview(bomb())
    tracemalloc.start()
    try:
        with pytest.raises(TornObject):
            codec.decode_into(frame, memoryview(room)[4096:8192])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    assert room[:4096] == room[8192:] == b"\xab" * 4096


def blosc2_frame() -> bytearray:
    return bytearray(open_codec("blosc2").encode(memoryview(kv_like()[:65536])))


@pytest.mark.parametrize("size", [65535, 65537, 1, 1 << 20])
def test_a_blosc2_frame_of_another_size_is_refused_before_blosc2_sees_it(size: int) -> None:
    with pytest.raises(TornObject, match="in place of"):
        open_codec("blosc2").decode_into(memoryview(blosc2_frame()), memoryview(bytearray(size)))


@pytest.mark.parametrize(
    ("place", "value"), [(0, 9), (2, 0), (12, 0), (16, 160), (21, 35), (22, 36), (24, 1), (30, 1), (31, 8), (31, 0x80)]
)
def test_a_blosc2_frame_that_asks_for_plug_ins_or_files_is_refused(place: int, value: int) -> None:
    frame = blosc2_frame()
    frame[place] = value
    with pytest.raises(TornObject):
        open_codec("blosc2").decode_into(memoryview(frame), memoryview(bytearray(65536)))


@pytest.mark.parametrize("spec", [*LOSSLESS, *LOSSY])
def test_a_cut_frame_is_torn(spec: str) -> None:
    codec = open_codec(spec)
    data = memoryview(kv_like()[:FRAME_BYTES])
    frame = memoryview(codec.encode(data)).cast("B")
    for kept in (0, 1, 20, 40, len(frame) // 2, len(frame) - 1):
        with pytest.raises(TornObject):
            codec.decode_into(frame[:kept], memoryview(bytearray(FRAME_BYTES)))


@pytest.mark.parametrize("spec", [*LOSSLESS, *LOSSY])
def test_threads_share_a_codec(spec: str) -> None:
    codec = open_codec(spec)
    parts = [kv_like(seed=seed)[:FRAME_BYTES] for seed in range(4)]
    expected = [decoded(codec, part) for part in parts]
    found: list[bool] = []

    def work(number: int) -> None:
        found.extend(decoded(codec, parts[number]) == expected[number] for _ in range(5))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 20


@pytest.mark.parametrize("item_format", FORMATS)
@pytest.mark.parametrize(("name", "rms_max"), [("int8", 0.01), ("fp8", 0.03)])
def test_a_lossy_codec_nearly_halves_a_chunk_and_loses_little(name: str, item_format: str, rms_max: float) -> None:
    codec = open_codec(f"{name}:{item_format}:channels=192")
    assert isinstance(codec, ScaledCodec)
    data = kv_like(item_format)
    assert len(memoryview(codec.encode(memoryview(data)))) < 0.52 * len(data)
    loss = measure_error(data, codec)
    assert 0 < loss.error_rms < rms_max
    assert loss.error_rms < loss.error_max < 2


def test_fp8_keeps_what_fp8_can_say_and_rounds_the_rest_to_nearest() -> None:
    codec = open_codec("fp8:fp16:channels=1:rows=512")
    exact = [448.0, -448.0, 0.0, 1.0, 1.125, 2.0**-6, 2.0**-9, -7 * 2.0**-9, 240.0]
    rounded = {1.05: 1.0, 1.07: 1.125, 17.0: 16.0, 19.0: 20.0, 2.0**-11: 0.0}
    values = np.array([*exact, *rounded] * 8, "<f2")
    assert np.frombuffer(decoded(codec, values.tobytes()), "<f2").tolist() == [*exact, *rounded.values()] * 8


def test_decoding_twice_changes_nothing_more() -> None:
    codec = open_codec("int8:bf16:channels=192")
    once = decoded(codec, kv_like())
    assert decoded(codec, kv_like()) == once != kv_like()


@pytest.mark.parametrize("strange", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["int8", "fp8"])
def test_what_is_not_finite_is_not_encoded(name: str, strange: float) -> None:
    values = np.ones((256, 64), "<f2")
    values[17, 3] = strange
    data = memoryview(values.tobytes())
    assert open_codec(f"{name}:fp16:channels=64").encode(data) is data


@pytest.mark.parametrize("item", [0x0000, 0x0880, 0x3F80, 0x7F7F, 0xFF7F])
def test_zeros_and_very_small_and_the_largest_items_survive_scaling(item: int) -> None:
    data = np.full(64 * 256, item, "<u2").tobytes()
    back = np.frombuffer(decoded(open_codec("int8:bf16:channels=64"), data), "<u2")
    assert abs(int(back[0]) - item) <= 1


def test_opening_tiers_loads_no_codec_before_one_is_asked_for() -> None:
    program = (
        "import sys, maru.tier.envelope, maru.tier.cipher; from maru.tier.codec import open_codec; open_codec('none');"
        "print([name for name in ('numpy', 'blosc2', 'zstandard', 'cryptography') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_list_of_forms_names_every_codec() -> None:
    named = " ".join(codecs.FORMS)
    assert all(spec.partition(":")[0] in named for spec in (*LOSSLESS, *LOSSY))
