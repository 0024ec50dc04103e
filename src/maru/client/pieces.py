"""Chunks' bytes and keys over the wire: what of them travels in one message, and that it is what was sent.

Holds:      how a fetch, and a store, become messages of at most PIECE_BYTES, less where the link is slow.
Promises:   bytes are compared with the checksum that came with them while they are copied: a buffer counts as filled
            only when fetch() says so. Small chunks that follow each other share a message, since every message costs
            either side as much as some 100 KiB do.
Leaves:     connections, and how many messages are under way, to `channel`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from maru import wire
from maru.client.channel import Body, Channel
from maru.native import core

KEY_BYTES = 16
Wanted = Iterable[tuple[int, memoryview]]
"""(index in the lease, buffer of that chunk's size) each."""


def of_keys(packed: bytes) -> Iterator[bytes]:
    """Packed keys, as many at a time as one request takes."""
    step = wire.KEYS_MAX * KEY_BYTES
    for at in range(0, len(packed), step):
        yield packed[at : at + step]


def fetch(channel: Channel, lease: int, wanted: Wanted) -> bool:
    """Fill the buffers. False when something came that is not what its checksum is of: then none of them is to be used.
    Raises as Channel.call.
    """
    targets: dict[tuple[int, int], list[memoryview]] = {}

    def requests() -> Iterator[tuple[wire.Request, Body]]:
        for request, buffers in _asked(channel, lease, wanted):
            targets[request.chunk, getattr(request, "offset", 0)] = buffers
            yield request, b""

    for request, answer, bodies in channel.exchange(requests()):
        buffers = targets.pop((request.chunk, getattr(request, "offset", 0)))  # type: ignore[union-attr]
        checksums, chunks = _checksums(answer), list(_chunks_in(bodies, buffers))
        is_as_long = sum(map(len, bodies)) == sum(map(len, buffers))
        if not (is_as_long and len(buffers) == len(chunks) == len(checksums)):
            return False
        for buffer, chunk, checksum in zip(buffers, chunks, checksums, strict=True):
            if len(chunk) != len(buffer) or core.xxh3_64_copying(buffer, chunk) != checksum:
                return False
    return True


def _chunks_in(bodies: list[memoryview], buffers: list[memoryview]) -> Iterator[memoryview]:
    """What came for each buffer: a body holds one chunk, or several whole ones. What fits none is cut wrong, and so
    has another checksum."""
    wanted = iter(buffers)
    for body in bodies:
        at = 0
        for buffer in wanted:
            yield body[at : at + len(buffer)]
            at += len(buffer)
            if at >= len(body):
                break


def store(channel: Channel, holds: Sequence[tuple[int, memoryview]]) -> None:
    """Bring (hold, its bytes) each to the daemon. Raises as Channel.call."""
    if not holds:
        return
    rooms = _Rooms()
    for request, _, _ in channel.exchange(_filled(channel, holds, rooms)):
        rooms.answered(request)


class _Rooms:
    """Memory in which small chunks are put together for one message: used again once the message is answered."""

    def __init__(self) -> None:
        self._free: list[bytearray] = []
        self._lent: dict[int, bytearray] = {}

    def fill(self, run: list[tuple[int, memoryview]]) -> tuple[wire.Request, Body]:
        """One message of these chunks."""
        if len(run) == 1:
            ((hold, data),) = run
            return wire.Write(0, hold, 0, core.xxh3_64(data)), data
        size = sum(len(data) for _, data in run)
        room = self._free.pop() if self._free and len(self._free[-1]) >= size else bytearray(size)
        whole, at, checksums = memoryview(room), 0, list[int]()
        for _, data in run:
            checksums.append(core.xxh3_64_copying(whole[at : at + len(data)], data))
            at += len(data)
        self._lent[run[0][0]] = room
        return wire.Fill(0, [hold for hold, _ in run], checksums), whole[:at]

    def answered(self, request: wire.Request) -> None:
        if isinstance(request, wire.Fill):
            self._free.append(self._lent.pop(request.holds[0]))


def _filled(
    channel: Channel, holds: Iterable[tuple[int, memoryview]], rooms: _Rooms
) -> Iterator[tuple[wire.Request, Body]]:
    """The messages that bring (hold, its bytes) each to the daemon."""
    run, size = list[tuple[int, memoryview]](), 0
    for hold, data in holds:
        if 2 * len(data) > channel.piece_bytes:  # None of its like would go with it.
            for offset, piece in _cut(channel, data):
                yield wire.Write(0, hold, offset, core.xxh3_64(piece)), piece
            continue
        if run and (size + len(data) > channel.piece_bytes or len(run) == wire.FETCH_CHUNKS_MAX):
            yield rooms.fill(run)
            run, size = [], 0
        run.append((hold, data))
        size += len(data)
    if run:
        yield rooms.fill(run)


def _asked(channel: Channel, lease: int, wanted: Wanted) -> Iterator[tuple[wire.Fetch | wire.Read, list[memoryview]]]:
    """The requests, and the buffers that their answers fill."""
    first, size, run = 0, 0, list[memoryview]()
    for index, buffer in wanted:
        is_next = index == first + len(run) and len(run) < wire.FETCH_CHUNKS_MAX
        if run and not (is_next and size + len(buffer) <= channel.piece_bytes):
            yield wire.Fetch(0, lease, first, len(run), True), run
            run = []
        if len(buffer) > channel.piece_bytes:
            for offset, piece in _cut(channel, buffer):
                yield wire.Read(0, lease, index, offset, len(piece)), [piece]
            continue
        if not run:
            first, size = index, 0
        run.append(buffer)
        size += len(buffer)
    if run:
        yield wire.Fetch(0, lease, first, len(run), True), run


def _cut(channel: Channel, data: memoryview) -> Iterator[tuple[int, memoryview]]:
    """(offset, part), each as large as the link bears just then."""
    offset = 0
    while offset < len(data):
        piece = data[offset : offset + channel.piece_bytes]
        yield offset, piece
        offset += len(piece)


def _checksums(answer: wire.Answer) -> list[int]:
    if isinstance(answer, wire.Pieces):
        return answer.checksums
    return [answer.checksum] if isinstance(answer, wire.Piece) else []
