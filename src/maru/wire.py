"""What a daemon and its clients say to each other: messages, their limits, and how they become frames.

    client  DEALER ──▶ [header, body?] ──▶ ROUTER  daemon
            DEALER ◀── [header, body*] ◀── ROUTER

Holds:      one struct a message, and the bounds of what either side accepts.
Promises:   a header is msgpack of one tagged array; keys, extents and bytes travel as raw frames behind it, never as
            objects. Whatever arrives is decoded into exactly these types or refused as BadMessage.
Leaves:     sockets to the daemon and the client, meaning to `daemon.control`.

Every request carries a number that its client counts up. The daemon remembers its answers to what changes the pool, so
the same number asked again is answered again and not done again.
"""

from __future__ import annotations

from typing import Final

import msgspec

from maru.errors import BadMessage

PROTOCOL: Final = 1
"""Raised when a message changes its meaning. New messages, and new fields at a message's end, do not raise it."""

HEADER_BYTES_MAX: Final = 64 << 10
KEYS_MAX: Final = 1 << 16
"""Keys in one request: 1 MiB of them, a prefix of 16 million tokens."""
PIECE_BYTES: Final = 1 << 20
"""What travels at once of a chunk's bytes. Bounds what either side buffers, and what a lost message costs."""
FETCH_CHUNKS_MAX: Final = 64
"""Chunks of one Fetch: below this size each it is they, not PIECE_BYTES, that bound it."""
BODY_BYTES_MAX: Final = max(PIECE_BYTES, KEYS_MAX * 16)
COPIED_BYTES: Final = 64 << 10
"""Bodies below that are copied: to keep them until they are sent is another thread's work, some 20 us of it."""
HOLDS_MAX: Final = 1 << 16
"""Leases, and reservations with drafts, of one session."""

STILL_WRITTEN: Final = 2
"""What a watch says whose time is over."""

DIGEST_BYTES: Final = 16
SETTLED_LOOKS: Final = 4
EXTENT_BYTES: Final = 24
"""One chunk of a lease in a body: three little-endian u64. Offset in the pool's data, size, XXH3-64 (0: not known)."""


class Message(msgspec.Struct, array_like=True, tag_field="kind", forbid_unknown_fields=False, gc=False):
    """Base of all messages."""

    number: int


# ---- requests ---------------------------------------------------------------------------------------------


class Hello(Message, tag=1):
    """First of all, and again after every reconnection. Answer: Welcome."""

    protocols: tuple[int, int]
    """Oldest and newest that the client speaks."""
    library: str
    session: bytes
    """16 random bytes: the same as long as the client lives, whatever connection it has."""
    name: str
    """Host and process, for people."""
    host: str
    """Boot id of the client's machine."""
    mapped: bool = False
    """The client maps the pool's memory: what it pins is held under a row of its own."""
    rows: list[tuple[int, int]] = []
    """(number, epoch) of rows that a daemon before this one held for this client."""


class Register(Message, tag=2):
    """A namespace by its digest. Answer: Done with its id, and the digest that seeds its keys."""

    digest: bytes
    tenant: str
    """Of a client with a key: its own, or nothing. The key says who it is."""
    ttl_s: float | None = None
    policy: int = 0
    """Bits of maru.pool.POLICIES, added to what the namespace has."""


class Lookup(Message, tag=3):
    """How many leading keys (body) are there? Answer: Done."""


class Pin(Message, tag=4):
    """Hold the leading run of keys (body) for this client. Answer: Leased, with its extents."""

    bytes_max: int
    """No more bytes than this."""


class Read(Message, tag=5):
    """Bytes of a leased chunk. Answer: Piece with them."""

    lease: int
    chunk: int
    offset: int
    size: int


class Renew(Message, tag=6):
    """I am alive. Answer: Rows that are still held."""

    rows: list[tuple[int, int]] = []
    """Of an earlier daemon's, which to keep too. Those of this client that are not named are let go."""


class Release(Message, tag=7):
    """Let go of leases. Answer: Done with how many there were."""

    leases: list[int]


class Reserve(Message, tag=8):
    """Memory for keys (body), each the parent of the next. Answer: Reserved, with offsets."""

    size: int
    namespace: int = 0
    parent: bytes = b""
    ttl_s: float | None = None
    deadline_s: float = 30.0


