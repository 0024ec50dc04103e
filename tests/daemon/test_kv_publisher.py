"""Promises of the publisher: a router that reads along, comes late or lost something knows what is in the pool."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.auth.thread import ThreadAuthenticator

import maru
from maru import credentials
from maru.credentials import EVENTS_ZAP_DOMAIN, Authorised, ZapCallback, secure_client, secure_server
from maru.daemon import kv_publisher
from maru.daemon.kv_events import AllBlocksCleared
from maru.daemon.kv_publisher import END_NUMBER, STOP_DEADLINE_S, EventPublisher, EventSettings, Journal
from maru.errors import CannotListen, NotProtected
from maru.testing.content import key_of
from router_view import DEADLINE_MS, Router

ANY_PORT = "tcp://127.0.0.1:0"


def settings(**more: Any) -> EventSettings:
    base: dict[str, Any] = {"endpoint": ANY_PORT, "replay_endpoint": ANY_PORT, "interval_s": 0.01, "heartbeat_s": 0.05}
    return EventSettings(**{**base, **more})


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as one:
        yield one


@contextmanager
def publishing(pool: maru.Pool, context: zmq.Context[Any], **more: Any) -> Iterator[EventPublisher]:
    with EventPublisher(pool, settings(**more), context) as publisher:
        yield publisher
        assert publisher.is_running
    assert not publisher.is_running


@contextmanager
def reading(context: zmq.Context[Any], publisher: EventPublisher, **more: Any) -> Iterator[Router]:
    router = Router(context, publisher.endpoint, publisher.replay_endpoint, **more)
    try:
        yield router
    finally:
        router.close()


def put(pool: maru.Pool, *numbers: int) -> set[bytes]:
    for number in numbers:
        assert pool.put(key_of(number), b"x" * 100) is maru.Outcome.STORED
    return {key_of(number) for number in numbers}


# ---- numbers, and what is kept ----


def test_the_journal_gives_back_what_it_keeps_and_says_when_it_does_not() -> None:
    journal = Journal(100, kept_batches=3, kept_bytes=1000)
    assert journal.since(100) == []
    assert [journal.add(bytes([number])) for number in range(5)] == [100, 101, 102, 103, 104]
    assert journal.since(103) == [(103, b"\3"), (104, b"\4")]
    assert journal.since(102) == [(102, b"\2"), (103, b"\3"), (104, b"\4")]
    assert journal.since(101) is None
    assert journal.since(0) is None
    assert journal.since(105) == []
    assert journal.last_number == 104


def test_the_journal_keeps_no_more_bytes_than_it_may() -> None:
    journal = Journal(1, kept_batches=100, kept_bytes=10)
    for size in (4, 4, 4):
        journal.add(bytes(size))
    assert journal.since(1) is None
    assert journal.since(2) == [(2, bytes(4)), (3, bytes(4))]
    journal.add(bytes(11))
    assert journal.since(4) is None  # The one that is too large for it is given as what is there now.
    journal.add(b"x")
    assert journal.since(5) == [(5, b"x")]


# ---- routers ----


def test_a_router_that_reads_along_knows_what_is_there(
    pool: maru.Pool, pool_url: str, context: zmq.Context[Any]
) -> None:
    keys = put(pool, 0, 1, 2)
    with publishing(pool, context) as publisher, reading(context, publisher) as router:
        router.wait_for(keys)
        keys |= put(pool, 3)
        router.wait_for(keys)
        with maru.Pool.attach(pool_url) as other:
            other.remove(key_of(0))
        router.wait_for(keys - {key_of(0)})


def test_whoever_comes_late_asks_for_what_was(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    keys = put(pool, 0, 1, 2)
    with publishing(pool, context) as publisher:
        with reading(context, publisher) as first:
            first.wait_for(keys)
        with reading(context, publisher) as late:
            answered = late.catch_up()
            assert answered[0][1].events[0] == AllBlocksCleared()
            assert late.view.keys == keys
            late.receive()
            assert late.replays == 1  # The numbers go on where the answer ended.


def test_whoever_fell_out_of_what_is_kept_gets_what_is_there_now(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    keys = put(pool, 0, 1, 2)
    with publishing(pool, context, kept_batches=1) as publisher, reading(context, publisher) as router:
        router.wait_for(keys)
        early = router.last_number - 1000
        pool.remove(key_of(1))
        router.wait_for(keys - {key_of(1)})
        ((number, batch),) = router.ask(early.to_bytes(8, "big"))
        assert number >= router.last_number
        assert batch.events[0] == AllBlocksCleared()
        assert sorted(key for one in batch.events[1:] for key in one.block_hashes) == sorted(keys - {key_of(1)})


def test_a_router_that_lost_batches_catches_up_by_itself(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    keys = put(pool, 0)
    with publishing(pool, context, kept_batches=2) as publisher, reading(context, publisher) as router:
        router.wait_for(keys)
        before = router.replays
        router.last_number -= 5
        router.view.parents = {key_of(9): None}
        router.receive()
        assert router.replays == before + 1
        assert router.view.keys == keys


def test_what_is_to_come_is_answered_with_nothing(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    with publishing(pool, context) as publisher, reading(context, publisher) as router:
        router.receive()
        assert router.ask((router.last_number + 10**9).to_bytes(8, "big")) == []


def test_an_empty_batch_tells_a_router_that_it_lost_the_last_one(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    with publishing(pool, context) as publisher, reading(context, publisher) as router:
        router.receive()
        number = router.last_number
        assert router.receive().events == []
        assert router.last_number == number + 1


def test_a_router_that_stays_through_a_restart_keeps_nothing_that_left_meanwhile(
    pool: maru.Pool, context: zmq.Context[Any]
) -> None:
    keys = put(pool, 0, 1)
    with publishing(pool, context) as publisher:
        where = {"endpoint": publisher.endpoint, "replay_endpoint": publisher.replay_endpoint}
        router = Router(context, publisher.endpoint, publisher.replay_endpoint)
        router.wait_for(keys)
    number = router.last_number
    pool.remove(key_of(0))
    put(pool, 2)
    with publishing(pool, context, **where) as again:
        router.wait_for({key_of(1), key_of(2)})
        assert router.last_number > number
        assert again.endpoint == where["endpoint"]
        router.close()


def test_a_destroyed_pool_is_cleared(
    pool: maru.Pool, pool_url: str, context: zmq.Context[Any], caplog: pytest.LogCaptureFixture
) -> None:
    keys = put(pool, 0)
    with publishing(pool, context) as publisher, reading(context, publisher) as router:
        router.wait_for(keys)
        with caplog.at_level(logging.WARNING):
            maru.Pool.destroy(pool_url, force=True)
            router.wait_for(set())
        assert "destroyed" in caplog.text
        with reading(context, publisher) as late:
            late.catch_up()
            assert late.view.keys == set()
            late.receive()  # It goes on saying that it lives.


def test_a_pool_that_its_owner_closed_is_cleared(pool_url: str, context: zmq.Context[Any]) -> None:
    pool = maru.Pool.create(pool_url)
    keys = put(pool, 0)
    with publishing(pool, context) as publisher, reading(context, publisher) as router:
        router.wait_for(keys)
        pool.close()
        router.wait_for(set())


def test_more_changes_than_a_look_takes_come_in_several(
    pool: maru.Pool, context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kv_publisher, "CHANGES_A_LOOK", 3)
    keys = put(pool, *range(20))
    with publishing(pool, context) as publisher, reading(context, publisher) as router:
        router.wait_for(keys)


# ---- what must not harm it ----


@pytest.mark.parametrize(
    "frames", [[b""], [b"x"], [b"", b""], [b"", b"short"], [b"", b"9 bytes.."], [b"", b"8 bytes.", b"more"], [b""] * 9]
)
def test_what_is_no_request_is_not_answered_and_harms_nobody(
    pool: maru.Pool, context: zmq.Context[Any], frames: list[bytes]
) -> None:
    keys = put(pool, 0)
    with (
        publishing(pool, context) as publisher,
        reading(context, publisher) as router,
        context.socket(zmq.DEALER) as strange,
    ):
        strange.linger = 0
        strange.connect(publisher.replay_endpoint)
        strange.send_multipart(frames)
        router.wait_for(keys)
        router.catch_up()
        assert not strange.poll(0)


def test_a_reader_that_does_not_read_holds_up_nobody(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    keys = put(pool, 0)
    with (
        publishing(pool, context, kept_batches=3) as publisher,
        reading(context, publisher) as router,
        context.socket(zmq.DEALER) as lazy,
    ):
        lazy.linger, lazy.rcvhwm = 0, 1
        lazy.connect(publisher.replay_endpoint)
        for _ in range(300):
            lazy.send_multipart([b"", bytes(8)])
        router.wait_for(keys)
        keys |= put(pool, 1)
        router.wait_for(keys)


def test_an_end_mark_is_minus_one_and_nothing_else(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    with publishing(pool, context) as publisher, context.socket(zmq.REQ) as asks:
        asks.linger = 0
        asks.connect(publisher.replay_endpoint)
        asks.send((1 << 62).to_bytes(8, "big"))
        assert asks.poll(DEADLINE_MS)
        assert asks.recv_multipart() == [b"", END_NUMBER, b""]


def test_it_ends_within_its_deadline_also_with_a_long_interval(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    publisher = EventPublisher(pool, settings(interval_s=60, heartbeat_s=3600), context)
    publisher.start()
    began = time.monotonic()
    publisher.stop()
    assert time.monotonic() - began < STOP_DEADLINE_S
    assert not publisher.is_running


def test_an_address_that_is_taken_is_an_error_with_its_name(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        endpoint = f"tcp://127.0.0.1:{taken.getsockname()[1]}"
        for which in ("endpoint", "replay_endpoint"):
            with pytest.raises(CannotListen, match=endpoint):
                EventPublisher(pool, settings(**{which: endpoint}), context).start()
    with pytest.raises(CannotListen):
        EventPublisher(pool, settings(endpoint="nonsense"), context).start()


def test_other_hosts_read_along_only_when_that_was_said(pool: maru.Pool, context: zmq.Context[Any]) -> None:
    for open_to_all in (
        {"endpoint": "tcp://*:0"},
        {"replay_endpoint": "tcp://0.0.0.0:0"},
        {"endpoint": "tcp://[::]:0"},
    ):
        with pytest.raises(NotProtected):
            EventPublisher(pool, settings(**open_to_all), context)
    EventPublisher(pool, settings(endpoint="tcp://*:0"), context, plain=True)
    EventPublisher(pool, settings(endpoint="ipc:///nowhere"), context)


@pytest.mark.parametrize("wrong", [{"interval_s": 0}, {"heartbeat_s": 0}, {"kept_batches": 0}, {"chunk_tokens": -1}])
def test_figures_that_cannot_be_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="must be"):
        settings(**wrong)


@dataclass
class Guarded:
    """A publisher that lets in by keys."""

    folder: Path
    publisher: EventPublisher

    def client(self, name: str, tenant: str = "default") -> Callable[[zmq.Socket[Any]], None]:
        """Gives a socket the keys of a client that is let in under this name."""
        _, path = credentials.generate_client(self.folder, name, tenant)
        key = credentials.load_client_key(path)
        return lambda one: secure_client(one, key)


@pytest.fixture
def guarded(pool: maru.Pool, context: zmq.Context[Any], tmp_path: Path) -> Iterator[Guarded]:
    folder = tmp_path / "keys"
    server = credentials.generate_server(folder)
    authorised = Authorised(folder)
    zap = ThreadAuthenticator(context)
    zap.start()
    zap.configure_curve_callback(EVENTS_ZAP_DOMAIN, ZapCallback(authorised, onlookers=True))
    try:
        secure = partial(secure_server, keys=server, domain=EVENTS_ZAP_DOMAIN)
        with EventPublisher(pool, settings(), context, secure, authorised=authorised) as publisher:
            yield Guarded(folder, publisher)
            assert publisher.is_running
    finally:
        zap.stop()


def test_with_keys_only_who_is_let_in_reads_along(
    pool: maru.Pool, context: zmq.Context[Any], guarded: Guarded, tmp_path: Path
) -> None:
    server = credentials.load_server_keys(guarded.folder)
    unknown = credentials.load_client_key(credentials.generate_remote(tmp_path / "x", "x", server.public_z85)[0])
    keys = put(pool, 0)
    with (
        reading(context, guarded.publisher, secure=guarded.client("router")) as router,
        reading(context, guarded.publisher) as plain,
        reading(context, guarded.publisher, secure=lambda one: secure_client(one, unknown)) as foreign,
    ):
        for shut_out in (plain, foreign):
            shut_out.send_request(bytes(8))
        router.wait_for(keys)
        router.catch_up()
        assert not any(one.has_anything() for one in (plain, foreign))


def test_who_may_not_know_of_every_tenant_reads_no_events(
    pool: maru.Pool, context: zmq.Context[Any], guarded: Guarded
) -> None:
    keys = put(pool, 0)
    with (
        reading(context, guarded.publisher, secure=guarded.client("router")) as router,
        reading(context, guarded.publisher, secure=guarded.client("blue", "blue")) as of_a_tenant,
    ):
        of_a_tenant.send_request(bytes(8))
        router.wait_for(keys)
        router.catch_up()
        assert not of_a_tenant.has_anything()


def test_who_is_revoked_reads_along_no_more_and_the_others_do(
    pool: maru.Pool, context: zmq.Context[Any], guarded: Guarded
) -> None:
    keys = put(pool, 0)
    with (
        reading(context, guarded.publisher, secure=guarded.client("stays")) as stays,
        reading(context, guarded.publisher, secure=guarded.client("goes")) as goes,
    ):
        stays.wait_for(keys)
        goes.wait_for(keys)
        credentials.revoke_client(guarded.folder, "goes")
        keys |= put(pool, 1)
        stays.wait_for(keys)
        goes.send_request(bytes(8))
        keys |= put(pool, 2)
        stays.wait_for(keys)
        while goes.has_anything(live_only=True):
            goes.receive_live()
        assert goes.view.keys == {key_of(0)}
        assert not goes.has_anything()
