"""A namespace that is not to be shared is for processes that map the pool, and for nobody else."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from serving import IDENTITY, LIMITS, Clock, Talker, bytes_for, client_named, keys_of, until
from test_kv_publisher import publishing, reading

import maru
from maru import wire
from maru.daemon.control import Control
from maru.daemon.tenancy import ROWS_S
from maru.errors import BadMessage, MaruError
from maru.pool import Outcome

CLOSED = maru.Identity(model="m", kv_layout="l", dtype="closed")
SIZE = 20_000


def stored(pool: maru.Pool, identity: maru.Identity, *policy: Any) -> bytes:
    namespace = pool.namespace(identity, policy=policy)
    keys = keys_of(namespace, 2)
    assert set(pool.put_many(keys, [bytes_for(n, SIZE) for n in range(2)], namespace)) == {Outcome.STORED}
    return keys


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def control(pool: maru.Pool, clock: Clock) -> Iterator[Control]:
    control = Control(pool, LIMITS, os.urandom(16), "test", clock)
    yield control
    control.leave()


def found_by(talker: Talker, keys: bytes) -> tuple[int, bytes, int]:
    """What lookup, find and pin say of it."""
    lookup, (_, find), (pinned, _) = (
        talker.ask(wire.Lookup(0), keys)[0],
        talker.ask(wire.Find(0), keys),
        talker.ask(wire.Pin(0, 1 << 30), keys),
    )
    assert isinstance(lookup, wire.Done)
    assert isinstance(pinned, wire.Leased)
    return lookup.value, find, pinned.count


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("has_key", [False, True])
def test_no_client_finds_reads_removes_or_stores_it(
    pool: maru.Pool, control: Control, has_key: bool, mapped: bool
) -> None:
    closed, open_ = stored(pool, CLOSED, "no-share"), stored(pool, IDENTITY)
    talker = Talker(control, mapped, client_named("one") if has_key else None)
    assert found_by(talker, closed) == (0, b"\0\0", 0)
    assert found_by(talker, open_) == (2, b"\1\1", 2)
    assert talker.ask(wire.Remove(0), closed[16:])[0] == wire.Done(talker.number, 0)
    assert pool.lookup(closed) == 2
    number = pool.namespace(CLOSED).id
    with pytest.raises(MaruError):
        talker.ask(wire.Reserve(0, SIZE, number), bytes(range(16)))


def test_what_is_no_more_to_be_shared_is_found_a_second_longer_at_most(
    pool: maru.Pool, control: Control, clock: Clock
) -> None:
    keys = stored(pool, IDENTITY)
    talker = Talker(control)
    assert found_by(talker, keys)[0] == 2
    pool.namespace(IDENTITY, policy=["no-share"])
    clock.go(ROWS_S + 0.001)
    assert found_by(talker, keys) == (0, b"\0\0", 0)
    assert [row["policy"] for row in pool.stats()["namespaces"] if row["id"]] == [["no-share"]]


def test_a_client_cannot_ask_for_it(control: Control) -> None:
    with pytest.raises(BadMessage, match="not to be shared"):
        Talker(control).ask(wire.Register(0, b"d" * 16, "default", None, 16))


def test_no_client_hears_what_ended_of_it(pool: maru.Pool, control: Control) -> None:
    closed, open_ = stored(pool, CLOSED, "no-share"), stored(pool, IDENTITY)
    talker, answers = Talker(control), list[tuple[wire.Answer, bytes]]()

    def ask(number: int) -> wire.Endings:
        answers.append(talker.ask(wire.Ended(0, number)))
        answer = answers[-1][0]
        assert isinstance(answer, wire.Endings)
        return answer

    def is_ready() -> bool:
        try:
            return not ask(0).is_known
        except MaruError:
            return False

    assert until(is_ready)
    first = answers[-1][0].last  # type: ignore[union-attr]
    assert pool.remove(closed[16:])
    assert pool.remove(open_[16:])
    assert until(lambda: ask(first).last == first + 2)
    assert answers[-1][1] == pool.namespace(IDENTITY).digest + open_[16:]


def test_routers_are_not_told_of_it(pool: maru.Pool) -> None:
    before = stored(pool, CLOSED, "no-share")
    with zmq.Context() as context, publishing(pool, context) as publisher, reading(context, publisher) as router:
        namespace = pool.namespace(CLOSED)
        pool.put(b"c" * 16, b"x" * 100, namespace)
        opened = stored(pool, IDENTITY)
        each = {opened[:16], opened[16:]}
        router.wait_for(each)
        for key in (opened[16:], b"c" * 16, before[16:], opened[:16]):
            assert pool.remove(key)
        router.wait_for(set())
        ((_, batch),) = router.ask(bytes(8))  # All that is there now.
        assert len(batch.events) == 1
        assert pool.exists(before[:16])
