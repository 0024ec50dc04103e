"""Steady load while processes are killed: what is still answered, whether one token is wrong, how soon hits come back.

Two replicas serve conversations without a pause. Every few seconds SIGKILL goes to one of them, or to the system's
cache server where it has one: first to that, then by a seed that can be run again. A new process takes its place. What
was in flight is asked again. Every system gets the same load, and its kills at the same seconds. Answers are compared
with what the same prompt was answered before, by whatever system and process.

A pool of one host has no server. So ours takes part a second time, as another host has it: its server is `maru serve`.
"""

from __future__ import annotations

import math
import random
import threading
import time
from collections.abc import Sequence
from functools import partial

from maru.bench import usage
from maru.bench.document import Better, Measure
from maru.bench.figures.base import Figure, Knob, Step
from maru.bench.figures.concurrency import two
from maru.bench.loads.contexts import conversations
from maru.bench.loads.drive import Drive, Served, Turn
from maru.bench.loads.prompts import Prompts
from maru.bench.session import Session
from maru.bench.systems import roster
from maru.bench.systems.contract import Deployment, Job, Replica, System, SystemFailed

CONTEXT, QUICK_CONTEXT = 2048, 384
BIN_S = 5.0
ANSWERS_A_SECOND = 20
"""So much load is there at least: more than two replicas answer."""
OUTPUT_TOKENS = 4
SERVER = -1
OURS = "maru"


class Chaos(Figure):
    name = "chaos"
    title = "Steady load while processes are killed"
    question = "When something dies, what do users notice: missing answers, wrong ones, or slow ones, and for how long?"
    engines = ("transformers", "vllm", "lmcache")
    knobs = (
        Knob("seconds", 180.0, 10.0, "of load on each system"),
        Knob("every", 20.0, 3.0, "seconds between kills"),
        Knob("conversations", 6, 3, "under way at once"),
        Knob("turns", 5, 3, "of each; then they begin again, each with a context that nobody has seen"),
        Knob("seed", 1, 1, "of what is killed"),
    )

    def systems(self, run: Session, chosen: Sequence[System]) -> Sequence[System]:
        """Beside ours, ours by a daemon."""
        more = roster.by_daemon(run.engine)
        return [one for system in chosen for one in (system, *([more] if more and system.name == OURS else []))]

    def measures(self, _run: Session) -> list[Measure]:
        def of(name: str, title: str, unit: str, better: Better, note: str = "") -> Measure:
            return Measure(name, title, unit, "", kind="bars", better=better, note=note)

        return [
            Measure(
                "goodput", "Right answers a second", "1/s", "since the load began", "s", better="higher",
                kind="timeline", note=f"in steps of {BIN_S:g} s",
            ),
            of("answered", "Right answers, in all", "answers", "higher"),
            of("wrong", "Wrong answers", "answers", "lower", "must be 0"),
            of(
                "first-hit", "From a kill to the first hit with the new process", "s", "lower",
                "starting it is part of that; after a server's end any replica's hit counts",
            ),
            of("ttft", "Time to first token", "s", "lower", "from when a user asks, with all waiting"),
            of(
                "memory", "Memory held at the end, beyond the beginning", "MB", "lower",
                "of replicas and servers, with their part of the shared memory that they map",
            ),
            Measure(
                "kills-events", "Kills", "", "since the load began", "s", better="", kind="timeline",
                note="1: a replica, 2: the server",
            ),
        ]  # fmt: skip

    def perform(self, run: Session) -> None:
        context = run.context(CONTEXT, QUICK_CONTEXT)
        sessions = conversations(run.prompts, run.setting("conversations") * 8, context, run.setting("turns"), "chaos")
        chained = chained_turns(run.prompts, sessions, run.setting("conversations"), run.setting("seconds"))
        longest = max(len(turn.prompt) for session in chained for turn in session)
        run.insist_on_tokens(longest + OUTPUT_TOKENS)
        job = run.job(longest + OUTPUT_TOKENS + 2 * run.chunk_tokens)
        for system in run.systems:
            key = f"{run.setting('seconds'):g} s of load and kills, {system.name}"
            run.perform([Step(key, system.name, partial(_one, run, system, job, chained))])


