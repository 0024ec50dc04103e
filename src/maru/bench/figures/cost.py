"""What a GiB of pool is worth: prefill seconds saved a day, and money, with prices that the user gives.

The engine's own speed is measured here: computing prompts of several lengths gives the seconds of a prefill as
a n + b n^2, reuse of the same prompts what a hit costs. Traces of requests, replayed through the real pool of each
size, say what would have hit. A day is a busy one: the engine has something to do all the time. So a pool that saves
the share s of all prefill work saves s x 86,400 seconds of it.

Whoever has other hardware gives its prefill speed instead (`--set prefill_tokens_per_s=…`): then nothing is measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np

from maru.bench.document import Measure, System
from maru.bench.figures.base import GIB, Figure, Knob, Step, steps_by_context
from maru.bench.figures.capacity import traces_of
from maru.bench.figures.ttft import SUFFIX_TOKENS, replica_bytes, replicas_of
from maru.bench.hit_rates import replay
from maru.bench.prefix_trace import PrefixTrace
from maru.bench.session import NO_CACHE, BadSetting, NothingToMeasure, Session
from maru.bench.simulated import POLICIES
from maru.bench.systems.contract import Deployment
from maru.bench.systems.contract import System as Takes
from maru.bench.systems.models import KvModel, model_named

CONTEXTS = (512, 2048, 4096, 7936)
QUICK_CONTEXTS = (256, 512, 1024)
DAY_S = 86_400.0
MONTH_DAYS = 30.0
Curve = tuple[float, float]
"""(b, a) of seconds = a n + b n^2."""
OURS = "maru"
_LRU, _OPTIMUM = "lru", "optimum"


class Cost(Figure):
    name = "cost"
    title = "What a GiB of pool is worth"
    question = "How many seconds of prefill does a GiB of pool save in a day, and is that worth its price?"
    engines = ("transformers", "vllm")
    knobs = (
        Knob("traces", "", "", "folder or file of .pct[.xz] traces; without it the ones that come with Maru"),
        Knob("only", ("bfcl32", "rag", "ctx_rr"), ("bfcl8",), "names of traces"),
        Knob("shares", (0.05, 0.1, 0.2, 0.4, 0.8), (0.1, 0.4), "pool sizes, as shares of what the trace's chunks take"),
        Knob("chunk_tokens", 256, 256, "tokens a chunk"),
        Knob("engine_hour", 0.0, 0.0, "price of an hour of what computes: a GPU, a machine"),
        Knob("gib_month", 0.0, 0.0, "price of a GiB of pool memory for a month"),
        Knob("currency", "USD", "USD", "of both prices"),
        Knob("prefill_tokens_per_s", 0.0, 0.0, "of your hardware, for short prompts; 0: measured here"),
        Knob("sized_as", "", "", "with it: the model whose KV fills the pool, as of --model; without, the engine's"),
        Knob("half_tokens", 30_500.0, 30_500.0, "with it: where attention costs a token as much as all the rest"),
    )

    def systems(self, run: Session, chosen: Sequence[Takes]) -> Sequence[Takes]:
        """What computes and what reuses; nobody where speeds are given."""
        if run.setting("prefill_tokens_per_s"):
            return []
        found = [system for system in chosen if system.name in (OURS, NO_CACHE)]
        if len(found) < 2:
            raise BadSetting(
                f"cost compares a hit with computing: it needs the systems {OURS} and {NO_CACHE}, or your speed with "
                "--set prefill_tokens_per_s=…"
            )
        return found

    def measures(self, run: Session) -> list[Measure]:
        unit = f"{_sized_as(run).name}, GiB"
        saved = [
            Measure(
                f"saved-{trace.name}", f"{trace.name}: prefill saved a day, for each GiB", "s", "pool size", unit,
                better="higher", log_x=True,
            )
            for trace in traces_of(run)
        ]  # fmt: skip
        money = [
            Measure(
                f"money-{trace.name}", f"{trace.name}: worth of a GiB a month, less its price", run.setting("currency"),
                "pool size", unit, better="higher", log_x=True,
            )
            for trace in traces_of(run)
            if run.setting("engine_hour") > 0
        ]  # fmt: skip
        speed = Measure("prefill", "A prompt computed, and reused", "s", "context", "tokens", log_x=True, log_y=True)
        return [*saved, *money, speed]

    def perform(self, run: Session) -> None:
        run.compares([System(_LRU, "LRU", "simulated"), System(_OPTIMUM, "optimum", "simulated with the future known")])
        prefill, hit = self._speeds(run)
        run.remark(
            f"computing n tokens: {prefill[1]:.3g} n + {prefill[0]:.3g} n² seconds; loading them: {hit[1]:.3g} n"
        )
        if not run.setting("engine_hour"):
            run.remark("no prices, no money: --set engine_hour=… --set gib_month=…")
        steps = [
            Step(f"{trace.name} at {share:.0%}", "", partial(_worth, run, trace, share, prefill, hit))
            for trace in traces_of(run)
            for share in run.setting("shares")
        ]
        run.perform(steps)

    def _speeds(self, run: Session) -> tuple[Curve, Curve]:
        """(b, a) of computing and of a hit."""
        if rate := run.setting("prefill_tokens_per_s"):
            a = 1.0 / rate
            run.remark(f"prefill speed as given: {rate:g} tokens/s; a hit is taken to cost nothing")
            return (a / (2 * run.setting("half_tokens")), a), (0.0, 0.0)
        contexts = run.contexts(CONTEXTS, QUICK_CONTEXTS)
        if len(contexts) < 2:
            raise BadSetting("cost follows how seconds grow with tokens: it needs two --contexts at least")
        job = run.job(max(contexts) + 2 * run.chunk_tokens)
        for group in run.groups(replica_bytes(run, job.context_tokens_max), replicas_of, job.capacity_bytes):
            with run.deployed(job, replicas_of, group) as field:
                run.perform(steps_by_context(run, field, contexts, _speed))
        return _fitted(run, NO_CACHE, contexts), _growth(run, OURS, contexts)


def _sized_as(run: Session) -> KvModel:
    """Whose KV the pool holds. Raises UnknownModel."""
    return model_named(run.setting("sized_as")) if run.setting("sized_as") else run.kv_model


def _speed(run: Session, name: str, deployment: Deployment, context: int, number: int) -> None:
    question = f"cost {context} {number}"
    prompt = run.prompts.prompt(question, context + SUFFIX_TOKENS)
    a, b = deployment.replicas[0], deployment.replicas[-1]
    answer = a.ask(prompt)
    run.check(answer, question)
    if name == OURS:
        a.settle()
        answer = b.ask(prompt)
        run.check(answer, question)
        run.insist_on_hit(name, answer, context)
    run.note("prefill", name, context, answer.ttft_s, number)


def _pairs(run: Session, name: str, contexts: list[int]) -> list[tuple[int, float]]:
    """(tokens, seconds) of all samples. Raises NothingToMeasure when some length has none."""
    found = {x: run.values("prefill", name, x) for x in contexts}
    if not all(found.values()):
        raise NothingToMeasure(f"{name} was not measured to the end, and nothing can be said without it")
    return [(x, value) for x, values in found.items() for value in values]


def _fitted(run: Session, name: str, contexts: list[int]) -> Curve:
    """(b, a) of seconds = a n + b n^2, by least squares of relative errors; neither is below 0."""
    pairs = _pairs(run, name, contexts)
    tokens = np.array([x for x, _ in pairs], dtype=float)
    seconds = np.array([value for _, value in pairs])
    both = np.stack([tokens**2, tokens], axis=1) / seconds[:, None]
    found, *_ = np.linalg.lstsq(both, np.ones(len(pairs)), rcond=None)
    if min(found) < 0:
        return 0.0, float(np.mean(seconds / tokens))
    return float(found[0]), float(found[1])


def _growth(run: Session, name: str, contexts: list[int]) -> Curve:
    """(0, d) of seconds = c + d n: what every further token of a hit costs. The constant is the suffix's."""
    pairs = _pairs(run, name, contexts)
    d, _c = np.polyfit([x for x, _ in pairs], [value for _, value in pairs], 1)
    return 0.0, max(0.0, float(d))


