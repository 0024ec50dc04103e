"""A daemon with a place below its pool: it copies down, brings up what other hosts miss, and tells of it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from serving import CHUNK_TOKENS, bytes_for, keys_of, serve_process, until

import maru
from fake_daemon import FakeFacts
from maru.client.remote import RemotePool
from maru.daemon.looks import Looks
from maru.daemon.metrics import Metrics
from maru.native import core

CHUNKS = 12
PREFIXES = 30
SIZE = 20_000
"""Thirty prefixes of twelve chunks are 7 MB; the pool has four."""


def samples_of(text: str) -> dict[frozenset[str], float]:
    return {
        frozenset((sample.name, *sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name.startswith("maru_tier")
    }


def objects_in(folder: Path) -> int:
    """Chunks that lie there; a namespace's marker is none."""
    return sum(len(one.name) == 32 and one.name != "0" * 32 for one in folder.glob("*/*/*"))


def test_another_host_finds_what_left_the_pool_when_it_asks_again(pool_url: str, tmp_path: Path) -> None:
    url = pool_url.partition("?")[0] + "?size=4MiB&slab_bytes=512KiB&gate=off"
    below = f"file://{tmp_path}?size=1GiB&write=through"
    with (
        serve_process(url, "--tier", below) as served,
        maru.connect(served.address, mode="wire") as far,
    ):
        assert isinstance(far, RemotePool)
        namespace = far.namespace(maru.Identity(model="m", kv_layout="tiers"))
        stored = 0
        for prefix in range(PREFIXES):
            packed = keys_of(namespace, CHUNKS, prefix * CHUNKS * CHUNK_TOKENS)
            outcomes = far.put_many(packed, [bytes_for(prefix + n, SIZE) for n in range(CHUNKS)], namespace)
            stored += outcomes.count(maru.Outcome.STORED)
            assert until(lambda wanted=stored: objects_in(tmp_path) >= wanted)
        assert stored == PREFIXES * CHUNKS
        first = keys_of(namespace, CHUNKS)
        with maru.Pool.attach(url) as pool:
            assert core.PoolCore.lookup(pool, first) < CHUNKS
        assert until(lambda: far.lookup(first) == CHUNKS)
        with far.pin(first) as found:
            landing = bytearray(SIZE)
            for number in range(CHUNKS):
                found.read_into(number, landing)
                assert landing == bytes_for(number, SIZE)
        with urllib.request.urlopen(f"{served.http}/metrics", timeout=10) as answer:
            samples = samples_of(answer.read().decode())
    shown = f"file://{tmp_path}?size=1GiB&write=through"
    for wanted, *words in (
        (1, "state", shown, "up"), (stored, "chunks_total", shown, "in"), (stored * SIZE, "bytes_total", shown, "in"),
        (1, "demoter"), (0, "dropped_chunks_total"),
    ):  # fmt: skip
        assert samples[frozenset(("maru_tier_" + words[0], *words[1:]))] == wanted, words
    assert samples[frozenset(("maru_tier_chunks_total", shown, "out"))] >= 1


def test_an_operator_brings_a_prefix_up_before_an_engine_asks(pool_url: str, tmp_path: Path) -> None:
    url = pool_url.partition("?")[0] + "?size=4MiB&slab_bytes=512KiB&gate=off"
    below = f"file://{tmp_path}?size=1GiB&write=through"
    with serve_process(url, "--tier", below) as served, maru.Pool.attach(url) as pool:
        namespace = pool.namespace(maru.Identity(model="m", kv_layout="tiers"))
        for prefix in range(PREFIXES):
            packed = keys_of(namespace, CHUNKS, prefix * CHUNKS * CHUNK_TOKENS)
            pool.put_many(packed, [bytes_for(prefix + n, SIZE) for n in range(CHUNKS)], namespace=namespace)
            assert until(lambda wanted=(prefix + 1) * CHUNKS: objects_in(tmp_path) >= wanted)
        first = keys_of(namespace, CHUNKS)
        assert pool.lookup(first) < CHUNKS
        digest = next(row["digest"] for row in pool.stats()["namespaces"] if int(row["digest"], 16))
        door = f"{served.http}/v1/pools/{pool.config.name}/promotions"
        asked = tell(door, {"namespace": digest, "keys": first.hex()})
        assert asked["chunks"] == CHUNKS
        assert asked["were_here"] < CHUNKS
        assert until(lambda: tell(door)["promotions"][0]["state"] == "done")
        assert tell(door)["promotions"] == [{**tell(door)["promotions"][0], "id": asked["id"], "are_here": CHUNKS}]
        with pool.pin(first) as prefix:
            assert [bytes(view) for view in prefix.views] == [bytes_for(n, SIZE) for n in range(CHUNKS)]


def tell(url: str, body: dict[str, str] | None = None) -> dict[str, Any]:
    """Ask the admin API, and read its answer."""
    request = urllib.request.Request(
        url, None if body is None else json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return dict(json.loads(answer.read()))


def test_a_daemon_without_places_tells_of_none() -> None:
    facts = FakeFacts()
    assert samples_of(Metrics(facts, Looks(facts)).text().decode()) == {}


@pytest.mark.parametrize(
    ("url", "word"), [("ftp://host/x", "file"), ("file:///tmp?size=lots", "lots"), ("s3://b?unknown=1", "unknown")]
)
def test_a_bad_url_is_refused_before_anything_is_served(pool_url: str, url: str, word: str) -> None:
    command = [sys.executable, "-m", "maru", "serve", pool_url, "--tier", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert word in done.stderr
