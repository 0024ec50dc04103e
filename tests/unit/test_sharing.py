"""Many processes and one pool: who creates it, how many fit, and what destroying it means for those inside."""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator

import pytest

import maru
from maru.errors import MaruError, NotAttached, PoolBusy, PoolExists, PoolNotFound
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import Victim, spawn

SIZE = 9_000
RACERS = 16


def race(url: str, how: str) -> None:
    """Fork 16 children that all begin at once; print what each of them got."""
    go_out, go_in = os.pipe()
    say_out, say_in = os.pipe()
    children = []
    for number in range(RACERS):
        pid = os.fork()
        if pid == 0:
            os.close(go_in)
            os.read(go_out, 1)  # Ends for all of them when the parent closes its end.
            try:
                pool = maru.Pool.create(url) if how == "create" else maru.Pool.open(url)
                key = key_of(number)
                answer = [pool.stats()["uuid"], str(pool.put(key, bytes_of(key, SIZE))), pool.lookup(key)]
                pool.close()
            except MaruError as error:
                answer = [type(error).__name__, str(error), 0]
            os.write(say_in, json.dumps(answer).encode() + b"\n")
            os._exit(0)
        children.append(pid)
    os.close(say_in)
    os.close(go_out)
    os.close(go_in)
    with os.fdopen(say_out) as answers:
        print(json.dumps([json.loads(line) for line in answers]), flush=True)
    for pid in children:
        os.waitpid(pid, 0)


def run_race(url: str, how: str) -> list[list[str]]:
    with spawn(race, url, how) as racers:
        answers: list[list[str]] = json.loads(racers.line())
        assert racers.wait() == 0
    assert len(answers) == RACERS
    return answers


@pytest.mark.parametrize("attempt", range(3))
def test_of_sixteen_processes_that_create_at_once_exactly_one_does(pool_url: str, attempt: int) -> None:
    kinds = [answer[0] for answer in run_race(pool_url, "create")]
    assert kinds.count("PoolExists") == RACERS - 1, f"attempt {attempt}"
    with maru.Pool.attach(pool_url) as pool:
        assert pool.stats()["uuid"] in kinds
        assert pool.check() == []


@pytest.mark.parametrize("attempt", range(3))
def test_sixteen_processes_that_open_at_once_share_one_pool(pool_url: str, attempt: int) -> None:
    answers = run_race(pool_url, "open")
    assert [answer[1:] for answer in answers] == [["Outcome.STORED", 1]] * RACERS, f"attempt {attempt}"
    assert len({answer[0] for answer in answers}) == 1
    with maru.Pool.attach(pool_url) as pool:
        for n in range(RACERS):
            view = pool.get(key_of(n))
            assert view is not None
            assert is_right(key_of(n), view)
        assert pool.stats()["counters"]["stored"] == RACERS
        assert pool.check() == []


