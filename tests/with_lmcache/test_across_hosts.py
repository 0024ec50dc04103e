"""LMCache on a host (network namespace) that has a /dev/shm of its own, over an encrypted daemon of another."""

from __future__ import annotations

import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from hosts import HIDING, Far, Host, hosts, why_not
from serving import Served, serve_process, until

import maru
from maru.credentials import generate_client, generate_server
from pools import with_force_gone

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())

FAR_ENGINE = Path(__file__).with_name("far_engine.py")
TOKENS = 32 * 20
START_S = 120.0


def daemon_on(host: Host, pool_url: str, keys: Path) -> AbstractContextManager[Served]:
    """`maru serve` on a host, encrypted."""
    return serve_process(pool_url, "--keys", str(keys), listen=f"tcp://{host.address}:0", inside=host.inside)


def engine_on(host: Host, path: str) -> Far:
    """LMCache on a host whose /dev/shm is its own, so that nothing is there but what came by the daemon."""
    far = Far([*host.inside, "unshare", "-m", "sh", "-c", HIDING, sys.executable, str(FAR_ENGINE)])
    host.clients.append(far)
    assert far.ask("open", START_S, path=path) is True
    return far


def test_what_lmcache_stores_on_one_host_it_retrieves_on_another(pool_name: str, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    generate_server(keys)
    pool_url = f"maru:///{pool_name}?size=64MiB"
    _, client_key = generate_client(keys, "node")
    try:
        with hosts("first", "second") as (first, second), daemon_on(first, pool_url, keys) as served:
            path = f"{served.address}?key={client_key}&pool_size=32M"
            writer = engine_on(second, path)
            writer.ask("store", START_S, prompt=7, count=TOKENS)
            with maru.Pool.attach(pool_url) as pool:
                assert until(lambda: pool.stats()["chunks"]["sealed"] == TOKENS // 32, START_S)
            writer.kill()  # Its near pool goes with its /dev/shm.
            reader = engine_on(second, path)
            assert reader.ask("lookup", START_S, prompt=7, count=TOKENS) == TOKENS
            assert reader.ask("retrieve", START_S, prompt=7, count=TOKENS) == [TOKENS, True]
            assert reader.ask("retrieve", START_S, prompt=8, count=TOKENS) == [0, True]
            second.cut()
            assert reader.ask("retrieve", START_S, prompt=7, count=TOKENS) == [TOKENS, True]  # It is here by now.
            assert reader.ask("lookup", START_S, prompt=9, count=TOKENS) == 0  # A miss, in time.
        with maru.Pool.attach(pool_url) as pool:
            assert pool.check() == []
            assert pool.stats()["chunks"]["sealed"] == TOKENS // 32
    finally:
        with_force_gone(f"maru:///{pool_name}")
