"""`python -m maru.bench.fragmentation`: a month of models that come and go, each with its chunk size, in one pool.

Every day three of six sizes are served, in a mix that is drawn anew; yesterday's chunks are cold and have to make room.
Told for each day: how much of the pool holds chunks, how often a slab was cut anew, and how long `reserve` took. Beside
each of them `exists` is timed, which does nothing worth the name: its slowest is what the machine did to us.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from maru.bench.ground import MIB, Keys, TooSmall, bench_pool
from maru.bench.measure import no_garbage_collection, quantile
from maru.bench.report import console
from maru.config import format_size
from maru.pool import Outcome, Pool

CHUNK_BYTES = (36 << 10, 64 << 10, 256 << 10, 300_000, 1 << 20, 2_500_000)
SERVED_A_DAY = 3
DEFAULT_JSON = Path("bench-results") / "fragmentation.json"
OCCUPIED_MIN, SLOWEST_BY_MEDIAN_MAX = 0.95, 10.0
"""What a month should show: the mean of the days, and its slowest reservation by its median."""


@dataclass(frozen=True)
class Day:
    """One day, as it ended."""

    chunk_bytes: list[int]
    occupied: float
    """Share of the pool's memory that chunks hold, in whole units."""
    slabs_cut_anew: int
    median_s: float
    p99_s: float
    slowest_s: float
    p99_by_median: float
    """The worst of the day's chunk sizes, each by its own median."""
    machine_p99_s: float
    machine_slowest_s: float
    """Of as many calls of `exists`."""


def month(size_bytes: int, turns: float, days: int, seed: int) -> list[Day]:
    """Serve `days` days, `turns` pools' worth of bytes a day."""
    dice = random.Random(seed)
    told = []
    with bench_pool("month", size_bytes, "chunk_bytes=64KiB&processes=8&gate=off") as pool:
        for _ in range(days):
            served = dice.sample(CHUNK_BYTES, SERVED_A_DAY)
            shares = [dice.random() + 0.1 for _ in served]
            before = int(pool.stats()["counters"]["reclassed"])
            with no_garbage_collection():
                by_size, idle = _serve(pool, dice, served, shares, int(turns * size_bytes))
            seconds = [one for sizes in by_size.values() for one in sizes]
            figures = pool.stats()
            told.append(
                Day(
                    served, int(figures["used_bytes"]) / int(figures["size_bytes"]),
                    int(figures["counters"]["reclassed"]) - before,
                    statistics.median(seconds), quantile(seconds, 0.99), max(seconds),
                    max(quantile(one, 0.99) / statistics.median(one) for one in by_size.values()),
                    quantile(idle, 0.99), max(idle),
                )
            )  # fmt: skip
    return told


def _serve(
    pool: Pool, dice: random.Random, served: list[int], shares: list[float], wanted_bytes: int
) -> tuple[dict[int, list[float]], list[float]]:
    """Seconds of each reservation, by chunk size, and of as many calls that do nothing."""
    keys, stored = Keys(f"day {dice.random()}"), 0
    recent: list[bytes] = []
    seconds: dict[int, list[float]] = {size: [] for size in served}
    idle: list[float] = []
    while stored < wanted_bytes:
        (size,) = dice.choices(served, shares)
        key = keys.packed(1)
        start = time.perf_counter_ns()
        reservation = pool.reserve(key, size)
        end = time.perf_counter_ns()
        pool.exists(key)
        idle.append((time.perf_counter_ns() - end) * 1e-9)
        seconds[size].append((end - start) * 1e-9)
        if reservation.outcome is not Outcome.RESERVED or reservation.seal() is not Outcome.STORED:
            raise RuntimeError(f"a chunk of {size} bytes was not stored: {reservation.outcome.name}")
        stored += size
        recent = [*recent[-299:], key]
        if dice.random() < 0.3:
            pool.get(dice.choice(recent))
    return seconds, idle


def table(days: list[Day]) -> Table:
    out = Table(box=None, header_style="dim")
    for name in (
        "day",
        "chunk sizes",
        "occupied",
        "slabs cut anew",
        "reserve: median",
        "p99",
        "slowest",
        "by median",
        "machine",
    ):
        out.add_column(name, justify="right", no_wrap=True)
    for number, day in enumerate(days, 1):
        sizes = ", ".join(format_size(size) for size in sorted(day.chunk_bytes))
        times = [f"{seconds * 1e6:.1f} µs" for seconds in (day.median_s, day.p99_s, day.slowest_s)]
        times += [f"{day.p99_by_median:.1f} ×", f"{day.machine_slowest_s * 1e6:.1f} µs"]
        out.add_row(str(number), sizes, f"{day.occupied:.1%}", str(day.slabs_cut_anew), *times)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maru.bench.fragmentation", description=__doc__.split("\n", 1)[0])
    parser.add_argument("--days", type=int, default=30)
    parser.add_argument("--turns", type=float, default=2.0, help="pools' worth of bytes stored a day (default 2)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    options = parser.parse_args()
    out = console()
    try:
        with Progress(console=out, transient=True) as progress:
            progress.add_task("a month", total=None)
            days = month(512 * MIB, options.turns, options.days, options.seed)
    except TooSmall as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")
    out.print(table(days))
    occupied = statistics.fmean(day.occupied for day in days)
    slowest = statistics.median(day.slowest_s for day in days)
    machine = statistics.median(day.machine_slowest_s for day in days)
    p99 = statistics.median(day.p99_by_median for day in days)
    out.print(f"\noccupied, mean of the days: {occupied:.1%} (wanted: at least {OCCUPIED_MIN:.0%})", markup=False)
    out.print(
        f"99 of 100 reservations of one size by their median: {p99:.1f} × (median of the days; wanted for the slowest: "
        f"{SLOWEST_BY_MEDIAN_MAX:.0f} ×)\n"
        f"slowest reservation of a day: {slowest * 1e6:.0f} µs; slowest of as many calls that do nothing: "
        f"{machine * 1e6:.0f} µs",
        markup=False,
    )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"seed": options.seed, "days": [asdict(day) for day in days]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
