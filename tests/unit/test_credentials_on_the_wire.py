"""Promises of the keys at work: ZeroMQ and TLS let in who is authorised, and answer nobody else anything."""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth.thread import ThreadAuthenticator
from zmq.utils.monitor import recv_monitor_message

from maru import credentials
from maru.credentials import ZAP_DOMAIN, Authorised, ClientKey, ZapCallback, secure_client, secure_server

DEADLINE_MS = 20_000
REFUSED = {zmq.EVENT_HANDSHAKE_FAILED_AUTH, zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL, zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL}


@dataclass
class Door:
    """A daemon's socket, asked about by ZAP, and what is seen of its handshakes."""

    context: zmq.Context[Any]
    folder: Path
    authorised: Authorised
    router: zmq.Socket[Any]
    monitor: zmq.Socket[Any]
    url: str
    opened: list[zmq.Socket[Any]] = field(default_factory=list)

    def connect(self, key: ClientKey | None) -> zmq.Socket[Any]:
        """A client's socket that has sent one message."""
        dealer = self.context.socket(zmq.DEALER)
        dealer.linger = 0
        self.opened.append(dealer)
        if key is not None:
            secure_client(dealer, key)
        dealer.connect(self.url)
        dealer.send(b"hello")
        return dealer

    def answer(self) -> bool:
        """Take one message as a daemon does, and answer it unless its sender may not speak (any more)."""
        assert self.router.poll(DEADLINE_MS)
        sender, message = self.router.recv_multipart(copy=False)
        client = self.authorised.who_sent(message)
        if client is None:
            return False
        self.router.send_multipart([sender.bytes, client.name.encode()])
        return True

    def close(self) -> None:
        """Close every socket, also those of the clients."""
        self.router.disable_monitor()
        for one in (*self.opened, self.monitor, self.router):
            one.close(linger=0)

    def refusal(self) -> int:
        """Wait until a handshake was refused; which kind of refusal it was."""
        while self.monitor.poll(DEADLINE_MS):
            event = recv_monitor_message(self.monitor)["event"]
            if event in REFUSED:
                return int(event)
            assert event != zmq.EVENT_HANDSHAKE_SUCCEEDED
        return pytest.fail("no handshake was refused within the deadline")


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    """A daemon that lets in `node` alone."""
    folder = tmp_path / "keys"
    keys = credentials.generate_server(folder)
    credentials.generate_client(folder, "node")
    authorised = Authorised(folder)
    with zmq.Context() as context:
        zap = ThreadAuthenticator(context)
        zap.start()
        zap.configure_curve_callback(ZAP_DOMAIN, ZapCallback(authorised))
        router = context.socket(zmq.ROUTER)
        router.linger = 0
        secure_server(router, keys)
        monitor = router.get_monitor_socket()
        port = router.bind_to_random_port("tcp://127.0.0.1")
        door = Door(context, folder, authorised, router, monitor, f"tcp://127.0.0.1:{port}")
        yield door
        door.close()
        zap.stop()


def key_of(door: Door, name: str = "node") -> ClientKey:
    return credentials.load_client_key(door.folder / "clients" / f"{name}.key")


def gets_nothing(door: Door, client: zmq.Socket[Any]) -> bool:
    """Neither did the daemon hear of it, nor was it answered, while one who may speak was."""
    trusted = door.connect(credentials.load_client_key(door.folder / "clients" / "node.key"))
    door.answer()
    assert trusted.poll(DEADLINE_MS)
    return not door.router.poll(0) and not client.poll(0)


def test_who_is_authorised_gets_through_under_its_name(door: Door) -> None:
    client = door.connect(key_of(door))
    assert door.answer()
    assert client.poll(DEADLINE_MS)
    assert client.recv() == b"node"


def test_who_is_not_in_the_list_gets_no_reply(door: Door, tmp_path: Path) -> None:
    path, _ = credentials.generate_remote(tmp_path / "there", "far", key_of(door).server_public_z85)
    client = door.connect(credentials.load_client_key(path))
    assert door.refusal() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    assert gets_nothing(door, client)


