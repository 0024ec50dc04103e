"""Who may speak: a daemon with keys, real sockets, clients that are let in, that are not, and that were."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import zmq
from serving import LIMITS, client_of, guarded, until

import maru
from maru import Outcome, wire
from maru.credentials import (
    generate_client,
    generate_server,
    load_client_key,
    revoke_client,
)
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.errors import NoDaemon

SHORT_S = 0.4


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    generate_server(folder)
    return folder


def test_whoever_has_a_key_is_served_under_its_name(pool: maru.Pool, keys: Path) -> None:
    _, key = generate_client(keys, "node7")
    with guarded(pool, keys) as server, client_of(server, key) as client:
        assert client.put(bytes(16), b"x" * 100) is Outcome.STORED
        assert [session.user for session in server.control.sessions.values()] == ["node7"]


def test_whoever_has_none_gets_no_answer_at_all(pool: maru.Pool, keys: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    generate_server(elsewhere)
    _, foreign = generate_client(elsewhere, "node7")
    with guarded(pool, keys) as server:
        for key in (None, foreign):
            with pytest.raises(NoDaemon):
                client_of(server, key, SHORT_S)
        assert server.control.sessions == {}
        assert server.counts.requests == {}


def test_who_is_revoked_is_served_no_more_on_the_connection_that_stands(pool: maru.Pool, keys: Path) -> None:
    _, key = generate_client(keys, "node7")
    with guarded(pool, keys) as server, client_of(server, key) as client:
        client.put(bytes(16), b"x" * 100)
        assert client.exists(bytes(16))
        revoke_client(keys, "node7")
        client.channel.deadline_s = SHORT_S
        assert until(lambda: not client.exists(bytes(16)))
        dropped = server.counts.dropped
        assert until(
            lambda: not client.exists(bytes(16)) and (server.counts.dropped > dropped or client.channel.is_down)
        )
        assert pool.exists(bytes(16))


def test_a_session_that_was_forgotten_is_greeted_anew(pool: maru.Pool) -> None:
    server = RpcServer(Control(pool, LIMITS, os.urandom(16), "test"), "tcp://127.0.0.1:0")
    server.start()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    socket = context.socket(zmq.DEALER)
    socket.linger = 0
    socket.connect(server.url)

    def ask(request: wire.Request) -> wire.Answer:
        socket.send(wire.encode(request))
        assert socket.poll(5000)
        return wire.decode_answer(socket.recv_multipart()[0])

    assert isinstance(ask(wire.Hello(1, (1, 1), "test", bytes(16), "a", "boot")), wire.Welcome)
    assert isinstance(ask(wire.Renew(2)), wire.Rows)
    server.control.sessions.clear()  # As after a silence.
    refused = ask(wire.Renew(3))
    assert isinstance(refused, wire.Refused)
    assert refused.error == "SessionUnknown"
    socket.close()
    context.term()
    server.stop()


def test_one_users_session_is_nothing_to_another(pool: maru.Pool, keys: Path) -> None:
    _, first = generate_client(keys, "first")
    _, second = generate_client(keys, "second")
    with guarded(pool, keys) as server, client_of(server, first) as mine:
        with client_of(server, second) as theirs:
            theirs.channel.session = mine.channel.session
            for line in theirs.channel._free:
                line.drop()
            theirs.channel.deadline_s = SHORT_S
            assert theirs.lookup(bytes(16)) == 0
            assert theirs.failures
        assert mine.lookup(bytes(16)) == 0
        assert mine.failures == {}


def test_a_client_key_for_another_daemon_is_refused_by_the_client(pool: maru.Pool, keys: Path, tmp_path: Path) -> None:
    """It would not speak to whoever has not the other half."""
    _, key = generate_client(keys, "node7")
    found = load_client_key(key)
    wrong = replace(found, server_public_z85=zmq.curve_keypair()[0].decode())
    assert wrong.server_public_z85 != found.server_public_z85
    with guarded(pool, keys) as server:
        from maru.client.channel import Channel

        channel = Channel(server.url, wrong, False, SHORT_S)
        with pytest.raises(NoDaemon):
            channel.renew([], SHORT_S)
        channel.close()
