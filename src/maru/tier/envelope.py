"""One chunk as an object that says itself what it is: a header, then frames.

Holds:      the format, writing it, and reading it from pieces as they arrive.
Promises:   what finish() returned for is byte for byte what was wrapped (with a lossy codec: what wrapping decoded it
            to), under the key and namespace that were asked for; everything else is TornObject. Reading keeps one
            encoded frame and what came in the same piece as the header, whatever an object claims.
Leaves:     how a frame is made smaller to `codec`, and unreadable to `cipher`; whether an object is too old to be used
            to the caller, who is told until when it is good.

Version 1, little-endian, 172 bytes of header:

      0  magic            8 bytes   "MaruTier"
      8  version          u16       1
     10  header size      u16       172: where the frames begin
     12  codec            u8        0 none, 1 zstd, 2 blosc2, 3 int8, 4 fp8
     13  cipher           u8        0 none, 1 AES-256-GCM
     14  item size        u8        bytes of one item of the chunk: 1, 2, 4 or 8
     15  flags            u8        bit 0: it has a parent
     16  frame size       u32       bytes of the chunk in each frame, but for the last one, which has the rest
     20  chunk size       u64       bytes, at least 1
     28  expires at       u64       nanoseconds since 1970; 0: never
     36  chunk hash       u64       XXH3-64 of all frames' XXH3-64 (u64 each, in order): each over the frame's part of
                                    the chunk as decoding gives it, and, if it is encoded, then over its encoded bytes;
                                    with a cipher, masked by 8 bytes of the object's key
     44  namespace       16 bytes   the digest of what must match for bytes to be reusable
     60  key             16 bytes   of the chunk
     76  parent          16 bytes   the key of the chunk before it; zeros without one
     92  parameters      16 bytes   of the codec
    108  key id          16 bytes   of the cipher's master key, ASCII, filled up with zeros; zeros without a cipher
    124  salt            32 bytes   of the object's key; zeros without a cipher
    156  reserved         8 bytes   zeros
    164  header hash      u64       XXH3-64 of the 164 bytes before it

A frame is a word and its bytes. The word's bit 31 says that they are the chunk's own, because the codec did not make
them fewer (below the cipher, if there is one); the other bits count them, with the cipher's tag.

The hash goes frame by frame, while a frame is in the processor's cache, so no byte of a chunk is fetched twice. It
takes in the encoded bytes too because some damage decodes to the right bytes: bits that a format does not look at. Who
lets that pass cannot say that what lies there is what was stored, and would not hear of a disk that begins to fail.
"""

from __future__ import annotations

import struct
import weakref
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maru.errors import BadSize, TornObject
from maru.native import core
from maru.tier.cipher import CIPHER_AES_256_GCM, CIPHER_NONE, SALT_BYTES, TAG_BYTES, ObjectKey, TenantCipher
from maru.tier.codec import Codec, codec_of

if TYPE_CHECKING:
    from typing_extensions import Buffer

VERSION = 1
MAGIC = b"MaruTier"
FRAME_RAW_BYTES = 1 << 20
"""Large enough for codecs to learn from, small enough for a core's cache."""
FRAME_RAW_BYTES_MIN = 1 << 12
"""Below this, what is kept for each frame would be more than a bounded part of it."""
FRAME_RAW_BYTES_MAX = 1 << 24
DIGEST_BYTES = 16
_PREFIX = struct.Struct("<8sHH")
_FIELDS = struct.Struct("<8sHHBBBBIQQQ16s16s16s16s16s32s8x")
_HASH = struct.Struct("<Q")
_WORD = struct.Struct("<I")
HEADER_BYTES = _FIELDS.size + _HASH.size
_HAS_PARENT = 1
_IS_PLAIN = 1 << 31


@dataclass(frozen=True)
class ChunkFacts:
    """What an object says of its chunk."""

    key: bytes
    namespace_digest: bytes
    size_bytes: int
    parent: bytes | None = None
    expires_at_ns: int = 0
    """Nanoseconds since 1970; 0 is never."""


