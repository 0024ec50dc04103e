"""A run keeps every sample of every finished step, goes on without who failed, and can be taken up again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy_systems import ToyReplica, ToySystem

from maru.bench import document as documents
from maru.bench.document import Document, Measure
from maru.bench.figures.base import Figure, Knob, Step
from maru.bench.session import BadSetting, Options, Session, opened
from maru.bench.systems.contract import Deployment, Replica, System, SystemFailed


@dataclass
class ToyFigure(Figure):
    """Asks every system every round, and notes what it got."""

    takes: Sequence[System] = (ToySystem("maru"), ToySystem("server"))
    before_step: Callable[[str], None] = lambda _key: None
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
        run.check(answer, number)
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
    takes = [ToySystem("maru"), ToySystem("server", make=lambda _number: ToyReplica(dies_after=1))]
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
