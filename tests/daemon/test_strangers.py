"""Who may not speak to the daemon gets nothing: no answer, and no sign of what there is."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from relay import Passed, Relay, relay
from serving import LIMITS, bytes_for, until
from zmq.utils.monitor import recv_monitor_message

import maru
from maru import credentials, wire
from maru.client.remote import RemotePool
from maru.credentials import Authorised, ClientKey, load_client_key, load_server_keys, secure_client
from maru.daemon.control import Control
from maru.daemon.server import RpcServer

THERE, NOT_THERE = bytes(range(16)), bytes(range(100, 116))
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + bytes((3, 1)) + b"CURVE".ljust(20, b"\0") + bytes(32)
"""A server's first words, always the same. Who is not what it speaks may be left before they are over."""
WELCOME_BYTES = 2 + 8 + 16 + 144
"""A CURVE server's answer to HELLO: frame header, name, nonce, box."""
ERROR_BYTES = 2 + 6 + 1 + 3
"""ZMQ's own ERROR command with a status of three digits."""
HEARTBEAT_BYTES = 2 + 8 + 8 + 16 + 1 + 7
"""ZMQ's own PING, encrypted. An answer of ours has another size."""
REFUSED = {zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL}
DEADLINE_MS = 20_000


@dataclass
class Door:
    """A daemon with keys, and a relay that keeps what passes."""

    pool: maru.Pool
    server: RpcServer
    between: Relay
    folder: Path
    context: zmq.Context[Any]

    def key(self, name: str = "node") -> ClientKey:
        return load_client_key(self.folder / "clients" / f"{name}.key")

    def connect(self, key: ClientKey | None) -> zmq.Socket[Any]:
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.reconnect_ivl = -1  # One connection, so that what passed on it can be counted.
        if key is not None:
            secure_client(dealer, key)
        return dealer

    def is_told_nothing(self, key: ClientKey | None, asked: bytes) -> Passed:
        """What passed when somebody with this key said hello and asked for a chunk, who is let in by nobody."""
        dealer = self.connect(key)
        monitor = dealer.get_monitor_socket()
        before = len(self.between.connections)
        dealer.connect(self.between.url)
        with suppress(zmq.Again):  # Refused already.
            dealer.send(wire.encode(hello_of(bytes(16))), zmq.NOBLOCK)
            dealer.send_multipart([wire.encode(wire.Lookup(2)), asked], zmq.NOBLOCK)
        try:
            while True:
                assert monitor.poll(DEADLINE_MS)
                event = recv_monitor_message(monitor)["event"]
                assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
                if event in REFUSED or event == zmq.EVENT_DISCONNECTED:
                    break
        finally:
            dealer.disable_monitor()
            monitor.close()
        assert not dealer.poll(0)
        dealer.close()
        passed = self.between.connections[before]
        assert until(lambda: passed.is_over)
        return passed


def hello_of(session: bytes) -> wire.Hello:
    return wire.Hello(1, (1, 1), "test", session, "stranger", "boot")


@pytest.fixture
def door(pool: maru.Pool, tmp_path: Path) -> Iterator[Door]:
    folder = tmp_path / "keys"
    credentials.generate_server(folder)
    for name in ("node", "short"):
        credentials.generate_client(folder, name)
    pool.put(THERE, bytes_for(1))
    control = Control(pool, LIMITS, os.urandom(16), "maru test")
    server = RpcServer(control, "tcp://127.0.0.1:0", load_server_keys(folder), Authorised(folder))
    server.start()
    try:
        with relay(server.url, records=True) as between, zmq.Context() as context:
            yield Door(pool, server, between, folder, context)
    finally:
        server.stop()


def without_key(_: Door, __: Path) -> None:
    return None


def with_a_key_of_its_own(door: Door, elsewhere: Path) -> ClientKey:
    path, _ = credentials.generate_remote(elsewhere / "there", "far", door.key().server_public_z85)
    return load_client_key(path)


def with_a_revoked_key(door: Door, _: Path) -> ClientKey:
    key = door.key("short")
    credentials.revoke_client(door.folder, "short")
    return key


def for_another_daemon(door: Door, _: Path) -> ClientKey:
    return replace(door.key(), server_public_z85=zmq.curve_keypair()[0].decode())


