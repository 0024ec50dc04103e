"""`python -m maru.bench.hit_rates`: prompt tokens that a pool smaller than its traffic saves, on traces of requests.

Each trace is served by a real pool (pin what is there, store what is missing, one request after the other), at several
capacities, and beside it by simulated LRU, S3-FIFO and the exact optimum. Every hit's last chunk is compared with what
was stored under its name. Figures are shares of the optimum's, so that traces of any kind can be compared.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.progress import Progress
from rich.table import Table

from maru.bench.prefix_trace import BadTrace, PrefixTrace, Saved, Tally, read_trace
from maru.bench.report import console
from maru.bench.simulated import POLICIES
from maru.errors import PoolNotFound
from maru.native import core
from maru.pool import Outcome, Pool

CAPACITIES = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
QUICK_CAPACITIES = (0.1, 0.4)
TRACES = Path(__file__).parent / "traces"
DEFAULT_JSON = Path("bench-results") / "hit-rates.json"
GROUPS = {
    "sessions": ("bfcl8", "bfcl32", "bfcllong32", "aiperf8"),
    "mixes": ("rag", "scanmix", "tenants"),
    "loops": ("ctx_rr", "phases"),
}
"""What kind of traffic the traces that we know are; the others stand apart."""
TARGETS = {"sessions": 0.91, "mixes": 0.98, "loops": 0.94}
LOOKS_MAX = 16.0

UNIT_BYTES = 4096
_POOL_BYTES_MIN = 1 << 20
_SLAB_BYTES = 1 << 16


@dataclass(frozen=True)
class Replayed:
    """One trace through one pool."""

    saved: Saved
    stored: int
    refused: int
    evicted: int
    looks_per_eviction: float
    orphaning: int
    """Evictions of a chunk that others continued."""


@dataclass(frozen=True)
class Line:
    """One trace at one capacity."""

    trace: str
    share: float
    """Capacity as a share of the different chunks in the trace."""
    capacity: int
    gated: Replayed
    plain: Replayed
    """The same with `gate=off`."""
    simulated: dict[str, Saved]


class WrongBytes(RuntimeError):
    """A hit gave other bytes than were stored under its key."""


def replay(trace: PrefixTrace, capacity: int, *, gate: bool = True) -> Replayed:
    """Serve the trace with a pool that has room for exactly `capacity` chunks. Raises WrongBytes."""
    size_bytes = max(_POOL_BYTES_MIN, -(-capacity * UNIT_BYTES // _SLAB_BYTES) * _SLAB_BYTES)
    url = (
        f"maru:///hit-rates-{os.getpid()}?size={size_bytes}&slab_bytes={_SLAB_BYTES}&chunk_bytes={UNIT_BYTES}&processes=8"
        f"&gate={'on' if gate else 'off'}"
    )
    try:
        with Pool.create(url) as pool:
            spare = int(pool.stats()["size_bytes"]) // UNIT_BYTES - capacity
            drafts = [pool.allocate(UNIT_BYTES) for _ in range(spare)]  # Held to the end: nobody else's room.
            result = _serve(trace, pool)
            del drafts
            return result
    finally:
        with suppress(PoolNotFound):
            Pool.destroy(url, force=True)


def _serve(trace: PrefixTrace, pool: Pool) -> Replayed:
    names = [number.to_bytes(8, "little") for number in range(trace.chunk_count)]
    keys = [core.blake3(name, 16) for name in names]
    tally = Tally(trace)
    stored = refused = 0
    for chain in trace.requests:
        packed = b"".join([keys[chunk] for chunk in chain])
        with pool.pin(packed) as found:
            hits = len(found)
            tally.hit(hits)
            if hits and bytes(found.views[hits - 1]) != names[chain[hits - 1]]:
                raise WrongBytes(f"{trace.name}: chunk {chain[hits - 1]} holds {bytes(found.views[hits - 1])!r}")
            if hits < len(chain):
                outcomes = pool.put_many(
                    packed[16 * hits :], [names[chunk] for chunk in chain[hits:]],
                    parent=keys[chain[hits - 1]] if hits else None,
                )  # fmt: skip
                stored += outcomes.count(Outcome.STORED)
                refused += outcomes.count(Outcome.FULL)
    figures = pool.stats()
    counters, eviction = figures["counters"], figures["eviction"]
    return Replayed(
        tally.saved(), stored, refused, int(counters["evicted"]),
        float(eviction["slots_looked_at"]) / max(1, int(eviction["victims"])), int(counters["evicted_parents"]),
    )  # fmt: skip


def lines_of(trace: PrefixTrace, shares: tuple[float, ...]) -> Iterator[Line]:
    """Every capacity of one trace."""
    for share in shares:
        capacity = max(1, int(share * trace.chunk_count + 0.5))
        yield Line(
            trace.name, share, capacity, replay(trace, capacity), replay(trace, capacity, gate=False),
            {name: policy(trace, capacity) for name, policy in POLICIES.items()},
        )  # fmt: skip


def share_of_optimum(lines: list[Line], policy: str) -> float | None:
    """Mean over the lines of a policy's token hits by the optimum's; None where the optimum has none."""
    ratios = []
    for line in lines:
        best = line.simulated["optimum"].tokens
        if best > 0:
            ratios.append(_saved(line, policy).tokens / best)
    return statistics.fmean(ratios) if ratios else None


def _saved(line: Line, policy: str) -> Saved:
    if policy == "Maru":
        return line.gated.saved
    return line.plain.saved if policy == "Maru, gate off" else line.simulated[policy]


_COLUMNS = ("Maru", "Maru, gate off", "LRU", "S3-FIFO")


def table(lines: list[Line]) -> Table:
    """Traces, then groups, against the optimum."""
    out = Table(
        box=None, header_style="dim", title="token hits, as a share of the exact optimum's", title_justify="left"
    )
    out.add_column("trace", no_wrap=True)
    for name in (*_COLUMNS, "optimum hits", "prefill saved", "slots per eviction", "target", "met"):
        out.add_column(name, justify="right")
    by_trace: dict[str, list[Line]] = {}
    for line in lines:
        by_trace.setdefault(line.trace, []).append(line)
    for trace, some in by_trace.items():
        out.add_row(trace, *_cells(some), "", "")
    for group, members in GROUPS.items():
        some = [line for line in lines if line.trace in members]
        if not some:
            continue
        ours = share_of_optimum(some, "Maru") or 0.0
        whole = all(name in by_trace for name in members)
        met = ("yes" if ours >= TARGETS[group] else "[bold red]no[/bold red]") if whole else "not all traces"
        out.add_row(f"[bold]{group}[/bold]", *_cells(some), f"≥ {TARGETS[group]}", met)
    return out


def _cells(lines: list[Line]) -> list[str]:
    shares = [share_of_optimum(lines, policy) for policy in _COLUMNS]
    evicted = sum(line.gated.evicted for line in lines)
    looks = sum(line.gated.looks_per_eviction * line.gated.evicted for line in lines) / max(1, evicted)
    return [
        *("-" if share is None else f"{share:.3f}" for share in shares),
        f"{statistics.fmean(line.simulated['optimum'].tokens for line in lines):.1%}",
        f"{statistics.fmean(line.gated.saved.prefill for line in lines):.1%}",
        f"{looks:.1f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m maru.bench.hit_rates", description=__doc__.split("\n", 1)[0])
    parser.add_argument("traces", nargs="*", type=Path, default=[TRACES], help="files or folders of .pct[.xz]")
    parser.add_argument("--chunk-tokens", type=int, default=256, help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="two capacities instead of six")
    parser.add_argument("--json", type=Path, default=DEFAULT_JSON, metavar="PATH", help="default: %(default)s")
    options = parser.parse_args()
    files = [file for place in options.traces for file in (sorted(place.glob("*.pct*")) if place.is_dir() else [place])]
    if not files:
        sys.exit(f"no traces (.pct, .pct.xz) in {', '.join(map(str, options.traces))}")
    begun = time.monotonic()
    shares = QUICK_CAPACITIES if options.quick else CAPACITIES
    lines: list[Line] = []
    out = console()
    try:
        with Progress(console=out, transient=True) as progress:
            task = progress.add_task("replaying", total=len(files) * len(shares))
            for file in files:
                for line in lines_of(read_trace(file, options.chunk_tokens), shares):
                    lines.append(line)
                    progress.update(task, advance=1, description=f"{line.trace} at {line.share:.0%}")
    except (BadTrace, OSError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        sys.exit("interrupted; nothing was left behind")
    out.print(table(lines))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    document = {"chunk_tokens": options.chunk_tokens, "lines": [asdict(line) for line in lines]}
    options.json.write_text(json.dumps(document, indent=1) + "\n")
    out.print(f"\n{time.monotonic() - begun:.0f} s; every figure: {options.json}", markup=False)


if __name__ == "__main__":
    main()
