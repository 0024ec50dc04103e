"""What went below, came up and was removed there stands in the pool's audit log, by namespace."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from ladder_kit import FLUSH_S, Clock

from maru.audit import Audit, AuditLog, Wanted, entries_in, verify_log
from maru.config import parse_url
from maru.native import core
from maru.testing.faulty_tier import MemoryTier
from maru.tier.codec import open_codec
from maru.tiering.generations import LOOK_AGAIN_S
from maru.tiering.noted import Notes
from maru.tiering.place import Place, Which
from maru.tiering.tiered import TieredPool
from tiering.conftest import CHUNK_BYTES, IDENTITY, PREFIX_CHUNKS, Story, are_right, keys_in, prefix_of, put
from tiering.test_remover import wait_for

BLUE = replace(IDENTITY, tenant="blue")
DIGEST = bytes(range(16))


def lines(folder: Path, what: str, door: str = "tier") -> Counter[tuple[str, str, str, str]]:
    """Chunks by (tenant, namespace, reason, bytes or chunks)."""
    found = Counter[tuple[str, str, str, str]]()
    for line in entries_in(folder, Wanted(what=what)):
        if line["door"] == door:
            where = line.get("tenant", ""), line.get("namespace", ""), line["reason"]
            found[*where, "chunks"] += line["chunks"]
            found[*where, "bytes"] += line.get("bytes", 0)
    return found


@pytest.mark.parametrize("is_encrypted", [False, True])
def test_what_goes_down_comes_up_and_is_removed_is_noted(story: Story, tmp_path: Path, is_encrypted: bool) -> None:
    log, keys = tmp_path / "audit", tmp_path / "master.keys"
    keys.write_text(f"first {os.urandom(32).hex()}\n")
    keys.chmod(0o600)
    tier = story.tier + "&write=through" + (f"&encrypt=tenant&keys=file:{keys}" if is_encrypted else "")
    with TieredPool(parse_url(f"{story.url.partition('?')[0]}?audit={log}"), [tier]) as pool:
        assert isinstance(pool, TieredPool)
        namespace = pool.namespace(BLUE)
        digest = namespace.digest.hex()
        packed = prefix_of(namespace, 1)
        put(pool, namespace, packed)
        assert pool.ladder.flush(FLUSH_S)
        for key in reversed(keys_in(packed)):
            assert core.PoolCore.remove(pool, key)
        assert are_right(pool, packed) == PREFIX_CHUNKS
        for key in reversed(keys_in(packed)):
            assert pool.remove(key)
        wait_for(pool.ladder, "removed", PREFIX_CHUNKS)
    where = "blue", digest, "file, encrypted" if is_encrypted else "file, plain"
    told = Counter({(*where, "chunks"): PREFIX_CHUNKS, (*where, "bytes"): PREFIX_CHUNKS * CHUNK_BYTES})
    assert lines(log, "exported") == told
    assert lines(log, "hit") == told
    assert lines(log, "removed") == Counter({(*where, "chunks"): PREFIX_CHUNKS, (*where, "bytes"): 0})
    assert verify_log(log).is_good


def test_what_a_bump_ended_is_noted_when_it_is_taken_away(tmp_path: Path) -> None:
    audit, clock = Audit(AuditLog(tmp_path / "audit", None), starts=False), Clock()

    async def story() -> None:
        notes = Notes(audit, "kv")
        place = Place(MemoryTier(), open_codec("none", 2), None, b"p" * 16, 10.0, clock=clock, notes=notes)
        for number in range(3):
            assert await place.store(Which(bytes([9, number] * 8), DIGEST, 0, "red"), None, memoryview(b"KV"), None)
        assert await place.settle(DIGEST, 1)
        clock.now_s += LOOK_AGAIN_S + 1
        await place.sweep_ended()

    asyncio.run(story())
    audit.flush()
    assert lines(tmp_path / "audit", "removed")["", DIGEST.hex(), "memory, plain", "chunks"] == 3


def test_where_nobody_keeps_a_log_nothing_is_noted() -> None:
    Notes().note("exported", "file, plain", DIGEST, "", 1, 1)