def _seconds(curve: Curve, tokens: float) -> float:
    return curve[0] * tokens**2 + curve[1] * tokens


def _worth(run: Session, trace: PrefixTrace, share: float, prefill: Curve, hit: Curve) -> None:
    """One trace through a pool of one size."""
    capacity = max(1, int(share * trace.chunk_count + 0.5))
    gib = capacity * trace.chunk_tokens * _sized_as(run).token_bytes / GIB
    every = sum(_seconds(prefill, tokens) for tokens in trace.prompt_tokens)
    kept = {OURS: replay(trace, capacity).saved} | {
        name: POLICIES[policy](trace, capacity) for name, policy in ((_LRU, "LRU"), (_OPTIMUM, "optimum"))
    }
    run.count(trace.references, 0)
    for name, saved in kept.items():
        tokens = saved.tokens * sum(trace.prompt_tokens)
        # What hits save of the work, by the trace's own positions, less what loading them takes.
        seconds = _saved_share(trace, saved.tokens, saved.prefill, prefill) * every - _seconds(hit, 1.0) * tokens
        a_day = max(0.0, seconds / every) * DAY_S / gib
        x = round(gib, 3)
        run.note(f"saved-{trace.name}", name, x, a_day)
        if hour := run.setting("engine_hour"):
            run.note(f"money-{trace.name}", name, x, a_day / 3600 * hour * MONTH_DAYS - run.setting("gib_month"))


def _saved_share(trace: PrefixTrace, tokens: float, prefill: float, curve: Curve) -> float:
    """Saved prefill as a share of all: between the share of tokens (no attention) and of work (much of it).

    The tally weighs a token at position p by 1 + p / 3115; this engine by 1 + 2 b p / a. The shares of two such weights
    lie on a line, since both are sums of a linear and a quadratic part.
    """
    from maru.bench.prefix_trace import HALF_TOKENS

    linear = float(sum(trace.prompt_tokens))
    square = float(sum(tokens_**2 for tokens_ in trace.prompt_tokens))
    whole = linear + square / (2 * HALF_TOKENS)
    saved_square = (prefill * whole - tokens * linear) * 2 * HALF_TOKENS
    return (curve[1] * tokens * linear + curve[0] * saved_square) / (curve[1] * linear + curve[0] * square)


FIGURE = Cost()
