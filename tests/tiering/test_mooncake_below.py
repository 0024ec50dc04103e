"""A pool far too small, with a Mooncake store below it: everything is found again, byte for byte."""

from __future__ import annotations

from pathlib import Path

from ladder_kit import CHUNKS, FLUSH_S, IDENTITY, QUERY, Prefix, assert_nothing_is_held, fresh_pool

from maru.tiering.ladder import Ladder, LadderSettings
from mooncake_servers import mooncake_servers

PREFIXES = 12
"""Five times what the pool holds."""


def test_what_a_small_pool_evicts_comes_back_from_mooncake(pool_url: str, tmp_path: Path) -> None:
    family = [Prefix(f"far-{number}-") for number in range(PREFIXES)]
    settings = LadderSettings(promote_deadline_s=FLUSH_S)
    with mooncake_servers(tmp_path) as servers, fresh_pool(pool_url, QUERY) as pool:
        with Ladder(pool, [servers.url(query="&write=through")], settings) as ladder:
            namespace = pool.namespace(IDENTITY)
            for prefix in family:
                prefix.put(pool, namespace)
                assert ladder.flush(FLUSH_S)
            assert pool.lookup(family[0].keys) < CHUNKS  # It had to go.
            for prefix in family:
                here = pool.lookup(prefix.keys)
                ladder.promote(prefix.keys[16 * here :], namespace, prefix.each[here - 1] if here else None)
                assert prefix.read(pool) == CHUNKS
            servers.kill_master()
            family[0].remove(pool)
            ladder.promote(family[0].keys, namespace, None)
            assert family[0].read(pool) == 0  # A miss, and nothing worse.
        assert_nothing_is_held(pool)
