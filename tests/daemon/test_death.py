"""Daemons that die at named moments, and clients that die or fall silent: no wrong byte, nothing kept, service goes on.

A daemon dies before it does what it is asked, or after it did and before it says so, for every kind of request; and at
every point of the core that a request passes.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator

import pytest
from serving import IDENTITY, LIMITS, bytes_for, keys_of, until

import maru
from maru import Outcome, wire
from maru.client.remote import RemotePool
from maru.credentials import Client
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.native import core
from maru.testing.crash import crash_points, spawn
from pools import with_force_gone

pytestmark = pytest.mark.crash

CHUNKS = 3
SIZE = 30_000
DATA = [bytes_for(n, SIZE) for n in range(CHUNKS)]
QUERY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=16&populate=off"

ASKED = [
    "Hello",
    "Register",
    "Lookup",
    "Pin",
    "Fetch",
    "Renew",
    "Release",
    "Reserve",
    "Write",
    "Fill",
    "Seal",
    "Discard",
    "Remove",
]
"""What a client's day asks for. A client that maps the pool neither reads nor writes by messages."""
NEVER_IN_PLACE = {"Fetch", "Write", "Fill"}

PASSED = ("alloc.", "discard.", "evict.", "free.", "lock.", "namespace.", "pin.", "release.", "reserve.", "seal.",
          "slab.", "unpin.")  # fmt: skip
"""Points of the core that are passed for a client; claim. is passed for one that maps, when it comes."""


class Mortal(Control):
    """Kills its process at one kind of request."""

    fate = ("", "")

    def greet(self, client: Client | None, hello: wire.Hello) -> object:  # type: ignore[override]
        return self._meet("Hello", lambda: super(Mortal, self).greet(client, hello))

    def answer(self, session: object, request: wire.Request, body: object) -> object:  # type: ignore[override]
        return self._meet(type(request).__name__, lambda: super(Mortal, self).answer(session, request, body))  # type: ignore[arg-type]

    def _meet(self, name: str, do: object) -> object:
        if self.fate == (name, "before"):
            os.kill(os.getpid(), signal.SIGKILL)
        done = do()  # type: ignore[operator]
        if self.fate == (name, "after"):
            os.kill(os.getpid(), signal.SIGKILL)
        return done


def serve(pool_url: str, listen: str, name: str, moment: str, point: str) -> None:
    """A daemon in a process of its own. Its fate begins when it is told a line."""
    pool = maru.Pool.attach(pool_url)
    control = Mortal(pool, LIMITS, os.urandom(16), "test")
    server = RpcServer(control, listen)
    server.start()
    print("ready", flush=True)
    input()
    control.fate = (name, moment)
    if point:
        core.arm_crash_point(point, "kill", 1, 0.0)
    print("armed", flush=True)
    input()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


def a_day(client: RemotePool) -> list[str]:
    """Everything that a client does. What is wrong with what it saw; a miss is not."""
    wrong = []
    try:
        namespace = client.namespace(IDENTITY)
    except maru.MaruError:
        return []
    keys = keys_of(namespace, CHUNKS)
    for first in (0, 1000, 2000):  # More than the pool holds, so that it evicts.
        more = keys_of(namespace, CHUNKS, first=first)
        client.put_many(more, DATA, namespace)
    client.put_many(keys, DATA, namespace)
    if client.lookup(keys) > CHUNKS:
        wrong.append("more chunks than there are keys")
    try:
        with client.pin(keys) as prefix:
            for at, view in enumerate(prefix.views):
                if bytes(view) != DATA[at]:
                    wrong.append(f"wrong bytes of chunk {at}")
    except maru.MaruError:
        pass
    with client.reserve(bytes(16), SIZE) as reservation:
        reservation.discard()
    if client.remove(keys[-16:]) and client.exists(keys[-16:]):
        wrong.append("a removed chunk is there")
    return wrong


def holds_nothing(pool: maru.Pool) -> list[str]:
    pool.reap()
    figures = pool.stats()
    held = [f"{row['name']} pins {row['pins']}" for row in figures["processes"] if row["pins"]]
    held += [
        f"{figures['chunks'][state]} {state}"
        for state in ("reserved", "evicting", "revoked", "releasing")
        if figures["chunks"][state]
    ]
    return held + pool.check()


@pytest.fixture
def url(pool_url: str) -> Iterator[str]:
    base = pool_url.partition("?")[0]
    yield base + QUERY
    with_force_gone(base)


def through_a_death(url: str, way: str, name: str = "", moment: str = "", point: str = "") -> tuple[bool, list[str]]:
    """(did the daemon die, what was wrong) of a client's day with a daemon that dies in it, and of the day after."""
    listen = f"tcp://127.0.0.1:{free_port()}"
    address = listen.replace("tcp", "maru")
    with maru.Pool.create(url) as pool:
        with spawn(serve, url, listen, name, moment, point) as first:
            assert first.line() == "ready"
            client = maru.connect(address, mode=way)  # type: ignore[arg-type]
            assert isinstance(client, RemotePool)
            client.channel.deadline_s = 0.15  # Most of what follows has nobody to answer it.
            first.tell("now")
            assert first.line() == "armed"
            if name == "Hello":
                for line in client.channel._free:
                    line.drop()  # So that it must say hello again.
            wrong = a_day(client)
            client.channel.deadline_s = 5.0
            if name == "Renew":
                client._keeper.join(0)
                first.wait(20)  # The keeper asks by itself.
            died = first.process.poll() is not None
        with spawn(serve, url, listen, "", "", "") as second:
            assert second.line() == "ready"
            if not until(lambda: client.put(bytes(range(16)), DATA[0]) in (Outcome.STORED, Outcome.EXISTS)):
                wrong.append("service did not resume")
            wrong += a_day(client)
            view = client.get(bytes(range(16)))
            if view is not None and bytes(view) != DATA[0]:
                wrong.append("wrong bytes the day after")
            client.close()
        wrong += holds_nothing(pool)
    return died, wrong


@pytest.mark.parametrize("way", ["wire", "mapped"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ASKED)
def test_a_daemon_that_dies_at_a_request_takes_nothing_along(url: str, name: str, moment: str, way: str) -> None:
    if way == "mapped" and name in NEVER_IN_PLACE:
        pytest.skip("bytes in place need no such message")
    died, wrong = through_a_death(url, way, name, moment)
    assert died
    assert wrong == []


POINTS = [point for point in crash_points() if point.startswith(PASSED)]
NOT_PASSED = {
    "evict.before_revert": "nobody pins what is being evicted here",
    "evict.chosen": "there is room: chunks only leave when they are removed",
    "evict.wiped": "no namespace here asks for it",
    "namespace.marked": "only a bump does, which no client may ask for",
}


@pytest.mark.parametrize("point", POINTS)
def test_a_daemon_that_dies_inside_the_core_takes_nothing_along(url: str, point: str) -> None:
    died, wrong = through_a_death(url, "mapped", point=point)
    assert wrong == []
    assert died is (point not in NOT_PASSED)