def chained_turns(prompts: Prompts, sessions: list[list[Turn]], lanes: int, seconds: float) -> list[list[Turn]]:
    """Conversations that follow each other, in so many lanes, more than can be answered: the drive ends by the clock.

    When all of them are over they begin again, each with a first line that makes its context new to everybody.
    """
    found: list[list[Turn]] = [[] for _ in range(lanes)]
    for lap in range(math.ceil(ANSWERS_A_SECOND * seconds / sum(map(len, sessions)))):
        head = tuple(prompts.words(f"# lap {lap}\n"))
        for number, session in enumerate(sessions):
            lane = found[number % lanes]
            for turn in session:
                lane.append(Turn(number % lanes, len(lane), head + turn.prompt, OUTPUT_TOKENS))
    return found


class _Killer:
    """Kills by the clock and by a seed, and remembers what and when."""

    def __init__(self, deployment: Deployment, every_s: float, until_s: float, seed: int) -> None:
        """None is killed in the last half of a pause: who died then could not come back."""
        self._deployment, self._every_s, self._until_s = deployment, every_s, until_s - every_s / 2
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.kills: list[tuple[float, int]] = []
        """(seconds since the beginning, the replica's number or SERVER)."""
        self.error: SystemFailed | None = None

    def begin(self) -> None:
        self._begun = time.monotonic()
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self._every_s):
            target = self._chosen()
            at = time.monotonic() - self._begun
            if at > self._until_s:
                return
            try:
                if target == SERVER:
                    self._deployment.kill_server()
                else:
                    self._deployment.replicas[target].kill()
            except SystemFailed as error:
                self.error = error
                return
            self.kills.append((at, target))

    def _chosen(self) -> int:
        """A server dies first: a short run shows that, too."""
        targets = [*range(len(self._deployment.replicas)), *([SERVER] if self._deployment.server_pids() else [])]
        if SERVER in targets and not self.kills:
            return SERVER
        target: int = self._random.choice(targets)
        return target


def _one(run: Session, system: System, job: Job, sessions: list[list[Turn]]) -> None:
    """One system under load, killed again and again."""
    with run.deployed(job, two, [system]) as field:
        if system.name not in field:
            return
        deployment = field[system.name]
        memory = _memory(deployment)
        killer = _Killer(deployment, run.setting("every"), run.setting("seconds"), run.setting("seed"))

        def succeed(number: int) -> Replica:
            return deployment.restart(number)

        drive = Drive(deployment.replicas, 2, is_checked=False, on_failure=succeed)
        killer.begin()
        try:
            served = drive.run(sessions, deadline_s=run.setting("seconds"))
        finally:
            killer.end()
        if killer.error:
            raise killer.error
        if len(served) == sum(map(len, sessions)):
            run.remark(f"{system.name} answered everything before the time was over: its later seconds had no load")
        _note(run, system.name, served, killer.kills)
        run.note("memory", system.name, "held", (_memory(deployment) - memory) / 1e6)


def _memory(deployment: Deployment) -> int:
    return usage.memory_bytes(deployment.pids())


def _note(run: Session, name: str, served: list[Served], kills: list[tuple[float, int]]) -> None:
    wrong = [one for one in served if not run.check(one.answer, one.turn.prompt)]
    right = [one for one in served if one not in wrong and one.done_s <= run.setting("seconds")]
    run.note("wrong", name, "answers", float(len(wrong)))
    run.note("answered", name, "answers", float(len(right)))
    for number in range(int(run.setting("seconds") // BIN_S)):
        count = sum(number * BIN_S <= one.done_s < (number + 1) * BIN_S for one in right)
        run.note("goodput", name, (number + 0.5) * BIN_S, count / BIN_S)
    for one in served:
        run.note("ttft", name, "requests", one.user_ttft_s)
    without_hit = set[str]()
    for at, target in kills:
        what = "of the server" if target == SERVER else "of a replica"
        run.note("kills-events", name, round(at, 1), 2.0 if target == SERVER else 1.0)
        hits = [
            one.done_s - at
            for one in served
            if one.asked_s > at and one.answer.cached_tokens and target in (SERVER, one.replica)
        ]
        if hits:
            run.note("first-hit", name, what, min(hits))
        else:
            without_hit.add(what)
    for what in sorted(without_hit):
        run.remark(f"{name}: after a kill {what} no hit came within the load")


FIGURE = Chaos()
