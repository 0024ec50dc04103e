"""The usual architecture, client's side: ask a metadata server where a chunk lies, and copy in the mapped file.

One round trip for a whole prefix; a put takes two, one for room and one that makes it visible; unpinning waits for no
answer. The transport is a Unix socket, the file a touched mapping in shared memory with huge pages where they are.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import zmq

from maru.bench.rivals import metadata_server as wire
from maru.bench.rivals.contract import KEY_BYTES, Array, Rival, RivalFailed, copy_out, dying_with_me, insist_on

ANSWER_TIMEOUT_MS = 10_000


class ServerStore(Rival):
    """A client of the metadata server; the host runs the server as a process of its own."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._files: list[Path] = []
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        self._socket.linger = 0
        self._socket.rcvtimeo = ANSWER_TIMEOUT_MS
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(wire.Answer).decode

    def version(self) -> str:
        return f"pyzmq {zmq.__version__} (ROUTER/DEALER over ipc), msgspec {msgspec.__version__}, numpy.copyto"

    @property
    def server_pid(self) -> int:
        return self._server.pid if self._server else 0

    def setup(self, place: Path, capacity_bytes: int) -> str:
        data, socket = place / "data", place / "socket"
        self._files = [data, socket]
        with data.open("xb") as file:
            os.posix_fallocate(file.fileno(), 0, capacity_bytes)
        command = [sys.executable, "-m", wire.__name__, f"ipc://{socket}", str(capacity_bytes)]
        pipe = subprocess.PIPE
        self._server = subprocess.Popen(command, stdin=pipe, stdout=pipe, preexec_fn=dying_with_me())
        assert self._server.stdout is not None
        if self._server.stdout.readline() != b"ready\n":
            raise RivalFailed("the metadata server did not start")
        self.attach(str(place))
        self._memory.fill(1)
        return str(place)

    def attach(self, address: str) -> None:
        with (Path(address) / "data").open("r+b") as file:
            mapping = mmap.mmap(file.fileno(), 0)
        with suppress(OSError):  # A kernel without huge pages refuses; the pool asks in the same way.
            mapping.madvise(mmap.MADV_HUGEPAGE)
        self._memory = np.frombuffer(mapping, dtype=np.uint8)
        int(self._memory[::4096].sum())  # Mapped by now, as the pool's memory is once it is ready.
        self._socket.connect(f"ipc://{address}/socket")

    def ask(self, request: wire.Request) -> Any:
        """Send, and wait for the answer. Raises RivalFailed for a refusal, or for silence."""
        self._socket.send(self._encode(request))
        try:
            answer = self._decode(self._socket.recv())
        except zmq.Again:
            raise RivalFailed(f"no answer in {ANSWER_TIMEOUT_MS / 1000:.0f} s") from None
        if isinstance(answer, wire.Refusal):
            raise RivalFailed(answer.reason)
        return answer

    def put(self, key: bytes, data: Array) -> None:
        [(offset, size)] = self.ask(wire.Reserve(key, data.nbytes)).places
        np.copyto(self._memory[offset : offset + size], data)
        if self.ask(wire.Commit(key)).count != 1:
            raise RivalFailed("a chunk was not stored")

    def get_view(self, key: bytes) -> Any:
        places = self.ask(wire.Find(key)).places
        insist_on(len(places), 1)
        offset, size = places[0]
        return self._memory[offset : offset + size]

    def release(self, key: bytes, _view: Any) -> None:
        self._socket.send(self._encode(wire.Release(key)))

    def lookup(self, keys: bytes) -> int:
        count: int = self.ask(wire.Lookup(keys)).count
        return count

    def read_into(self, keys: bytes, landing: Array) -> None:
        places = self.ask(wire.Find(keys)).places
        try:
            insist_on(len(places), len(keys) // KEY_BYTES)
            copy_out([self._memory[offset : offset + size] for offset, size in places], landing)
        finally:
            self._socket.send(self._encode(wire.Release(keys[: len(places) * KEY_BYTES])))

    def teardown(self) -> None:
        self._context.destroy(linger=0)
        if self._server is not None:
            self._server.communicate()  # Its input ends, and so does it.
        for path in self._files:
            path.unlink(missing_ok=True)
