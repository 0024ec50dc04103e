"""Whole streams of requests: what hits and where it came from, how long users wait, what the machine does for it.

Two replicas share a stream, each request goes to the other one than the request before, and a system has as much room
as the others. A hit's *source*: a chunk that this replica had seen itself, or one that only another replica had.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from maru.bench import usage
from maru.bench.document import Better, Measure
from maru.bench.figures.base import GIB, ROOM_FACTOR, Figure, Knob, Step, whole_gib
from maru.bench.figures.concurrency import two
from maru.bench.figures.invalidation import delays
from maru.bench.figures.ttft import replica_bytes
from maru.bench.loads import streams
from maru.bench.loads.agentic import agentic_sessions
from maru.bench.loads.drive import Drive, Served, Turn
from maru.bench.session import SYNTHETIC, BadSetting, Field, Session
from maru.bench.systems.contract import Deployment

CONTEXT, QUICK_CONTEXT = 4096, 512
SETTLED_SHARE = 0.9
WINDOW = 8
TITLES = {
    "high": "high reuse, long",
    "low": "low reuse, short",
    "rag": "retrieval",
    "agentic": "agentic tools",
    "long": "long-context set",
    "trace": "trace",
}


class Workloads(Figure):
    name = "workloads"
    title = "Streams of requests"
    question = "On traffic like mine: what hits, how long do users wait, and what does the machine do for it?"
    engines = ("transformers", "synthetic", "vllm", "lmcache")
    knobs = (
        Knob("only", ("high", "low", "rag", "agentic"), ("high", "rag"), f"which streams; all are {', '.join(TITLES)}"),
        Knob("requests", 60, 6, "of each stream"),
        Knob("sessions", 8, 2, "agentic sessions"),
        Knob("in_flight", 2, 1, "requests in flight at each of the two replicas"),
        Knob("long_set", "", "", "a long-context set (LV-Eval, LongBench: JSON lines with context and input)"),
        Knob("trace", "", "", "a trace in Mooncake's format (JSON lines with timestamp, input_length, hash_ids)"),
        Knob("speed", 1.0, 1.0, "how many times as fast the trace is replayed"),
        Knob("room", 0.0, 0.0, "GiB of cache; 0: enough for the largest stream"),
    )

    def measures(self, run: Session) -> list[Measure]:
        def of(name: str, title: str, unit: str, better: Better, note: str = "", log_y: bool = False) -> Measure:
            return Measure(name, title, unit, "", kind="bars", better=better, note=note, log_y=log_y)

        waits = "with the wait for others; of a trace, from when its request came"
        if run.engine == SYNTHETIC:
            waits += "; of requests that hit, since nothing is computed"
        return [
            of("own", "Prompt tokens that hit: the replica's own past", "share", "higher"),
            of("other", "Prompt tokens that hit: another replica's", "share", "higher"),
            of("ttft", "Time to first token", "s", "lower", waits, log_y=True),
            of("rate", "Prompt tokens answered", "tokens/s", "higher"),
            of("cpu", "CPU time of a prompt's token", "s", "lower", "replicas and servers"),
            of("moved", "KV loaded and stored", "GB/s", "", "by the seconds of the whole stream"),
            of("warm", "Requests until hits have settled", "requests", "lower", "nine tenths of the end's share"),
            of("invalid", "From invalidating to the first miss elsewhere", "s", "lower", "the namespace's epoch grows"),
        ]  # fmt: skip

    def perform(self, run: Session) -> None:
        context = run.context(CONTEXT, QUICK_CONTEXT)
        loads = {name: _made(run, name, context) for name in run.setting("only")}
        longest = max(len(turn.prompt) for load in loads.values() for session in load for turn in session)
        run.insist_on_tokens(longest)
        job = run.job(longest + 2 * run.chunk_tokens, capacity_bytes=_room(run, loads))
        for group in run.groups(replica_bytes(run, job.context_tokens_max), two, job.capacity_bytes):
            with run.deployed(job, two, group) as field:
                run.perform(_steps(run, field, loads))
        if any(system.name == "maru" for system in run.systems):
            run.perform([Step("invalidation", "maru", partial(_invalidate, run))])


def _steps(run: Session, field: Field, loads: dict[str, list[list[Turn]]]) -> list[Step]:
    return [
        Step(f"round {n}, {TITLES[kind]}, {name}", name, partial(_serve, run, name, field[name], kind, load, n))
        for n in range(run.rounds)
        for kind, load in loads.items()
        for name in run.in_turn(list(field), n)
    ]


def _made(run: Session, kind: str, context: int) -> list[list[Turn]]:
    """One stream, with something in it. Raises BadSetting, BadStream."""
    try:
        found = _stream(run, kind, context)
    except OSError as error:
        raise BadSetting(f"the stream {kind!r}: {error}") from error
    if not found:
        raise BadSetting(f"the stream {kind!r} has no request of at most {2 * context} tokens: give longer --contexts")
    return found


def _stream(run: Session, kind: str, context: int) -> list[list[Turn]]:
    prompts, requests = run.prompts, run.setting("requests")
    simple: dict[str, Callable[..., list[list[Turn]]]] = {
        "high": streams.high_reuse, "low": streams.low_reuse, "rag": streams.retrieval
    }  # fmt: skip
    if kind in simple:
        return simple[kind](prompts, requests, context)
    if kind == "agentic":
        return agentic_sessions(prompts, run.options.cache_dir, run.setting("sessions"), 2 * context)
    file = {"long": run.setting("long_set"), "trace": run.setting("trace")}.get(kind)
    if not file:
        known = f"there are {', '.join(TITLES)}" if kind not in TITLES else "give its file: --set long_set=… or trace=…"
        raise BadSetting(f"no stream {kind!r} to measure; {known}")
    if kind == "long":
        return streams.long_set(prompts, Path(file), requests, 2 * context)
    return streams.trace(prompts, Path(file), requests, 2 * context, run.setting("speed"))


def _room(run: Session, loads: dict[str, list[list[Turn]]]) -> int:
    if run.setting("room"):
        return int(run.setting("room") * GIB)
    most = max(
        len({key for session in load for turn in session for key in _chunks(run, turn)}) for load in loads.values()
    )
    return whole_gib(ROOM_FACTOR * most * run.chunk_tokens * run.kv_model.token_bytes)


def _chunks(run: Session, turn: Turn) -> list[bytes]:
    """Names of the whole chunks of a prompt, each with all that comes before it."""
    found, before, size = [], b"", run.chunk_tokens
    for at in range(0, len(turn.prompt) - size + 1, size):
        text = ",".join(map(str, turn.prompt[at : at + size])).encode()
        before = hashlib.blake2b(before + text, digest_size=16).digest()
        found.append(before)
    return found


def _serve(run: Session, name: str, deployment: Deployment, kind: str, load: list[list[Turn]], number: int) -> None:
    """One stream through one system. Rounds after the first begin with tokens of their own, so nothing is there yet."""
    head = tuple(run.prompts.words(f"# round {number} of {kind}\n")) if number else ()
    sessions = [[Turn(t.session, t.number, head + t.prompt, t.max_tokens, t.wait_s) for t in one] for one in load]
    for replica in deployment.replicas:
        for session in sessions:
            for turn in session:
                replica.learn(turn.prompt)
    cpu, begun = usage.cpu_seconds(deployment.pids()), time.monotonic()
    served = Drive(deployment.replicas, run.setting("in_flight"), is_checked=False).run(sessions)
    taken_s = time.monotonic() - begun
    cpu_s = usage.cpu_seconds(deployment.pids()) - cpu
    title, tokens = TITLES[kind], sum(len(one.turn.prompt) for one in served)
    for one in served:
        run.check(one.answer, one.turn.prompt)
        if run.engine != SYNTHETIC or one.answer.cached_tokens:  # Where nothing is computed, a miss takes no time.
            run.note("ttft", name, title, one.user_ttft_s if kind == "trace" else one.answer.ttft_s, number)
    crosses = any(system.name == name and system.crosses for system in run.systems)
    own, other = _sources(run, served, len(deployment.replicas), crosses)
    run.note("own", name, title, own / tokens, number)
    run.note("other", name, title, other / tokens, number)
    run.note("rate", name, title, tokens / taken_s, number)
    run.note("cpu", name, title, cpu_s / tokens, number)
    moved = sum(one.answer.loaded_bytes + one.answer.stored_bytes for one in served)
    run.note("moved", name, title, moved / taken_s / 1e9, number)
    run.check_bytes(deployment, [session[-1].prompt for session in sessions])
    if (settled := _settled_after([one.answer.cached_tokens / one.answer.prompt_tokens for one in served])) is not None:
        run.note("warm", name, title, settled, number)


def _sources(run: Session, served: Sequence[Served], replicas: int, crosses: bool) -> tuple[int, int]:
    """Hit tokens by source: what the replica had seen itself, and the rest, if anything reaches it from others."""
    seen: list[set[bytes]] = [set() for _ in range(replicas)]
    own = other = 0
    for one in served:
        chunks = _chunks(run, one.turn)
        unknown = next((n for n, chunk in enumerate(chunks) if chunk not in seen[one.replica]), None)
        cached = one.answer.cached_tokens
        from_own = cached if unknown is None or not crosses else min(cached, unknown * run.chunk_tokens)
        own += from_own
        other += cached - from_own
        seen[one.replica].update(chunks)
    return own, other


def _settled_after(shares: list[float]) -> int | None:
    """Requests until the latest few hit nine tenths as much as the last third. None when nothing ever hit."""
    last = shares[-max(1, len(shares) // 3) :]
    wanted = SETTLED_SHARE * sum(last) / len(last)
    if wanted <= 0:
        return None
    for end in range(1, len(shares) + 1):
        recent = shares[max(0, end - WINDOW) : end]
        if sum(recent) / len(recent) >= wanted:
            return end
    return len(shares)


def _invalidate(run: Session) -> None:
    for number, seconds in enumerate(delays(run.folder, 3 if run.is_quick else 20)):
        run.note("invalid", "maru", "a namespace", seconds, number)


FIGURE = Workloads()
