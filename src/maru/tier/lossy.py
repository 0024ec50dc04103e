"""Codecs that give up precision for room: half the bytes of a bf16 or fp16 chunk, and KV values near what they were.

Holds:      int8 (255 even steps) and fp8 (e4m3: steps that grow with the value), both scaled per channel; measuring
            what is lost.
Promises:   decoding gives the same bytes on every machine: it is one look-up, one float32 multiplication and one
            rounding to nearest even, all of which IEEE 754 defines. So a hash of the decoded bytes can be kept.
Leaves:     whether a model stands it to whoever opts in. Nothing here is ever chosen by default.

A chunk is rows of `channels` items, its last dimension. Each group of `rows` rows has one scale per channel, because a
few channels of the keys are many times larger than all others. Choose `rows` so that it divides the tokens of a chunk:
then keys and values, and layers, never share a scale.

A frame is, for each of its groups, `channels` float32 scales and then `rows` x `channels` codes of one byte. A frame
with an infinity, a NaN or half a row in it is not encoded, and so stays exact.
"""

from __future__ import annotations

import struct
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from maru.errors import BadUrl, TornObject
from maru.tier.codec import PARAMETER_BYTES, Codec, needed, unreadable

if TYPE_CHECKING:
    from typing_extensions import Buffer

ITEM_BYTES = 2
ROWS = 128
UNIT_BYTES_MAX = 1 << 20
"""The largest group: it must fit a frame."""
FORMATS = ("bf16", "fp16")
_PARAMETERS = struct.Struct("<IIB7x")
_SCALE_BYTES = 4


@dataclass(frozen=True)
class Loss:
    """What a codec takes from data, relative to the root mean square of the data."""

    error_max: float
    error_rms: float


