"""Documents like those that `maru bench` writes, of every kind, with made-up samples that are the same in every run."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from random import Random
from typing import Any

from maru.bench.document import Checks, Disturbance, Document, Measure, Place, Sample, System

MACHINE = {
    "cpu": "AMD EPYC 7B13 64-Core Processor", "cores": 16, "cores_usable": 16, "virtual_machine": True,
    "last_level_cache_bytes": 32 << 20, "memory_bytes": 64 << 30, "kernel": "Linux 6.8.0-45-generic x86_64",
    "python": "CPython 3.12.7", "numpy": "2.3.1", "maru": "0.1.0", "load_average": [0.21, 0.2, 0.1],
    "pool": {"medium": "shm", "filesystem": "tmpfs at /dev/shm"},
}  # fmt: skip
COMMIT = "9290334c1d3e5a7b9f02468ace13579bdf024681"
TITLES = {
    "maru": "Maru", "recompute": "recompute", "prefix-cache": "own prefix cache", "server": "metadata server",
    "lmdb": "LMDB", "ray": "Ray", "mooncake": "Mooncake, standalone", "mooncake-embedded": "Mooncake, embedded",
    "gate-off": "Maru, gate off", "lru": "LRU", "s3-fifo": "S3-FIFO", "optimum": "offline optimum",
    "mp": "LMCache MP", "offloading": "vLLM offloading", "files": "files", "redis": "Redis", "nixl": "NIXL",
    "local-cpu": "LMCache, local CPU", "maru-lmcache": "LMCache on Maru", "p2p": "LMCache P2P", "dax": "LMCache DAX",
}  # fmt: skip

Value = Callable[[str, Place], float]
"""What a system's typical sample at a place is."""


def systems(*names: str) -> list[System]:
    return [System(name, TITLES.get(name, name), f"{name}, as its documentation says", "1.2.3") for name in names]


def samples(
    measure: str, names: Sequence[str], places: Sequence[Place], value: Value, rounds: int = 5, limit: float = math.inf
) -> list[Sample]:
    """So many rounds round the typical value, none above the limit; one in thirty is twice that."""
    random = Random(f"{measure} {names}")

    def one(typical: float) -> float:
        return min(limit, typical * math.exp(random.gauss(0.0, 0.06)) * (2.0 if random.random() < 0.03 else 1.0))

    return [
        Sample(measure, name, place, one(value(name, place)), number)
        for number in range(rounds) for place in places for name in names
    ]  # fmt: skip


def constant(value: float) -> Value:
    return lambda _system, _x: value


def document(figure: str, title: str, question: str, **more: Any) -> Document:
    """One with the machine, versions and a contention record; `more` are fields of Document."""
    fields: dict[str, Any] = {
        "engine": "synthetic", "model": "Llama-3.1-8B", "is_quick": False, "command": f"maru bench {figure}",
        "taken": "2026-03-04T05:06:07+00:00", "seconds": 312.4, "machine": MACHINE,
        "versions": {"maru": "0.1.0", "commit": COMMIT, "numpy": "2.3.1"},
        "settings": {"rounds": 5, "chunk_tokens": 256, "contexts": [], "quick": False},
        "checks": Checks(1240, 0, "chunks, every byte of each"),
        "disturbances": [Disturbance(f"step {number}", 2.5, 0.01 * number, 0.0) for number in range(12)],
    }  # fmt: skip
    return Document(figure=figure, title=title, question=question, **{**fields, **more})