@dataclass(frozen=True)
class _Header:
    facts: ChunkFacts
    codec_number: int
    cipher_number: int
    item_bytes: int
    frame_raw_bytes: int
    content_hash: int
    parameters: bytes
    key_id: bytes = b""
    salt: bytes = bytes(SALT_BYTES)

    def packed(self) -> bytes:
        facts = self.facts
        fields = _FIELDS.pack(
            MAGIC, VERSION, HEADER_BYTES,
            self.codec_number, self.cipher_number, self.item_bytes, _HAS_PARENT if facts.parent is not None else 0,
            self.frame_raw_bytes, facts.size_bytes, facts.expires_at_ns, self.content_hash,
            facts.namespace_digest, facts.key, facts.parent or b"", self.parameters, self.key_id, self.salt,
        )  # fmt: skip
        return fields + _HASH.pack(core.xxh3_64(fields))


def wrap(
    facts: ChunkFacts,
    data: Buffer,
    codec: Codec,
    cipher: TenantCipher | None = None,
    *,
    frame_raw_bytes: int = FRAME_RAW_BYTES,
) -> list[Buffer]:
    """The object of a chunk, in parts that belong one after the other: for Tier.store().

    Parts may be views of `data`, which must therefore stay as it is until they are stored. Beside `data` this needs
    what is encoded and one frame. Any number of threads may do it.
    Raises BadSize when `data` has not facts.size_bytes bytes, or none.
    """
    whole = memoryview(data).cast("B")
    if not len(whole) or len(whole) != facts.size_bytes:
        raise BadSize(f"a chunk of {facts.size_bytes} bytes cannot be made of {len(whole)}", wanted_bytes=len(whole))
    assert len(facts.key) == len(facts.namespace_digest) == DIGEST_BYTES
    assert facts.parent is None or len(facts.parent) == DIGEST_BYTES
    frame_raw_bytes = max(frame_raw_bytes // codec.unit_bytes, 1) * codec.unit_bytes
    assert FRAME_RAW_BYTES_MIN <= frame_raw_bytes <= FRAME_RAW_BYTES_MAX
    encoded: list[Buffer] = []
    words: list[int] = []
    hashes = bytearray()
    scratch = memoryview(bytearray(min(frame_raw_bytes, len(whole)))) if codec.is_lossy else None
    for start in range(0, len(whole), frame_raw_bytes):
        raw = whole[start : start + frame_raw_bytes]
        frame = memoryview(codec.encode(raw)).cast("B")
        is_plain = len(frame) >= len(raw)
        decoded = raw
        if is_plain:
            frame = raw
        elif scratch is not None:
            decoded = scratch[: len(raw)]
            codec.decode_into(frame, decoded)
        hashes += _frame_hash(decoded, None if is_plain else frame)
        words.append(len(frame) + (TAG_BYTES if cipher else 0) | (_IS_PLAIN if is_plain else 0))
        encoded.append(frame)
    header = _Header(
        facts, codec.number, CIPHER_NONE, codec.item_bytes, frame_raw_bytes, core.xxh3_64(hashes), codec.parameters
    )
    return [*_sealed(header, encoded, words, cipher)]


def _sealed(header: _Header, frames: list[Buffer], words: list[int], cipher: TenantCipher | None) -> Iterator[Buffer]:
    """The header, and before each frame its word. Takes the frames out of their list, so as not to keep two of all."""
    object_key = None
    if cipher:
        salt, object_key = cipher.fresh()
        header = _Header(
            header.facts, header.codec_number, cipher.number, header.item_bytes, header.frame_raw_bytes,
            object_key.masked(header.content_hash), header.parameters, cipher.key_id.encode(), salt,
        )  # fmt: skip
    packed = header.packed()
    yield packed
    frames.reverse()
    for number, word in enumerate(words):
        frame = frames.pop()
        yield _WORD.pack(word)
        yield object_key.seal(frame, packed, number, word, not frames) if object_key else frame


class Unwrapping:
    """Reading one object while its bytes arrive. For one thread at a time; after an error, of no more use.

    feed() until `facts` are there; begin() with room for the chunk; feed() the rest; finish().
    """

    def __init__(
        self,
        expected_key: bytes,
        expected_namespace_digest: bytes,
        cipher: TenantCipher | None = None,
        *,
        accept_lossy: bool = False,
    ) -> None:
        """With `cipher`, only what it sealed is accepted: else whoever can write there could plant plain objects.

        `accept_lossy`: whether values near the original ones will do.
        """
        self.facts: ChunkFacts | None = None
        self._expected = (expected_key, expected_namespace_digest)
        self._cipher = cipher
        self._accepts_lossy = accept_lossy
        # Without a circle: `out` is given back when the last one lets go of this, not when garbage is collected.
        self._steps = Unwrapping._read(weakref.proxy(self))
        self._wanted_bytes = next(self._steps)
        self._held = bytearray()
        self._early = b""
        self._out: memoryview | None = None
        self._is_done = False

    def feed(self, piece: Buffer) -> None:
        """Take the object's next bytes, any number of them. Nothing of `piece` is kept but by copy.

        Raises TornObject, MissingPackage. Once `facts` are there, begin() comes before the next feed().
        """
        assert self.facts is None or self._out is not None, "begin() comes before more is fed"
        rest = memoryview(piece).cast("B")
        while len(rest):
            if self._is_done:
                self._is_done = False
                raise TornObject("more bytes follow the end of the object")
            if not self._held and len(rest) >= self._wanted_bytes:
                part, rest = rest[: self._wanted_bytes], rest[self._wanted_bytes :]
            else:
                missing = self._wanted_bytes - len(self._held)
                self._held += rest[:missing]
                rest = rest[missing:]
                if len(self._held) < self._wanted_bytes:
                    return
                part, self._held = memoryview(self._held), bytearray()
            self._step(part)
            if self.facts is not None and self._out is None:
                self._early = bytes(rest)
                return

    def begin(self, out: memoryview) -> None:
        """Decode into `out`, facts.size_bytes writable bytes, from now on; what came with the header at once.

        Until finish() has returned, what is in `out` is nobody's to read. Raises TornObject; BadSize for another size.
        """
        assert self.facts is not None, "begin() comes when the facts are there"
        assert self._out is None, "begin() comes once"
        out = out.cast("B")
        if len(out) != self.facts.size_bytes:
            raise BadSize(f"a chunk of {self.facts.size_bytes} bytes goes into as many", wanted_bytes=len(out))
        self._out = out
        early, self._early = self._early, b""
        self.feed(early)

    def finish(self) -> None:
        """Return if all of the object came and `out` holds its chunk. Raises TornObject."""
        if not self._is_done:
            raise TornObject("the object is cut off")

    def _step(self, part: memoryview) -> None:
        try:
            self._wanted_bytes = self._steps.send(part)
        except StopIteration:
            if not self._is_done:  # It ended by an error before, which somebody passed over.
                raise TornObject("the object was found to be torn before") from None

    def _read(self) -> Generator[int, memoryview, None]:
        """Say how many bytes come next, be sent them, and so on to the end of the object."""
        prefix = bytes((yield _PREFIX.size))
        magic, version, header_bytes = _PREFIX.unpack(prefix)
        if magic != MAGIC:
            raise TornObject("this is no object of a tier: it begins with other bytes")
        if version != VERSION:
            raise TornObject(f"the object has format version {version}; this version of maru reads {VERSION}")
        if header_bytes != HEADER_BYTES:
            raise TornObject(f"the object says that its header has {header_bytes} bytes in place of {HEADER_BYTES}")
        packed = prefix + bytes((yield HEADER_BYTES - len(prefix)))
        header = _read_header(packed)
        object_key = self._object_key(header)
        content_hash = object_key.masked(header.content_hash) if object_key else header.content_hash
        codec = codec_of(header.codec_number, header.item_bytes, header.parameters)
        if codec.is_lossy and not self._accepts_lossy:
            raise TornObject(
                f"the object was stored with {codec.name}, which loses precision, and exact bytes are wanted"
            )
        self.facts = header.facts

        hashes = bytearray()
        size_bytes, frame_raw_bytes = header.facts.size_bytes, header.frame_raw_bytes
        for number, start in enumerate(range(0, size_bytes, frame_raw_bytes)):
            raw_bytes = min(frame_raw_bytes, size_bytes - start)
            (word,) = _WORD.unpack((yield _WORD.size))
            is_plain, frame_bytes = bool(word & _IS_PLAIN), word & ~_IS_PLAIN
            encoded_bytes = frame_bytes - (TAG_BYTES if object_key else 0)
            if encoded_bytes != raw_bytes if is_plain else not 0 < encoded_bytes < raw_bytes:
                raise TornObject(f"frame {number} says that it has {frame_bytes} bytes, for {raw_bytes} of the chunk")
            frame = yield frame_bytes
            assert self._out is not None
            out = self._out[start : start + raw_bytes]
            if object_key:
                is_last = start + raw_bytes == size_bytes
                frame = memoryview(object_key.open(frame, packed, number, word, is_last))
            if is_plain:
                out[:] = frame
            else:
                codec.decode_into(frame, out)
            hashes += _frame_hash(out, None if is_plain else frame)
        if core.xxh3_64(hashes) != content_hash:
            raise TornObject("the chunk that came back is not the one that was stored: its hash is another")
        self._is_done = True

    def _object_key(self, header: _Header) -> ObjectKey | None:
        facts = header.facts
        if (facts.key, facts.namespace_digest) != self._expected:
            raise TornObject("another chunk lies under this name")
        if header.cipher_number == CIPHER_NONE:
            if self._cipher:
                raise TornObject("the object is not encrypted, and only encrypted ones are accepted here")
            return None
        if header.cipher_number != CIPHER_AES_256_GCM:
            raise TornObject(f"the object is sealed with cipher {header.cipher_number}; this version knows 0 and 1")
        try:
            key_id = header.key_id.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError:
            raise TornObject("the object names no key that there could be") from None
        if self._cipher is None:
            raise TornObject(f"the object is sealed with key {key_id!r}, and no keys are given here")
        return self._cipher.object_key(key_id, header.salt)


def _frame_hash(decoded: memoryview, encoded: memoryview | None) -> bytes:
    """What the chunk's hash takes in of one frame."""
    return _HASH.pack(core.xxh3_64(decoded)) + (_HASH.pack(core.xxh3_64(encoded)) if encoded is not None else b"")


def expiry_of(head: bytes) -> int | None:
    """Until when a chunk is good, from its object's first HEADER_BYTES: nanoseconds since 1970, 0 for ever.

    None for what is no object of this version: nothing is known of it.
    """
    if len(head) < HEADER_BYTES or _PREFIX.unpack_from(head) != (MAGIC, VERSION, HEADER_BYTES):
        return None
    try:
        return _read_header(head[:HEADER_BYTES]).facts.expires_at_ns
    except TornObject:
        return None


def _read_header(packed: bytes) -> _Header:
    """What 172 bytes say. Raises TornObject for what cannot be."""
    if _HASH.unpack_from(packed, _FIELDS.size)[0] != core.xxh3_64(packed[: _FIELDS.size]):
        raise TornObject("the object's header is torn: its hash is another")
    (
        _, _, _, codec_number, cipher_number, item_bytes, flags,
        frame_raw_bytes, size_bytes, expires_at_ns, content_hash,
        namespace_digest, key, parent, parameters, key_id, salt,
    ) = _FIELDS.unpack_from(packed)  # fmt: skip
    if not size_bytes or flags & ~_HAS_PARENT or not FRAME_RAW_BYTES_MIN <= frame_raw_bytes <= FRAME_RAW_BYTES_MAX:
        raise TornObject(
            f"the object describes a chunk that cannot be: {size_bytes} bytes, frames of {frame_raw_bytes}"
        )
    facts = ChunkFacts(key, namespace_digest, size_bytes, parent if flags & _HAS_PARENT else None, expires_at_ns)
    return _Header(
        facts, codec_number, cipher_number, item_bytes, frame_raw_bytes, content_hash, parameters, key_id, salt
    )
