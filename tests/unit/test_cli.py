"""The `maru` command, run as a person runs it, on real pools."""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner, Result

import maru
import maru.demo
from maru.cli import app
from maru.config import shared_memory_root
from maru.errors import PoolNotFound
from maru.stat_view import SeenPool
from maru.survey import look_at
from maru.tiering.told import Teller
from maru.watch import rates, watch

_numbers = itertools.count()
KEY = b"k" * 16


def run(*arguments: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(app, list(arguments), input=answer, env={"COLUMNS": "200"})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder of pools of the test's own: other tests' pools are not in its listings."""
    return tmp_path


@pytest.fixture
def name() -> Iterator[str]:
    """The name of a pool that is not there yet, and will not be there afterwards."""
    name = f"test-cli-{os.getpid()}-{next(_numbers)}"
    yield name
    with contextlib.suppress(PoolNotFound):
        maru.Pool.destroy(f"maru:///{name}", force=True)


@pytest.fixture
def pool(name: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(f"maru:///{name}?size=16MiB") as made:
        yield made


def test_stat_json_is_what_the_pool_says(pool: maru.Pool, name: str) -> None:
    assert pool.put(KEY, b"v" * 5000) is maru.Outcome.STORED
    result = run("stat", name, "--json")
    assert result.exit_code == 0
    shown, own = json.loads(result.stdout), pool.stats()
    assert shown.keys() == own.keys() | {"ladders"}
    for figure in ("uuid", "size_bytes", "used_bytes", "slab_bytes", "chunks"):
        assert shown[figure] == own[figure]


def test_stat_of_one_pool_shows_sizes_states_counters_and_processes(pool: maru.Pool, name: str) -> None:
    pool.put(KEY, b"v" * 5000)
    view = pool.get(KEY)
    result = run("stat", f"maru:///{name}")
    assert view is not None
    assert result.exit_code == 0
    for part in (name, "16 MiB", "sealed", "stored", "Processes", str(os.getpid()), "Segments", "100.0 %"):
        assert part in result.stdout


def test_stat_names_who_holds_the_oldest_pins_and_the_open_reservations(pool: maru.Pool, name: str) -> None:
    pool.put(KEY, b"v" * 5000)
    view = pool.get(KEY)
    late, early = pool.reserve(b"l" * 16, 5000, deadline=0), pool.reserve(b"e" * 16, 5000, deadline=100)
    text = run("stat", name).stdout
    assert view is not None
    pins, _, reservations = text.partition("Oldest pins")[2].partition("Reservations")
    assert str(os.getpid()) in pins
    assert reservations.index(" ago") < reservations.index(" in ")  # The late one first.
    late.discard()
    early.discard()
    assert "Reservations" not in run("stat", name).stdout


LADDER = {
    "places": [
        {"url": "file:///below", "state": "up", "load_first_byte_s": 0.0123, "load_bytes_per_s": 3 << 30,
         "store_bytes_per_s": None, "loaded": 12_345, "stored": 2, "absent": 1},
        {"url": "s3://\x1b[31mbucket/[red]x", "state": "down", "load_bytes_per_s": "much", "loaded": -1},
    ],
    "demoter": {},
    "promoter": {},
    "decision": {
        "loads": 31, "computes": 17, "prefill_tokens_per_s": 23_456.7, "prefill_double_at": 3115.2,
        "prefill_is": "measured",
    },
    "sources": {"pool": 901, "below": {"file:///below": 77}, "computed": None},
}  # fmt: skip


def test_stat_shows_the_numbers_that_decide_between_loading_and_computing(pool: maru.Pool, name: str) -> None:
    assert "Places below" not in run("stat", name).stdout
    with Teller(pool.config.folder) as teller:
        teller.tell(LADDER)
        text = run("stat", name).stdout
        (shown,) = json.loads(run("stat", name, "--json").stdout)["ladders"]
    assert {key: shown[key] for key in LADDER} == LADDER
    places, _, decisions = text.partition("Places below")[2].partition("Load or compute")
    first, second = places.strip().splitlines()[1:3]
    for part in (str(os.getpid()), "file:///below", "up", "12.3 ms", "3 GiB/s", "12,345"):
        assert part in first
    assert "s3://?[31mbucket/[red]x" in second  # Nothing of it is a terminal's or rich's.
    assert "down" in second
    for part in ("23,457 tokens/s, half at 3,115", "measured", "31", "17", "901", "77 file:///below", "-"):
        assert part in decisions.splitlines()[2]
    assert "Places below" not in run("stat", name).stdout


@pytest.mark.parametrize("figures", [{"decision": {"loads": []}}, {"sources": {"below": [1]}}, {"places": [{}]}])
def test_stat_shows_what_it_can_of_a_ladder_that_tells_nonsense(
    pool: maru.Pool, name: str, figures: dict[str, object]
) -> None:
    with Teller(pool.config.folder) as teller:
        teller.tell({**LADDER, **figures})
        result = run("stat", name)
    assert result.exit_code == 0
    assert "Load or compute" in result.stdout


# ---- maru stat --watch ----


class Turns:
    """Instead of waiting: some turns, then Ctrl-C."""

    def __init__(self, count: int, between: Callable[[], object] = lambda: None) -> None:
        self.left, self.between = count, between
        self.seconds: list[float] = []

    def __call__(self, seconds: float) -> None:
        self.seconds.append(seconds)
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        self.between()


def watched(pool: maru.Pool, turns: Turns, terminal: bool, json_output: bool = False) -> str:
    """What a watch of one pool shows until its Ctrl-C."""
    folder, shown = pool.config.folder, io.StringIO()
    console = Console(file=shown, force_terminal=terminal, width=160, height=60)
    with contextlib.redirect_stdout(shown):
        watch(lambda: [SeenPool(folder, look_at(folder))], console, 7.0, json_output, closely=True, pause=turns)
    return shown.getvalue()


def test_watching_prints_a_line_a_look_where_there_is_no_terminal(pool: maru.Pool, name: str) -> None:
    pool.put(KEY, b"v" * 5000)
    turns = Turns(3, between=lambda: pool.get(KEY))
    lines = watched(pool, turns, terminal=False).splitlines()
    assert turns.seconds == [7.0] * 3
    assert len(lines) == 3
    assert all(f"{name}: 8 KiB of 16 MiB used, 1 chunks" in line for line in lines)
    assert "first look" in lines[0]
    assert "100.0 % hit" in lines[1]


def test_watching_on_a_terminal_keeps_one_view(pool: maru.Pool, name: str) -> None:
    text = watched(pool, Turns(2), terminal=True)
    assert "Ctrl-C ends it" in text
    assert name in text
    assert "\x1b[" in text


def test_watching_as_json_is_a_document_a_line(pool: maru.Pool) -> None:
    documents = [json.loads(line) for line in watched(pool, Turns(2), terminal=False, json_output=True).splitlines()]
    assert [document["uuid"] for document in documents] == [pool.stats()["uuid"]] * 2


def test_rates_start_anew_with_another_pool() -> None:
    def stats(uuid: str, now_s: int, stored: int) -> dict[str, object]:
        return {"uuid": uuid, "now_ns": now_s * 10**9, "counters": {"stored": stored}}

    assert rates(stats("a", 10, 500), stats("a", 8, 100)) == {"stored": 200.0}
    assert rates(stats("b", 10, 500), stats("a", 8, 100)) == {}
    assert rates(stats("a", 10, 500), None) == {}


@pytest.mark.parametrize(
    ("words", "seconds", "closely"),
    [
        (["--watch"], 2.0, False),
        (["--watch", "0.5"], 0.5, False),
        (["--watch=5"], 5.0, False),
        (["kv", "--watch"], 2.0, True),
        (["--watch", "kv"], 2.0, True),
        (["kv", "--watch", "9", "--json"], 9.0, True),
    ],
)
def test_watch_takes_seconds_or_stands_alone(
    words: list[str], seconds: float, closely: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[float, bool]] = []
    monkeypatch.setattr("maru.cli.watch", lambda _look, _console, s, _json, closely: told.append((s, closely)))
    assert run("stat", *words).exit_code == 0
    assert told == [(seconds, closely)]


def test_watching_too_often_is_wrong_usage() -> None:
    assert run("stat", "--watch", "0").exit_code == 2


def test_ctrl_c_ends_a_watch_quietly(pool: maru.Pool, name: str) -> None:
    command = [sys.executable, "-m", "maru", "stat", name, "--watch", "30"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert name in watcher.stdout.readline()
        watcher.send_signal(signal.SIGINT)
        rest, complaint = watcher.communicate(timeout=30)
        assert (watcher.returncode, rest, complaint) == (0, "", "")


def test_watching_a_pool_that_goes_ends_with_a_sentence(pool: maru.Pool, name: str) -> None:
    with pytest.raises(PoolNotFound):
        watched(pool, Turns(3, between=lambda: maru.Pool.destroy(f"maru:///{name}", force=True)), terminal=False)


def test_looking_at_a_pool_changes_nothing_in_it(pool: maru.Pool, name: str) -> None:
    pool.put(KEY, b"v" * 5000)
    before = pool.stats()
    run("stat", name)
    after = pool.stats()
    assert after["chunks"] == before["chunks"]
    assert len(after["processes"]) == len(before["processes"])
    still = {figure: count for figure, count in after["counters"].items() if figure != "sweeps"}
    assert still == {figure: count for figure, count in before["counters"].items() if figure != "sweeps"}


def test_stat_without_a_pool_lists_all_of_them_with_what_is_wrong_with_one(place: Path) -> None:
    maru.Pool.create(f"maru:///good?size=4MiB&dir={place}").close()
    maru.Pool.create(f"maru:///torn?size=4MiB&dir={place}").close()
    (place / "torn" / "index").write_bytes(b"not an index".ljust(8192, b"!"))
    (place / "unrelated").mkdir()

    table = run("stat", "--dir", str(place))
    assert table.exit_code == 0
    assert "good" in table.stdout
    assert "not a Maru index" in table.stdout
    assert "unrelated" not in table.stdout

    good, torn = json.loads(run("stat", "--dir", str(place), "--json").stdout)
    assert good["size_bytes"] == 4 << 20
    assert torn["error"] == "PoolMismatch"
    assert torn["folder"] == str(place / "torn")

    listed = json.loads(run("pool", "list", "--dir", str(place), "--json").stdout)
    assert listed[0]["url"] == f"maru:///good?dir={place}"
    assert listed[0]["processes"] == []
    assert listed[1]["error"] == "PoolMismatch"


def test_an_empty_place_says_how_to_make_a_pool(place: Path) -> None:
    for command in (["stat"], ["pool", "list"]):
        result = run(*command, "--dir", str(place))
        assert result.exit_code == 0
        assert "maru pool create" in result.stdout
        assert json.loads(run(*command, "--dir", str(place), "--json").stdout) == []


def test_a_place_with_letters_that_mean_something_in_urls_is_found(tmp_path: Path) -> None:
    place = tmp_path / "a b&c=d+e%41"
    place.mkdir()
    with maru.Pool.create(f"maru:///kv?size=4MiB&dir={tmp_path}/a%20b%26c%3Dd%2Be%2541"):
        result = run("stat", "kv", "--dir", str(place), "--json")
        assert json.loads(result.stdout)["folder"] == str(place / "kv")
        assert len(json.loads(run("pool", "list", "--dir", str(place), "--json").stdout)) == 1


def test_a_hostile_name_in_shared_memory_moves_no_cursor(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["\x9b2J[red]\x7fx"])
    with maru.Pool.create(f"maru:///kv?size=4MiB&dir={place}") as pool:
        # The child looks, so that this process's name is shown.
        child = [sys.executable, "-m", "maru", "stat", "kv", "--dir", str(place)]
        shown = subprocess.run(child, stdout=subprocess.PIPE, text=True, check=True).stdout
        assert "?2J[red]?x" in shown
        assert pool.check() == []


def test_create_says_what_was_obtained_and_the_pool_outlives_the_command(name: str) -> None:
    result = run("pool", "create", f"maru:///{name}?size=8MiB")
    assert result.exit_code == 0
    for part in ("8 MiB", "100.0 %", "shm", "slab", f"maru:///{name}"):
        assert part in result.stdout
    with maru.Pool.attach(f"maru:///{name}") as pool:
        assert pool.stats()["size_bytes"] == 8 << 20


def test_create_json_is_the_pools_figures_and_nothing_else(name: str) -> None:
    result = run("pool", "create", f"maru:///{name}?size=8MiB", "--json", "--no-wait")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["size_bytes"] == 8 << 20


@pytest.mark.usefixtures("pool")
def test_create_where_one_exists_is_one_line_and_exit_code_1(name: str) -> None:
    result = run("pool", "create", f"maru:///{name}?size=8MiB")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert len(result.stderr.splitlines()) == 1
    assert "already exists" in result.stderr
    assert "Traceback" not in result.stderr


def test_destroy_names_who_uses_the_pool_and_changes_nothing(pool: maru.Pool, name: str) -> None:
    result = run("pool", "destroy", name)
    assert result.exit_code == 1
    assert str(os.getpid()) in result.stderr
    assert "--force" in result.stderr
    assert pool.put(KEY, b"v") is maru.Outcome.STORED


def test_destroy_with_force_turns_users_to_misses(pool: maru.Pool, name: str) -> None:
    pool.put(KEY, b"v")
    assert run("pool", "destroy", name, "--force", "--yes").exit_code == 0
    assert pool.lookup(KEY) == 0
    assert run("stat", name).exit_code == 1


@pytest.mark.parametrize(("answer", "is_there"), [("n\n", True), ("y\n", False)])
def test_destroy_asks_on_a_terminal(name: str, answer: str, is_there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    maru.Pool.create(f"maru:///{name}?size=4MiB").close()
    monkeypatch.setattr("maru.pool_commands._stdin_is_terminal", lambda: True)
    result = run("pool", "destroy", name, answer=answer)
    assert result.exit_code == 0
    assert f"maru:///{name}" in result.stdout
    assert (shared_memory_root() / name / "index").exists() is is_there


def test_a_pool_that_is_not_there_is_one_line_with_a_hint(name: str) -> None:
    for command in (["stat", name], ["pool", "destroy", name]):
        result = run(*command)
        assert result.exit_code == 1
        assert len(result.stderr.splitlines()) == 1
        assert "no pool at" in result.stderr


@pytest.mark.parametrize(
    "url",
    [
        "maru:///kv?token=hunter2",
        "maru:///kv?size=8MiB&password=hunter2",
        "maru://user:hunter2@host/kv",
        "http://user:hunter2@host/kv?api_key=hunter2",
        "maru:///kv?secret=hunter2#fragment",
    ],
)
def test_secrets_in_urls_are_never_printed(url: str) -> None:
    for command in (["stat"], ["pool", "create"], ["pool", "destroy", "--yes"], ["demo", "--pool"]):
        result = run(*command, url)
        assert result.exit_code == 1
        assert "hunter2" not in result.output


def test_wrong_usage_is_exit_code_2(name: str) -> None:
    assert run("stat", "--no-such-option").exit_code == 2
    assert run("pool", "create").exit_code == 2
    assert run("stat", f"maru:///{name}", "--dir", "/tmp").exit_code == 2


HELPS = [[], ["stat"], ["check"], ["doctor"], ["demo"], *(["pool", x] for x in ("create", "list", "destroy"))]


@pytest.mark.parametrize("command", HELPS)
def test_every_help_teaches_by_example(command: list[str]) -> None:
    result = run(*command, "--help")
    assert result.exit_code == 0
    assert result.stdout.count("maru ") >= 4


def test_version_is_the_packages() -> None:
    assert run("--version").stdout == f"maru {maru.__version__}\n"


def test_demo_passes_its_options_on_and_exits_with_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    told = {}

    def run_demo(**options: object) -> int:
        told.update(options)
        return 7

    monkeypatch.setattr(maru.demo, "run_demo", run_demo)
    options = ("--engine", "vllm", "--cache-dir", "somewhere", "--pool", "maru:///kv", "--json", "--keep")
    result = run("demo", *options)
    assert result.exit_code == 7
    assert told == {
        "engine": "vllm",
        "cache_dir": Path("somewhere"),
        "pool_url": "maru:///kv",
        "json_output": True,
        "keep": True,
    }


def test_demo_without_its_packages_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def run_demo(**_: object) -> int:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(maru.demo, "run_demo", run_demo)
    result = run("demo")
    assert result.exit_code == 1
    assert "pip install '.[demo]'" in result.stderr
    assert "'torch'" in result.stderr


def test_python_dash_m_maru_is_the_command_and_carries_only_json(pool: maru.Pool, name: str) -> None:
    command = [sys.executable, "-m", "maru", "stat", name, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    assert json.loads(done.stdout)["uuid"] == pool.stats()["uuid"]
    missing = subprocess.run([*command[:-2], f"{name}-not"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert missing.stdout == ""
    assert len(missing.stderr.splitlines()) == 1