@pytest.mark.parametrize("how", [maru.Pool.open, maru.Pool.create])
def test_sixteen_threads_may_race_too(pool_url: str, how: Callable[[str], maru.Pool]) -> None:
    pools: list[maru.Pool] = []
    refused: list[Exception] = []
    start = threading.Barrier(RACERS)

    def open_one() -> None:
        start.wait(20)
        try:
            pools.append(how(pool_url))
        except PoolExists as error:
            refused.append(error)

    threads = [threading.Thread(target=open_one) for _ in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(pools) == (1 if how == maru.Pool.create else RACERS)
    assert len(pools) + len(refused) == RACERS
    assert len({pool.stats()["uuid"] for pool in pools}) == 1
    assert pools[0].check() == []
    for pool in pools:
        pool.close()


def test_a_full_process_table_is_busy_with_its_limit_and_recovers(pool_url: str) -> None:
    url = pool_url.partition("?")[0] + "?size=1MiB&slots=256&processes=2"
    with maru.Pool.create(url) as first:
        second = maru.Pool.attach(url)
        for act in (maru.Pool.attach, maru.Pool.open):
            with pytest.raises(PoolBusy, match="all 2 process slots") as refused:
                act(url)
            assert refused.value.process_limit == 2  # type: ignore[attr-defined]
        assert first.put(key_of(0), b"goes on") == maru.Outcome.STORED
        second.close()
        with maru.Pool.attach(url) as third:
            assert third.lookup(key_of(0)) == 1
        assert first.check() == []


# ---- destroying ----


def live_in(url: str) -> None:
    """Hold a view and a reservation; do as told, one answer a line."""
    pool = maru.Pool.attach(url)
    view = pool.get(key_of(0))
    reservation = pool.reserve(key_of(1), SIZE)
    draft = pool.allocate(SIZE)
    assert view is not None
    assert draft is not None
    print(os.getpid(), flush=True)
    input()
    with pool.pin(key_of(0)) as prefix:
        pinned = len(prefix)
    answers = {
        "lookup": pool.lookup(key_of(0)),
        "exists": pool.exists(key_of(0)),
        "get": pool.get(key_of(0)) is None,
        "pinned": pinned,
        "put": str(pool.put(key_of(2), b"x")),
        "put_many": str(pool.put_many(key_of(2), [b"x"])),
        "reserve": str(pool.reserve(key_of(2), 10).outcome),
        "allocate": pool.allocate(10) is None,
        "wait": pool.wait(key_of(1), 5),
        "remove": pool.remove(key_of(0)),
        "reap": pool.reap(),
        "seal": str(reservation.seal()),
        "publish": str(draft.publish(key_of(3))),
        "check": pool.check(),
        "view": is_right(key_of(0), view),
    }
    pool.close()
    answers["view after close"] = is_right(key_of(0), view)
    print(json.dumps(answers), flush=True)


@pytest.fixture
def tenant(pool_url: str) -> Iterator[Victim]:
    with maru.Pool.create(pool_url) as pool:
        assert pool.put(key_of(0), bytes_of(key_of(0), SIZE)) == maru.Outcome.STORED
    with spawn(live_in, pool_url) as process:
        yield process


def test_destroying_a_pool_in_use_is_refused_with_the_pid(pool_url: str, tenant: Victim) -> None:
    pid = tenant.line()
    assert pid == str(tenant.pid)
    with pytest.raises(PoolBusy, match="in use by 1 process") as refused:
        maru.Pool.destroy(pool_url)
    assert pid in refused.value.processes
    assert pid in str(refused.value)
    with maru.Pool.attach(pool_url) as pool:
        assert pool.lookup(key_of(0)) == 1
        assert pool.check() == []
        with pytest.raises(PoolBusy, match="in use by 2 process"):
            maru.Pool.destroy(pool_url)


def test_destroying_by_force_turns_calls_to_misses_and_leaves_views_readable(pool_url: str, tenant: Victim) -> None:
    assert tenant.line() == str(tenant.pid)
    maru.Pool.destroy(pool_url, force=True)
    with pytest.raises(PoolNotFound):
        maru.Pool.attach(pool_url)
    with maru.Pool.create(
        pool_url
    ) as fresh:  # The name is free at once, and the two have nothing to do with each other.
        tenant.tell("go on")
        answers = json.loads(tenant.line())
        assert tenant.wait() == 0
        assert fresh.lookup(key_of(0)) == 0
        assert fresh.check() == []
    assert answers == {
        "lookup": 0, "exists": False, "get": True, "pinned": 0, "put": "Outcome.BUSY", "put_many": "[Outcome.BUSY]",
        "reserve": "Outcome.BUSY", "allocate": True, "wait": False, "remove": False, "reap": 0, "seal": "Outcome.LOST",
        "publish": "Outcome.BUSY", "check": ["the pool was destroyed"], "view": True, "view after close": True,
    }  # fmt: skip


def test_destroying_after_a_tenant_was_killed_needs_no_force(pool_url: str, tenant: Victim) -> None:
    assert tenant.line() == str(tenant.pid)
    tenant.kill()
    maru.Pool.destroy(pool_url)
    with pytest.raises(PoolNotFound):
        maru.Pool.attach(pool_url)


def test_destroying_ones_own_pool_names_oneself(pool: maru.Pool, pool_url: str) -> None:
    with pytest.raises(PoolBusy) as refused:
        maru.Pool.destroy(pool_url)
    assert str(os.getpid()) in refused.value.processes
    pool.close()
    maru.Pool.destroy(pool_url)
    with pytest.raises(NotAttached):
        pool.lookup(key_of(0))


@pytest.mark.parametrize("force", [False, True])
def test_destroying_a_pool_that_is_not_there_is_an_error(pool_url: str, force: bool) -> None:
    with pytest.raises(PoolNotFound):
        maru.Pool.destroy(pool_url, force=force)
    maru.Pool.create(pool_url).close()
    maru.Pool.destroy(pool_url, force=force)
    with pytest.raises(PoolNotFound):
        maru.Pool.destroy(pool_url, force=force)
    assert not maru.config.parse_url(pool_url).folder.exists()


def test_waiting_for_a_key_of_a_destroyed_pool_ends_at_once(pool: maru.Pool, pool_url: str) -> None:
    reservation = pool.reserve(key_of(0), SIZE)
    maru.Pool.destroy(pool_url, force=True)
    begin = time.monotonic()
    assert not pool.wait(key_of(0), 4)
    assert time.monotonic() - begin < 2
    assert reservation.seal() == maru.Outcome.LOST
