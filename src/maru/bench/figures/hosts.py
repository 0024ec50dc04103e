"""A hit on another host: what each way to a pool takes, when one host asks and when several ask at once.

Hosts are emulated, as network namespaces where they can be made: one keeps the store, each of the others is an
inference process that computes nothing, with KV memory of a real model's size. In every round one of them stores a
prefix, and then 1, 2, 4, … of them ask for it at the same moment. All hosts share the cores and the memory of this
machine, so the figure says what the ways cost beside each other, and nothing of a real network between two machines.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from maru.bench.document import Measure
from maru.bench.emulated_hosts import why_no_namespaces
from maru.bench.figures.base import Figure, Knob, Step
from maru.bench.figures.ttft import SUFFIX_TOKENS, replica_bytes
from maru.bench.session import BadSetting, Session
from maru.bench.systems.contract import Deployment, System
from maru.bench.systems.hosts import hosts_systems

OURS = "maru"
HOSTS_MAX = 16


class Hosts(Figure):
    name = "hosts"
    title = "Hits on other hosts"
    question = (
        "What does a hit take that lies in another host's pool, by each way there is, and for several hosts at once?"
    )
    engines = ("synthetic",)
    knobs = (Knob("hosts", (1, 2, 4), (1, 2), "hosts that ask at the same moment, beside the one that keeps the pool"),)

    def systems(self, run: Session, chosen: Sequence[System]) -> Sequence[System]:
        """Ours in every way, and Redis; who was not chosen stays away."""
        names = {system.name for system in chosen}
        most = max(run.setting("hosts"))
        if most > HOSTS_MAX:
            raise BadSetting(f"hosts: {HOSTS_MAX} at once are the most, not {most}")
        found = [one for one in hosts_systems(most) if one.name.partition("-")[0] in names]
        if not found:
            raise BadSetting(f"hosts compares {OURS} and redis: --systems has to name one of them")
        return found

    def measures(self, _run: Session) -> list[Measure]:
        at_once = "hosts that ask at once"
        return [
            Measure(
                "hit", "A hit, for each host", "s", at_once, log_y=True,
                note="from the question to the prefix in the engine's memory",
            ),
            Measure(
                "bandwidth", "Bytes of hits, all hosts together", "GB/s", at_once, better="higher",
                note="until the slowest of them has its prefix",
            ),
            Measure("store", "A prefix stored by another host", "s", "", kind="bars"),
        ]  # fmt: skip

    def perform(self, run: Session) -> None:
        context, counts = run.context(2048, 512), run.setting("hosts")
        reason = why_no_namespaces()
        run.remark(
            f"the hosts are processes on the loopback: {reason}"
            if reason
            else "the hosts are network namespaces of this machine, joined by virtual cables"
        )
        job, replicas = run.job(context + 2 * run.chunk_tokens), 1 + max(counts)
        for group in run.groups(replica_bytes(run, job.context_tokens_max), lambda _: replicas, job.capacity_bytes):
            with run.deployed(job, lambda _: replicas, group) as field:
                run.perform(
                    [
                        Step(
                            f"round {number}, {count} hosts, {name}", name,
                            partial(_hits, run, name, field[name], context, count, number),
                        )
                        for number in range(run.rounds)
                        for count in counts
                        for name in run.in_turn(list(field), number)
                    ]
                )  # fmt: skip


def _hits(run: Session, name: str, deployment: Deployment, context: int, count: int, number: int) -> None:
    """Stored by one of the others, asked for by so many of them, and then compared byte by byte."""
    prompt = run.prompts.prompt(f"hosts {count} {number}", context + SUFFIX_TOKENS)
    others = deployment.replicas[1 : 1 + count]
    stored = others[-1].ask(prompt)
    run.check(stored, "")
    run.note("store", name, "one prefix", stored.store_s, number)
    for replica in others:
        replica.learn(prompt)
    tickets = [(replica, replica.post(prompt, is_checked=False)) for replica in others]
    answers = [replica.collect(ticket) for replica, ticket in tickets]
    for answer in answers:
        run.check(answer, "")
        run.insist_on_hit(name, answer, context)
        run.note("hit", name, count, answer.ttft_s, number)
    moved = sum(answer.loaded_bytes for answer in answers)
    run.note("bandwidth", name, count, moved / max(answer.ttft_s for answer in answers) / 1e9, number)
    run.check_bytes(deployment, [prompt])


FIGURE = Hosts()
