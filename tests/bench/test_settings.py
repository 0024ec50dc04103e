"""What cannot be measured is refused by name before anything starts, with what to do about it."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from toy_systems import ToySystem
from typer.testing import CliRunner

from maru.bench.figures import figure_named
from maru.bench.figures.chaos import chained_turns
from maru.bench.figures.cost import _fitted
from maru.bench.figures.tiers import media
from maru.bench.loads.contexts import conversations
from maru.bench.loads.prompts import NumberPrompts
from maru.bench.session import BadSetting, NothingToMeasure, Options, Session, opened
from maru.bench.step_log import NoPlace
from maru.bench.systems.models import UnknownModel, folder_model
from maru.bench_commands import bench_app

TAKES = [ToySystem("maru"), ToySystem("recompute")]


@pytest.fixture
def toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Toy systems in every engine."""
    monkeypatch.setattr("maru.bench.systems.roster.systems_of", lambda _engine: tuple(TAKES))


def refused(tmp_path: Path, name: str, **options: Any) -> str:
    settings = {"engine": "synthetic", "is_quick": True, "path": tmp_path, **options}
    figure = figure_named(name)
    with pytest.raises(BadSetting) as error, opened(figure, Options(**settings)) as run:
        figure.perform(run)
    return str(error.value)


@pytest.mark.usefixtures("toys")
@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("ttft", {"contexts": (255,)}, "at least 256"),
        ("ttft", {"capacity_bytes": 1 << 20}, "does not hold one context"),
        ("concurrency", {"contexts": (256, 512)}, "one context length"),
        ("concurrency", {"settings": {"levels": ","}}, "needs something to measure"),
        ("concurrency", {"settings": {"levels": "1,0"}}, "above 0"),
        ("multiturn", {"settings": {"own_share": "nan"}}, "not a finite number"),
        ("workloads", {"settings": {"room": "-1"}}, "cannot be below 0"),
        ("workloads", {"settings": {"only": "trace"}}, "--set long_set=… or trace=…"),
        ("workloads", {"settings": {"only": "trace", "trace": "/no/such/file"}}, "No such file"),
        ("workloads", {"settings": {"only": "long", "long_set": "/dev/null"}}, "no request of at most"),
        ("bandwidth", {"settings": {"processes": "2,4"}}, "processes has to have 1"),
        ("hosts", {"settings": {"hosts": "2,17"}}, "16 at once are the most"),
        ("hosts", {"systems": ("recompute",)}, "has to name one of them"),
        ("bandwidth", {"settings": {"segments": "2"}}, "segments has to have 1"),
        ("tiers", {"systems": ("recompute",)}, "--systems has to name maru"),
        ("cost", {"engine": "transformers", "systems": ("maru",)}, "prefill_tokens_per_s"),
        ("capacity", {"engine": None, "settings": {"traces": "/etc/hostname"}}, "no such trace"),
        ("capacity", {"engine": None, "settings": {"chunk_tokens": "100"}}, "multiples of 16"),
    ],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, name: str, options: dict[str, Any], said: str) -> None:
    assert said in refused(tmp_path, name, **options)


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.pct").write_bytes(b"something else")
    settings = {"traces": str(tmp_path), "only": "mine"}
    assert "no trace of prefixes" in refused(tmp_path, "capacity", engine=None, settings=settings)


def test_a_setting_whose_default_is_nothing_may_be_nothing(tmp_path: Path) -> None:
    session = Session(figure_named("workloads"), Options(path=tmp_path, settings={"room": "0", "speed": "2"}))
    assert (session.setting("room"), session.setting("speed")) == (0.0, 2.0)
    assert Session(figure_named("capacity"), Options(settings={"only": ""})).setting("only") == ()


@pytest.mark.usefixtures("toys")
def test_contexts_are_whole_chunks_each_once_and_that_is_said(tmp_path: Path) -> None:
    options = Options(engine="synthetic", contexts=(300, 256, 1000), path=tmp_path)
    with opened(figure_named("ttft"), options) as run:
        assert run.contexts((1,), (1,)) == [256, 768]
        assert run._remarks == ["contexts are whole chunks of 256 tokens: 256, 768"]


