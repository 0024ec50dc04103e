"""The rules of shares and limits, each taken away once: test_mutants.py asks that every mutant is hunted somewhere.

Two tenants of one pool of one chunk size. "lender" has borrowed above its share, "burst" comes and wants more.
"""

from __future__ import annotations

import pytest

import maru
from maru import Identity, Outcome
from maru.testing.content import bytes_of, key_of
from maru.testing.crash import spawn

pytestmark = pytest.mark.crash

SIZE = 16 << 10
CHUNKS = 64  # As many as the pool holds.
QUERY = f"?size={CHUNKS * SIZE}&slab_bytes={CHUNKS * SIZE}&slots=300&processes=8&gate=off&unit_bytes=4096"
SCENARIOS = {"limit_not_kept", "share_not_kept", "share_looked_at_once"}


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + QUERY


def store(pool: maru.Pool, tenant: str, numbers: range) -> list[Outcome]:
    namespace = pool.namespace(Identity(model="m", kv_layout="x", tenant=tenant))
    keys = [key_of(n, tenant) for n in numbers]
    return [pool.put(key, bytes_of(key, SIZE), namespace=namespace) for key in keys]


def used(pool: maru.Pool, tenant: str) -> int:
    """In chunks."""
    return next(row["used_bytes"] for row in pool.stats()["tenants"] if row["name"] == tenant) // SIZE


def store_too_much(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.set_share("burst", 0, 5 * SIZE, at_limit="refuse")
        outcomes = store(pool, "burst", range(9))
        print(outcomes.count(Outcome.FULL), used(pool, "burst"), flush=True)


def push_others(url: str) -> None:
    """The lender has all of the pool, forty chunks of it promised; the burst has a share of four."""
    with maru.Pool.attach(url) as pool:
        pool.set_share("lender", 40 * SIZE)
        pool.set_share("burst", 4 * SIZE)
        store(pool, "lender", range(CHUNKS))
        store(pool, "burst", range(100))
        print(used(pool, "lender"), flush=True)


def store_one(url: str, number: int) -> None:
    with maru.Pool.attach(url) as pool:
        print(store(pool, "burst", range(number, number + 1))[0].name, flush=True)


@pytest.mark.parametrize("mutant", [None, "limit_not_kept"])
def test_nobody_passes_a_limit(mutant: str | None, url: str) -> None:
    with maru.Pool.open(url), spawn(store_too_much, url, mutants=(mutant,) if mutant else ()) as tenant:
        assert tenant.line() == ("4 5" if mutant is None else "0 9")


@pytest.mark.parametrize("mutant", [None, "share_not_kept"])
def test_a_burst_pushes_nobody_below_a_share(mutant: str | None, url: str) -> None:
    with maru.Pool.open(url), spawn(push_others, url, mutants=(mutant,) if mutant else ()) as burst:
        left = int(burst.line())
        # Of the sixty that are not promised to the burst the lender has borrowed some: they end equally far above.
        assert (left >= 40) == (mutant is None)


@pytest.mark.parametrize("mutant", [None, "share_looked_at_once"])
def test_two_that_push_out_at_once_take_no_more_than_may_be_taken(mutant: str | None, url: str) -> None:
    """Sixty-three chunks are promised to the lender, so one is left to be taken; two processes have seen that."""
    with maru.Pool.open(url) as pool:
        pool.set_share("lender", (CHUNKS - 1) * SIZE)
        pool.set_share("burst", SIZE)
        store(pool, "lender", range(CHUNKS))
        with spawn(
            store_one, url, 1, die_at="evict.chosen", action="stop", mutants=(mutant,) if mutant else ()
        ) as slow:
            slow.wait_stopped()
            store(pool, "burst", range(2, 3))
            assert used(pool, "lender") == CHUNKS - 1
            slow.resume()
            outcome = slow.line()
        if mutant is None:
            assert used(pool, "lender") == CHUNKS - 1
            assert outcome == "STORED", "its own chunk made way"
        else:
            assert used(pool, "lender") == CHUNKS - 2
