"""Many clients of one daemon at once: how many lookups a second it answers, and how long the slowest client waits.

Every client is a connection with a session of its own and one question under way; one thread asks for all of them, in
the same way of a daemon and of a bare echo, so that what asking costs is in both figures alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from maru import wire
from maru.bench.bare_wire import Echo
from maru.bench.ground import PREFIX_CHUNKS
from maru.bench.measure import quantile
from maru.client.channel import BOOT_ID

ANSWER_TIMEOUT_MS = 10_000
NUMBER_FROM = 2
"""The first number of a question: the greeting had the one before."""


class Asking:
    """One client. Close it."""

    socket: Any

    def post(self) -> None:
        """Ask."""
        raise NotImplementedError

    def take(self) -> None:
        """The answer. Raises RuntimeError for a wrong one."""
        raise NotImplementedError

    def close(self) -> None:
        self.socket.close(linger=0)


class LookupClient(Asking):
    """A session with a daemon, which asks for one prefix again and again."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, number: int, keys: bytes) -> None:
        self._keys, self._number = keys, NUMBER_FROM
        self.socket = context.socket(zmq.DEALER)
        self.socket.rcvtimeo = ANSWER_TIMEOUT_MS
        self.socket.connect(endpoint)
        session = number.to_bytes(16, "little")
        protocols = (wire.PROTOCOL, wire.PROTOCOL)
        hello = wire.Hello(1, protocols, "bench", session, f"bench:{number}", BOOT_ID.read_text().strip())
        self.socket.send(wire.encode(hello))
        answer = wire.decode_answer(self.socket.recv())
        if not isinstance(answer, wire.Welcome):
            raise RuntimeError(f"the daemon refused a client: {answer}")

    def post(self) -> None:
        self.socket.send_multipart((wire.encode(wire.Lookup(self._number)), self._keys))
        self._number += 1

    def take(self) -> None:
        answer = wire.decode_answer(self.socket.recv())
        if not isinstance(answer, wire.Done) or answer.value != PREFIX_CHUNKS:
            raise RuntimeError(f"the prefix is not whole: {answer}")


class EchoClient(Asking):
    """A connection to the echo, with as many bytes either way."""

    def __init__(self, context: zmq.Context[Any], endpoint: str, keys: bytes) -> None:
        self._echo, self._keys = Echo(context, endpoint), keys
        self.socket = self._echo.socket
        self.socket.rcvtimeo = ANSWER_TIMEOUT_MS

    def post(self) -> None:
        self._echo.post(b"", self._keys, 0)

    def take(self) -> None:
        if len(self.socket.recv_multipart()) != 2:
            raise RuntimeError("the echo answered with other frames")


class Crowd:
    """Clients that ask at the same time. run() fits measure.interleave, with one repeat."""

    def __init__(self, clients: Sequence[Asking], lookups_each: int, clock: Callable[[], float] = time.perf_counter):
        self.slowest_p99_s: list[float] = []
        """Of each run."""
        self.lookups_each = lookups_each
        self._clients = {client.socket: client for client in clients}
        self._clock = clock
        self._poller = zmq.Poller()
        for client in clients:
            self._poller.register(client.socket, zmq.POLLIN)

    @property
    def lookups(self) -> int:
        """In one run, of all clients together."""
        return self.lookups_each * len(self._clients)

    def run(self, _turns: object = None) -> None:
        """Every client asks, and again as soon as it is answered. Raises RuntimeError for silence or a wrong answer."""
        clock, waits = self._clock, {socket: list[float]() for socket in self._clients}
        asked: dict[Any, float] = {}
        for socket, client in self._clients.items():
            asked[socket] = clock()
            client.post()
        while asked:
            ready = self._poller.poll(ANSWER_TIMEOUT_MS)
            if not ready:
                raise RuntimeError(f"no answer in {ANSWER_TIMEOUT_MS / 1000:.0f} s")
            for socket, _ in ready:
                client = self._clients[socket]
                client.take()
                now = clock()
                waits[socket].append(now - asked.pop(socket))
                if len(waits[socket]) < self.lookups_each:
                    asked[socket] = now
                    client.post()
        self.slowest_p99_s.append(max(quantile(one, 0.99) for one in waits.values()))

    def close(self) -> None:
        for client in self._clients.values():
            client.close()
