"""What bounds a daemon's answers: an echo over pyzmq and a bare TCP socket, each served by a process of its own.

Holds both sides: the program of that process (`python -m maru.bench.bare_wire`), which says its two ports on one line,
and what asks it. The echo sends as many bytes either way as the daemon's messages have; the socket sends a prefix of
bytes again and again, and takes one. Both end with the process that started them.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from maru.bench.rivals.contract import dying_with_me

LOOPBACK = "127.0.0.1"
_SEND, _TAKE = b"s", b"t"


def fresh_memory(size_bytes: int) -> memoryview:
    """Memory that nobody touched yet, by huge pages where they are: what received bytes go to, on every side alike."""
    mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # A kernel without huge pages refuses.
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapping)


@dataclass(frozen=True)
class Bare:
    """Where the two are."""

    echo: str
    tcp: tuple[str, int]


@contextmanager
def bare_peer(size_bytes: int) -> Iterator[Bare]:
    """The process, for as long as the context lasts; its socket sends and takes `size_bytes` at once."""
    command = [sys.executable, "-m", "maru.bench.bare_wire", str(size_bytes)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, stdin=pipe, stdout=pipe, preexec_fn=dying_with_me())
    assert process.stdout is not None
    try:
        echo, tcp = process.stdout.readline().split()
        yield Bare(f"tcp://{LOOPBACK}:{int(echo)}", (LOOPBACK, int(tcp)))
    finally:
        process.communicate()  # Its input ends, and so does it.


class Echo:
    """One connection to the echo. Close it."""

    def __init__(self, context: Any, endpoint: str) -> None:
        import zmq

        self.socket = context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(endpoint)

    def ask(self, header: bytes, body: bytes, answer_bytes: int) -> None:
        """One round trip: these frames there, a header and so many bytes back. Raises RuntimeError for others."""
        self.post(header, body, answer_bytes)
        if sum(map(len, self.socket.recv_multipart())) != len(header) + 8 + answer_bytes:
            raise RuntimeError("the echo answered with other bytes")

    def post(self, header: bytes, body: bytes, answer_bytes: int) -> None:
        """The first half of ask()."""
        self.socket.send_multipart((answer_bytes.to_bytes(8, "little") + header, body))

    def close(self) -> None:
        self.socket.close()


class Tcp:
    """A connection to the socket. Use as a context manager."""

    def __init__(self, place: tuple[str, int], size_bytes: int) -> None:
        self._socket = socket.create_connection(place)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._size_bytes = size_bytes

    def __enter__(self) -> Tcp:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def receive(self) -> memoryview:
        """All of it, in fresh memory. Raises RuntimeError when the other side ends."""
        self._socket.sendall(_SEND)
        room = fresh_memory(self._size_bytes)
        _receive_into(self._socket, room)
        return room

    def send(self, data: memoryview) -> None:
        """All of it; returns when the other side has it."""
        self._socket.sendall(_TAKE)
        self._socket.sendall(data)
        _receive_into(self._socket, memoryview(bytearray(1)))


def _receive_into(source: socket.socket, room: memoryview) -> None:
    at = 0
    while at < len(room):
        got = source.recv_into(room[at:])
        if not got:
            raise RuntimeError("the other side of a socket ended")
        at += got


def _serve_echo(router: Any) -> None:
    blob = memoryview(bytes(1 << 20))
    while True:
        peer, header, _ = router.recv_multipart()
        router.send_multipart((peer, header, blob[: int.from_bytes(header[:8], "little")]))


def _serve_tcp(listener: socket.socket, size_bytes: int) -> None:
    data, room = memoryview(bytearray(b"maru" * (size_bytes // 4 + 1)))[:size_bytes], memoryview(bytearray(size_bytes))
    while True:
        client, _ = listener.accept()
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with client:
            while word := client.recv(1):
                if word == _SEND:
                    client.sendall(data)
                else:
                    _receive_into(client, room)
                    client.sendall(word)


def main() -> None:
    import zmq

    listener = socket.create_server((LOOPBACK, 0))
    router = zmq.Context.instance().socket(zmq.ROUTER)
    port = router.bind_to_random_port(f"tcp://{LOOPBACK}")
    threading.Thread(target=_serve_echo, args=(router,), daemon=True).start()
    threading.Thread(target=_serve_tcp, args=(listener, int(sys.argv[1])), daemon=True).start()
    print(port, listener.getsockname()[1], flush=True)
    sys.stdin.buffer.read()
    os._exit(0)  # Its threads wait for ever, and nothing is to be kept.


if __name__ == "__main__":
    main()
