"""Ten thousand rounds of what LMCache does with objects leave memory, pins and the pool where they were."""

from __future__ import annotations

from peer import Peer

import maru

ROUNDS = 10_000
WARM_UP_ROUNDS = 2_000
OWN_KIB_MAX = 4096
"""Half a KiB a round would be more than this."""
OBJECTS_MAX = 500


def test_ten_thousand_rounds_with_aborts_leave_nothing_behind(pool_name: str) -> None:
    peer = Peer.take(f"maru:///{pool_name}")
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        peer.cycle(WARM_UP_ROUNDS, seed=1)
        own_kib, objects = peer.footprint()
        peer.cycle(ROUNDS, seed=2)
        own_kib_after, objects_after = peer.footprint()
        assert peer.pins() == (0, 0)
        peer.empty()
        figures = pool.stats()
        assert figures["used_bytes"] == 0
        assert [row["pins"] for row in figures["processes"]] == [0, 0]
        assert pool.check() == []
        # Drafts are no chunks: that they came back shows in that all of the pool can be had again.
        whole = figures["size_bytes"] // figures["slab_bytes"]
        drafts = [pool.allocate(figures["slab_bytes"]) for _ in range(whole)]
        assert all(drafts)
        del drafts
    assert own_kib_after - own_kib < OWN_KIB_MAX
    assert objects_after - objects < OBJECTS_MAX
    peer.give_back()
