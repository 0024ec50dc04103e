"""What lies in deploy/: a dashboard that asks for metrics that exist, a service that comes back and may do little."""

from __future__ import annotations

import configparser
import json
import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

import maru
from fake_daemon import FakeFacts
from maru.cli import app
from maru.daemon.looks import Looks
from maru.daemon.metrics import Metrics
from maru.daemon.serve import DEFAULT_RPC_URL
from maru.daemon.web_settings import PORT_DEFAULT

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
GRAFANA = json.loads((DEPLOY / "grafana.json").read_text())
SERVICE = DEPLOY / "systemd" / "maru-serve.service"
CONTAINERFILE = DEPLOY / "Containerfile"
PROJECT = tomllib.loads((DEPLOY.parent / "pyproject.toml").read_text())
EXPOSURE_MAX = 25
"""Tenths, as systemd counts: it calls 20 to 50 \"ok\"; what is left are the network and the pools themselves."""
_METRIC = re.compile(r"\bmaru_\w+")
_SELECTED = re.compile(r"\b(maru_\w+)\{([^}]*)\}")
_GROUPED = re.compile(r"by \(([^)]*)\)[^m]*(maru_\w+)")


def queries() -> list[str]:
    asked = [target["expr"] for panel in GRAFANA["panels"] for target in panel["targets"]]
    return [*asked, *(one["query"] for one in GRAFANA["templating"]["list"] if one["type"] == "query")]


@pytest.fixture
def samples(pool: maru.Pool) -> dict[str, set[str]]:
    """Every sample of a scrape: its name, and the labels it has."""
    space = pool.namespace(maru.Identity(model="m", kv_layout="l"))
    pool.put(b"k" * 16, b"x" * 5000, namespace=space)
    facts = FakeFacts(pools={"kv": pool})
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(Metrics(facts, Looks(facts)).text().decode()):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def test_grafana_asks_only_for_metrics_that_exist(samples: dict[str, set[str]]) -> None:
    asked = {name for query in queries() for name in _METRIC.findall(query)}
    assert len(asked) > 20
    assert asked - set(samples) == set()


def test_grafana_selects_and_groups_by_labels_that_exist(samples: dict[str, set[str]]) -> None:
    wrong = []
    for query in queries():
        for metric, selectors in _SELECTED.findall(query):
            wrong += [
                (metric, label) for label in re.findall(r"(\w+)\s*[=!]", selectors) if label not in samples[metric]
            ]
        for labels, metric in _GROUPED.findall(query):
            wrong += [(metric, label) for label in re.split(r"\W+", labels) if label not in samples[metric]]
    assert wrong == []


def test_grafana_rates_only_what_rises() -> None:
    rated = {name for query in queries() for name in re.findall(r"(?:rate|increase)\((maru_\w+)", query)}
    assert rated
    assert [name for name in rated if not name.endswith(("_total", "_bucket"))] == []


def test_no_two_panels_lie_on_each_other() -> None:
    places: set[tuple[int, int]] = set()
    for panel in GRAFANA["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & places
        assert all(x < 24 for x, _ in cells)
        places |= cells
    numbers = [panel["id"] for panel in GRAFANA["panels"]]
    assert len(set(numbers)) == len(numbers)


def service() -> Any:
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(SERVICE)
    return unit["Service"]


def test_the_service_comes_back_and_may_do_little() -> None:
    unit = service()
    assert unit["Restart"] == "always"
    assert " serve " in unit["ExecStart"] + " "
    assert (unit["NoNewPrivileges"], unit["ProtectSystem"], unit["CapabilityBoundingSet"]) == ("yes", "strict", "")
    assert unit["User"] not in ("root", "")
    # Either would hide the pools.
    assert "PrivateDevices" not in unit
    assert "PrivateIPC" not in unit


def test_systemd_accepts_the_service(tmp_path: Path) -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    text = SERVICE.read_text().replace("/opt/maru/bin/maru", "/bin/true")
    unit = tmp_path / SERVICE.name
    unit.write_text("\n".join(line for line in text.splitlines() if not line.startswith(("User=", "Group="))) + "\n")
    done = subprocess.run([program, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if SERVICE.name in line]) == (0, [])


def test_systemd_finds_the_service_little_exposed() -> None:
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("needs systemd-analyze")
    command = [program, "security", "--offline=true", f"--threshold={EXPOSURE_MAX}", str(SERVICE)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze judges only what runs")
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


def instructions() -> list[list[str]]:
    """Of the Containerfile: word by word, continued lines put together."""
    lines = CONTAINERFILE.read_text().replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines if line and not line.startswith("#")]


def test_the_container_is_built_from_files_that_are_there_and_are_all_that_building_needs() -> None:
    copied = [
        word for name, *words in instructions() if name == "COPY" and "--from" not in words[0] for word in words[:-1]
    ]
    assert [name for name in copied if not (DEPLOY.parent / name).exists()] == []
    project = PROJECT["project"]
    needed = {"pyproject.toml", "CMakeLists.txt", project["readme"], *project["license-files"]}
    needed |= {Path(package).parts[0] for package in PROJECT["tool"]["scikit-build"]["wheel"]["packages"]}
    needed |= set(re.findall(r"\b(pool)/", (DEPLOY.parent / "CMakeLists.txt").read_text()))
    assert set(copied) == needed
    (installed,) = (word for _, *words in instructions() for word in words if word.startswith(".["))
    assert installed.strip(".[]") in project["optional-dependencies"]


def test_what_is_started_is_a_command_of_ours_that_listens_where_it_says() -> None:
    told = {name: words for name, *words in instructions()}
    (entry,) = re.findall(r"^ENTRYPOINT (.*)$", CONTAINERFILE.read_text(), re.MULTILINE)
    for command in (json.loads(entry), service()["ExecStart"].split()):
        program, *words = (word for word in command if not word.startswith("$"))
        assert Path(program).name in PROJECT["project"]["scripts"]
        assert CliRunner().invoke(app, [*words, "--help"]).exit_code == 0
    assert set(told["EXPOSE"]) == {DEFAULT_RPC_URL.rpartition(":")[2], str(PORT_DEFAULT)}
    assert told["USER"] != ["root"]


@pytest.mark.parametrize("path", [SERVICE, CONTAINERFILE], ids=lambda path: path.name)
def test_what_was_never_run_says_so_first(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert "never started" in head or "not run by either" in head
