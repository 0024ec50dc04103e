"""Valkey and Redis: what only they do."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from redis_servers import redis_server

from maru.errors import BadUrl, NoSuchObject, TierFailed, TierFull
from maru.testing.tier_contract import content_of, fresh_name, read
from maru.tier.contract import PIECE_BYTES
from maru.tier.opening import open_tier, parse_tier_url
from maru.tier.valkey import PART_BYTES


def client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)


def test_an_object_goes_when_its_time_is_over_and_stays_without_one(redis_url: str) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(redis_url + "?prefix=ttl:"))
        for size in (10, 3 * PIECE_BYTES):
            short, long = fresh_name(), fresh_name()
            await tier.store(short, [content_of(size)], ttl_s=3600.0)
            await tier.store(long, [content_of(size)])
            with client(redis_url) as looker:
                assert 3_590_000 < looker.pttl(f"ttl:{{{short}}}") <= 3_600_000
                assert looker.pttl(f"ttl:{{{long}}}") == -1
                assert looker.keys("ttl:*:*") == []  # Nothing unfinished is left.
                looker.pexpire(f"ttl:{{{short}}}", 0)
            with pytest.raises(NoSuchObject):
                await read(tier, short)
        await tier.close()

    asyncio.run(run())


def test_what_a_writer_that_died_left_goes_by_itself_and_is_not_listed(redis_url: str) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(redis_url + "?prefix=dead:"))
        with client(redis_url) as looker:
            storing = asyncio.ensure_future(tier.store(fresh_name(), [content_of(PIECE_BYTES)] * 64))
            while not (left := looker.keys("dead:*:*")):
                await asyncio.sleep(0)
            assert 0 < looker.pttl(left[0]) <= 60_000
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)
        assert [one async for one in tier.list()] == []
        await tier.close()

    asyncio.run(run())


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(redis_url: str) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(redis_url))
        name = fresh_name()
        await tier.store(name, [content_of(3 * PART_BYTES)])
        pieces = tier.load(name)
        await anext(pieces)
        await tier.store(name, [content_of(3 * PART_BYTES)])
        with pytest.raises(TierFailed, match="replaced"):
            await anext(pieces)
        await tier.close()

    asyncio.run(run())


def test_a_server_without_room_says_so_and_nothing_is_left(tmp_path: Path) -> None:
    async def run(port: int) -> None:
        tier = open_tier(parse_tier_url(f"redis://127.0.0.1:{port}"))
        with pytest.raises(TierFull, match="maxmemory"):
            await tier.store(fresh_name(), [content_of(8 << 20)])
        assert [one async for one in tier.list()] == []
        await tier.close()

    with redis_server(tmp_path, "--maxmemory", "5mb") as port:
        asyncio.run(run(port))
        with client(f"redis://127.0.0.1:{port}") as looker:
            assert looker.dbsize() == 0


def test_a_server_that_went_away_fails_and_shows_no_password(tmp_path: Path) -> None:
    with redis_server(tmp_path) as port:
        pass

    async def run() -> None:
        tier = open_tier(parse_tier_url(f"redis://:hidden@127.0.0.1:{port}"))
        name = fresh_name()
        for call in (tier.health(), tier.store(name, [b"x"]), read(tier, name), tier.contains([name])):
            with pytest.raises(TierFailed) as failed:
                await call
            assert "hidden" not in str(failed.value)
        await tier.close()
        with pytest.raises(TierFailed, match="closed"):
            await tier.health()

    asyncio.run(run())


@pytest.mark.parametrize("words", ["?prefix=a*", "?prefix={x}", "/1?cluster=1"])
def test_what_a_server_cannot_do_is_refused(words: str) -> None:
    with pytest.raises(BadUrl):
        open_tier(parse_tier_url("redis://host" + words))


@pytest.fixture(scope="module")
def cluster_url(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Three servers that share the keys between them."""
    cli = shutil.which("redis-cli") or shutil.which("valkey-cli")
    if cli is None:
        pytest.skip("there is no redis-cli")
    with ExitStack() as servers:
        ports = [
            servers.enter_context(redis_server(tmp_path_factory.mktemp("node"), "--cluster-enabled", "yes"))
            for _ in range(3)
        ]
        nodes = [f"127.0.0.1:{port}" for port in ports]
        subprocess.run(
            [cli, "--cluster", "create", *nodes, "--cluster-yes"], check=True, stdout=subprocess.DEVNULL, timeout=60
        )
        for port in ports:  # Each says by itself when it has heard that all are there.
            assert is_in_order(cli, port)
        yield f"redis://{nodes[0]}?cluster=1"


def is_in_order(cli: str, port: int, deadline_s: float = 60.0) -> bool:
    """Does this server serve its cluster, soon?"""
    ends, pause = time.monotonic() + deadline_s, threading.Event()
    while time.monotonic() < ends:
        told = subprocess.run([cli, "-p", str(port), "cluster", "info"], capture_output=True, text=True, timeout=60)
        if "cluster_state:ok" in told.stdout:
            return True
        pause.wait(0.05)
    return False


def test_several_servers_keep_objects_as_one_does(cluster_url: str) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(cluster_url))
        contents = {fresh_name(): content_of(size) for size in (1, 100, 70_000, PIECE_BYTES, 3 * PIECE_BYTES + 7) * 4}
        for name, content in contents.items():
            await tier.store(name, [content[:5], content[5:]], ttl_s=3600.0)
        for name, content in contents.items():
            assert await read(tier, name) == content
            assert await read(tier, name, 3, 70_000) == content[3:70_003]
        assert await tier.contains([*contents, fresh_name()]) == [True] * len(contents) + [False]
        assert {one.name: one.size_bytes async for one in tier.list()} == {n: len(c) for n, c in contents.items()}
        await tier.health()
        await tier.remove(list(contents))
        assert not any(await tier.contains(list(contents)))
        await tier.close()

    asyncio.run(run())
