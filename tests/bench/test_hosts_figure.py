"""Several hosts in a figure: what takes part, what hosts are made of, and that nothing of them stays."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from maru.bench import daemons, emulated_hosts
from maru.bench.emulated_hosts import Host, emulated, why_no_namespaces
from maru.bench.figures import figure_named
from maru.bench.session import Options, Session, opened
from maru.bench.systems.contract import Answer, Deployment
from maru.bench.systems.hosts import hosts_systems
from maru.config import shared_memory_root


def namespaces() -> list[str]:
    done = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
    return [line.split()[0] for line in done.stdout.splitlines() if line.startswith(f"maru-bench-{os.getpid()}-")]


def needs_namespaces() -> None:
    if reason := why_no_namespaces():
        pytest.skip(reason)


def test_hosts_reach_the_first_and_not_each_other() -> None:
    needs_namespaces()
    with emulated(2) as (first, one, other):
        answer = [*first.inside, sys.executable, "-m", "http.server", "--bind", first.listen, "7100"]
        ask = "import socket, sys; socket.create_connection((sys.argv[1], 7100), 5).close()"
        with subprocess.Popen(answer, stderr=subprocess.PIPE, stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            try:
                for host in (one, other):
                    tried = [*host.inside, sys.executable, "-c", _UNTIL + ask, host.first]
                    subprocess.run(tried, check=True, timeout=60)
                strange = [*one.inside, sys.executable, "-c", ask, other.first]
                assert subprocess.run(strange, stderr=subprocess.DEVNULL, check=False, timeout=60).returncode
            finally:
                server.kill()
        assert len(namespaces()) == 3
    assert namespaces() == []


_UNTIL = """
import socket, sys, time
ends = time.monotonic() + 30
while socket.socket().connect_ex((sys.argv[1], 7100)) and time.monotonic() < ends:
    pass
"""


def test_hosts_of_a_run_that_was_killed_go_when_the_next_begins() -> None:
    needs_namespaces()
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    name = f"maru-bench-{dead.pid}-0-0"
    subprocess.run(["ip", "netns", "add", name], check=True)
    with emulated(1):
        listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True).stdout
        assert name not in listed


def test_without_namespaces_all_hosts_are_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated_hosts, "why_no_namespaces", lambda: "not allowed")
    with emulated(2) as hosts:
        assert hosts == [Host((), "127.0.0.1", "127.0.0.1")] * 3


def test_every_way_to_another_hosts_pool_takes_part_and_who_was_not_chosen_stays_away(tmp_path: Path) -> None:
    assert [one.name for one in hosts_systems(2)] == ["maru", "maru-mapped", "maru-wire", "maru-curve", "redis"]
    figure = figure_named("hosts")
    with opened(figure, Options(systems=("maru",), is_quick=True, path=tmp_path)) as run:
        assert [one.name for one in run.systems] == ["maru", "maru-mapped", "maru-wire", "maru-curve"]


def test_a_daemon_that_cannot_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemons, "NEEDED", ("no_such_package",))
    ours, *_, redis = hosts_systems(1)
    assert "no_such_package" in ours.why_not()
    assert "no_such_package" not in redis.why_not()


@pytest.mark.parametrize("on", ["namespaces", "loopback"])
@pytest.mark.parametrize("name", ["maru", "maru-mapped", "maru-wire", "maru-curve", "redis"])
def test_what_another_host_stores_every_host_reads_byte_by_byte(
    name: str, on: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if on == "namespaces":
        needs_namespaces()
    else:
        monkeypatch.setattr(emulated_hosts, "why_no_namespaces", lambda: "not wanted")
    system = next(one for one in hosts_systems(2) if one.name == name)
    if reason := system.why_not():
        pytest.skip(reason)
    figure = figure_named("hosts")
    options = Options(systems=(name.partition("-")[0],), model="4096", is_quick=True, path=tmp_path)
    with opened(figure, options) as run:
        deployment = system.deploy(run.job(1024))
        with deployment:
            answers = asked(run, deployment)
        assert [(one.cached_tokens, one.compared, one.wrong) for one in answers] == [(0, 0, 0)] + 2 * [(512, 2, 0)]
    assert list(shared_memory_root().glob(f"bench-maru-bench-{os.getpid()}-*")) == []
    if shutil.which("ip"):
        assert namespaces() == []


def asked(run: Session, deployment: Deployment) -> list[Answer]:
    """The second host computes and stores, the third and the first hit."""
    prompt = run.prompts.prompt("hosts", 512 + 10)
    first, second, third = (deployment.add() for _ in range(3))
    return [replica.ask(prompt) for replica in (second, third, first)]
