"""The server of the usual architecture: it alone knows which chunk lies where in a file that all clients map.

One thread answers requests from a ZeroMQ ROUTER socket; keys of a whole prefix come in one request. Chunks are laid
into a ring, the oldest goes first, and a chunk that somebody reads is stepped over. A message that cannot be
understood is answered with a refusal. Ends when its standard input does, so that it never outlives its parent.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import deque
from dataclasses import dataclass

import msgspec
import zmq

from maru.bench.rivals.contract import KEY_BYTES, split


class Lookup(msgspec.Struct, tag=1, array_like=True):
    """How many leading keys are there? Answered with a count."""

    keys: bytes


class Find(msgspec.Struct, tag=2, array_like=True):
    """Pin the leading run of these keys. Answered with its places."""

    keys: bytes


class Release(msgspec.Struct, tag=3, array_like=True):
    """Unpin. Not answered."""

    keys: bytes


class Reserve(msgspec.Struct, tag=4, array_like=True):
    """Room for a new chunk. Answered with its place."""

    key: bytes
    size: int


class Commit(msgspec.Struct, tag=5, array_like=True):
    """The bytes of a reserved chunk are written. Answered with a count of 1, or 0 if nobody reserved it."""

    key: bytes


class Count(msgspec.Struct, tag=6, array_like=True):
    count: int


class Places(msgspec.Struct, tag=7, array_like=True):
    places: list[tuple[int, int]]
    """Offset and size in bytes, one for each chunk."""


class Refusal(msgspec.Struct, tag=8, array_like=True):
    reason: str


Request = Lookup | Find | Release | Reserve | Commit
Answer = Count | Places | Refusal


@dataclass(slots=True)
class Chunk:
    """One chunk that lies in the file."""

    key: bytes
    offset: int
    size: int
    pins: int = 0
    is_sealed: bool = False


class Directory:
    """Which chunk lies where. Knows no socket."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._at = 0
        self._chunks: dict[bytes, Chunk] = {}
        self._ring: deque[Chunk] = deque()  # In the order in which the ring will meet them.

    def answer(self, request: Request) -> Answer | None:
        """The answer to a request; None for one that wants none."""
        match request:
            case Lookup(keys):
                return Count(self._run(keys))
            case Find(keys):
                found = [self._chunks[key] for key in split(keys)[: self._run(keys)]]
                for chunk in found:
                    chunk.pins += 1
                return Places([(chunk.offset, chunk.size) for chunk in found])
            case Release(keys):
                for key in split(keys):
                    if key in self._chunks and self._chunks[key].pins:
                        self._chunks[key].pins -= 1
                return None
            case Reserve(key, size):
                return self._reserve(key, size)
            case Commit(key):
                reserved = self._chunks.get(key)
                if reserved is None or reserved.is_sealed:
                    return Count(0)
                reserved.is_sealed = True
                return Count(1)

    def _run(self, keys: bytes) -> int:
        chunks = self._chunks
        for number, at in enumerate(range(0, len(keys), KEY_BYTES)):
            chunk = chunks.get(keys[at : at + KEY_BYTES])
            if chunk is None or not chunk.is_sealed:
                return number
        return len(keys) // KEY_BYTES

    def _reserve(self, key: bytes, size: int) -> Answer:
        if len(key) != KEY_BYTES or not 0 < size <= self._capacity:
            return Refusal(f"a chunk of {size} bytes under a key of {len(key)}")
        if key in self._chunks:
            return Refusal("this key is taken")
        steps_left = len(self._ring) + 2
        while steps_left:
            if self._at + size > self._capacity:
                # What lies between here and the end is older than what lies at the beginning, so it goes.
                while self._ring and self._ring[0].offset >= self._at:
                    self._pass_oldest()
                self._at = 0
            oldest = self._ring[0] if self._ring else None
            if oldest is None or not self._at <= oldest.offset < self._at + size:
                chunk = Chunk(key, self._at, size)
                self._at += size
                self._chunks[key] = chunk
                self._ring.append(chunk)
                return Places([(chunk.offset, size)])
            if not self._pass_oldest():
                steps_left -= 1
        return Refusal("everything is in use")

    def _pass_oldest(self) -> bool:
        """Evict the oldest chunk, or step over it if it is in use. Was it evicted?"""
        chunk = self._ring.popleft()
        if chunk.is_sealed and not chunk.pins:
            del self._chunks[chunk.key]
            return True
        self._ring.append(chunk)
        self._at = chunk.offset + chunk.size
        return False


class Courier:
    """Messages to answers: decodes, asks the directory, encodes."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self._decode = msgspec.msgpack.Decoder(Request).decode
        self._encode = msgspec.msgpack.Encoder().encode

    def reply(self, message: bytes) -> bytes | None:
        """The bytes to send back, if any. Never raises for what came from outside."""
        try:
            answer = self._directory.answer(self._decode(message))
        except msgspec.DecodeError as error:
            answer = Refusal(f"not understood: {error}")
        return None if answer is None else self._encode(answer)


def serve(endpoint: str, capacity_bytes: int) -> None:
    """Answer for ever."""
    socket = zmq.Context().socket(zmq.ROUTER)
    socket.bind(endpoint)
    print("ready", flush=True)
    reply = Courier(Directory(capacity_bytes)).reply
    while True:
        frames = socket.recv_multipart()
        answer = reply(frames[-1])
        if answer is not None:
            socket.send_multipart([frames[0], answer])


def _end_with_input() -> None:
    sys.stdin.buffer.read()
    os._exit(0)


if __name__ == "__main__":
    threading.Thread(target=_end_with_input, daemon=True).start()
    serve(sys.argv[1], int(sys.argv[2]))
