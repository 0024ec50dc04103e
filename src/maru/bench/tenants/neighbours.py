"""A tenant that asks for the same chunks again and again, beside one that bursts: what of it hits, turn by turn.

The steady tenant draws chunks of its working set by lot and stores what it misses, as an engine does. From one turn to
another its neighbour stores chunks that nobody asks for again, several times the pool each ten turns. Everything is
drawn from seeds, so that a run's hits do not depend on how fast the machine is.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from maru.bench.document import Document, Measure, Sample, System
from maru.bench.ground import Keys, bench_pool
from maru.bench.measure import Progress
from maru.key import Identity
from maru.pool import Outcome, Pool

CHUNK_BYTES = 16 * 1024
POOL_CHUNKS = 1024
SHARE = 0.5
WORKING_SET = 400
ASKED, BURST = 40, 280
"""Chunks a turn."""
TURNS = 100
BURST_TURNS = range(20, 70)
MEASURE = "steady-hits"
SYSTEMS = {"maru": "with shares: half of the pool each", "no-shares": "without shares"}


@dataclass(frozen=True)
class Story:
    """What hit in each turn, as shares of what was asked."""

    hits: list[float]
    burst_stored: int
    steady_made_way: int

    @property
    def in_burst(self) -> float:
        """Mean over the turns in which the neighbour bursts."""
        return sum(self.hits[turn] for turn in BURST_TURNS) / len(BURST_TURNS)

    @property
    def before(self) -> float:
        """Mean over the turns before it, from when the working set is there."""
        return sum(self.hits[10 : BURST_TURNS.start]) / (BURST_TURNS.start - 10)


def live_beside_a_burst(has_shares: bool, seed: int) -> Story:
    """One run in a fresh pool."""
    size = POOL_CHUNKS * CHUNK_BYTES
    with bench_pool(f"neighbours-{int(has_shares)}-{seed}", size, f"chunk_bytes={CHUNK_BYTES}") as pool:
        spaces = {
            tenant: pool.namespace(Identity(model="bench", kv_layout="bench/1", tenant=tenant))
            for tenant in ("steady", "burst")
        }
        if has_shares:
            for tenant in spaces:
                pool.set_share(tenant, int(SHARE * size))
        lot, chunk = random.Random(seed), bytes(CHUNK_BYTES)
        working_set, fresh = Keys(f"steady-{seed}").take(WORKING_SET), Keys(f"burst-{seed}")
        for key in working_set:
            pool.put(key, chunk, spaces["steady"])
        hits, stored = [], 0
        for turn in range(TURNS):
            chosen = lot.sample(working_set, ASKED)
            burst = fresh.take(BURST) if turn in BURST_TURNS else []
            each = len(burst) // ASKED
            found = 0
            for number, key in enumerate(chosen):
                found += _asked(pool, key, chunk, spaces["steady"])
                mine = burst[number * each : (number + 1) * each]
                stored += sum(pool.put(one, chunk, spaces["burst"]) is Outcome.STORED for one in mine)
            hits.append(found / ASKED)
        rows = {row["name"]: row for row in pool.stats()["tenants"]}
    return Story(hits, stored, rows["steady"]["made_way"])


def _asked(pool: Pool, key: bytes, chunk: bytes, space: object) -> bool:
    view = pool.get(key)
    if view is None:
        pool.put(key, chunk, space)  # type: ignore[arg-type]
    return view is not None


def neighbours(rounds: int, progress: Progress, *, machine: dict[str, object], is_quick: bool, taken: str) -> Document:
    """The figure, with every turn of every run."""
    samples, remarks, done = [], [], 0
    for system in SYSTEMS:
        stories = []
        for seed in range(rounds):
            story = live_beside_a_burst(system == "maru", seed)
            stories.append(story)
            samples += [Sample(MEASURE, system, float(turn), hit, seed) for turn, hit in enumerate(story.hits)]
            done += 1
            progress(done, rounds * len(SYSTEMS))
        before, during = (sum(getattr(one, name) for one in stories) / rounds for name in ("before", "in_burst"))
        remarks.append(
            f"{SYSTEMS[system]}: {before:.1%} hit before the burst, {during:.1%} during it; the neighbour stored "
            f"{sum(one.burst_stored for one in stories) // rounds} chunks."
        )
    return Document(
        figure="tenants",
        title="A tenant beside a noisy neighbour",
        question="What does a share keep of a tenant's hits while another one bursts?",
        engine="pool",
        model=f"{POOL_CHUNKS} chunks of 16 KiB",
        is_quick=is_quick,
        command="python -m maru.bench tenants",
        taken=taken,
        machine=dict(machine),
        settings={
            "share": SHARE,
            "working_set_chunks": WORKING_SET,
            "asked_a_turn": ASKED,
            "burst_chunks_a_turn": BURST,
            "burst_turns": [BURST_TURNS.start, BURST_TURNS.stop],
        },
        systems=[System(name, title) for name, title in SYSTEMS.items()],
        measures=[
            Measure(
                MEASURE,
                "The steady tenant's hits",
                "share",
                "turn",
                better="higher",
                kind="timeline",
                note=f"{ASKED} chunks a turn of a working set of {WORKING_SET}; the neighbour stores {BURST} a turn "
                f"from turn {BURST_TURNS.start} to {BURST_TURNS.stop}, in a pool of {POOL_CHUNKS}",
            )
        ],
        samples=samples,
        remarks=remarks,
    )
