"""`python -m maru.bench.tenants_apart`: can a daemon's client tell another tenant's chunk by the time of an answer?

Red stores chunks; blue, of another tenant, may not map and asks about them, and about keys that nobody has, one
question after the other, in an order that is drawn anew each round. Told: in how many rounds the answer about red's key
took longer than that about nobody's. A half is what a client gets that throws a coin; how far chance alone leads away
from it is told by two keys that nobody has.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from maru.bench.daemons import serving, why_no_daemon
from maru.bench.ground import MIB, TooSmall, bench_pool
from maru.bench.measure import no_garbage_collection
from maru.bench.report import console
from maru.client import connect
from maru.client.remote import RemotePool
from maru.credentials import generate_client, generate_server
from maru.key import Identity

CHUNKS = 64
CHUNK_BYTES = 16 << 10
Call = Callable[[bytes], object]


def client(address: str, folder: Path, tenant: str) -> RemotePool:
    """A client of that tenant over the wire, let in by a key of its own."""
    _, key = generate_client(folder, tenant, tenant)
    found = connect(address, mode="wire", key=str(key))
    assert isinstance(found, RemotePool)
    return found


def seconds(call: Call, asked: list[bytes], rounds: int, dice: random.Random) -> list[list[float]]:
    """For each of `asked` (packed keys, n x 16 bytes) the time of every round's call with it."""
    times: list[list[float]] = [[] for _ in asked]
    order = list(range(len(asked)))
    with no_garbage_collection():
        for _ in range(rounds):
            dice.shuffle(order)
            for number in order:
                before = time.perf_counter()
                call(asked[number])
                times[number].append(time.perf_counter() - before)
    return times


def share_longer(one: list[float], other: list[float]) -> float:
    """In which share of the rounds `one` took longer."""
    return sum(a > b for a, b in zip(one, other, strict=True)) / len(one)


def table(rounds: int, seed: int) -> Table:
    """Measure, and show a line for each kind of question. Raises TooSmall, RuntimeError for no daemon."""
    dice = random.Random(seed)
    chance = 2 * math.sqrt(0.25 / rounds)
    out = Table("asked by another tenant", "red's, median", "nobody's", "red's took longer", "of two of nobody's, one")
    out.caption = (
        f"{rounds} rounds; chance alone stays within {0.5 - chance:.3f} and {0.5 + chance:.3f} 95 times of 100"
    )
    with bench_pool("apart", 64 * MIB, "processes=8") as pool, tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "keys"
        generate_server(folder)
        with (
            serving(pool.config.url, keys=folder) as address,
            client(address, folder, "red") as red,
            client(address, folder, "blue") as blue,
        ):
            space = red.namespace(Identity(model="bench", kv_layout="apart", tenant="red"))
            blue.namespace(Identity(model="bench", kv_layout="apart", tenant="blue"))
            keys = os.urandom(16 * CHUNKS)
            red.put_many(keys, [os.urandom(CHUNK_BYTES) for _ in range(CHUNKS)], space)
            assert red.lookup(keys) == CHUNKS
            asked = [keys, os.urandom(len(keys)), os.urandom(len(keys))]
            questions: list[tuple[str, Call, list[bytes]]] = [
                ("exists, one key", blue.exists, [packed[:16] for packed in asked]),
                (f"lookup, {CHUNKS} keys", blue.lookup, asked),
                (f"find, {CHUNKS} keys", blue.find, asked),
                ("get, one key", blue.get, [packed[:16] for packed in asked]),
            ]
            for name, call, packed in questions:
                reds, nobodys, control = seconds(call, packed, rounds, dice)
                medians = [f"{statistics.median(times) * 1e6:.1f} µs" for times in (reds, nobodys)]
                shares = [f"{share_longer(one, nobodys):.3f}" for one in (reds, control)]
                out.add_row(name, *medians, *shares)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maru.bench.tenants_apart", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--rounds", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    if why_not := why_no_daemon():
        sys.exit(why_not)
    try:
        console().print(table(options.rounds, options.seed))
    except (TooSmall, RuntimeError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")


if __name__ == "__main__":
    main()