def ttft() -> Document:
    names, places = ("maru", "server", "lmdb", "mooncake", "mooncake-embedded"), (1024.0, 2048.0, 4096.0, 7936.0)
    cost = {"maru": 1.0, "server": 1.3, "lmdb": 1.9, "mooncake": 2.4, "mooncake-embedded": 4.8}
    notes = {
        "store": ("Storing", "all of the context's KV, chunk by chunk", 40e-6),
        "warmup": ("First transfer", "another process than the one that stored it asks for it the first time", 24e-6),
        "query": ("Reuse", "the same process asks again", 19e-6),
    }
    measures = [
        Measure(name, title, "s", "context", "tokens", log_x=True, log_y=True, note=note)
        for name, (title, note, _) in notes.items()
    ]
    found = [
        sample
        for name, (_, _, each) in notes.items()
        for sample in samples(name, names, places, lambda system, x, each=each: 2e-3 + each * cost[system] * float(x))
    ]
    absent = System("ray", "Ray", "object store of Ray core", absent="needs ray: maru bench install ray")
    return document(
        "ttft", "Time to first token by context length",
        "How long does a user wait for the first token of a prompt whose beginning has been seen before?",
        measures=measures, samples=found, systems=[*systems(*names), absent],
    )  # fmt: skip


def tiers() -> Document:
    names, media = ("maru", "recompute", "files"), ("shared memory", "NVMe", "object store")
    speed = {"maru": 14.0, "recompute": 0.4, "files": 3.1}
    slow = {"shared memory": 1.0, "NVMe": 0.35, "object store": 0.06}
    measures = [
        Measure("bandwidth", "Bytes a second into the engine", "GB/s", "medium", better="higher", kind="bars"),
        Measure("wait", "Time to first token", "s", "medium", kind="bars", log_y=True),
    ]
    found = [
        *samples("bandwidth", names, media, lambda system, x: speed[system] * slow[str(x)]),
        *samples("wait", names, media, lambda system, x: 0.4 / speed[system] / slow[str(x)]),
    ]
    return document(
        "tiers", "What each medium gives", "How much slower is a hit that comes from a slower medium?",
        measures=measures, samples=found, systems=systems(*names), engine="transformers", model="SmolLM2-135M",
    )  # fmt: skip


def workloads() -> Document:
    names = ("maru", "prefix-cache", "recompute")
    kinds = (
        "chat, many turns", "retrieval with shared documents", "agents with long tool definitions", "code completion",
        "few-shot classification", "summaries of reports", "batch extraction", "tree of thoughts", "voice", "mixed",
    )  # fmt: skip
    cost = {"maru": 0.11, "prefix-cache": 0.24, "recompute": 0.9}
    measures = [
        Measure("ttft", "Time to first token", "s", "workload", kind="bars", note="of the median request"),
        Measure("hits", "Prompt tokens that came from the cache", "share", "workload", better="higher", kind="bars"),
        Measure("rate", "Served", "requests/s", "workload", better="higher", kind="bars"),
    ]
    size = {kind: 1.0 + 0.4 * number for number, kind in enumerate(kinds)}
    share = {"maru": 0.9, "prefix-cache": 0.5, "recompute": 0.0}
    found = [
        *samples("ttft", names, kinds, lambda system, x: cost[system] * size[str(x)]),
        *samples("hits", names, kinds, lambda system, x: share[system] * (0.5 + 0.05 * size[str(x)]), limit=0.97),
        *samples("rate", names, kinds, lambda system, x: 3.0 / cost[system] / size[str(x)]),
    ]
    return document(
        "workloads", "Ten workloads, one pool", "Which kinds of work gain from a shared KV cache, and how much?",
        measures=measures, samples=found, systems=systems(*names), is_quick=True,
    )  # fmt: skip


