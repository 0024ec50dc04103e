"""Conversations about long contexts of real source code, with the cache and without it.

N contexts x T turns. First one replica with one prompt at a time, the contexts in turn, so that a small cache of the
engine's own has always just lost what comes next. Then two replicas with ten prompts in flight each, and every turn of
a conversation goes to another replica than the one before: a router that knows nothing of caches. Both parts have
contexts of their own, so each begins with nothing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise

from maru.bench.document import Measure
from maru.bench.figures.base import ROOM_FACTOR, Figure, Knob, Step, whole_gib
from maru.bench.figures.concurrency import two
from maru.bench.figures.ttft import replica_bytes
from maru.bench.loads.contexts import ANSWER_TOKENS, conversations
from maru.bench.loads.drive import Drive, Turn
from maru.bench.session import SYNTHETIC, Field, Session
from maru.bench.systems.contract import Answer, Deployment

CONTEXT, QUICK_CONTEXT = 4096, 256
MODES = {"one": "one replica, one prompt at a time", "two": "two replicas, several prompts each"}


class Multiturn(Figure):
    name = "multiturn"
    title = "Conversations about long contexts"
    question = "What do users wait for in the second, third, ... turn, and when is all the work done?"
    engines = ("transformers", "synthetic", "vllm", "lmcache")
    knobs = (
        Knob("conversations", 10, 2, "how many contexts"),
        Knob("turns", 5, 3, "turns of each"),
        Knob("in_flight", 10, 2, "prompts in flight at each of the two replicas"),
        Knob("own_share", 0.3, 0.5, "how much of all contexts the engine's own cache holds"),
    )

    def measures(self, run: Session) -> list[Measure]:
        note = "of turns whose beginning hits" if run.engine == SYNTHETIC else ""
        by_turn = [
            Measure(f"ttft-{mode}", f"Time to first token, {title}", "s", "turn", log_y=True, note=note)
            for mode, title in MODES.items()
        ]
        return [
            *by_turn,
            Measure("mean", "Mean time to first token", "s", "", kind="bars", note=note),
            Measure("wall", "Until everything is answered", "s", "", kind="bars"),
        ]

    def perform(self, run: Session) -> None:
        context = run.context(CONTEXT, QUICK_CONTEXT)
        count, turns = run.setting("conversations"), run.setting("turns")
        rounds = [
            {mode: sessions[n :: len(MODES)] for n, mode in enumerate(MODES)}
            for sessions in (
                conversations(run.prompts, len(MODES) * count, context, turns, f"round {number}")
                for number in range(run.rounds)
            )
        ]
        longest = max(len(turn.prompt) for turn in rounds[0]["one"][0])
        run.insist_on_tokens(longest)
        whole = count * (longest + ANSWER_TOKENS) * run.kv_model.token_bytes
        job = run.job(longest + run.chunk_tokens, capacity_bytes=whole_gib(ROOM_FACTOR * len(MODES) * whole))
        own = replace(job, capacity_bytes=int(run.setting("own_share") * whole))
        if any(system.name == "prefix-cache" for system in run.systems):
            run.remark(
                f"the engine's own cache holds {run.setting('own_share'):.0%} of a part's contexts, others all of them"
            )
        for group in run.groups(replica_bytes(run, job.context_tokens_max), two, job.capacity_bytes):
            parts = [
                [one for one in group if one.name != "prefix-cache"],
                [o for o in group if o.name == "prefix-cache"],
            ]
            with run.deployed(job, two, parts[0]) as shared, run.deployed(own, two, parts[1]) as alone:
                run.perform(_steps(run, {**alone, **shared}, rounds))


def _steps(run: Session, field: Field, rounds: Sequence[dict[str, list[list[Turn]]]]) -> list[Step]:
    return [
        Step(
            f"round {number}, {MODES[mode]}, {name}",
            name,
            partial(_converse, run, name, field[name], mode, turns, number),
        )
        for number, modes in enumerate(rounds)
        for mode, turns in modes.items()
        for name in run.in_turn(list(field), number)
    ]


def _converse(
    run: Session, name: str, deployment: Deployment, mode: str, sessions: list[list[Turn]], number: int
) -> None:
    """All conversations of one part. Prompts are told beforehand, and what is compared is compared afterwards."""
    for replica in deployment.replicas:
        for session in sessions:
            for turn in session:
                replica.learn(turn.prompt)
    begun = time.monotonic()
    if mode == "one":
        replica = deployment.replicas[0]
        served = [
            (turn, replica.collect(replica.post(turn.prompt, is_checked=False)))
            for some in zip(*sessions, strict=True)
            for turn in some
        ]
    else:
        numbered = [[replace(turn, session=n) for turn in session] for n, session in enumerate(sessions)]
        drive = Drive(deployment.replicas, run.setting("in_flight"), is_checked=False)
        served = [(one.turn, one.answer) for one in drive.run(numbered)]
    taken_s = time.monotonic() - begun
    known = {turn.prompt: len(before.prompt) for session in sessions for before, turn in pairwise(session)}
    answers: list[Answer] = []
    for turn, answer in served:
        run.check(answer, turn.prompt)
        if run.engine == SYNTHETIC:  # Where nothing is computed, a miss is no answer to anybody.
            if not turn.number:
                continue
            run.insist_on_hit(name, answer, known[turn.prompt] // run.chunk_tokens * run.chunk_tokens)
        run.note(f"ttft-{mode}", name, turn.number + 1, answer.ttft_s, number)
        answers.append(answer)
    run.note("mean", name, MODES[mode], statistics.fmean(answer.ttft_s for answer in answers), number)
    run.note("wall", name, MODES[mode], taken_s, number)
    run.check_bytes(deployment, [session[-1].prompt for session in sessions])


FIGURE = Multiturn()
