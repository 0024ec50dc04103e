"""What a prompt's tokens cost in energy: tokens per joule, in all and above idling, and power over time.

Every system answers the same prompts, whose beginnings it has seen. Total: all joules that the machine counted while it
answered, by all tokens of the prompts. Active: without what the machine takes when it does nothing, measured before.
Where nothing counts joules the figure says so and tells CPU seconds a token instead.
"""

from __future__ import annotations

import time
from functools import partial

from maru.bench import usage
from maru.bench.document import Better, Measure
from maru.bench.energy import Counters, Meter, counters_here
from maru.bench.figures.base import Figure, Knob, steps_by_context
from maru.bench.figures.ttft import SUFFIX_TOKENS, replica_bytes, replicas_of
from maru.bench.session import Session
from maru.bench.systems.contract import Answer, Deployment

CONTEXTS = (1024, 2048, 4096, 7936)
QUICK_CONTEXTS = (256, 512)


class Energy(Figure):
    name = "energy"
    title = "Energy by context length"
    question = "How much energy does a token of a prompt take, computed and reused?"
    engines = ("transformers", "vllm", "lmcache")
    knobs = (
        Knob("repeats", 5, 2, "how often each prompt is asked in a window"),
        Knob("idle_s", 10.0, 1.0, "seconds that the machine is left alone to learn what idling takes"),
    )

    def measures(self, _run: Session) -> list[Measure]:
        return _measures(counters_here())

    def perform(self, run: Session) -> None:
        counters = counters_here()
        if not counters.are_there:
            reasons = "; ".join(counters.missing)
            run.remark(f"energy is not available on this machine ({reasons}): CPU seconds a token are told instead")
        meter = Meter(counters)
        contexts = run.contexts(CONTEXTS, QUICK_CONTEXTS)
        job = run.job(max(contexts) + 2 * run.chunk_tokens)
        for group in run.groups(replica_bytes(run, job.context_tokens_max), replicas_of, job.capacity_bytes):
            with run.deployed(job, replicas_of, group) as field:
                if counters.are_there:
                    with meter.window() as idle:
                        time.sleep(run.setting("idle_s"))
                    meter.idle_watts = idle.joules / idle.seconds
                    run.remark(f"idle: {meter.idle_watts:.1f} W")
                run.perform(steps_by_context(run, field, contexts, partial(_one, meter)))


def _measures(counters: Counters) -> list[Measure]:
    def of(name: str, title: str, unit: str, better: Better, note: str) -> Measure:
        return Measure(name, title, unit, "context", "tokens", better=better, log_x=True, log_y=True, note=note)

    cpu = of(
        "cpu", "CPU time of a prompt's token", "s", "lower",
        "of the replica that answers and of the system's servers, by the tokens of the prompts",
    )  # fmt: skip
    if not counters.are_there:
        return [cpu]
    return [
        of("total", "Tokens per joule, in all", "tokens/J", "higher", "of everything that counts, while answering"),
        of("active", "Tokens per joule, above idling", "tokens/J", "higher", "without idle power times the seconds"),
        cpu,
        *(
            [of("gpu", "GPU time of a prompt's token", "s", "lower", "what reuse saves is the distance to recompute")]
            if counters.gpu_load
            else []
        ),
        Measure("power", "Power over time", "W", "since the window began", "s", better="lower", kind="timeline"),
    ]


def _one(meter: Meter, run: Session, name: str, deployment: Deployment, context: int, number: int) -> None:
    """One prompt, known to the system, asked several times in one window."""
    question = f"energy {context} {number}"
    prompt = run.prompts.prompt(question, context + SUFFIX_TOKENS)
    a, b = deployment.replicas[0], deployment.replicas[-1]
    run.check(a.ask(prompt), question)
    a.settle()
    run.check(b.ask(prompt), question)
    pids = [b.pid, *deployment.server_pids()]
    answers: list[Answer] = []
    cpu = usage.cpu_seconds(pids)
    with meter.window() as window:
        for _ in range(run.setting("repeats")):
            answers.append(b.ask(prompt))
    cpu_s = usage.cpu_seconds(pids) - cpu
    for answer in answers:
        run.check(answer, question)
        run.insist_on_hit(name, answer, context)
    tokens = run.setting("repeats") * len(prompt)
    run.note("cpu", name, context, cpu_s / tokens, number)
    if window.joules > 0:
        run.note("total", name, context, tokens / window.joules, number)
        if active := meter.active_joules(window):
            run.note("active", name, context, tokens / active, number)
        if window.gpu_seconds > 0:
            run.note("gpu", name, context, window.gpu_seconds / tokens, number)
        for at, watts in window.power:
            run.note("power", name, round(at, 2), watts, number)


FIGURE = Energy()