def chaos() -> Document:
    names, random = ("maru", "server", "recompute"), Random(7)
    kills = (12.0, 25.5, 41.0)
    rate = {"maru": 5200.0, "server": 4100.0, "recompute": 900.0}
    lost = {"maru": 2.0, "server": 9.0, "recompute": 3.0}
    found = []
    for second in range(60):
        for name in names:
            is_down = any(0.0 <= second - kill < lost[name] for kill in kills)
            value = rate[name] * (0.35 if is_down else 1.0) * random.uniform(0.92, 1.05)
            found.append(Sample("goodput", name, float(second), value, 0))
    found += [Sample("kill-events", "", kill, 1.0, 0) for kill in kills]
    measures = [
        Measure("goodput", "Goodput while processes are killed", "tokens/s", "time", "s", "higher", "timeline"),
        Measure("kill-events", "a process is killed", "", "time", "s", "", "timeline"),
        Measure("recovery", "Until nine tenths are back", "s", "what is killed", kind="bars"),
        Measure("bad", "Wrong bytes", "bytes", "what is killed", kind="bars"),
    ]
    victims = ("engine", "server", "all of them")
    found += samples("recovery", names, victims, lambda system, x: lost[system] * (1 + len(str(x)) / 9))
    found += [Sample("bad", name, victim, 0.0, 0) for name in names for victim in victims]
    return document(
        "chaos", "Goodput while processes die", "What does a user notice when a process is killed?",
        measures=measures, samples=found, systems=systems(*names), checks=Checks(5000, 3, "answers, token by token"),
        remarks=["a quick look at <b>markup</b> & such: it costs $5, or $6"],
    )  # fmt: skip


def capacity() -> Document:
    """Twelve traces, a panel each; the places are bytes."""
    names = ("maru", "gate-off", "lru", "s3-fifo", "optimum")
    traces = (
        "chat",
        "agents",
        "rag",
        "loops",
        "tenants",
        "mix",
        "scan",
        "phases",
        "code",
        "few-shot",
        "reports",
        "voice",
    )
    gain = {"maru": 0.94, "gate-off": 0.82, "lru": 0.6, "s3-fifo": 0.75, "optimum": 1.0}
    places = [float(1 << power) for power in range(30, 36)]
    measures = [
        Measure(
            trace, f"Trace {trace}", "share", "pool", "bytes", "higher", log_x=True, note="prompt tokens from the cache"
        )
        for trace in traces
    ]
    found = []
    for number, trace in enumerate(traces):

        def value(system: str, x: Place, lean: float = 0.5 + number / 20) -> float:
            return 0.9 * gain[system] ** (lean + 6e9 / float(x)) * min(1.0, (float(x) / (1 << 35)) ** (lean / 3))

        found += [Sample(trace, name, place, value(name, place), 0) for place in places for name in names]
    return document(
        "capacity", "Hit rate by pool size", "How large has a pool to be?",
        measures=measures, samples=found, systems=systems(*names), engine="", model="none",
    )  # fmt: skip


def all_kinds() -> list[Document]:
    """One of each kind of picture: curves, bars, many bars, a timeline, small multiples."""
    return [ttft(), tiers(), workloads(), chaos(), capacity()]


# The edges of what can be drawn

LONG = (
    "A title that goes on, since whoever wrote it wanted everything in it, down to the last condition of the run " * 3
)


def crowd() -> Document:
    """Twelve systems in curves and in bars."""
    names = tuple(TITLES)[:12]
    speed = {name: 1.0 + 0.35 * number for number, name in enumerate(names)}
    measures = [
        Measure("delay", "Delay", "s", "readers", "", log_x=True, log_y=True),
        Measure("wait", "Wait", "s", "who waits", kind="bars"),
        Measure("work", "Work", "s", "who works", kind="bars"),
    ]
    found = [
        *samples("delay", names, [1.0, 2.0, 4.0, 8.0, 16.0], lambda system, x: 2e-5 * speed[system] * float(x)),
        *samples("wait", names, ["reader", "writer"], lambda system, x: 1e-3 * speed[system] * len(str(x))),
        *samples("work", names, ["reader", "writer"], lambda system, x: 1.23 * speed[system] * len(str(x))),
    ]
    return document("crowd", "Twelve systems", "Who?", measures=measures, samples=found, systems=systems(*names))