class Allocate(Message, tag=9):
    """Memory before it has a name: credits, so that a later store needs one message. Answer: Reserved, with offsets."""

    size: int
    count: int


class Write(Message, tag=10):
    """Bytes (body) of a hold. Answer: Done with their number."""

    hold: int
    offset: int
    checksum: int
    """XXH3-64 of the body."""


class Fill(Message, tag=24):
    """All bytes of several holds, one after the other (body); FETCH_CHUNKS_MAX and PIECE_BYTES are the most. Answer:
    Done with their number.
    """

    holds: list[int]
    checksums: list[int]
    """XXH3-64 of each hold's bytes."""


class Seal(Message, tag=11):
    """Publish reservations. Answer: Outcomes."""

    holds: list[int]
    checksums: list[int] = []
    """XXH3-64 of each, from a client that wrote in place: only what the daemon reads alike is published."""


class Publish(Message, tag=12):
    """Name drafts: one key (body) each, each the parent of the next. Answer: Outcomes."""

    holds: list[int]
    checksums: list[int] = []
    namespace: int = 0
    parent: bytes = b""
    ttl_s: float | None = None


class Discard(Message, tag=13):
    """Give reservations or drafts back. Answer: Done with how many there were."""

    holds: list[int]


class Remove(Message, tag=14):
    """Remove one key (body). Answer: Done with 1 or 0."""


class Watch(Message, tag=15):
    """Answer when somebody seals the key (body): Done with 1. With 0 when nobody writes it (any more), with
    STILL_WRITTEN when the time is over.
    """

    timeout_s: float


class Stats(Message, tag=16):
    """Answer: Piece, its body the pool's figures as JSON."""


class Goodbye(Message, tag=17):
    """The session's end: everything it holds is given back. Answer: Done."""


class Find(Message, tag=18):
    """Which of the keys (body) are there, whatever stands between them? Answer: Piece, a byte a key: 1 or 0."""


class Fetch(Message, tag=19):
    """Whole chunks of a lease, `count` of them from `chunk` on: FETCH_CHUNKS_MAX and PIECE_BYTES are the most. Answer:
    Pieces, a body for each, or for each run of chunks that lie side by side.
    """

    lease: int
    chunk: int
    count: int
    runs: bool = False
    """One body may hold several whole chunks. A message of fewer frames is as much faster as a chunk is small."""


class Ended(Message, tag=20):
    """What was removed, and which namespaces were bumped, since the number that an earlier answer gave? Answer:
    Endings. What was evicted or has run out is not told.
    """

    since: int


class Bump(Message, tag=21):
    """Everything of a namespace is a miss from now on. Answer: Done with its epoch, 0 when there is none such."""

    checksum: int
    """XXH3-64 of the digest: no other request that was damaged is taken for this one."""
    digest: bytes


Request = (
    Hello | Register | Lookup | Pin | Read | Renew | Release | Reserve | Allocate | Write | Fill | Seal | Publish
    | Discard | Remove | Watch | Stats | Goodbye | Find | Fetch | Ended | Bump
)  # fmt: skip

CHANGES_THE_POOL: Final = (Pin, Release, Reserve, Allocate, Seal, Publish, Discard, Remove, Bump)
"""Asked twice with one number, these are done once."""


# ---- answers ----------------------------------------------------------------------------------------------


class Segment(msgspec.Struct, array_like=True):
    """One data segment of the pool."""

    uuid: str
    path: str
    medium: str
    first_byte: int
    size_bytes: int
    data_offset: int


class Welcome(Message, tag=64):
    """What a client must know of the pool and of this daemon."""

    protocol: int
    library: str
    daemon: bytes
    """16 random bytes: another after each start."""
    pool_uuid: str
    pool_name: str
    folder: str
    host: str
    """Boot id of the daemon's machine."""
    unit_bytes: int
    slab_bytes: int
    size_bytes: int
    lease_s: float
    guard_s: float
    segments: list[Segment]
    row: tuple[int, int] | None
    """Number and epoch of the client's own row, when it maps the pool."""
    rows: list[tuple[int, int]]
    """Which of the rows asked for were taken up."""


