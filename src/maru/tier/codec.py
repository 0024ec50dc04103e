"""Making a chunk smaller on its way down, and whole again on its way up: one frame at a time.

Holds:      what a codec does, the lossless ones, and finding a codec by what a URL says or an object's header holds.
Promises:   a frame decodes to exactly the bytes it was made of (a lossy codec: to the same bytes each time and
            everywhere), or is TornObject; memory and what is written are bounded by the size that the reader names.
            A codec can be used by several threads at once.
Leaves:     whether what was decoded is what was stored to `envelope`, which keeps a hash; losing precision to `lossy`.

    none                                     number 0
    zstd[:LEVEL]                             number 1   any bytes: for text, sparse or already quantised chunks
    blosc2[:CODEC[:LEVEL][:FILTER]]          number 2   sorts the bytes of the items first: for bf16 and fp16
    int8[:bf16|fp16]:channels=N[:rows=N]     number 3   lossy
    fp8[:bf16|fp16]:channels=N[:rows=N]      number 4   lossy

Once the bytes of floating-point items are sorted, their exponents lie together and repeat, and their mantissas do not.
blosc2's default, zstd's first level over shuffled bytes, made a small model's bf16 and fp16 chunks smallest of all that
packs at half a gigabyte a second and core. LZ4 over shuffled bits unpacks faster, and gains little more than half.
"""

from __future__ import annotations

import importlib
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from maru.errors import BadUrl, MissingPackage, TornObject

if TYPE_CHECKING:
    from typing_extensions import Buffer

PARAMETER_BYTES = 16
ITEM_SIZES = (1, 2, 4, 8)
FORMS = (
    "none",
    "zstd[:LEVEL]",
    "blosc2[:lz4|lz4hc|zstd|zlib|blosclz[:LEVEL][:shuffle|bitshuffle]]",
    "int8[:bf16|fp16]:channels=N[:rows=N]",
    "fp8[:bf16|fp16]:channels=N[:rows=N]",
)
ZSTD_LEVEL = 1
ZSTD_LEVELS = range(-7, 20)
"""Those above want much memory and time, for nothing that a frame of a megabyte could gain."""
BLOSC2_LEVEL = 1
BLOSC2_LEVELS = range(1, 10)
BLOSC2_CODECS = {"blosclz": "BLOSCLZ", "lz4": "LZ4", "lz4hc": "LZ4HC", "zlib": "ZLIB", "zstd": "ZSTD"}
BLOSC2_FILTERS = {"shuffle": "SHUFFLE", "bitshuffle": "BITSHUFFLE"}


class Codec(ABC):
    """One way of writing a frame."""

    name: ClassVar[str]
    number: ClassVar[int]
    """The byte in an object's header."""
    is_lossy: ClassVar[bool] = False
    item_bytes: int = 1
    """Bytes of one item of the chunk, as far as the codec knows items."""
    unit_bytes: int = 1
    """Frames are whole multiples of this, but for the last one."""
    parameters: bytes = bytes(PARAMETER_BYTES)
    """What decoding needs to know beside the size of an item; travels in the header."""

    @abstractmethod
    def encode(self, data: memoryview) -> Buffer:
        """The frame of `data` (bytes, contiguous): a copy, or `data` itself if it cannot be made smaller."""

    @abstractmethod
    def decode_into(self, frame: memoryview, out: memoryview) -> None:
        """Fill `out` from a frame. Raises TornObject if the frame is not one of exactly len(out) bytes.

        After TornObject anything may stand in `out`, and nothing was written beside it.
        """


class PlainCodec(Codec):
    """Bytes as they are."""

    name = "none"
    number = 0

    def encode(self, data: memoryview) -> Buffer:
        return data

    def decode_into(self, frame: memoryview, out: memoryview) -> None:
        if len(frame) != len(out):
            raise TornObject(f"a frame holds {len(frame)} bytes in place of {len(out)}")
        out[:] = frame


class ZstdCodec(Codec):
    """Zstandard, one frame of its own format for each of ours."""

    name = "zstd"
    number = 1

    def __init__(self, level: int = ZSTD_LEVEL) -> None:
        """Raises MissingPackage."""
        self._zstd = needed("zstandard", "the codec zstd")
        self._level = level
        self._of_thread = threading.local()  # The package's objects serve one thread at a time.

    def encode(self, data: memoryview) -> Buffer:
        if not hasattr(self._of_thread, "compressor"):
            self._of_thread.compressor = self._zstd.ZstdCompressor(level=self._level)
        frame: bytes = self._of_thread.compressor.compress(data)
        return frame

    def decode_into(self, frame: memoryview, out: memoryview) -> None:
        if not hasattr(self._of_thread, "decompressor"):
            self._of_thread.decompressor = self._zstd.ZstdDecompressor()
        try:
            # The package allocates what a frame declares before it looks any further.
            declared_bytes = self._zstd.get_frame_parameters(frame).content_size
            if declared_bytes != len(out):
                raise TornObject(f"a zstd frame says that it holds {declared_bytes} bytes in place of {len(out)}")
            data = self._of_thread.decompressor.decompress(frame, allow_extra_data=False)
        except self._zstd.ZstdError as error:
            raise TornObject(f"a zstd frame cannot be read: {error}") from None
        if len(data) != len(out):
            raise TornObject(f"a zstd frame holds {len(data)} bytes in place of {len(out)}")
        out[:] = data