def forty() -> Document:
    """Forty groups of bars, some with long names."""
    names, kinds = (
        ("maru", "recompute"),
        [f"workload {number}" + " of some kind" * (number % 4) for number in range(40)],
    )
    found = samples("ttft", names, kinds, lambda system, x: len(str(x)) / (9.0 if system == "maru" else 3.0))
    measures = [Measure("ttft", "Time to first token", "s", "workload", kind="bars")]
    return document("forty", "Forty workloads", "Which?", measures=measures, samples=found, systems=systems(*names))


def wordy() -> Document:
    """Everything that is text is long, and some of it looks like a formula."""
    costly = "$5 or $6, x_1^2 " * 6
    names = (f"a-system-of-a-name-{'long' * 20}", "maru")
    measures = [
        Measure(f"m{number}", LONG, "some-unit-per-another-unit/s", LONG, "another unit", note=costly * 5, kind=kind)
        for number, kind in enumerate(("curve", "bars", "timeline"))
    ]
    places = {"m0": [1.0, 2.0, 3.0], "m1": ["w" * 90, costly, "c"], "m2": [1.0, 2.0]}
    found = [s for name, xs in places.items() for s in samples(name, names, xs, constant(5e7))]
    missing = [System(f"missing {number}", LONG[:60], absent=costly) for number in range(9)]
    return document(
        "wordy", LONG + costly, LONG, measures=measures, samples=found, systems=[*systems(*names), *missing],
        model="m" * 300, is_quick=True, checks=Checks(9, 4, costly),
    )  # fmt: skip


def zeros() -> Document:
    """Zeros on logarithmic axes, among other values and alone; and values below zero."""
    names = ("maru", "recompute")
    kinds = ("curve", "bars")
    measures = [
        *(Measure(f"some {kind}", f"Some {kind}", "s", "readers", kind=kind, log_x=True, log_y=True) for kind in kinds),
        *(Measure(f"all {kind}", f"All {kind}", "s", "readers", kind=kind, log_x=True, log_y=True) for kind in kinds),
        Measure("saved", "Saved", "J", "readers", better="higher", kind="bars", log_y=True),
    ]
    places = [0.0, 1.0, 10.0, 100.0]
    some = lambda system, x: float(x) * (1e-4 if system == "maru" else 1e-3)  # noqa: E731
    found = [s for kind in kinds for s in samples(f"some {kind}", names, places, some)]
    found += [s for kind in kinds for s in samples(f"all {kind}", names, places, constant(0.0))]
    found += samples("saved", names, places, lambda system, x: (-3.0 if system == "maru" else 40.0) * (1 + float(x)))
    return document("zeros", "Zeros", "Nothing at all?", measures=measures, samples=found, systems=systems(*names))


def alone() -> Document:
    """One sample of each kind."""
    kinds = ("curve", "bars", "timeline")
    measures = [Measure(kind, kind, "s", "place", "s", kind=kind, log_x=True, log_y=True) for kind in kinds]
    found = [Sample(kind, "maru", 3.0, 0.25, 0) for kind in kinds]
    return document("alone", "One sample", "Only one?", measures=measures, samples=found, systems=systems("maru"))


def empty() -> Document:
    """Every system was absent."""
    gone = [System("ray", "Ray", absent="needs ray"), System("lmdb", "LMDB", absent="failed: no room")]
    measures = [Measure("delay", "Delay", "s", "readers")]
    return document("empty", "Nobody took part", "Who?", measures=measures, systems=gone)


def dense() -> Document:
    """More places than labels fit, on axes of both kinds."""
    names, places = ("maru", "lru"), [float(10_000 + 37 * number) for number in range(60)]
    measures = [
        Measure(name, f"Dense, {name}", "tokens/s", "context", "tokens", "higher", log_x=name == "log")
        for name in ("linear", "log")
    ]
    found = [s for one in measures for s in samples(one.name, names, places, lambda system, x: len(system) * float(x))]
    return document("dense", "Sixty contexts", "How dense?", measures=measures, samples=found, systems=systems(*names))


def edges() -> list[Document]:
    return [dense(), crowd(), forty(), wordy(), zeros(), alone(), empty()]
