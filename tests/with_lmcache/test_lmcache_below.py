"""LMCache, unmodified, over a pool too small for what it stores and a folder below it: everything is found again."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote

from peer import CHUNK_TOKENS, Peer
from serving import until

import maru

FULL = f"{CHUNK_TOKENS} tokens"
CHUNKS = 400
"""Of 32 KiB each: three times what a pool of 4 MiB holds."""
BATCH = 20
START_DEADLINE_S = 60


def objects_in(folder: Path) -> int:
    return sum(len(one.name) == 32 and one.name != "0" * 32 for one in folder.glob("*/*/*"))


def test_what_left_the_pool_is_found_and_retrieved_from_below(pool_name: str, tmp_path: Path) -> None:
    below = f"file://{tmp_path}?size=1GiB&write=through"
    address = f"maru:///{pool_name}?size=4MiB&slab_bytes=1MiB&gate=off&tier={quote(below, safe='')}"
    writer, reader = Peer.take(address), Peer.take(address)
    try:
        numbers = list(range(CHUNKS))
        for at in range(0, CHUNKS, BATCH):
            assert writer.put(numbers[at : at + BATCH], [CHUNK_TOKENS] * BATCH) == [True] * BATCH
            assert until(lambda stored=at + BATCH: objects_in(tmp_path) >= stored, START_DEADLINE_S)
        with maru.Pool.attach(f"maru:///{pool_name}") as pool:
            assert pool.stats()["counters"]["evicted"] > CHUNKS // 3
        found = [one for at in range(0, CHUNKS, BATCH) for one in reader.get(numbers[at : at + BATCH], how="batched")]
        assert found == [FULL] * CHUNKS
    finally:
        writer.give_back()
        reader.give_back()