class Done(Message, tag=65):
    """A number, as the request says."""

    value: int
    digest: bytes = b""
    """Of Register: the namespace's in the pool, which is not the one that was sent where a tenant has a secret."""


class Leased(Message, tag=66):
    """Body: `count` times EXTENT_BYTES."""

    lease: int
    count: int


class Piece(Message, tag=67):
    """Body: bytes."""

    checksum: int
    """XXH3-64 of the body."""


class Rows(Message, tag=68):
    """The client's rows that this daemon holds, its own among them."""

    rows: list[tuple[int, int]]


class Reserved(Message, tag=69):
    """One outcome a key (or draft), holds and offsets (body: u64 each) of those that are RESERVED, in order."""

    outcomes: list[int]
    holds: list[int]


class Outcomes(Message, tag=70):
    """One outcome a hold, in order."""

    outcomes: list[int]


class Refused(Message, tag=71):
    """The name of a class in maru.errors, and what it says."""

    error: str
    message: str


class Pieces(Message, tag=72):
    """Bodies: bytes, in order."""

    checksums: list[int]
    """XXH3-64 of each chunk."""


class Endings(Message, tag=73):
    """Body: records of DIGEST_BYTES and 16 bytes each, a namespace's digest and the key of a chunk that was removed;
    zeros for all of the namespace.
    """

    last: int
    """The number to ask from the next time; there may be more at once."""
    is_known: bool
    """False: anything may have ended since, and there is no body."""
    looks: int
    """How often the daemon looked. What ended before an answer is told SETTLED_LOOKS later."""


Answer = Welcome | Done | Leased | Piece | Rows | Reserved | Outcomes | Refused | Pieces | Endings

_encoder = msgspec.msgpack.Encoder()
_requests: msgspec.msgpack.Decoder[Request] = msgspec.msgpack.Decoder(Request)
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)

encode = _encoder.encode


def decode_request(header: bytes | memoryview) -> Request:
    """Raises BadMessage for anything that is not one whole request of this protocol."""
    if len(header) > HEADER_BYTES_MAX:
        raise BadMessage(f"a header of {len(header):,} bytes; {HEADER_BYTES_MAX:,} are the most")
    try:
        request = _requests.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not a request of protocol {PROTOCOL}: {error}") from None
    if not 0 <= request.number < 1 << 63:
        raise BadMessage(f"request number {request.number} is not 0 to 2**63 - 1")
    return request


def decode_answer(header: bytes | memoryview) -> Answer:
    """Raises BadMessage for anything that is not one whole answer of this protocol."""
    try:
        return _answers.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"not an answer of protocol {PROTOCOL}: {error}") from None


# ---- the local socket -------------------------------------------------------------------------------------

HANDED_BYTES_MAX: Final = 16 << 10


class Handed(msgspec.Struct, array_like=True, tag="maru local socket", gc=False):
    """All that a daemon's local socket ever says, to whoever connects: what is theirs, by the uid that the system
    gives. With `access` comes a descriptor of the pool's folder.
    """

    protocol: int
    refused: str = ""
    """Why nothing is: the error's name and its words, with a line's end between them."""
    pool: str = ""
    uuid: str = ""
    access: str = ""
    """"write", "read", or nothing: then the pool is asked by messages."""
    tenant: str = ""
    """Whose they are; nothing: whoever they say, as anybody who may open the pool."""
    tenant_secret: bytes = b""
    """What seeds that tenant's keys, 32 bytes; nothing: nothing does."""
    endpoint: str = ""
    key: tuple[str, str, str, str] | None = None
    """Of the client they are for messages: its name, public key, the server's, and its secret one. None: plain."""

    def __repr__(self) -> str:
        return f"Handed({self.pool!r}, access={self.access!r}, tenant={self.tenant!r})"


def encode_handed(handed: Handed) -> bytes:
    return msgspec.msgpack.encode(handed)


def decode_handed(raw: bytes) -> Handed:
    """Raises BadMessage."""
    try:
        return msgspec.msgpack.decode(raw, type=Handed)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise BadMessage(f"not what a daemon's local socket says: {error}") from None
