"""Clients that are killed around each kind of request: what they held goes back, what they stored is whole or not."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from serving import IDENTITY, address_of, bytes_for, keys_of, served, until

import maru
from maru.client.remote import RemotePool
from maru.daemon.sessions import Limits
from maru.testing.crash import spawn

pytestmark = pytest.mark.crash

CHUNKS, SIZE = 3, 30_000
SHORT = Limits(lease_s=0.6, guard_s=0.1)
ASKED = ["Register", "Lookup", "Pin", "Fetch", "Release", "Reserve", "Write", "Fill", "Seal", "Allocate", "Publish",
         "Discard", "Remove"]  # fmt: skip
NEVER_IN_PLACE = {"Fetch", "Write", "Fill"}


def live_and_die(address: str, way: str, name: str, moment: str) -> None:
    """A client's day, until it is about to ask, or was answered, a request of this name."""
    client = maru.connect(address, mode=way)  # type: ignore[arg-type]
    assert isinstance(client, RemotePool)
    exchange = client.channel.exchange

    def dying(requests: Any, *more: Any) -> Iterator[Any]:
        def sent() -> Iterator[Any]:
            for request, body in requests:
                if (type(request).__name__, moment) == (name, "before"):
                    os.kill(os.getpid(), signal.SIGKILL)
                yield request, body

        for asked, answer, bodies in exchange(sent(), *more):
            if (type(asked).__name__, moment) == (name, "after"):
                os.kill(os.getpid(), signal.SIGKILL)
            yield asked, answer, bodies

    client.channel.exchange = dying  # type: ignore[method-assign]
    namespace = client.namespace(IDENTITY)
    keys = keys_of(namespace, CHUNKS)
    client.put_many(keys, [bytes_for(n, SIZE) for n in range(CHUNKS)], namespace)
    client.lookup(keys)
    with client.pin(keys) as prefix:
        _ = prefix.views
    with client.allocate(SIZE, 2) as drafts:
        drafts.put_many(bytes(range(16)), [bytes_for(9, SIZE)])
    with client.reserve(bytes(range(1, 17)), SIZE):
        pass
    client.remove(keys[-16:])
    print("lived", flush=True)


@pytest.mark.parametrize("way", ["wire", "mapped"])
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("name", ASKED)
def test_a_client_that_is_killed_leaves_nothing_held_and_nothing_wrong(
    pool: maru.Pool, name: str, moment: str, way: str
) -> None:
    if way == "mapped" and name in NEVER_IN_PLACE:
        pytest.skip("bytes in place need no such message")
    keys = keys_of(pool.namespace(IDENTITY), CHUNKS)
    with served(pool, SHORT) as server:
        with spawn(live_and_die, address_of(server), way, name, moment) as victim:
            assert victim.wait() == -signal.SIGKILL
        assert until(lambda: not server.control.sessions)
        figures = pool.stats()
        assert not any(row["pins"] for row in figures["processes"])
        assert figures["chunks"]["reserved"] == 0
        wanted = {keys[16 * n : 16 * n + 16]: bytes_for(n, SIZE) for n in range(CHUNKS)} | {
            bytes(range(16)): bytes_for(9, SIZE)
        }
        for key, data in wanted.items():
            view = pool.get(key)
            assert view is None or bytes(view) == data
        del view
        assert pool.check() == []
        with maru.connect(address_of(server), mode="wire") as other:  # Others are served.
            assert other.put(bytes(range(2, 18)), b"x" * 100) is maru.Outcome.STORED