class Blosc2Codec(Codec):
    """Blosc2: first bytes of equal rank beside each other, then a compressor."""

    name = "blosc2"
    number = 2

    def __init__(self, item_bytes: int, codec: str = "zstd", level: int = BLOSC2_LEVEL, sort: str = "shuffle") -> None:
        """Raises MissingPackage."""
        self._blosc2 = needed("blosc2", "the codec blosc2")
        # For the whole process, as the package has it: else a thread that packs would stop all others meanwhile.
        self._blosc2.set_releasegil(True)
        self.item_bytes = item_bytes
        self._how = {
            "codec": self._blosc2.Codec[BLOSC2_CODECS[codec]],
            "clevel": level,
            "filters": [self._blosc2.Filter[BLOSC2_FILTERS[sort]]],
            "filters_meta": [0],
            "typesize": item_bytes,
            "nthreads": 1,  # Whoever calls has threads of its own; blosc2's would be beyond every bound of theirs.
        }

    def encode(self, data: memoryview) -> Buffer:
        frame: bytes = self._blosc2.compress2(data, **self._how)
        return frame

    def decode_into(self, frame: memoryview, out: memoryview) -> None:
        _refuse_unless_ours(frame, len(out))
        try:
            self._blosc2.decompress2(frame, dst=out, nthreads=1)
        except (RuntimeError, ValueError) as error:
            raise TornObject(f"a blosc2 frame cannot be read: {error}") from None


def _refuse_unless_ours(frame: memoryview, size_bytes: int) -> None:
    """Check the 32 bytes that blosc2 believes before it checks anything.

    It writes as many bytes as a frame declares, whatever room there is; and a frame may ask it to read a file, or to
    start a program that finds a plug-in.
    """
    if len(frame) <= 32:
        raise TornObject(f"a blosc2 frame has {len(frame)} bytes")
    declared_bytes = int.from_bytes(frame[4:8], "little")
    if declared_bytes != size_bytes:
        raise TornObject(f"a blosc2 frame says that it holds {declared_bytes} bytes in place of {size_bytes}")
    if int.from_bytes(frame[12:16], "little") != len(frame):
        raise TornObject(f"a blosc2 frame has {len(frame)} bytes, and not as many as it says")
    is_extended = frame[0] == 5 and frame[2] & 5 == 5
    has_known_filters = all(number <= 2 for number in frame[16:22]) and not any(frame[24:31])
    is_kept_elsewhere = frame[31] & 0x8F  # A dictionary, a file, or an instrument.
    if not is_extended or not has_known_filters or frame[22] > 5 or frame[2] >> 5 > 4 or is_kept_elsewhere:
        raise TornObject("a blosc2 frame asks for what this version does not write")


def open_codec(spec: str, item_bytes: int = 2) -> Codec:
    """The codec that a URL's `codec=` means, for items of `item_bytes` bytes.

    Raises BadUrl, which lists what there is, and MissingPackage.
    """
    if item_bytes not in ITEM_SIZES:
        raise BadUrl(f"items of {item_bytes} bytes: there are {', '.join(map(str, ITEM_SIZES))}", hint=_hint())
    name, *words = spec.split(":")
    if name == "none" and not words:
        return PlainCodec()
    if name == "zstd" and len(words) <= 1:
        return ZstdCodec(_level(spec, words, ZSTD_LEVELS, ZSTD_LEVEL))
    if name == "blosc2":
        return _open_blosc2(spec, words, item_bytes)
    if name in ("int8", "fp8"):
        from maru.tier import lossy

        return lossy.open_lossy(spec, item_bytes)
    raise unreadable(spec)


def codec_of(number: int, item_bytes: int, parameters: bytes) -> Codec:
    """The codec that reads what a header describes.

    Raises TornObject for a number or parameters that this version does not know, MissingPackage.
    """
    if item_bytes not in ITEM_SIZES:
        raise TornObject(f"the object says that its items have {item_bytes} bytes")
    if number in (3, 4):
        from maru.tier import lossy

        return lossy.lossy_of(number, item_bytes, parameters)
    if parameters != bytes(PARAMETER_BYTES):
        raise TornObject(f"the object has parameters for codec {number} that this version does not know")
    if number == PlainCodec.number:
        return PlainCodec()
    if number == ZstdCodec.number:
        return ZstdCodec()
    if number == Blosc2Codec.number:
        return Blosc2Codec(item_bytes)
    raise TornObject(f"the object was written with codec {number}; this version knows 0 to 4")


def needed(module: str, what: str) -> Any:
    """The module, imported now. Raises MissingPackage."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError:
        raise MissingPackage(
            f"{what} needs the package {module!r}: pip install 'maru-kvcache[tiers]'", package=module
        ) from None


def unreadable(spec: str, why: str = "") -> BadUrl:
    """The error for a `codec=` that means nothing, or not on these items."""
    return BadUrl(f"codec={spec} cannot be read{': ' if why else ''}{why}", hint=_hint())


def _hint() -> str:
    return "there are " + ", ".join(FORMS)


def _open_blosc2(spec: str, words: Sequence[str], item_bytes: int) -> Codec:
    rest = list(words)
    codec = rest.pop(0) if rest else "zstd"
    sort = rest.pop() if rest and rest[-1] in BLOSC2_FILTERS else "shuffle"
    if codec not in BLOSC2_CODECS or len(rest) > 1:
        raise unreadable(spec)
    return Blosc2Codec(item_bytes, codec, _level(spec, rest, BLOSC2_LEVELS, BLOSC2_LEVEL), sort)


def _level(spec: str, words: Sequence[str], levels: range, otherwise: int) -> int:
    if not words:
        return otherwise
    level = int(words[0]) if words[0].removeprefix("-").isdecimal() and words[0].isascii() else None
    if level not in levels or level is None:
        raise unreadable(spec, f"levels are {levels.start} to {levels.stop - 1}")
    return level
