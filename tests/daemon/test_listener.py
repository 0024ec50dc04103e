"""What ended in the far pool ends in the near one, whoever ended it, also while nobody was there to hear."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from serving import IDENTITY, LIMITS, Talker, bytes_for, client_named, keys_of, served, until
from test_near import far, near_pool, near_pools_go, server  # noqa: F401

import maru
from maru import wire
from maru.client import listener
from maru.client.near import NearPool
from maru.daemon import endings
from maru.daemon.control import Control
from maru.daemon.endings import RECORD, WHOLE_NAMESPACE, Endings
from maru.daemon.server import RpcServer
from maru.errors import BadMessage, Forbidden, PoolBusy
from maru.native import core

CHUNK = 20_000
OTHER = maru.Identity(model="m", kv_layout="l", tenant="other")


def stored(far: maru.Pool, count: int = 4, identity: maru.Identity = IDENTITY) -> bytes:  # noqa: F811
    namespace = far.namespace(identity)
    keys = keys_of(namespace, count)
    far.put_many(keys, [bytes_for(n, CHUNK) for n in range(count)], namespace)
    return keys


def here(near: NearPool, keys: bytes) -> int:
    """Chunks that lie in the near pool itself, and may be read there."""
    return sum(maru.Pool.exists(near, keys[at : at + 16]) for at in range(0, len(keys), 16)) * near._listener.may_read()


def brought(near: NearPool, keys: bytes) -> None:
    near.namespace(IDENTITY)
    with near.pin(keys) as prefix:
        assert len(prefix) == len(keys) // 16
    assert here(near, keys) == len(keys) // 16


def ended_within(found: Endings, number: int) -> list[tuple[bytes, bytes]]:
    """What is told to have ended since, once something is."""
    assert until(lambda: bool(found.since(number)[3]))
    return [RECORD.unpack(one) for one in found.since(number)[3]]


def first_number(found: Endings) -> int:
    def is_ready() -> bool:
        try:
            found.since(0)
        except PoolBusy:
            return False
        return True

    assert until(is_ready)
    number, is_known, *_ = found.since(0)
    assert not is_known  # Of a number that nobody was given.
    return number


def test_removed_chunks_and_bumped_namespaces_are_told_and_evicted_ones_are_not(far: maru.Pool) -> None:  # noqa: F811
    keys = stored(far)
    stored(far, 2, OTHER)
    found = Endings(far)
    try:
        number = first_number(found)
        assert far.remove(keys[-16:])
        digest, other = far.namespace(IDENTITY).digest, far.namespace(OTHER).digest
        assert ended_within(found, number) == [(digest, keys[-16:])]
        number, is_known, *_ = found.since(number)
        assert is_known
        far.namespace(OTHER).bump()
        assert (other, WHOLE_NAMESPACE) in ended_within(found, number)
        number, *_ = found.since(number)
        namespace = far.namespace(IDENTITY)
        looks = found.since(number)[2]
        assert until(lambda: found.since(number)[2] > looks + wire.SETTLED_LOOKS)
        for n in range(10, 1000):  # Far more than it holds.
            far.put(n.to_bytes(16, "big"), bytes(CHUNK), namespace)
        assert far.stats()["counters"]["evicted"] > 0
        assert not far.exists(keys[:16])
        looks = found.since(number)[2]
        assert until(lambda: found.since(number)[2] > looks + wire.SETTLED_LOOKS)
        assert found.since(number)[1:] == (True, found.since(number)[2], [])
        assert far.remove((999).to_bytes(16, "big"))
        assert ended_within(found, number) == [(digest, (999).to_bytes(16, "big"))]
    finally:
        found.stop()


def test_what_no_look_can_account_for_makes_everything_before_unknown(far: maru.Pool) -> None:  # noqa: F811
    look = endings._Look(far)
    stored(far, 3)
    for key in reversed([stored(far, 3)[at : at + 16] for at in (0, 16, 32)]):
        assert far.remove(key)  # Came and went between two looks.
    answers = [look.again() for _ in range(4)]
    assert [ended for ended, _ in answers] == [[]] * 4
    assert [is_known for _, is_known in answers].count(False) == 1


def test_a_client_hears_of_its_own_tenants_chunks_only(pool: maru.Pool) -> None:
    keys, others = stored(pool), stored(pool, 4, OTHER)
    control = Control(pool, LIMITS, os.urandom(16), "test")
    mine = Talker(control, client=client_named("one", "other", may_map=False))

    def ask(number: int) -> tuple[wire.Endings, bytes]:
        answer, body = mine.ask(wire.Ended(0, number))
        assert isinstance(answer, wire.Endings)
        return answer, body

    try:
        first = first_number(control._endings)
        assert not ask(0)[0].is_known
        assert pool.remove(keys[-16:])
        assert pool.remove(others[-16:])
        assert until(lambda: len(control._endings.since(first)[3]) == 2)
        answer, body = ask(first)
        assert answer.is_known
        assert body == RECORD.pack(pool.namespace(OTHER).digest, others[-16:])
    finally:
        control.leave()


@pytest.mark.parametrize("way", ["wire", "mapped"])
def test_what_is_removed_or_bumped_there_goes_here_and_nothing_else_does(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
    way: str,
) -> None:
    keys = stored(far)
    with near_pool(server, way) as near:
        brought(near, keys)
        assert far.remove(keys[-16:])
        assert until(lambda: here(near, keys) == 3)
        assert near.lookup(keys) == 3
        near.put(b"n" * 16, bytes(CHUNK), near.namespace(IDENTITY))
        assert near.flush(20)
        far.namespace(OTHER).bump()
        far.namespace(IDENTITY).bump()
        assert until(lambda: here(near, keys) == 0)
        assert not near.exists(b"n" * 16)
        assert near.pin(keys[:16]).nbytes == 0
        assert near.check() == []


def test_what_is_bumped_here_ends_there_and_is_not_brought_again(far: maru.Pool, server: RpcServer) -> None:  # noqa: F811
    keys, others = stored(far), stored(far, 4, OTHER)
    with near_pool(server, "wire") as near:
        brought(near, keys)
        namespace = near.namespace(IDENTITY)
        namespace.bump()
        assert (near.lookup(keys), near.find(keys[:16]), near.get(keys[:16])) == (0, [False], None)
        assert until(lambda: far.lookup(keys) == 0)
        assert far.lookup(others) == 4
        near.put(keys[:16], bytes(CHUNK), namespace)
        assert until(lambda: near._listener.agrees(namespace))
        assert (near.lookup(keys[16:]), near.get(keys[16:32])) == (0, None)
        assert until(lambda: far.namespace(IDENTITY).epoch == 1)
        assert until(lambda: namespace.epoch == 2)  # What the far pool then told of, once.
        near.put(b"n" * 16, bytes(CHUNK), namespace)
        assert until(lambda: far.exists(b"n" * 16))
        assert (far.namespace(IDENTITY).epoch, namespace.epoch) == (1, 2)


def test_nothing_is_brought_of_a_namespace_whose_bump_the_far_pool_does_not_know(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
) -> None:
    keys = stored(far)
    with near_pool(server, "wire") as first, near_pool(server, "wire") as second:
        for near in (first, second):
            near.namespace(IDENTITY)
            assert near._may_bring()
        first._listener.stop(5)
        first.namespace(IDENTITY).bump()
        for near in (first, second):
            assert not near._may_bring()
            assert near.lookup(keys) == near.bring(keys) == 0
        assert far.lookup(keys) == 4


def test_who_may_not_write_ends_nothing(pool: maru.Pool) -> None:
    keys, others = stored(pool), stored(pool, 4, OTHER)
    control = Control(pool, LIMITS, os.urandom(16), "test")
    reader = Talker(control, client=client_named("one", "other", "read", may_map=False))
    digest, other = pool.namespace(IDENTITY).digest, pool.namespace(OTHER).digest
    assert reader.ask(wire.Bump(0, core.xxh3_64(digest), digest))[0] == wire.Done(
        1, 0
    )  # Another tenant's is not there.
    with pytest.raises(Forbidden):
        reader.ask(wire.Bump(0, core.xxh3_64(other), other))
    assert pool.lookup(keys) == pool.lookup(others) == 4
    with pytest.raises(BadMessage):
        reader.ask(wire.Bump(0, core.xxh3_64(digest), other))
    writer = Talker(control, client=client_named("two", "other", may_map=False))
    assert writer.ask(wire.Bump(0, core.xxh3_64(other), other))[0] == wire.Done(1, 1)
    assert (pool.lookup(keys), pool.lookup(others)) == (4, 0)


def test_a_chunk_that_somebody_reads_goes_when_they_let_go(far: maru.Pool, server: RpcServer) -> None:  # noqa: F811
    keys = stored(far)
    with near_pool(server, "wire") as near:
        brought(near, keys)
        held = maru.Pool.pin(near, keys)
        assert far.remove(keys[-16:])
        assert until(lambda: near._listener._read_just_then == {keys[-16:]})
        assert bytes(held.views[3]) == bytes_for(3, CHUNK)
        held.release()
        assert until(lambda: here(near, keys) == 3)


def test_what_ended_while_nobody_was_here_is_gone_before_it_can_be_read(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
) -> None:
    keys = stored(far)
    with near_pool(server, "wire") as near:
        brought(near, keys)
        kept = maru.Pool.attach(near.config.url)
    assert far.remove(keys[-16:])
    with kept, near_pool(server, "wire") as again:
        again.namespace(IDENTITY)
        assert until(lambda: here(again, keys) == 3)
        assert again.flush(20)
        assert not far.exists(keys[-16:])  # Nor was it sent there again.


def test_a_daemon_that_began_anew_is_asked_about_all_that_is_here(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
) -> None:
    keys = stored(far)
    with near_pool(server, "wire", deadline_s=0.5) as near:
        brought(near, keys)
        namespace, url = near.namespace(IDENTITY), server.url
        server.stop()
        assert far.remove(keys[-16:])
        near.put(b"n" * 16, bytes(CHUNK), namespace)
        assert here(near, keys) == 4  # Nobody said so yet.
        with served(far, url=url):
            assert until(lambda: here(near, keys) == 3)
            assert until(lambda: far.exists(b"n" * 16))  # It was to be sent, and was not taken for something that went.
            assert near.exists(b"n" * 16)


def test_who_has_not_heard_for_long_reads_nothing_until_it_hears_again(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keys = stored(far)
    with near_pool(server, "wire", deadline_s=0.5) as near:
        brought(near, keys)
        url = server.url
        server.stop()
        heard = Path(near.folder) / listener.FILE
        os.utime(heard, (time.time() - listener.UNHEARD_S - 1,) * 2)
        monkeypatch.setattr(near._listener, "_good_until_s", 0.0)
        assert near.lookup(keys) == 0
        assert near.find(keys) == [False] * 4
        assert not near.exists(keys[:16])
        assert near.get(keys[:16]) is None
        assert near.read_into(keys[:16], [bytearray(CHUNK)]) == 0
        with near.pin(keys) as prefix:
            assert len(prefix) == 0
        with served(far, url=url):
            assert until(lambda: near.lookup(keys) == 4)
            with near.pin(keys) as prefix:
                assert len(prefix) == 4


def test_what_was_held_there_before_a_bump_is_not_kept_as_something_of_after_it(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
) -> None:
    keys = stored(far)
    with near_pool(server, "wire") as near:
        namespace = near.namespace(IDENTITY)
        with near.far.pin(keys) as prefix:
            epoch = near._epoch()
            namespace.bump()
            assert near._bring_some(keys, prefix, None, epoch) == 0
        assert here(near, keys) == 0


def test_of_what_is_not_to_be_shared_the_far_pool_is_not_asked_and_gets_nothing(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
) -> None:
    keys = stored(far)
    with near_pool(server, "wire") as near:
        namespace = near.namespace(IDENTITY, policy=["no-share"])
        assert (near.lookup(keys), near.find(keys[:16]), near.get(keys[:16]), near.bring(keys)) == (0, [False], None, 0)
        near.put(b"n" * 16, bytes(CHUNK), namespace)
        others = near.namespace(OTHER)
        near.put(b"o" * 16, bytes(CHUNK), others)
        assert near.flush(20)
        assert until(lambda: far.exists(b"o" * 16))
        assert not far.exists(b"n" * 16)
        assert near.exists(b"n" * 16)


def test_what_is_on_its_way_when_a_namespace_is_bumped_here_comes_there_before_the_bump(
    far: maru.Pool,  # noqa: F811
    server: RpcServer,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with near_pool(server, "wire") as near:
        namespace = near.namespace(IDENTITY)
        near.put(b"a" * 16, bytes(CHUNK), namespace)
        assert until(lambda: far.exists(b"a" * 16))  # It sends.
        told: list[str] = []
        begun, may_go_on = threading.Event(), threading.Event()
        put_many, call, let_pass = near.far.put_many, near.far.channel.call, near._sender.let_pass

        def slowly(*parts: Any) -> Any:
            begun.set()
            may_go_on.wait(2)
            outcomes = put_many(*parts)
            told.append("sent")
            return outcomes

        def seen(request: wire.Request, *parts: Any, **more: Any) -> Any:
            if isinstance(request, wire.Bump):
                told.append("bumped")
            return call(request, *parts, **more)

        def waiting() -> None:
            may_go_on.set()
            let_pass()

        monkeypatch.setattr(near.far, "put_many", slowly)
        monkeypatch.setattr(near.far.channel, "call", seen)
        monkeypatch.setattr(near._sender, "let_pass", waiting)
        near.put(b"b" * 16, bytes(CHUNK), namespace)
        assert begun.wait(20)
        namespace.bump()
        assert until(lambda: len(told) == 2)
        assert told == ["sent", "bumped"]
        assert until(lambda: not far.exists(b"b" * 16))
