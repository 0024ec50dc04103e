"""What lies in deploy/: a dashboard that asks for metrics that exist, a service that comes back and may do little."""

from __future__ import annotations

import configparser
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import maru
from fake_daemon import FakeFacts
from maru.daemon.looks import Looks
from maru.daemon.metrics import Metrics

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"
GRAFANA = json.loads((DEPLOY / "grafana.json").read_text())
SERVICE = DEPLOY / "systemd" / "maru-serve.service"
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


@pytest.mark.parametrize("path", [SERVICE, DEPLOY / "Containerfile"], ids=lambda path: path.name)
def test_what_was_never_run_says_so_first(path: Path) -> None:
    head = path.read_text().split("\n\n")[0]
    assert "never started" in head or "not built or run" in head
