"""LMCache, unmodified, with its pool behind a daemon: the same as on its own host, by memory, by mapping, by the wire.

Peers name near pools of their own, as hosts of their own would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from lmcache.v1.cache_engine import LMCacheEngineBuilder
from peer import CHUNK_TOKENS, Peer
from remote_settings import published
from serving import serve_process, until
from test_remote_door import engine_of, kv_of, retrieved

import maru
from engine import CHUNK_TOKENS as ENGINE_CHUNK_TOKENS
from pools import with_force_gone

FULL = f"{CHUNK_TOKENS} tokens"
WAYS = ("local", "mapped", "wire")
START_DEADLINE_S = 60


@pytest.fixture
def daemon(pool_name: str) -> Iterator[str]:
    with serve_process(f"maru:///{pool_name}?size=64MiB") as served:
        yield served.address


@pytest.fixture
def near_name(pool_name: str) -> Iterator[Callable[[str], str]]:
    """Names for pools of hosts of their own; they go with the test."""
    made = []

    def name(host: str) -> str:
        made.append(f"{pool_name}-{host}")
        return made[-1]

    yield name
    for one in made:
        with_force_gone(f"maru:///{one}")


def sent(pool_name: str, chunks: int) -> bool:
    """Did so many chunks arrive in the daemon's pool?"""
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        return until(lambda: pool.stats()["chunks"]["sealed"] >= chunks, START_DEADLINE_S)


@pytest.mark.parametrize("way", WAYS)
def test_the_maru_backend_works_through_a_daemon(
    daemon: str, pool_name: str, near_name: Callable[[str], str], way: str
) -> None:
    writer = Peer.take(f"{daemon}/{near_name('a')}?mode={way}")
    reader = Peer.take(f"{daemon}/{near_name('b')}?mode={way}")
    try:
        assert writer.put([1, 2, 3], [CHUNK_TOKENS, CHUNK_TOKENS, 7]) == [True] * 3
        assert sent(pool_name, 3)
        for how in ("batched", "single", "non_blocking"):
            assert reader.get([1, 2, 3], how=how) == [FULL, FULL, "7 tokens"]
        assert reader.get([9], how="single") == [None]
    finally:
        writer.give_back()
        reader.give_back()


@pytest.mark.parametrize("way", WAYS)
def test_remote_storage_works_through_a_daemon(
    daemon: str, pool_name: str, near_name: Callable[[str], str], way: str
) -> None:
    """As it was published: remote_url: maru://host:port?pool_size=..."""
    tokens, kv = torch.arange(4 * ENGINE_CHUNK_TOKENS), kv_of(4 * ENGINE_CHUNK_TOKENS, torch.float16)
    engines = []
    try:
        for host in ("a", "b"):
            url = f"{daemon}/{near_name(host)}?pool_size=64M&mode={way}"
            engines.append(engine_of(f"{pool_name}-{host}-{way}", published(url)))
        writer, reader = engines
        writer.store(tokens, kv=kv)
        assert sent(pool_name, 4)
        found, arrived = retrieved(reader, tokens, torch.float16)
        assert found == len(tokens)
        assert torch.equal(arrived, kv)
    finally:
        for host in ("a", "b"):
            LMCacheEngineBuilder.destroy(f"{pool_name}-{host}-{way}")


def test_a_daemon_that_is_killed_costs_hits_and_comes_back(pool_name: str, near_name: Callable[[str], str]) -> None:
    pool_url = f"maru:///{pool_name}?size=64MiB"
    with serve_process(pool_url) as served:
        address = served.address
        writer = Peer.take(f"{address}/{near_name('a')}?mode=wire")
        reader = Peer.take(f"{address}/{near_name('b')}?mode=wire")
        try:
            assert writer.put([1], [CHUNK_TOKENS]) == [True]
            assert sent(pool_name, 1)
            served.kill()
            assert reader.get([1], how="single") == [None]  # A miss, in time.
            assert writer.get([1], how="single") == [FULL]  # Its own host's pool knows.
            assert writer.put([2], [CHUNK_TOKENS]) == [True]
            with serve_process(pool_url, listen=served.rpc):
                assert sent(pool_name, 2)  # What was stored meanwhile arrives.
                assert until(lambda: reader.get([1, 2], how="batched") == [FULL, FULL], START_DEADLINE_S)
        finally:
            writer.give_back()
            reader.give_back()
