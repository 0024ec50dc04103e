"""Does the time of an answer tell whether another tenant has a key? Asked over RPC, with two keys of `maru keys`.

Absent keys and keys that the other tenant has stored are asked for in an order drawn by lot. Beside them stand two
comparisons that say what the figures mean: absent keys against absent keys, where nothing can differ, and against keys
of one's own, which differ by right.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maru.bench.daemons import serving
from maru.bench.ground import MIB, Keys, bench_pool
from maru.bench.measure import Progress, no_garbage_collection
from maru.bench.tenants.rank_sums import guessed_right, rank_sums
from maru.client import connect
from maru.key import Identity
from maru.pool import Outcome

if TYPE_CHECKING:
    from maru.client.remote import RemotePool

STORED = 512
CHUNK_BYTES = 8 * 1024
REPEATS = 512
"""How often one question names its key: what one look tells is said so many times as loud."""
KINDS = {
    "absent, again": "keys that nobody has",
    "another's": "keys that the other tenant has stored",
    "own": "keys that the asking tenant has stored",
}
_ABSENT = "absent"


def timing(samples: int, progress: Progress) -> dict[str, Any]:
    """`samples` of each kind, by lookup, by pin, and by a find that names its key again and again.

    Raises RuntimeError when an answer is wrong.
    """
    from maru.client.remote import RemotePool
    from maru.credentials import generate_client, generate_server

    with tempfile.TemporaryDirectory(prefix="maru-bench-tenants-") as place, ExitStack() as stack:
        folder = Path(place) / "keys"
        generate_server(folder)
        paths = {tenant: generate_client(folder, tenant, tenant)[1] for tenant in ("red", "blue")}
        pool = stack.enter_context(bench_pool("timing", 64 * MIB, f"chunk_bytes={CHUNK_BYTES}"))
        address = stack.enter_context(serving(pool.config.url.partition("?")[0], keys=folder))
        clients: dict[str, RemotePool] = {}
        stored: dict[str, list[bytes]] = {}
        for tenant, path in paths.items():
            client = stack.enter_context(connect(address, mode="wire", key=str(path)))
            assert isinstance(client, RemotePool)
            space = client.namespace(Identity(model="bench", kv_layout="bench/1", tenant=tenant))
            stored[tenant] = Keys(f"timing-{tenant}").take(STORED)
            for key in stored[tenant]:
                if client.put(key, bytes(CHUNK_BYTES), space) is not Outcome.STORED:
                    raise RuntimeError("a chunk was not stored")
            clients[tenant] = client
        asking = clients["blue"]
        keys = {
            _ABSENT: Keys("timing-absent").take(STORED),
            "absent, again": Keys("timing-absent-again").take(STORED),
            "another's": stored["red"],
            "own": stored["blue"],
        }
        ways: dict[str, Callable[[bytes], int]] = {
            "lookup": asking.lookup,
            "pin": lambda key: _pinned(asking, key),
            f"find, {REPEATS} times the key": lambda key: int(any(asking.find(key * REPEATS))),
        }
        return {
            way: _compared(_taken(ask, keys, samples, number, len(ways), progress))
            for number, (way, ask) in enumerate(ways.items())
        }


def _pinned(client: RemotePool, key: bytes) -> int:
    with client.pin(key) as prefix:
        return len(prefix)


def _taken(
    ask: Callable[[bytes], int],
    keys: dict[str, list[bytes]],
    samples: int,
    way: int,
    ways: int,
    progress: Progress,
) -> dict[str, list[float]]:
    lot = random.Random(way)
    seconds: dict[str, list[float]] = {kind: [] for kind in keys}
    clock = time.perf_counter_ns
    with no_garbage_collection():
        for done in range(-50, samples):
            for kind in lot.sample(list(keys), len(keys)):
                key = lot.choice(keys[kind])
                begun = clock()
                found = ask(key)
                taken_ns = clock() - begun
                if found != (kind == "own"):
                    raise RuntimeError(f"{found} chunks found of a key that is {kind}")
                if done >= 0:  # The first ones warm up.
                    seconds[kind].append(taken_ns * 1e-9)
            if done % 100 == 99:
                progress(way * samples + done + 1, ways * samples)
    return seconds


def _compared(seconds: dict[str, list[float]]) -> dict[str, Any]:
    absent = seconds[_ABSENT]
    told: dict[str, Any] = {"median_absent_s": statistics.median(absent), "samples": len(absent), "against": {}}
    for kind in KINDS:
        found = rank_sums(seconds[kind], absent)
        told["against"][kind] = {
            "median_s": statistics.median(seconds[kind]),
            "u": found.u,
            "larger_share": found.larger_share,
            "z": found.z,
            "p": found.p,
            "guessed_right": guessed_right(absent, seconds[kind]),
        }
    told["seconds"] = seconds
    return told
