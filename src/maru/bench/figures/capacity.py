"""Hit rate against pool size, on traces of requests: our eviction beside LRU, S3-FIFO and the exact offline optimum.

Ours is the real pool, with its gate and without; the others are simulated. The optimum knows the future: nothing can do
better. `make hit-rates` shows the same as a table of shares of the optimum.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

from maru.bench.document import Measure, System
from maru.bench.figures.base import Figure, Knob, Step
from maru.bench.hit_rates import CAPACITIES, TRACES, lines_of
from maru.bench.prefix_trace import BadTrace, PrefixTrace, read_trace
from maru.bench.session import BadSetting, Session
from maru.bench.systems.models import model_named

OURS = ("maru", "gate-off")
SYSTEMS = (
    System("maru", "Maru", "the real pool, as it is by default"),
    System("gate-off", "Maru, gate off", "the real pool with gate=off"),
    System("lru", "LRU", "simulated: the least recently used chunk goes"),
    System("s3-fifo", "S3-FIFO", "simulated, after Yang et al., SOSP 2023"),
    System("optimum", "optimum", "simulated with the future known"),
)
_SIMULATED = {"lru": "LRU", "s3-fifo": "S3-FIFO", "optimum": "optimum"}


class Capacity(Figure):
    name = "capacity"
    title = "Hit rate by pool size"
    question = "How large must the pool be for this traffic, and how much does the eviction policy matter?"
    engines = ()
    knobs = (
        Knob("traces", "", "", "folder or file of .pct[.xz] traces; without it the ones that come with Maru"),
        Knob("only", (), ("bfcl8", "rag", "ctx_rr"), "names of traces; without any, all"),
        Knob("shares", CAPACITIES, (0.1, 0.4), "pool sizes, as shares of what the trace's chunks take together"),
        Knob("chunk_tokens", 256, 256, "tokens a chunk"),
        Knob("sized_as", "Llama-3.1-8B", "Llama-3.1-8B", "the model whose KV the pool's size is told in"),
    )

    def measures(self, run: Session) -> list[Measure]:
        return [
            Measure(
                trace.name, f"{trace.name}: prompt tokens that hit", "share", "pool size",
                f"GB of {run.setting('sized_as')}'s KV", better="higher", log_x=True,
            )
            for trace in traces_of(run)
        ]  # fmt: skip

    def perform(self, run: Session) -> None:
        run.compares(SYSTEMS)
        run.perform(
            [
                Step(f"{trace.name} at {share:.0%}", "", partial(_one, run, trace, share))
                for trace in traces_of(run)
                for share in run.setting("shares")
            ]
        )


def traces_of(run: Session) -> list[PrefixTrace]:
    """Raises BadSetting."""
    place = Path(run.setting("traces")) if run.setting("traces") else TRACES
    files = sorted(place.glob("*.pct*")) if place.is_dir() else [place]
    wanted: Sequence[str] = run.setting("only")
    names = {file.name.split(".")[0]: file for file in files}
    if not files or set(wanted) - set(names):
        raise BadSetting(f"no such trace in {place}: {', '.join(sorted(set(wanted) - set(names))) or '*.pct'}")
    try:
        return [read_trace(names[name], run.setting("chunk_tokens")) for name in (wanted or names)]
    except (BadTrace, OSError) as error:
        raise BadSetting(str(error)) from error


def size_gb(run: Session, trace: PrefixTrace, share: float) -> float:
    """What so much of a trace's chunks takes, in 10^9 bytes."""
    token_bytes = model_named(run.setting("sized_as")).token_bytes
    return share * trace.chunk_count * trace.chunk_tokens * token_bytes / 1e9


def _one(run: Session, trace: PrefixTrace, share: float) -> None:
    (line,) = lines_of(trace, (share,))
    x = round(size_gb(run, trace, share), 3)
    run.note(trace.name, "maru", x, line.gated.saved.tokens)
    run.note(trace.name, "gate-off", x, line.plain.saved.tokens)
    for name, simulated in _SIMULATED.items():
        run.note(trace.name, name, x, line.simulated[simulated].tokens)
    run.count(trace.references, 0)  # A hit with other bytes than were stored would have ended the replay.


FIGURE = Capacity()
