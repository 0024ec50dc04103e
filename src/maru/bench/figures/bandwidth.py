"""What the medium can do, and how near everybody comes: bandwidth, latency, CPU seconds and network bytes per GiB.

Three parts. Raw: 1, 2, ... processes copy out of plain mappings and into them, over one segment and over several, and
where there are several NUMA nodes over memory of each; one load after another gives the latency. Through the pool: the
same copies through put and pin, of as many bytes. What was copied is compared, after the time has stopped. Then every
store of the engine `synthetic` keeps and gives back the same contexts: the seconds of CPU that all its processes took
for a GiB, the bytes that crossed the network, and its bandwidth as a share of the raw ceiling.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from maru.bench import usage
from maru.bench.document import Measure, System
from maru.bench.figures.base import GIB, Figure, Knob, Step
from maru.bench.figures.ttft import SUFFIX_TOKENS, replica_bytes, replicas_of
from maru.bench.ground import Keys
from maru.bench.machine import last_level_cache_bytes
from maru.bench.media_child import CHUNK_BYTES, prefix_chunks
from maru.bench.rivals.contract import RivalFailed
from maru.bench.rivals.crew import Member, command_of
from maru.bench.session import BadSetting, NothingToMeasure, Session
from maru.bench.systems.contract import Deployment
from maru.config import format_size
from maru.errors import PoolNotFound
from maru.pool import Pool

HOPS = 200_000
SLAB_BYTES = 4 * CHUNK_BYTES
_HEAD_START_NS = 20_000_000
_CHILD = "maru.bench.media_child:MediaChild"
_NODES = Path("/sys/devices/system/node")
RAW, OURS = "raw", "maru"


class Bandwidth(Figure):
    name = "bandwidth"
    title = "Bandwidth, latency and what a GiB costs"
    question = "What can this machine's memory do, and how much of that is left for KV?"
    engines = ("synthetic",)
    knobs = (
        Knob("processes", (1, 2, 4), (1, 2), "readers, and writers, at once"),
        Knob("segments", (1, 2), (1, 2), "data segments that copies go to in turn"),
        Knob("chunks", 64, 12, "chunks of 8 MiB that each process moves for a sample"),
        Knob("nodes", "several", "several", "NUMA nodes by themselves: where there are several, or all"),
        Knob("segment_mib", 512, 128, "size of each segment, at least; twice the caches are read in any case"),
    )

    def measures(self, _run: Session) -> list[Measure]:
        def moved(name: str, title: str) -> Measure:
            return Measure(name, title, "GB/s", "processes at once", better="higher")

        def per_gib(name: str, title: str, unit: str) -> Measure:
            return Measure(name, title, unit, "", kind="bars")

        return [
            moved("read", "Read by all of them together"),
            moved("write", "Written by all of them together"),
            per_gib("latency", "One load that waits for the one before", "s"),
            Measure(
                "ceiling", "Bandwidth of a prefix, of the raw copy's", "share", "", better="higher", kind="bars",
                note="bytes by the time from looking a prefix up to having it in the engine's memory, or to having "
                "stored it; by the raw bandwidth of one process",
            ),
            per_gib("cpu", "CPU seconds for a GiB, all processes of the store", "s"),
            Measure("net", "Bytes on the network for a byte of KV", "bytes/byte", "", kind="bars"),
        ]  # fmt: skip

    def perform(self, run: Session) -> None:
        for name in ("processes", "segments"):
            if 1 not in run.setting(name):
                raise BadSetting(f"{name} has to have 1 in it, which the others are compared with")
        nodes = numa_nodes()
        run.remark(f"{len(nodes)} NUMA node{'s' if len(nodes) > 1 else ''}")
        for count in run.setting("segments"):
            run.compares([System(f"{RAW}-{count}", f"raw copy, {_named(count)}", "streaming copies")])
            if count > 1:
                run.compares([System(f"{OURS}-{count}", f"Maru, {_named(count)}", "put and pin")])
        try:
            for count in run.setting("segments"):
                with _movers(run, count) as movers:
                    run.perform(movers.steps(chases=count == 1))
            for node in nodes if len(nodes) > 1 or run.setting("nodes") == "all" else []:
                run.compares([System(f"{RAW}-node-{node}", f"raw copy, NUMA node {node}", "memory bound to that node")])
                with _on_node(run, node) as movers:
                    run.perform(movers.steps(chases=True))
        except RivalFailed as error:
            raise NothingToMeasure(f"no raw copy can be measured here: {error}") from error
        self._stores(run)

    def _stores(self, run: Session) -> None:
        context = run.context(4096, 1024)
        job = run.job(context + 2 * run.chunk_tokens)
        for group in run.groups(replica_bytes(run, job.context_tokens_max), replicas_of, job.capacity_bytes):
            with run.deployed(job, replicas_of, group) as field:
                run.perform(
                    [
                        Step(f"a prefix, round {n}, {name}", name, partial(_cost, run, name, field[name], context, n))
                        for n in range(2 * run.rounds)
                        for name in run.in_turn(list(field), n)
                    ]
                )  # fmt: skip


def _named(segments: int) -> str:
    return f"{segments} segment{'s' if segments > 1 else ''}"


def numa_nodes() -> list[int]:
    """The NUMA nodes that have memory."""
    with suppress(OSError):
        text = (_NODES / "has_memory").read_text().strip()
        found: list[int] = []
        for part in text.split(","):
            first, _, last = part.partition("-")
            found += range(int(first), int(last or first) + 1)
        return found
    return [0]


class _Movers:
    """The processes over the same segments: some over plain mappings, as many through a pool if there is one."""

    def __init__(
        self, run: Session, raw_name: str, title: str, plain: list[Member], pooled: dict[str, list[Member]], keys: str
    ) -> None:
        """`pooled`: by the name that their samples get. `keys`: of the chunks that readers of the pool know."""
        self._run, self._raw_name, self._title, self._keys = run, raw_name, title, keys
        self._movers = {raw_name: plain, **pooled}

    def steps(self, *, chases: bool) -> list[Step]:
        run = self._run
        steps = [
            Step(
                f"{what}, {self._title}, {count} at once, round {n}, {name}", "",
                partial(self._move, what, count, n, name),
            )
            for n in range(max(3, 2 * run.rounds))
            for what in ("read", "write")
            for count in run.setting("processes")
            for name in run.in_turn(list(self._movers), n)
        ]  # fmt: skip
        if chases:
            steps += [Step(f"latency, {self._title}, round {n}", "", partial(self._chase, n)) for n in range(3)]
        return steps

    def _move(self, what: str, count: int, number: int, name: str) -> None:
        chunks, movers = self._run.setting("chunks"), self._movers[name]
        if name != self._raw_name and what == "read":
            for one in movers:
                one.ask("forget")  # Or there is no room, and what is still there goes for what is filled in.
            movers[0].ask("fill", keys=self._keys)  # Writers have pushed out some of what readers know.
        start_ns = time.monotonic_ns() + _HEAD_START_NS
        asked = [
            (one, one.post("move", what=what, start_ns=start_ns, chunks=chunks, keys=self._keys))
            for one in movers[:count]
        ]
        told = [one.collect(ticket) for one, ticket in asked]
        for _, _, compared, wrong in told:
            self._run.count(compared, wrong)
        seconds = (max(end for _, end, *_ in told) - min(begun for begun, *_ in told)) * 1e-9
        self._run.note(what, name, count, count * chunks * CHUNK_BYTES / seconds / 1e9, number)

    def _chase(self, number: int) -> None:
        seconds = self._movers[self._raw_name][0].ask("chase", hops=HOPS)
        self._run.note("latency", self._raw_name, "64 bytes", seconds, number)


def _segment_bytes(run: Session) -> int:
    """Of which each process reads a part: twice what the caches hold, or more."""
    wanted: int = 3 * max(run.setting("processes")) * last_level_cache_bytes()
    return max(int(run.setting("segment_mib")) << 20, -(-wanted // SLAB_BYTES) * SLAB_BYTES)


@contextmanager
def _movers(run: Session, segments: int) -> Iterator[_Movers]:
    """Files, a pool of as many segments, and processes on both; everything goes away afterwards. Raises BadSetting."""
    size, most = _segment_bytes(run), max(run.setting("processes"))
    plain_files = [run.memory / f"plain-{segments}-{n}" for n in range(segments)]
    pool_files = [run.memory / f"pool-{segments}-{n}" for n in range(segments)]
    url = f"maru:///bench-media-{os.getpid()}-{segments}"
    data = ",".join(map(str, pool_files))
    options = f"size={segments * size}&data={data}&medium=file&slab_bytes={SLAB_BYTES}&gate=off"
    with ExitStack() as stack:
        for file in (*plain_files, *pool_files):
            stack.callback(partial(file.unlink, missing_ok=True))
        try:
            for file in plain_files:
                with file.open("wb") as out:
                    os.posix_fallocate(out.fileno(), 0, size)
        except OSError as error:
            raise BadSetting(f"{segments} x {format_size(size)} in {run.memory.parent}: {error.strerror}") from error
        Pool.create(f"{url}?{options}").close()
        stack.callback(_destroy, url)
        plain = [_member(stack, run, [str(f) for f in plain_files], "", n, most) for n in range(most)]
        pooled = [_member(stack, run, [], url, n, most) for n in range(most)]
        keys = Keys("media").packed(prefix_chunks(segments * size)).hex()
        plain[0].ask("fill", keys="")
        pooled[0].ask("fill", keys=keys)
        ours = OURS if segments == 1 else f"{OURS}-{segments}"
        yield _Movers(run, f"{RAW}-{segments}", _named(segments), plain, {ours: pooled}, keys)


@contextmanager
def _on_node(run: Session, node: int) -> Iterator[_Movers]:
    """Plain copies over one file whose memory lies on one NUMA node."""
    file, most = run.memory / f"node-{node}", max(run.setting("processes"))
    with ExitStack() as stack:
        stack.callback(partial(file.unlink, missing_ok=True))
        maker = Member(command_of(sys.executable, _CHILD), run.folder / "media.log")
        stack.callback(maker.await_end)
        stack.callback(maker.let_go)
        maker.ask("make", paths=[str(file)], size=_segment_bytes(run), node=node)
        plain = [_member(stack, run, [str(file)], "", n, most) for n in range(most)]
        yield _Movers(run, f"{RAW}-node-{node}", f"NUMA node {node}", plain, {}, "")


def _destroy(url: str) -> None:
    with suppress(PoolNotFound):
        Pool.destroy(url, force=True)


def _member(stack: ExitStack, run: Session, paths: list[str], pool: str, index: int, members: int) -> Member:
    member = Member(command_of(sys.executable, _CHILD), run.folder / "media.log")
    stack.callback(member.await_end)
    stack.callback(member.let_go)
    member.ask("open", paths=paths, pool=pool, index=index, members=members)
    return member


def _cost(run: Session, name: str, deployment: Deployment, context: int, number: int) -> None:
    """One context stored and, by another process, retrieved: what that took of the machine."""
    question = f"bandwidth {number}"
    prompt = run.prompts.prompt(question, context + SUFFIX_TOKENS)
    a, b = deployment.replicas[0], deployment.replicas[-1]
    for replica in (a, b):
        replica.learn(prompt)
    stored, store_cpu, store_net = _metered(deployment, lambda: a.collect(a.post(prompt, is_checked=False)))
    loaded, load_cpu, load_net = _metered(deployment, lambda: b.collect(b.post(prompt, is_checked=False)))
    run.check(b.ask(prompt), question)
    run.insist_on_hit(name, loaded, context)
    raw = {what: _ceiling(run, what) for what in ("read", "write")}
    if stored.stored_bytes and stored.store_s:
        run.note("ceiling", name, "stored", stored.stored_bytes / stored.store_s / 1e9 / raw["write"], number)
        run.note("cpu", name, "stored", store_cpu / stored.stored_bytes * GIB, number)
        run.note("net", name, "stored", round(store_net / stored.stored_bytes, 3), number)
    if loaded.loaded_bytes:
        run.note("ceiling", name, "retrieved", loaded.loaded_bytes / loaded.ttft_s / 1e9 / raw["read"], number)
        run.note("cpu", name, "retrieved", load_cpu / loaded.loaded_bytes * GIB, number)
        run.note("net", name, "retrieved", round(load_net / loaded.loaded_bytes, 3), number)


def _metered(deployment: Deployment, act: Any) -> tuple[Any, float, int]:
    cpu, net = usage.cpu_seconds(deployment.pids()), usage.network_bytes()
    answer = act()
    return answer, usage.cpu_seconds(deployment.pids()) - cpu, usage.network_bytes() - net


def _ceiling(run: Session, what: str) -> float:
    """The raw bandwidth of one process on one segment, GB/s."""
    return statistics.median(run.values(what, f"{RAW}-1", 1))


FIGURE = Bandwidth()