def test_who_is_added_while_the_daemon_runs_gets_through(door: Door, tmp_path: Path) -> None:
    path, public = credentials.generate_remote(tmp_path / "there", "far", key_of(door).server_public_z85)
    door.connect(credentials.load_client_key(path))
    door.refusal()
    credentials.add_client(door.folder, "far", public)
    client = door.connect(credentials.load_client_key(path))
    assert door.answer()
    assert client.poll(DEADLINE_MS)
    assert client.recv() == b"far"


def test_who_is_revoked_gets_no_reply_on_the_connection_it_has(door: Door) -> None:
    credentials.generate_client(door.folder, "short")
    client = door.connect(key_of(door, "short"))
    assert door.answer()
    assert client.recv() == b"short"
    credentials.revoke_client(door.folder, "short")
    client.send(b"still there?")
    assert not door.answer()
    assert gets_nothing(door, client)


def test_who_is_revoked_cannot_connect_again(door: Door) -> None:
    credentials.generate_client(door.folder, "short")
    key = key_of(door, "short")
    credentials.revoke_client(door.folder, "short")
    client = door.connect(key)
    assert door.refusal() == zmq.EVENT_HANDSHAKE_FAILED_AUTH
    assert gets_nothing(door, client)


def test_who_does_not_encrypt_gets_no_reply(door: Door) -> None:
    client = door.connect(None)
    assert door.refusal() == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    assert gets_nothing(door, client)


def test_who_expects_another_daemon_gets_no_reply(door: Door) -> None:
    another = zmq.curve_keypair()[0].decode()
    client = door.connect(replace(key_of(door), server_public_z85=another))
    assert door.refusal() == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    assert gets_nothing(door, client)


def test_with_nobody_to_ask_nobody_gets_in(door: Door) -> None:
    """ZeroMQ by itself would let in everybody who encrypts, once there is no ZAP handler."""
    with zmq.Context() as alone:
        router = alone.socket(zmq.ROUTER)
        router.linger = 0
        secure_server(router, credentials.load_server_keys(door.folder))
        monitor = router.get_monitor_socket()
        port = router.bind_to_random_port("tcp://127.0.0.1")
        lonely = replace(door, context=alone, router=router, monitor=monitor, url=f"tcp://127.0.0.1:{port}", opened=[])
        try:
            client = lonely.connect(key_of(door))
            lonely.refusal()
            assert not router.poll(0)
            assert not client.poll(0)
        finally:
            lonely.close()


def test_a_frame_without_a_handshake_is_nobodys(door: Door) -> None:
    assert door.authorised.who_sent(zmq.Frame(b"made up")) is None


# ---- TLS ----


def shake_hands(server_pem: Path, client_pem: Path, host: str) -> bool:
    """Does a client that trusts `client_pem` alone accept the server under this name?"""
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(server_pem, server_pem)
    client = ssl.create_default_context(cafile=client_pem)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ends = socket.socketpair()
    for end in ends:
        end.settimeout(DEADLINE_MS / 1000)

    def serve() -> None:
        try:
            server.wrap_socket(ends[0], server_side=True).close()
        except OSError:
            ends[0].close()

    other = threading.Thread(target=serve)
    other.start()
    try:
        client.wrap_socket(ends[1], server_hostname=host).close()
    except ssl.SSLCertVerificationError:
        return False
    finally:
        ends[1].close()
        other.join()
    return True


@pytest.mark.parametrize("host", ["maru.example.org", "10.0.0.7", "::1", "a.hosts.example.org"])
def test_a_client_that_has_the_certificate_accepts_the_hosts_it_names(tmp_path: Path, host: str) -> None:
    hosts = ["maru.example.org", "10.0.0.7", "::1", "*.hosts.example.org"]
    made = credentials.make_certificate(tmp_path / "keys", hosts)
    assert made.hosts == tuple(hosts)
    assert b"PRIVATE" not in made.client_pem.read_bytes()
    assert shake_hands(made.server_pem, made.client_pem, host)


def test_a_client_accepts_no_other_host_and_no_other_certificate(tmp_path: Path) -> None:
    made = credentials.make_certificate(tmp_path / "keys", ["maru.example.org"])
    other = credentials.make_certificate(tmp_path / "others", ["maru.example.org"])
    assert not shake_hands(made.server_pem, made.client_pem, "elsewhere.example.org")
    assert not shake_hands(made.server_pem, other.client_pem, "maru.example.org")
    assert made.sha256_fingerprint != other.sha256_fingerprint
