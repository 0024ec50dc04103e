"""Time to first token of cache hits when 1, 2, 4, 8, ... of them come at once.

Two replicas of every system answer. Where a system reaches other processes one replica stored everything; elsewhere
each replica has computed what it will be asked before. Then k prompts are sent at the same moment, in turn to both: a
prompt that waits behind another one waits longer, and that time counts.
"""

from __future__ import annotations

import time
from functools import partial

from maru.bench.document import Better, Measure
from maru.bench.figures.base import ROOM_FACTOR, Figure, Knob, Step, whole_gib
from maru.bench.figures.ttft import SUFFIX_TOKENS, replica_bytes
from maru.bench.session import SYNTHETIC, Session
from maru.bench.systems.contract import Answer, Deployment, System

REPLICAS = 2
CONTEXT, QUICK_CONTEXT = 4096, 256


def two(_system: System) -> int:
    return REPLICAS


class Concurrency(Figure):
    name = "concurrency"
    title = "Time to first token of hits that come at once"
    question = "Does a hit stay fast when many users hit at the same moment?"
    engines = ("transformers", "synthetic", "vllm", "lmcache")
    knobs = (Knob("levels", (1, 2, 4, 8, 16), (1, 2, 4), "how many prompts are in flight at once"),)

    def measures(self, _run: Session) -> list[Measure]:
        def of(name: str, title: str, unit: str, better: Better) -> Measure:
            return Measure(name, title, unit, "prompts at once", better=better, log_x=True, log_y=unit == "s")

        return [
            of("ttft", "Time to first token of a hit", "s", "lower"),
            of("rate", "Hits answered", "1/s", "higher"),
        ]

    def perform(self, run: Session) -> None:
        context = run.context(CONTEXT, QUICK_CONTEXT)
        levels: tuple[int, ...] = run.setting("levels")
        job = run.job(context + 2 * run.chunk_tokens, capacity_bytes=_room(run, context, max(levels)))
        for group in run.groups(replica_bytes(run, job.context_tokens_max), two, job.capacity_bytes):
            with run.deployed(job, two, group) as field:
                prompts = [run.prompts.prompt(f"concurrency {n}", context + SUFFIX_TOKENS) for n in range(max(levels))]
                crosses = {system.name: system.crosses for system in group}
                warm = [
                    Step(f"storing, {name}", name, partial(_store, run, field[name], crosses[name], prompts))
                    for name in field
                ]
                run.perform(warm, always=True)
                run.perform(
                    [
                        Step(
                            f"round {number}, {level} at once, {name}", name,
                            partial(at_once, run, name, field[name], prompts[:level], context, number),
                        )
                        for number in range(run.rounds)
                        for level in levels
                        for name in run.in_turn(list(field), number)
                    ]
                )  # fmt: skip


def _room(run: Session, context: int, prompts: int) -> int:
    """All prompts at once, with some air."""
    return whole_gib(ROOM_FACTOR * prompts * (context + SUFFIX_TOKENS) * run.kv_model.token_bytes)


def _store(run: Session, deployment: Deployment, crosses: bool, prompts: list[list[int]]) -> None:
    for number, prompt in enumerate(prompts):
        if crosses:
            run.check(deployment.replicas[0].ask(prompt), f"concurrency {number}")
            deployment.replicas[0].settle()
        run.check(deployment.replicas[number % REPLICAS].ask(prompt), f"concurrency {number}")
    for replica in deployment.replicas:
        replica.settle()


def at_once(
    run: Session, name: str, deployment: Deployment, prompts: list[list[int]], context: int, number: int
) -> None:
    """All of these prompts at the same moment; where nothing is computed, once more, with every byte compared."""
    answers, taken_s = _asked(deployment, prompts, is_checked=False)
    for turn, answer in enumerate(answers):
        run.check(answer, f"concurrency {turn}")
        run.insist_on_hit(name, answer, context)
        run.note("ttft", name, len(prompts), answer.ttft_s, number)
    run.note("rate", name, len(prompts), len(prompts) / taken_s, number)
    if run.engine == SYNTHETIC:
        for answer in _asked(deployment, prompts, is_checked=True)[0]:
            run.check(answer, "")


def _asked(deployment: Deployment, prompts: list[list[int]], *, is_checked: bool) -> tuple[list[Answer], float]:
    """Answers, and the seconds from the first question to the last answer."""
    replicas = deployment.replicas
    for turn, prompt in enumerate(prompts):
        replicas[turn % REPLICAS].learn(prompt)
    begun = time.monotonic()
    tickets = [
        (replicas[turn % REPLICAS], replicas[turn % REPLICAS].post(prompt, is_checked=is_checked))
        for turn, prompt in enumerate(prompts)
    ]
    answers = [replica.collect(ticket) for replica, ticket in tickets]
    return answers, time.monotonic() - begun


FIGURE = Concurrency()