@pytest.mark.usefixtures("toys")
def test_the_capacity_that_a_person_chose_is_every_figures(tmp_path: Path) -> None:
    with opened(figure_named("ttft"), Options(engine="synthetic", capacity_bytes=1 << 30, path=tmp_path)) as run:
        assert run.job(512).capacity_bytes == run.job(512, capacity_bytes=5 << 30).capacity_bytes == 1 << 30


@pytest.mark.usefixtures("toys")
def test_what_does_not_fit_this_machines_memory_is_left_out_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maru.bench.machine.memory_available_bytes", lambda: 1 << 30)
    with opened(figure_named("ttft"), Options(engine="synthetic", path=tmp_path)) as run:
        assert [s.name for s in run.groups(1 << 29, lambda s: 1 if s.name == "maru" else 3, 0)[0]] == ["maru"]
        with pytest.raises(NothingToMeasure, match="takes 2 GiB of memory, and 1 GiB are available"):
            run.groups(1 << 31, lambda _: 1, 0)


def test_a_run_without_any_system_is_refused_with_every_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = (ToySystem("a", absent="not installed"), ToySystem("b", absent="no GPU"))
    monkeypatch.setattr("maru.bench.systems.roster.systems_of", lambda _engine: absent)
    options = Options(engine="synthetic", path=tmp_path)
    with pytest.raises(NothingToMeasure, match="a: not installed; b: no GPU"), opened(figure_named("ttft"), options):
        pass


@pytest.mark.usefixtures("toys")
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_measured(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    options = Options(engine="synthetic", path=tmp_path / "file")
    with pytest.raises(NoPlace, match="file"), opened(figure_named("ttft"), options):
        pass


def test_a_models_kv_is_that_of_its_own_configuration(tmp_path: Path) -> None:
    told = {
        "num_hidden_layers": 4, "num_attention_heads": 8, "hidden_size": 512, "num_key_value_heads": 2,
        "max_position_embeddings": 2048,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(told))
    with pytest.raises(UnknownModel, match="tokenizer"):
        folder_model(tmp_path, "mine")
    (tmp_path / "tokenizer.json").write_text("{}")
    model = folder_model(tmp_path, "mine")
    assert (model.token_bytes, model.tokens_max) == (2 * 4 * 2 * 64 * 4, 2048)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(UnknownModel):
        folder_model(tmp_path, "mine")


def test_a_file_that_is_there_is_no_place_for_a_pool(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    settings = {"file": str(tmp_path / "mine"), "hugetlbfs": str(tmp_path), "devdax": ""}
    run = cast(Session, SimpleNamespace(setting=settings.__getitem__, options=Options()))
    (on_file,) = [one for one in media(run, TAKES[0]) if one.name == "maru-file"]
    assert "is there already" in on_file.why_not()
    assert (tmp_path / "mine").read_text() == "precious"


def test_a_cost_whose_speeds_are_not_known_is_not_told() -> None:
    run = cast(Session, SimpleNamespace(values=lambda *_: []))
    with pytest.raises(NothingToMeasure, match="recompute was not measured"):
        _fitted(run, "recompute", [256, 512])


def test_there_is_more_steady_load_than_can_be_answered_and_every_context_is_new() -> None:
    prompts = NumberPrompts()
    lanes = chained_turns(prompts, conversations(prompts, 4, 64, 3, "a test"), 2, seconds=9.0)
    turns = [turn for lane in lanes for turn in lane]
    assert len(turns) >= 180
    assert len({turn.prompt for turn in turns}) == len(turns)
    assert all(
        turn.number == n and turn.session == lane for lane, some in enumerate(lanes) for n, turn in enumerate(some)
    )


@pytest.mark.parametrize("text", ["0", "-256", "x", "", "256,0"])
def test_contexts_that_are_no_numbers_above_0_are_a_bad_command_line(text: str) -> None:
    told = CliRunner().invoke(bench_app, ["ttft", "--contexts", text])
    assert told.exit_code == 2
    assert "numbers above 0" in told.output
