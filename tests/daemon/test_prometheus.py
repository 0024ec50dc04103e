"""A real Prometheus scrapes a real `maru serve`, and answers every question of the dashboard in deploy/grafana.json."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from serving import IDENTITY, Served, bytes_for, keys_of, serve_process, until

import maru
from fake_daemon import FakeFacts
from maru.daemon.looks import Looks
from maru.daemon.metrics import Metrics
from pools import with_force_gone

GRAFANA = json.loads((Path(__file__).resolve().parents[2] / "deploy" / "grafana.json").read_text())
TARGETS = [
    (f"{panel['id']}{target['refId']} {panel['title']}", target)
    for panel in GRAFANA["panels"]
    for target in panel["targets"]
]
POOL = f"test-prometheus-{os.getpid()}"
CHUNKS = 8
PATIENCE_S = 60


@contextmanager
def prometheus(folder: Path, target: str) -> Iterator[str]:
    """A server of its own that scrapes a web face ten times a second; its address."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("there is no prometheus (a system package of that name on Debian and Ubuntu)")
    config = {
        "global": {"scrape_interval": "100ms"},
        "scrape_configs": [{"job_name": "maru", "static_configs": [{"targets": [target]}]}],
    }
    (folder / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML.
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        "--web.listen-address=127.0.0.1:0",
    ]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as server:
        try:
            assert server.stderr is not None
            told = ""
            for line in server.stderr:
                told += line
                if found := re.search(r"Listening on.* address=(\S+)", line):
                    address = found[1]
                if "Server is ready to receive web requests" in line:
                    break
            else:
                pytest.fail(f"prometheus did not start: {told[-1000:]}")
            yield f"http://{address}"
        finally:
            server.terminate()


def asked(address: str, path: str, **query: str) -> Any:
    with urllib.request.urlopen(f"{address}/api/v1/{path}?{urllib.parse.urlencode(query)}", timeout=20) as answer:
        told = json.load(answer)
    assert told["status"] == "success"
    return told["data"]


def meant(expression: str) -> str:
    """As Grafana sends it for all pools."""
    return expression.replace("$__rate_interval", "30s").replace("$pool", ".*")


@contextmanager
def in_use(served: Served, pool_url: str) -> Iterator[Callable[[], int]]:
    """Something of what the dashboard shows: a process of this host stores, a client on the wire reads and holds. Gives
    what that client goes on asking.
    """
    with maru.Pool.attach(pool_url) as pool, maru.connect(served.address, mode="wire") as client:
        here = pool.namespace(IDENTITY)
        keys = keys_of(here, CHUNKS)
        pool.put_many(keys, [bytes_for(n) for n in range(CHUNKS)], here)
        assert client.read_into(keys, [bytearray(20_000) for _ in range(CHUNKS)]) == CHUNKS
        with client.pin(keys), pool.pin(keys):
            yield lambda: client.lookup(keys)


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, list[dict[str, Any]]]]:
    """What Prometheus says to each question of each panel, and `pools`: the names that a person can choose from."""
    folder, url = tmp_path_factory.mktemp("prometheus"), f"maru:///{POOL}?size=8MiB&slots=1024&processes=32"
    try:
        with (
            serve_process(url, "--http", "127.0.0.1:0") as served,
            prometheus(folder, served.http.removeprefix("http://")) as address,
        ):

            def said(query: str) -> list[dict[str, Any]]:
                return list(asked(address, "query", query=query)["result"])

            assert until(lambda: said("maru_pool_up"), PATIENCE_S)  # What rises has to be seen twice.
            with in_use(served, url) as ask:
                grown = ("rate(maru_bytes_total[30s]) > 0", "rate(maru_rpc_seconds_count[30s]) > 0")
                seen = (*grown, "maru_pins > 0", "maru_lease_pinned_bytes > 0", "maru_namespace_bytes > 0")
                assert until(lambda: ask() and all(map(said, seen)), PATIENCE_S)
                found = {name: said(meant(target["expr"])) for name, target in TARGETS}
                found["pools"] = asked(address, "label/pool/values", **{"match[]": "maru_pool_up"})
                found["scrapes"] = asked(address, "targets")["activeTargets"]
            yield found
    finally:
        with_force_gone(url)


def test_prometheus_takes_every_scrape(answers: dict[str, list[dict[str, Any]]]) -> None:
    assert [(one["health"], one["lastError"]) for one in answers["scrapes"]] == [("up", "")]


@pytest.mark.parametrize(("name", "target"), TARGETS, ids=[name for name, _ in TARGETS])
def test_every_question_of_the_dashboard_is_answered(
    answers: dict[str, list[dict[str, Any]]], name: str, target: dict[str, Any]
) -> None:
    found = answers[name]
    if name.split(" ", 1)[1] == "Trouble" or "error" in target["expr"]:
        assert found == []  # Nothing fails here.
        return
    assert found
    labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
    assert any(labels <= set(one["metric"]) for one in found)  # What belongs to no tenant has no such label.
    assert any(math.isfinite(float(one["value"][1])) for one in found)


def test_the_pools_to_choose_from_are_those_that_are_served(answers: dict[str, list[Any]]) -> None:
    (chosen,) = (one["query"] for one in GRAFANA["templating"]["list"] if one["name"] == "pool")
    assert chosen == "label_values(maru_pool_up, pool)"
    assert answers["pools"] == [POOL]


def test_promtool_finds_nothing_wrong_with_the_metrics(pool: maru.Pool) -> None:
    program = shutil.which("promtool")
    if program is None:
        pytest.skip("there is no promtool, which comes with prometheus")
    facts = FakeFacts(pools={"kv": pool})
    text = Metrics(facts, Looks(facts)).text()
    done = subprocess.run([program, "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout + done.stderr) == (0, b"")
