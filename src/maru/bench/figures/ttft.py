"""Time to first token by context length: computed, the first transfer into a process, and reuse after that.

Every round asks each system a prompt of its own: one replica computes and stores it, another one that never saw it is
asked twice. Where a system reaches no other process, the same replica is asked again; where it keeps nothing, that
computes again.
"""

from __future__ import annotations

from maru.bench.document import Measure
from maru.bench.figures.base import Figure, steps_by_context
from maru.bench.session import SYNTHETIC, Session
from maru.bench.systems.contract import Deployment, System

CONTEXTS = (1024, 2048, 4096, 7936)
QUICK_CONTEXTS = (256, 512, 1024)
SUFFIX_TOKENS = 30
"""What every prompt has beyond its whole chunks: computed also on a hit."""
REPLICA_BYTES = {"transformers": 1_300 << 20, "vllm": 4 << 30, "lmcache": 4 << 30}


def replicas_of(system: System) -> int:
    return 2 if system.crosses else 1


def replica_bytes(run: Session, context_tokens_max: int) -> int:
    """What one replica takes, roughly: where nothing is computed, KV memory and what chunks are cut from."""
    from maru.bench.systems.stores import SOURCE_BYTES

    fixed = context_tokens_max * run.kv_model.token_bytes + SOURCE_BYTES + (100 << 20)
    return REPLICA_BYTES.get(run.engine, fixed)


class Ttft(Figure):
    name = "ttft"
    title = "Time to first token by context length"
    question = "How long does a user wait for the first token of a prompt whose beginning has been seen before?"
    engines = ("transformers", "synthetic", "vllm", "lmcache")

    def measures(self, run: Session) -> list[Measure]:
        def of(name: str, title: str, note: str) -> Measure:
            return Measure(name, title, "s", "context", "tokens", log_x=True, log_y=True, note=note)

        reuse = [
            of("warmup", "First transfer", "another process than the one that stored it asks for it the first time"),
            of("query", "Reuse", "the same process asks again"),
        ]
        if run.engine == SYNTHETIC:
            return [of("store", "Storing", "all of the context's KV, chunk by chunk"), *reuse]
        return [of("cold", "First time", "the whole prompt is computed, and stored if the system stores"), *reuse]

    def perform(self, run: Session) -> None:
        first_and_again(run, run.contexts(CONTEXTS, QUICK_CONTEXTS))


def first_and_again(run: Session, contexts: list[int]) -> None:
    """Every system at every length, in groups that fit memory."""
    job = run.job(max(contexts) + 2 * run.chunk_tokens)
    for group in run.groups(replica_bytes(run, job.context_tokens_max), replicas_of, job.capacity_bytes):
        with run.deployed(job, replicas_of, group) as field:
            run.perform(steps_by_context(run, field, contexts, one))


def one(run: Session, name: str, deployment: Deployment, context: int, number: int) -> None:
    """One prompt through one system."""
    question = f"ttft {context} {number}"
    prompt = run.prompts.prompt(question, context + SUFFIX_TOKENS)
    a, b = deployment.replicas[0], deployment.replicas[-1]
    cold = a.ask(prompt)
    a.settle()
    first, then = b.ask(prompt), b.ask(prompt)
    for answer in (cold, first, then):
        run.check(answer, question)
    for answer in (first, then):
        run.insist_on_hit(name, answer, context)
    if run.engine == SYNTHETIC:
        run.note("store", name, context, cold.store_s, number)
    else:
        run.note("cold", name, context, cold.ttft_s, number)
    if b is not a:
        run.note("warmup", name, context, first.ttft_s, number)
    run.note("query", name, context, then.ttft_s, number)


FIGURE = Ttft()
