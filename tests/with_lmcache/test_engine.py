"""LMCache's own engine on a pool: what one process stores another retrieves, whoever dies in between."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from peer import Peer

import maru
from engine import CHUNK_TOKENS

MAKE = Callable[..., Peer]


@pytest.fixture
def make_engine(pool_name: str) -> Iterator[MAKE]:
    made: list[Peer] = []

    def make(**settings: object) -> Peer:
        made.append(Peer.take_engine(f"maru:///{pool_name}", **settings))
        return made[-1]

    yield make
    for peer in made:
        peer.give_back()


def check(name: str) -> dict[str, int]:
    with maru.Pool.attach(f"maru:///{name}") as pool:
        pool.reap()
        assert pool.check() == []
        return dict(pool.stats()["counters"])


def test_a_prompt_that_one_process_stored_another_retrieves(make_engine: MAKE) -> None:
    a, b = make_engine(), make_engine()
    assert a.backends() == ["MaruBackend"]
    a.store(1, 10 * CHUNK_TOKENS + 5)
    assert b.lookup(1, 10 * CHUNK_TOKENS + 5) == 10 * CHUNK_TOKENS + 5
    assert b.retrieve(1, 10 * CHUNK_TOKENS + 5) == (10 * CHUNK_TOKENS + 5, True)
    assert b.retrieve(1, 20 * CHUNK_TOKENS) == (10 * CHUNK_TOKENS, True)
    assert b.retrieve(2, 100) == (0, True)
    assert (a.pins(), b.pins()) == ((0, 0), (0, 0))


def test_a_longer_prompt_continues_the_shorter_one(make_engine: MAKE, pool_name: str) -> None:
    a, b = make_engine(), make_engine()
    a.store(1, 4 * CHUNK_TOKENS)
    assert b.lookup(1, 8 * CHUNK_TOKENS) == 4 * CHUNK_TOKENS
    b.store(1, 8 * CHUNK_TOKENS, skip=4 * CHUNK_TOKENS)
    assert a.retrieve(1, 8 * CHUNK_TOKENS) == (8 * CHUNK_TOKENS, True)
    figures = check(pool_name)
    assert (figures["suffixes_linked"], figures["suffixes_orphaned"]) == (1, 0)


def test_clearing_removes_a_prompt_everywhere(make_engine: MAKE) -> None:
    a, b = make_engine(), make_engine()
    a.store(1, 4 * CHUNK_TOKENS)
    b.clear(1, 4 * CHUNK_TOKENS)
    assert a.retrieve(1, 4 * CHUNK_TOKENS) == (0, True)


@pytest.mark.crash
@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_killed_while_it_stores_it_hurts_nobody(make_engine: MAKE, pool_name: str, chunk: int) -> None:
    a, b = make_engine(), make_engine()
    a.store(1, 8 * CHUNK_TOKENS)
    a.send("store", 2, 8 * CHUNK_TOKENS, die_after=chunk)
    a.process.join(60)
    assert a.process.exitcode == -9
    assert b.retrieve(1, 8 * CHUNK_TOKENS) == (8 * CHUNK_TOKENS, True)
    assert b.retrieve(2, 8 * CHUNK_TOKENS) == (0, True)
    b.store(2, 8 * CHUNK_TOKENS)
    c = make_engine()
    assert c.retrieve(2, 8 * CHUNK_TOKENS) == (8 * CHUNK_TOKENS, True)
    check(pool_name)


@pytest.mark.crash
def test_killed_while_it_retrieves_its_pins_go_with_it(make_engine: MAKE, pool_name: str) -> None:
    a, b = make_engine(), make_engine()
    a.store(1, 8 * CHUNK_TOKENS)
    b.send("retrieve", 1, 8 * CHUNK_TOKENS, die_after=4)
    b.process.join(60)
    assert b.process.exitcode == -9
    assert a.retrieve(1, 8 * CHUNK_TOKENS) == (8 * CHUNK_TOKENS, True)
    check(pool_name)
    a.clear(1, 8 * CHUNK_TOKENS)
    assert a.lookup(1, 8 * CHUNK_TOKENS) == 0


def test_a_pool_smaller_than_the_traffic_goes_on_and_never_answers_wrong(make_engine: MAKE, pool_name: str) -> None:
    a, b = make_engine(), make_engine()
    came = []
    for prompt in range(60):  # 60 prompts of 64 chunks; the pool holds 1,024.
        (a, b)[prompt % 2].store(prompt, 64 * CHUNK_TOKENS)
        tokens, right = (b, a)[prompt % 2].retrieve(prompt // 2, 64 * CHUNK_TOKENS)
        assert right
        came.append(tokens)
    assert a.retrieve(59, 64 * CHUNK_TOKENS) == (64 * CHUNK_TOKENS, True)
    assert sum(came) > 0
    assert check(pool_name)["evicted"] > 1000


def test_a_pool_that_vanishes_is_a_miss_and_the_engine_goes_on(make_engine: MAKE, pool_name: str) -> None:
    a = make_engine()
    a.store(1, 4 * CHUNK_TOKENS)
    maru.Pool.destroy(f"maru:///{pool_name}", force=True)
    assert a.retrieve(1, 4 * CHUNK_TOKENS) == (0, True)
    a.store(2, 4 * CHUNK_TOKENS)
    assert a.lookup(2, 4 * CHUNK_TOKENS) == 0


def test_lmcaches_own_memory_in_front_works_and_copies(make_engine: MAKE, pool_name: str) -> None:
    """The published configuration with `local_cpu: true`: LocalCPU allocates, and every put is a copy."""
    local = {"local_cpu": True, "max_local_cpu_size": 0.05}
    a, b = make_engine(config=local), make_engine(config=local)
    assert set(a.backends()) == {"LocalCPUBackend", "MaruBackend"}
    a.store(1, 10 * CHUNK_TOKENS + 5)
    assert b.retrieve(1, 10 * CHUNK_TOKENS + 5) == (10 * CHUNK_TOKENS + 5, True)
    check(pool_name)
