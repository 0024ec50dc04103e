"""Frames that nobody should send: real requests, changed in every way that a seed can think of.

Holds:      recording what a real client sends, changing it, and sending many such frames to a daemon.
Promises:   the same seed makes the same frames, as long as the same requests were recorded.
Leaves:     what has to hold afterwards to the tests.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import msgspec
import zmq

from maru import wire
from maru.client import channel
from maru.credentials import ClientKey, secure_client

NUMBERS = (
    -1,
    0,
    1,
    7,
    255,
    1 << 15,
    1 << 31,
    (1 << 32) - 1,
    1 << 40,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
    -(1 << 63),
)
VALUES: tuple[Any, ...] = (
    *NUMBERS, None, True, b"", b"x" * 16, b"x" * 5000, "", "tenant", "\x00" * 70, 0.0, -1.0, 1e308, float("nan"),
    float("inf"), [], [0], [1] * 5000, [-1], [[1, 2]] * 9, {"a": 1},
)  # fmt: skip
NESTED = b"\x91" * 60_000
STORED_BYTES_MAX = 64_000
"""No recorded body is longer, so that a hundred thousand frames take seconds."""

Frames = list[bytes]


@contextmanager
def recording(frames: list[Frames]) -> Iterator[None]:
    """Every request that clients of this process send meanwhile."""
    send = channel._Line._send

    def keep(line: channel._Line, request: wire.Request, body: channel.Body) -> None:
        frames.append([wire.encode(request), bytes(body)] if len(body) else [wire.encode(request)])
        send(line, request, body)

    channel._Line._send = keep  # type: ignore[method-assign]
    try:
        yield
    finally:
        channel._Line._send = send  # type: ignore[method-assign]


class Mutations:
    """An endless row of frames made of recorded ones."""

    def __init__(self, seed: int, recorded: list[Frames], sessions: list[bytes], holds: list[int]) -> None:
        """`sessions`, `holds`: of somebody else, to be tried."""
        assert max(len(frame) for frames in recorded for frame in frames) <= STORED_BYTES_MAX
        self._random = random.Random(seed)
        self._recorded = recorded
        self._sessions = sessions
        self._holds = holds
        self._ways = (
            self._as_it_was, self._flipped, self._cut, self._extended, self._other_tag, self._other_field,
            self._swapped, self._other_field, self._nonsense, self._other_body, self._more_frames, self._repeated,
            self._other_hold, self._hello, self._nested, self._fields_more_or_less,
        )  # fmt: skip

    def __next__(self) -> Frames:
        frames = list(self._random.choice(self._recorded))
        for _ in range(self._random.choice((1, 1, 1, 2, 3))):
            frames = self._random.choice(self._ways)(frames)
        return frames

    def _fields(self, frames: Frames) -> list[Any] | None:
        try:
            fields = msgspec.msgpack.decode(frames[0])
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        return fields if isinstance(fields, list) and fields else None

    def _with(self, frames: Frames, fields: list[Any]) -> Frames:
        return [msgspec.msgpack.encode(fields), *frames[1:]]

    def _as_it_was(self, frames: Frames) -> Frames:
        return frames

    def _flipped(self, frames: Frames) -> Frames:
        at = self._random.randrange(len(frames))
        frame = bytearray(frames[at])
        for _ in range(self._random.randint(1, 4)):
            if frame:
                frame[self._random.randrange(len(frame))] ^= 1 << self._random.randrange(8)
        return [*frames[:at], bytes(frame), *frames[at + 1 :]]

    def _cut(self, frames: Frames) -> Frames:
        at = self._random.randrange(len(frames))
        return [*frames[:at], frames[at][: self._random.randint(0, len(frames[at]))], *frames[at + 1 :]]

    def _extended(self, frames: Frames) -> Frames:
        at = self._random.randrange(len(frames))
        return [*frames[:at], frames[at] + self._random.randbytes(self._random.randint(1, 100)), *frames[at + 1 :]]

    def _other_tag(self, frames: Frames) -> Frames:
        fields = self._fields(frames)
        if fields is None:
            return frames
        return self._with(frames, [self._random.choice((*range(-1, 24), *range(64, 73), 1 << 40)), *fields[1:]])

    def _other_field(self, frames: Frames) -> Frames:
        fields = self._fields(frames)
        if fields is None:
            return frames
        fields[self._random.randrange(len(fields))] = self._random.choice(VALUES)
        return self._with(frames, fields)

    def _fields_more_or_less(self, frames: Frames) -> Frames:
        fields = self._fields(frames)
        if fields is None:
            return frames
        if self._random.random() < 0.5:
            return self._with(frames, fields[: self._random.randint(0, len(fields))])
        return self._with(frames, fields + [self._random.choice(VALUES)] * self._random.randint(1, 50))

    def _swapped(self, frames: Frames) -> Frames:
        fields = self._fields(frames)
        if fields is None:
            return frames
        one, other = self._random.randrange(len(fields)), self._random.randrange(len(fields))
        fields[one], fields[other] = fields[other], fields[one]
        return self._with(frames, fields)

    def _repeated(self, frames: Frames) -> Frames:
        fields = self._fields(frames)
        if fields is None or len(fields) < 2:
            return frames
        fields[1] = self._random.randint(1, 40)
        return self._with(frames, fields)

    def _other_hold(self, frames: Frames) -> Frames:
        fields = self._fields(frames)
        if fields is None or len(fields) < 3:
            return frames
        hold = self._random.choice(self._holds) + self._random.randint(-1, 1)
        fields[2] = [hold] * self._random.randint(1, 3) if isinstance(fields[2], list) else hold
        return self._with(frames, fields)

    def _hello(self, _: Frames) -> Frames:
        session = self._random.choice([*self._sessions, self._random.randbytes(16)])
        rows = [(self._random.randrange(40), self._random.randrange(1 << 20)) for _ in range(self._random.randrange(6))]
        is_mapped = self._random.random() < 0.2
        hello = wire.Hello(self._random.randint(0, 50), (1, 1), "?", session, "stranger", "boot", is_mapped, rows)
        return [wire.encode(hello)]

    def _nonsense(self, frames: Frames) -> Frames:
        return [self._random.randbytes(self._random.randint(0, 80)), *frames[1:]]

    def _nested(self, frames: Frames) -> Frames:
        return [NESTED[: self._random.choice((10, 2000, len(NESTED)))], *frames[1:]]

    def _other_body(self, frames: Frames) -> Frames:
        return [frames[0], self._random.randbytes(self._random.choice((0, 1, 15, 16, 17, 24, 160, 4096, 20_000)))]

    def _more_frames(self, frames: Frames) -> Frames:
        return frames + [self._random.randbytes(3)] * self._random.randint(1, 6)


class Stranger:
    """A connection that sends whatever it is given, and counts what it is answered."""

    def __init__(self, context: zmq.Context[Any], url: str, key: ClientKey) -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        secure_client(self.socket, key)
        self.socket.connect(url)
        self.answers: Counter[str] = Counter()
        self.sent = 0

    def send(self, frames: Frames) -> None:
        while True:
            self.listen()
            try:
                self.socket.send_multipart(frames, zmq.NOBLOCK)
            except zmq.Again:
                assert self.socket.poll(20_000, zmq.POLLIN | zmq.POLLOUT), "the daemon takes nothing any more"
                continue
            self.sent += 1
            return

    def listen(self) -> None:
        """Take every answer that is there."""
        while True:
            try:
                answer = wire.decode_answer(self.socket.recv_multipart(zmq.NOBLOCK)[0])
            except zmq.Again:
                return
            self.answers[answer.error if isinstance(answer, wire.Refused) else type(answer).__name__] += 1

    def greet(self, session: bytes, number: int = 0) -> None:
        self.send([wire.encode(wire.Hello(number, (1, 1), "test", session, "stranger", "boot"))])

    def is_through(self, session: bytes) -> bool:
        """Was everything taken that was sent so far? One connection's frames are taken in order."""
        number = 1 << 62 | self.sent
        self.greet(session, number)
        while self.socket.poll(20_000):
            answer = wire.decode_answer(self.socket.recv_multipart()[0])
            if answer.number == number:
                return True
        return False

    def close(self) -> None:
        self.socket.close()