class ScaledCodec(Codec):
    """One byte for an item, and a scale for a channel's items in a group of rows."""

    is_lossy = True

    def __init__(self, item_format: str, channels: int, rows: int = ROWS) -> None:
        """`item_format`: one of FORMATS. Raises BadUrl, MissingPackage."""
        if item_format not in FORMATS or channels < 1 or rows < 1:
            raise BadUrl(f"{self.name} has no items of {item_format}, {channels} channels and {rows} rows")
        if channels * rows * ITEM_BYTES > UNIT_BYTES_MAX:
            raise BadUrl(
                f"{rows} rows of {channels} channels are more than {UNIT_BYTES_MAX} bytes, which one scale may serve",
                hint="give fewer rows with :rows=N",
            )
        self._np = needed("numpy", f"the codec {self.name}")
        self._is_bf16 = item_format == "bf16"
        self._channels, self._rows = channels, rows
        self.item_bytes = ITEM_BYTES
        self.unit_bytes = channels * rows * ITEM_BYTES
        self.parameters = _PARAMETERS.pack(channels, rows, FORMATS.index(item_format))
        self._value_of_code = self._values()

    def encode(self, data: memoryview) -> Buffer:
        np = self._np
        row_bytes = self._channels * ITEM_BYTES
        if len(data) % row_bytes:
            return data
        table = self._widened(data).reshape(-1, self._channels)
        if not np.isfinite(table).all():
            return data
        frame = bytearray(self._frame_bytes(len(data)))
        start = 0
        for first in range(0, len(table), self._rows):
            group = table[first : first + self._rows]
            scales = np.abs(group).max(axis=0) / np.float32(self._code_max)
            # A channel of nothing but zeros needs a scale all the same, and float32 divides badly by smaller ones. What
            # is too small for this one becomes zero.
            scales = np.maximum(scales, np.float32(2.0**-120))
            codes_start = start + scales.size * _SCALE_BYTES
            np.frombuffer(frame, "<f4", scales.size, start)[:] = scales
            np.frombuffer(frame, np.uint8, group.size, codes_start)[:] = self._codes(group / scales).reshape(-1)
            start = codes_start + group.size
        return frame

    def decode_into(self, frame: memoryview, out: memoryview) -> None:
        np = self._np
        if len(out) % (self._channels * ITEM_BYTES) or len(frame) != self._frame_bytes(len(out)):
            raise TornObject(f"a frame of {self.name} has {len(frame)} bytes, which are not {len(out)} bytes decoded")
        items = np.frombuffer(out, "<u2").reshape(-1, self._channels)
        start = 0
        for first in range(0, len(items), self._rows):
            group = items[first : first + self._rows]
            scales = np.frombuffer(frame, "<f4", self._channels, start)
            if not np.isfinite(scales).all():
                raise TornObject(f"a frame of {self.name} has a scale that is no number")
            codes_start = start + scales.size * _SCALE_BYTES
            codes = np.frombuffer(frame, np.uint8, group.size, codes_start).reshape(group.shape)
            with np.errstate(over="ignore", invalid="ignore"):  # Damaged scales may overflow; the hash will tell.
                group[:] = self._narrowed(self._value_of_code[codes] * scales)
            start = codes_start + group.size

    def values_of(self, data: memoryview) -> Any:
        """The items as float64."""
        return self._widened(data).astype(self._np.float64)

    def _frame_bytes(self, data_bytes: int) -> int:
        row_count = data_bytes // (self._channels * ITEM_BYTES)
        group_count = -(-row_count // self._rows)
        return self._channels * (group_count * _SCALE_BYTES + row_count)

    def _widened(self, data: memoryview) -> Any:
        np = self._np
        if self._is_bf16:
            return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
        return np.frombuffer(data, "<f2").astype(np.float32)

    def _narrowed(self, values: Any) -> Any:
        np = self._np
        if not self._is_bf16:
            return np.clip(values, -65504, 65504).astype("<f2").view("<u2")
        bits = values.view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2")

    _code_max: float
    """The largest value that a code stands for."""

    @abstractmethod
    def _codes(self, values: Any) -> Any:
        """The codes (uint8) of values within +-_code_max."""

    @abstractmethod
    def _values(self) -> Any:
        """What the 256 codes stand for (float32)."""


class Int8Codec(ScaledCodec):
    """-127 to 127 in even steps: the smaller error on average."""

    name = "int8"
    number = 3
    _code_max = 127.0

    def _codes(self, values: Any) -> Any:
        return self._np.rint(values).astype(self._np.int8).view(self._np.uint8)

    def _values(self) -> Any:
        return self._np.arange(256, dtype=self._np.uint8).view(self._np.int8).astype(self._np.float32)


class Fp8Codec(ScaledCodec):
    """e4m3, the range of fp8 as GPUs have it: the smaller error for small values beside a large one.

    Divided by 2**8, a value within e4m3's range is a half-precision number with the same four bits of exponent, also
    where both are subnormal; so rounding off seven bits of a half gives the code.
    """

    name = "fp8"
    number = 4
    _code_max = 448.0

    def _codes(self, values: Any) -> Any:
        np = self._np
        bits = (values * np.float32(2.0**-8)).astype(np.float16).view(np.uint16)
        magnitude = bits & np.uint16(0x7FFF)
        rounded = (magnitude + np.uint16(0x3F) + ((magnitude >> np.uint16(7)) & np.uint16(1))) >> np.uint16(7)
        return (rounded | ((bits >> np.uint16(8)) & np.uint16(0x80))).astype(np.uint8)

    def _values(self) -> Any:
        np = self._np
        codes = np.arange(256, dtype=np.uint16)
        halves = ((codes & np.uint16(0x7F)) << np.uint16(7)) | ((codes & np.uint16(0x80)) << np.uint16(8))
        return halves.view(np.float16).astype(np.float32) * np.float32(2.0**8)


_KINDS: tuple[type[ScaledCodec], ...] = (Int8Codec, Fp8Codec)


def open_lossy(spec: str, item_bytes: int) -> ScaledCodec:
    """The codec of `int8:bf16:channels=192:rows=128`. Raises BadUrl, MissingPackage."""
    name, *words = spec.split(":")
    kind = next(kind for kind in _KINDS if kind.name == name)
    if item_bytes != ITEM_BYTES:
        raise unreadable(spec, f"it takes items of {ITEM_BYTES} bytes, not {item_bytes}")
    item_format = words.pop(0) if words and words[0] in FORMATS else "bf16"
    numbers = {"rows": ROWS}
    for word in words:
        key, _, text = word.partition("=")
        is_new = key == "rows" or (key == "channels" and key not in numbers)
        if not is_new or not text.isascii() or not text.isdecimal() or len(text) > 7 or int(text) < 1:
            raise unreadable(spec, f"{word!r} is neither channels=N nor rows=N")
        numbers[key] = int(text)
    if "channels" not in numbers:
        raise unreadable(spec, "channels=N is missing: how many items the last dimension of the chunk has")
    return kind(item_format, numbers["channels"], numbers["rows"])


def lossy_of(number: int, item_bytes: int, parameters: bytes) -> ScaledCodec:
    """The codec that reads what a header describes. Raises TornObject, MissingPackage."""
    kind = next(kind for kind in _KINDS if kind.number == number)
    try:
        if len(parameters) != PARAMETER_BYTES or item_bytes != ITEM_BYTES:
            raise ValueError("sizes")
        channels, rows, item_format = _PARAMETERS.unpack(parameters)
        codec = kind(FORMATS[item_format], channels, rows)
        if codec.parameters != parameters:
            raise ValueError("padding")
    except (ValueError, IndexError):  # BadUrl is a ValueError.
        raise TornObject(f"the object has parameters for {kind.name} that this version does not know") from None
    return codec


def measure_error(data: Buffer, codec: ScaledCodec) -> Loss:
    """What is lost when `data`, finite items of the codec's own format, goes through it.

    Raises BadUrl for bytes that are no whole items.
    """
    whole = memoryview(data).cast("B")
    if not len(whole) or len(whole) % ITEM_BYTES:
        raise BadUrl(f"{len(whole)} bytes are not whole items of {ITEM_BYTES}", hint="give what a chunk holds")
    squares = error_squares = error_max = 0.0
    frame_bytes = UNIT_BYTES_MAX // codec.unit_bytes * codec.unit_bytes
    for start in range(0, len(whole), frame_bytes):
        frame = whole[start : start + frame_bytes]
        encoded = memoryview(codec.encode(frame))
        decoded = memoryview(bytearray(frame))
        if len(encoded) < len(frame):  # Else it is kept as it is.
            codec.decode_into(encoded, decoded)
        before = codec.values_of(frame)
        errors = abs(codec.values_of(decoded) - before)
        squares += float((before * before).sum())
        error_squares += float((errors * errors).sum())
        error_max = max(error_max, float(errors.max()))
    item_count = len(whole) / ITEM_BYTES
    rms = (squares / item_count) ** 0.5 or 1.0
    return Loss(error_max=error_max / rms, error_rms=(error_squares / item_count) ** 0.5 / rms)
