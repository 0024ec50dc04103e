"""A router reads along while processes store, evict and die: what it knows once all is quiet is what lookup finds."""

from __future__ import annotations

import random
import signal

import pytest

import maru
from maru.daemon.kv_events import EventStream
from maru.native import core
from maru.testing.content import key_of
from maru.testing.crash import spawn
from router_view import View

pytestmark = pytest.mark.crash

KEYS = 60
QUERY = "?size=1MiB&slab_bytes=64KiB&slots=60&processes=8&namespaces=4&gate=off"


def traffic(url: str, seed: str, rounds: str) -> None:
    """Store prefixes, remove and invalidate at random; say so when it goes on, and when it is over."""
    dice = random.Random(int(seed))
    with maru.Pool.attach(url) as pool:
        namespaces = [None, pool.namespace(maru.Identity(model="m", kv_layout="l"))]
        print("going", flush=True)
        for _ in range(int(rounds)):
            first, parent, ns = dice.randrange(KEYS), None, dice.choice(namespaces)
            for number in range(first, first + dice.randrange(1, 8)):
                pool.put(key_of(number % KEYS), bytes(30_000), parent=parent, namespace=ns)
                parent = key_of(number % KEYS)
            pool.remove(key_of(dice.randrange(KEYS)))
            if ns is not None and dice.random() < 0.02:
                ns.bump()
    print("over", flush=True)


@pytest.mark.parametrize("point", [None, "evict.marked", "evict.tag_cleared", "seal.after_word", "claim.word_set"])
def test_a_router_knows_what_is_there_after_others_worked_and_died(point: str | None, pool_url: str) -> None:
    url = pool_url.partition("?")[0] + QUERY
    with maru.Pool.create(url) as pool:
        scan, stream, view = core.ChangeScan(pool), EventStream("shm"), View()

        def hear(limit: int) -> bool:
            changes, is_whole = scan.look(limit)
            view.apply(stream.batch(changes, scan.told_count, 0.0))
            return is_whole

        with (
            spawn(traffic, url, "1", "300") as steady,
            spawn(traffic, url, "2", "300", **({"die_at": point, "after": 40} if point else {})) as doomed,
        ):
            assert steady.line() == doomed.line() == "going"
            looks = 0
            while steady.process.poll() is None or doomed.process.poll() is None:
                hear(7)
                looks += 1
            assert looks > 100
            assert steady.line() == "over"
            assert doomed.wait() == (-signal.SIGKILL if point else 0)
        pool.reap()
        hear(1000)  # Ends what was begun before it was quiet.
        assert hear(1000)
        assert view.keys == {key_of(number) for number in range(KEYS) if pool.exists(key_of(number))}
        assert view.keys
        assert pool.check() == []