@pytest.mark.parametrize(
    ("stranger", "told_bytes_max"),
    [
        (without_key, 0),
        (for_another_daemon, 0),
        (with_a_key_of_its_own, WELCOME_BYTES + ERROR_BYTES),
        (with_a_revoked_key, WELCOME_BYTES + ERROR_BYTES),
    ],
)
def test_a_stranger_gets_a_greeting_and_not_a_byte_of_an_answer(
    door: Door, tmp_path: Path, stranger: Callable[[Door, Path], ClientKey | None], told_bytes_max: int
) -> None:
    key = stranger(door, tmp_path)
    seen = [door.is_told_nothing(key, asked) for asked in (THERE, NOT_THERE)]
    for passed in seen:
        assert GREETING.startswith(passed.down[: len(GREETING)])
        assert len(passed.down) <= len(GREETING) + told_bytes_max
    assert door.server.counts.requests == {}
    assert door.server.control.sessions == {}
    with maru.connect(door.between.address, mode="wire", key=str(door.folder / "clients" / "node.key")) as client:
        assert client.lookup(THERE) == 1  # Whoever has a key is served.


def test_who_is_revoked_gets_not_a_byte_more_on_the_connection_that_stands(door: Door) -> None:
    dealer = door.connect(door.key("short"))
    dealer.connect(door.between.url)
    dealer.send(wire.encode(hello_of(bytes(16))))
    assert dealer.poll(DEADLINE_MS)
    dealer.recv()
    credentials.revoke_client(door.folder, "short")
    passed = door.between.connections[-1]
    said, dropped = len(passed.down), door.server.counts.dropped
    for number, asked in enumerate((THERE, NOT_THERE, THERE), 2):
        dealer.send_multipart([wire.encode(wire.Lookup(number)), asked])
    dealer.send(wire.encode(hello_of(bytes(range(16)))))
    assert until(lambda: door.server.counts.dropped == dropped + 4)
    assert not dealer.poll(0)
    assert (len(passed.down) - said) % HEARTBEAT_BYTES == 0
    dealer.close()


def test_a_session_of_another_client_is_refused_like_one_that_never_was(door: Door) -> None:
    """Whoever has a key, and learned another's session, gets neither that nor what it holds."""
    with maru.connect(door.server.url.replace("tcp", "maru"), mode="wire", key=str(path_of(door, "node"))) as good:
        assert isinstance(good, RemotePool)
        with good.pin(THERE) as prefix:
            dealer = door.connect(door.key("short"))
            dealer.connect(door.server.url)
            dealer.send(wire.encode(hello_of(good.channel.session)))
            assert answer_of(dealer)[0] == "BadMessage"
            dealer.send(wire.encode(wire.Goodbye(2)))
            assert answer_of(dealer)[0] == "SessionUnknown"
            dealer.send(wire.encode(hello_of(bytes(16))))
            assert answer_of(dealer)[0] == "Welcome"
            for lease in (prefix._lease, prefix._lease + 1):
                dealer.send(wire.encode(wire.Read(3, lease, 0, 0, 100)))
                assert answer_of(dealer) == ("LeaseEnded", "that chunk is not held for this client (any more)")
            dealer.send(wire.encode(wire.Release(4, [prefix._lease])))
            assert answer_of(dealer) == ("Done", 0)
            dealer.close()
            assert [bytes(view) for view in prefix.views] == [bytes_for(1)]


def path_of(door: Door, name: str) -> Path:
    return door.folder / "clients" / f"{name}.key"


def answer_of(dealer: zmq.Socket[Any]) -> tuple[str, Any]:
    assert dealer.poll(DEADLINE_MS)
    answer = wire.decode_answer(dealer.recv_multipart()[0])
    if isinstance(answer, wire.Refused):
        return answer.error, answer.message.partition(" (what")[0]
    return type(answer).__name__, getattr(answer, "value", None)


def test_bytes_of_a_session_that_are_sent_once_more_are_refused_by_curve(door: Door) -> None:
    with maru.connect(door.between.address, mode="wire", key=str(path_of(door, "node"))) as client:
        assert client.put(NOT_THERE, b"once") is maru.Outcome.STORED
        assert client.remove(NOT_THERE) is True
    recorded = [bytes(passed.up) for passed in door.between.connections]
    assert sum(map(len, recorded)) > 1000
    asked = dict(door.server.counts.requests)
    for up in recorded:
        with socket.create_connection(("127.0.0.1", int(door.server.url.rpartition(":")[2])), 20) as replayed:
            replayed.sendall(up)
            down = b""
            while more := read_on(replayed):
                down += more
        # Its greeting, and a WELCOME with keys that nobody recorded: no READY, and so no message.
        assert len(down) <= len(GREETING) + WELCOME_BYTES + ERROR_BYTES
    assert door.server.counts.requests == asked
    assert not door.pool.exists(NOT_THERE)


def read_on(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:  # Closed with our bytes unread.
        return b""
