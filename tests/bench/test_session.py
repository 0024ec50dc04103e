"""A run keeps every sample of every finished step, goes on without who failed, and can be taken up again."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_systems import ToyReplica, ToySystem

from maru import bench_commands
from maru.bench import document as documents
from maru.bench.document import Document, Measure
from maru.bench.figures.base import Figure, Knob, Step
from maru.bench.session import BadSetting, Options, Session, opened
from maru.bench.step_log import NoPlace
from maru.bench.systems.contract import Deployment, Replica, System, SystemFailed
from maru.bench.usage import Reading
from maru.errors import NoSpace

WARM_UP = 2
"""Answers that every replica gives before it is measured."""


@dataclass
class ToyFigure(Figure):
    """Asks every system every round, and notes what it got."""

    takes: Sequence[System] = (ToySystem("maru"), ToySystem("server"))
    before_step: Callable[[str], None] = lambda _key: None
    after_check: Callable[[str], None] = lambda _key: None
    question_of: Callable[[int], int] = lambda number: number
    done: list[str] = field(default_factory=list)
    name = "toy"
    title = "A toy"
    question = "Does it work?"
    engines = ("synthetic",)
    knobs = (
        Knob("sizes", (1, 2), (1,), "numbers"),
        Knob("share", 0.5, 0.1, "a number"),
        Knob("word", "a", "b", "a word"),
    )

    def systems(self, _run: Session, _chosen: Sequence[System]) -> Sequence[System]:
        return self.takes

    def measures(self, _run: Session) -> list[Measure]:
        return [Measure("m", "M", "s", "size")]

    def perform(self, run: Session) -> None:
        with run.deployed(run.job(256), lambda _system: 1, run.systems) as deployed:
            run.perform(
                [
                    Step(f"{number} {name}", name, partial(self._one, run, name, deployed[name], number))
                    for number in range(run.rounds)
                    for name in run.in_turn(list(deployed), number)
                ]
            )

    def _one(self, run: Session, name: str, deployment: Deployment, number: int) -> None:
        self.before_step(f"{number} {name}")
        answer = deployment.replicas[0].ask([1, 2, number])
        run.check(answer, self.question_of(number))
        self.after_check(f"{number} {name}")
        run.note("m", name, 1, answer.ttft_s, number)
        self.done.append(f"{number} {name}")


def measured(figure: Figure, path: Path, **options: Any) -> Document:
    with opened(figure, Options(path=path, **{"rounds": 3, **options})) as run:
        figure.perform(run)
        return run.document()


def test_every_system_gives_a_sample_a_round_and_begins_a_round_in_turn(tmp_path: Path) -> None:
    figure = ToyFigure()
    document = measured(figure, tmp_path)
    assert document.values("m", "maru", 1) == document.values("m", "server", 1) == [0.25] * 3
    assert figure.done[:4] == ["0 maru", "0 server", "1 server", "1 maru"]
    assert [system.version for system in document.systems] == ["toy 1", "toy 1"]
    assert len(document.disturbances) == 6
    assert document.machine["cores"] > 0


def test_a_system_that_is_absent_is_told_with_its_reason(tmp_path: Path) -> None:
    document = measured(ToyFigure(takes=[ToySystem("maru"), ToySystem("ray", absent="not installed")]), tmp_path)
    assert [system.absent for system in document.systems] == ["", "not installed"]
    assert [system.name for system in document.present] == ["maru"]


def test_a_system_that_fails_leaves_the_run_and_the_others_go_on(tmp_path: Path) -> None:
    takes = [ToySystem("maru"), ToySystem("server", make=lambda _number: ToyReplica(dies_after=WARM_UP + 1))]
    document = measured(ToyFigure(takes=takes), tmp_path)
    assert len(document.values("m", "maru", 1)) == 3
    assert len(document.values("m", "server", 1)) == 1
    assert document.systems[1].absent.startswith("failed: ")
    assert "dead" in document.systems[1].absent


def test_one_that_does_not_start_leaves_the_run(tmp_path: Path) -> None:
    def refuse(_number: int) -> Replica:
        raise SystemFailed("no room")

    document = measured(ToyFigure(takes=[ToySystem("maru"), ToySystem("server", make=refuse)]), tmp_path)
    assert "no room" in document.systems[1].absent
    assert len(document.values("m", "maru", 1)) == 3


def test_an_answer_unlike_the_others_makes_the_run_a_failure(tmp_path: Path) -> None:
    liar = ToySystem("server", make=lambda _number: ToyReplica(lambda prompt: (sum(prompt) + 1,)))
    document = measured(ToyFigure(takes=[ToySystem("maru"), liar]), tmp_path)
    assert (document.checks.compared, document.checks.wrong) == (6, 3)
    assert not document.checks.are_good


class Interrupted(Exception):
    """As Ctrl-C would."""


def stop_at(key: str) -> Callable[[str], None]:
    def before(step: str) -> None:
        if step == key:
            raise Interrupted

    return before


def test_an_interrupted_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    first = ToyFigure(before_step=stop_at("1 maru"))
    with pytest.raises(Interrupted):
        measured(first, tmp_path)
    second = ToyFigure()
    document = measured(second, tmp_path, is_resumed=True)
    assert first.done == ["0 maru", "0 server", "1 server"]
    assert second.done == ["1 maru", "2 maru", "2 server"]
    assert len(document.samples) == 6
    assert any("3 steps are of an earlier process" in line for line in document.remarks)


def test_a_step_that_was_cut_off_in_its_file_is_done_again(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        measured(ToyFigure(before_step=stop_at("1 maru")), tmp_path)
    (steps,) = tmp_path.glob("*.steps")
    steps.write_bytes(steps.read_bytes()[:-20])
    second = ToyFigure()
    document = measured(second, tmp_path, is_resumed=True)
    assert second.done == ["1 server", "1 maru", "2 maru", "2 server"]
    assert len(document.samples) == 6


def test_a_line_that_was_cut_off_takes_nothing_with_it_that_comes_after(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        measured(ToyFigure(before_step=stop_at("1 maru")), tmp_path)
    (steps,) = tmp_path.glob("*.steps")
    steps.write_bytes(steps.read_bytes()[:-20])
    with pytest.raises(Interrupted):
        measured(ToyFigure(before_step=stop_at("2 server")), tmp_path, is_resumed=True)
    third = ToyFigure()
    document = measured(third, tmp_path, is_resumed=True)
    assert third.done == ["2 server"]
    assert len(document.samples) == 6


def test_answers_are_compared_with_those_of_before_the_interruption(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        measured(ToyFigure(takes=[ToySystem("maru")], before_step=stop_at("2 maru")), tmp_path, rounds=3)
    figure = ToyFigure(takes=[ToySystem("maru")])
    figure.question_of = lambda _number: 0  # What was answered to that, by the first process, is another sum.
    document = measured(figure, tmp_path, is_resumed=True)
    assert (document.checks.compared, document.checks.wrong) == (3, 1)


def test_a_run_of_another_commit_is_not_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Interrupted):
        measured(ToyFigure(before_step=stop_at("1 maru")), tmp_path)
    monkeypatch.setattr("maru.bench.machine.commit", lambda: "another")
    with pytest.raises(BadSetting, match="another commit"):
        measured(ToyFigure(), tmp_path, is_resumed=True)


def test_a_wrong_answer_counts_also_when_its_system_dies_of_the_next(tmp_path: Path) -> None:
    dying = ToySystem("server", make=lambda _number: ToyReplica(lambda prompt: (sum(prompt) + 1,)))
    figure = ToyFigure(takes=[ToySystem("maru"), dying])

    def die(key: str) -> None:
        if key == "0 server":
            raise SystemFailed("dead")

    figure.after_check = die
    document = measured(figure, tmp_path)
    assert document.checks.wrong == 1
    assert document.values("m", "server", 1) == []


def test_every_replica_has_answered_twice_before_any_is_measured(tmp_path: Path) -> None:
    made: list[ToyReplica] = []

    def make(_number: int) -> Replica:
        made.append(ToyReplica())
        return made[-1]

    measured(ToyFigure(takes=[ToySystem("maru", make=make), ToySystem("server", make=make)]), tmp_path)
    first, second = made
    assert first.asked[:2] == second.asked[:2]
    assert first.asked[0] == first.asked[1]
    assert len(first.asked) == len(second.asked) == WARM_UP + 3


def test_a_pool_that_cannot_be_made_takes_its_system_out_and_not_the_run(tmp_path: Path) -> None:
    def refuse(_number: int) -> Replica:
        raise NoSpace("no room")

    document = measured(ToyFigure(takes=[ToySystem("maru"), ToySystem("server", make=refuse)]), tmp_path)
    assert "no room" in document.systems[1].absent


def test_one_tick_of_others_in_a_short_step_is_no_disturbance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.bench.session.os.cpu_count", lambda: 2)
    for seconds, is_said in ((0.02, False), (2.0, True)):
        monkeypatch.setattr("maru.bench.usage.shares", lambda *_: (0.25, 0.0))
        clock = iter(range(100))
        monkeypatch.setattr(
            "maru.bench.usage.reading",
            lambda clock=clock, seconds=seconds: Reading(next(clock) * seconds, 0.0, 0.0, 0.0, 0.0),
        )
        document = measured(ToyFigure(takes=[ToySystem("maru")]), tmp_path)
        assert any("others took more than 10%" in line for line in document.remarks) is is_said


def test_a_run_in_which_nothing_was_compared_says_so(tmp_path: Path) -> None:
    silent = ToySystem("maru", make=lambda _number: ToyReplica(lambda _prompt: ()))
    document = measured(ToyFigure(takes=[silent]), tmp_path)
    assert any(line.startswith("nothing was compared") for line in document.remarks)


def run_once(figure: Figure, path: Path, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("maru.bench_commands.figure_named", lambda _name: figure)
    monkeypatch.setattr("maru.bench.results.keep", lambda *_: {})
    monkeypatch.setattr("maru.bench.results.show", lambda *_: None)
    return bench_commands._run("toy", Options(path=path, rounds=3), json_output=False)


def test_a_run_is_good_when_everything_was_measured_and_right(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert run_once(ToyFigure(), tmp_path, monkeypatch)


@pytest.mark.parametrize(
    "make",
    [
        lambda _number: ToyReplica(lambda prompt: (sum(prompt) + 1,)),
        lambda _number: ToyReplica(dies_after=WARM_UP + 1),
    ],
    ids=["wrong", "dead"],
)
def test_a_run_with_a_wrong_answer_or_a_system_that_died_is_none(
    make: Callable[[int], Replica], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not run_once(ToyFigure(takes=[ToySystem("maru"), ToySystem("server", make=make)]), tmp_path, monkeypatch)


def test_a_full_disk_at_the_end_is_told_and_the_steps_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.bench.document.Path.write_bytes", full_disk)
    with pytest.raises(NoPlace, match="No space left"):
        measured(ToyFigure(), tmp_path)
    monkeypatch.undo()
    monkeypatch.setattr("maru.bench_commands.figure_named", lambda _name: ToyFigure())
    monkeypatch.setattr("maru.bench.results.keep", full_disk)
    with pytest.raises(NoPlace, match="No space left"):
        bench_commands._run("toy", Options(path=tmp_path, rounds=3), json_output=False)
    assert list(tmp_path.glob("*.steps"))


def full_disk(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_of_other_settings_is_not_taken_up(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        measured(ToyFigure(before_step=stop_at("1 maru")), tmp_path)
    with pytest.raises(BadSetting, match="other settings"):
        measured(ToyFigure(), tmp_path, is_resumed=True, rounds=4)


def test_without_resume_a_run_begins_anew(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        measured(ToyFigure(before_step=stop_at("1 maru")), tmp_path)
    second = ToyFigure()
    measured(second, tmp_path)
    assert len(second.done) == 6


def test_settings_have_the_type_of_their_defaults(tmp_path: Path) -> None:
    settings = {"sizes": "3,4", "share": "0.25", "word": "x"}
    session = Session(ToyFigure(), Options(path=tmp_path, settings=settings))
    assert session.settings == {"sizes": (3, 4), "share": 0.25, "word": "x"}
    assert Session(ToyFigure(), Options(is_quick=True)).settings == {"sizes": (1,), "share": 0.1, "word": "b"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (Options(settings={"size": "1"}), "no setting size; it has sizes, share, word"),
        (Options(settings={"sizes": "1,x"}), "sizes=1,x"),
        (Options(settings={"share": "much"}), "share=much"),
        (Options(engine="vllm"), "measured on synthetic"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_name(options: Options, said: str) -> None:
    with pytest.raises(BadSetting, match=said):
        Session(ToyFigure(), options)


def test_systems_that_do_not_fit_memory_together_are_measured_in_groups(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru.bench.machine.memory_available_bytes", lambda: 1000)
    takes = [ToySystem(name) for name in "abc"]
    with opened(ToyFigure(takes=takes), Options(path=tmp_path)) as run:
        groups = run.groups(150, lambda _system: 2, 50)
        assert [[system.name for system in group] for group in groups] == [["a", "b"], ["c"]]
        assert any("2 groups" in line for line in run.document().remarks)


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    before = set(Path("/dev/shm").glob("maru-bench-*"))
    yield
    assert set(Path("/dev/shm").glob("maru-bench-*")) <= before


def test_a_document_is_read_as_it_was_written(tmp_path: Path) -> None:
    document = measured(ToyFigure(), tmp_path)
    documents.write(tmp_path / "one.json", document)
    assert documents.read(tmp_path / "one.json") == document


@pytest.mark.parametrize(
    ("second", "stays"),
    [
        (ToySystem("server", absent="not installed"), False),
        (ToySystem("server", make=lambda _number: ToyReplica(dies_after=1)), True),
    ],
    ids=["absent", "failed"],
)
def test_logs_stay_only_when_a_system_failed(second: ToySystem, stays: bool, tmp_path: Path) -> None:
    figure = ToyFigure(takes=[ToySystem("maru"), second])
    with opened(figure, Options(path=tmp_path, rounds=3)) as run:
        figure.perform(run)
    assert run.folder.exists() == stays
    shutil.rmtree(run.folder, ignore_errors=True)
