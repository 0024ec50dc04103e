"""A pool too small for its prefixes, a ladder below it, and what must hold whatever the place below did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

import maru
from maru.key import Identity
from maru.pool import Namespace, Pool
from maru.testing.content import bytes_of, is_right, key_of
from maru.tier.contract import Tier
from maru.tiering.ladder import Ladder, LadderSettings

QUERY = "?size=3MiB&slab_bytes=1MiB&slots=300&processes=16&gate=off"
SIZE = 300_000  # 9 of them fill the pool.
CHUNKS = 4
FLUSH_S = 30.0
IDENTITY = Identity("ladder-kit", "kit")
WAIT_S = 2.0
"""At most so long one promotion may take, whatever happens below."""


@dataclass(frozen=True)
class Prefix:
    """Chunks whose bytes follow from their keys."""

    family: str
    count: int = CHUNKS

    @property
    def each(self) -> list[bytes]:
        return [key_of(number, self.family) for number in range(self.count)]

    @property
    def keys(self) -> bytes:
        return b"".join(self.each)

    def put(self, pool: Pool, namespace: Namespace) -> None:
        pool.put_many(self.keys, [bytes_of(key, SIZE) for key in self.each], namespace)

    def remove(self, pool: Pool) -> None:
        """Out of the pool; what lies below stays there."""
        for key in self.each:
            pool.remove(key)
        assert not any(pool.exists(key) for key in self.each)

    def read(self, pool: Pool) -> int:
        """How many chunks are here; each byte of them is looked at."""
        count = 0
        for key in self.each:
            view = pool.get(key)
            if view is not None:
                assert len(view) == SIZE
                assert is_right(key, view), f"wrong bytes in a chunk of {self.family!r}"
                count += 1
        return count


def bring(pool: Pool, ladder: Ladder, namespace: Namespace, prefix: Prefix) -> int:
    """As a tiered pool does it: ask for what is missing. How many lead then."""
    here = pool.lookup(prefix.keys)
    if here < prefix.count:
        parent = prefix.each[here - 1] if here else None
        begun = time.monotonic()
        ladder.promote(prefix.keys[16 * here :], namespace, parent)
        assert time.monotonic() - begun < WAIT_S + 1.0
    return pool.lookup(prefix.keys)


def prefixes(story: str, count: int = 3) -> list[Prefix]:
    """Together more than the pool holds."""
    return [Prefix(f"{story}-{number}-") for number in range(count)]


def go_down_and_up(pool: Pool, ladder: Ladder, namespace: Namespace, story: str, flush_s: float) -> list[int]:
    """Store each prefix and let it be copied; then bring each up and read it. How many chunks of each came."""
    for prefix in prefixes(story):
        prefix.put(pool, namespace)
        ladder.flush(flush_s)
    came = []
    for prefix in prefixes(story):
        ladder.leading(prefix.keys, namespace)
        bring(pool, ladder, namespace, prefix)
        came.append(prefix.read(pool))
    return came


def pins_of(pool: Pool) -> int:
    return sum(row["pins"] for row in pool.stats()["processes"])


def assert_nothing_is_held(pool: Pool) -> None:
    """No pin, no reservation, nothing half done; every invariant of the pool holds."""
    chunks = pool.stats()["chunks"]
    assert {name: chunks[name] for name in ("reserved", "evicting", "revoked", "releasing", "quarantined")} == {
        "reserved": 0, "evicting": 0, "revoked": 0, "releasing": 0, "quarantined": 0,
    }  # fmt: skip
    assert pins_of(pool) == 0
    assert pool.check() == []


@contextmanager
def fresh_pool(url: str, query: str = QUERY) -> Iterator[Pool]:
    """The pool of that name; gone afterwards."""
    url = url.partition("?")[0] + query
    with maru.Pool.create(url) as pool:
        yield pool
    maru.Pool.destroy(url, force=True)


def ladder_over(
    patch: pytest.MonkeyPatch,
    pool: Pool,
    tier: Tier,
    query: str = "write=through",
    settings: LadderSettings | None = None,
) -> Ladder:
    """A ladder whose only place is `tier`."""
    patch.setattr("maru.tiering.place.open_tier", lambda _config: tier)
    return Ladder(pool, [f"file:///nowhere?{query}"], settings or LadderSettings(promote_deadline_s=WAIT_S))


def make_impatient(patch: pytest.MonkeyPatch) -> None:
    """Waits that spare a place in production are short, so that a story does not wait for them."""
    patch.setattr("maru.tiering.demoter.AGAIN_S", 0.01)
    patch.setattr("maru.tiering.demoter.LOOK_S", 0.002)
    patch.setattr("maru.tiering.demoter.ELECTION_S", 0.01)
    patch.setattr("maru.tiering.promoter.ABSENT_S", 0.0)
    patch.setattr("maru.tiering.breaker.REST_S", 0.01)
    patch.setattr("maru.tiering.breaker.REST_MAX_S", 0.05)


class Clock:
    """Seconds that go by when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s
