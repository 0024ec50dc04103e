"""The servers beside measured engines: they serve before anybody is measured, can be killed, and end with whoever
started them.

Python's own web server stands in for them.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maru.bench import usage
from maru.bench.engines.way_servers import Server, ServerFailed, Servers, answers
from maru.bench.rivals.contract import HOST, free_ports

PATIENCE_S = 60


def web_server(port: int, keeps_kv: bool = True) -> Server:
    command = (sys.executable, "-m", "http.server", str(port), "--bind", HOST)
    return Server(command, f"tcp://{HOST}:{port}", keeps_kv)


def test_servers_answer_in_the_block_and_are_gone_after_it(tmp_path: Path) -> None:
    ports = free_ports(2)
    with Servers([web_server(port) for port in ports], tmp_path / "log") as running:
        pids = running.pids()
        assert len(pids) == 2
        assert [answers(f"tcp://{HOST}:{port}") for port in ports] == [True, True]
    assert usage.family(pids) == set()
    assert [answers(f"tcp://{HOST}:{port}") for port in ports] == [False, False]


def test_the_first_that_keeps_kv_is_killed_and_replaced(tmp_path: Path) -> None:
    first, second = free_ports(2)
    with Servers([web_server(first, keeps_kv=False), web_server(second)], tmp_path / "log") as running:
        before = running.pids()
        assert running.kill_one()
        after = running.pids()
        assert after[0] == before[0]
        assert before[1] not in usage.family(after)
        assert answers(f"tcp://{HOST}:{second}")
    assert usage.family(after) == set()


def test_nothing_is_killed_where_nothing_keeps_kv(tmp_path: Path) -> None:
    with Servers([], tmp_path / "log") as running:
        assert not running.kill_one()


def test_a_server_that_ends_at_once_is_a_failure_that_names_its_log(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    ends = Server((sys.executable, "-c", "raise SystemExit(7)"), f"tcp://{HOST}:{port}")
    servers = Servers([ends], tmp_path / "log")
    with pytest.raises(ServerFailed, match=r"ended with 7; log: .*log"), servers:
        pytest.fail("it did not come up")


PROGRAM = """
import os, signal, sys
from pathlib import Path
from maru.bench.engines.way_servers import Server, Servers
port = sys.argv[1]
server = Server((sys.executable, "-m", "http.server", port, "--bind", "127.0.0.1"), f"tcp://127.0.0.1:{port}")
with Servers([server], Path(sys.argv[2])) as running:
    print(running.pids()[0], flush=True)
    sys.stdin.read()
"""


def test_a_server_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(free_ports(1)[0]), str(tmp_path / "log")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        server = os.pidfd_open(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    assert select.select([server], [], [], PATIENCE_S)[0]
    os.close(server)
