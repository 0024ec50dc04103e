"""The demo on vLLM's servers, without vLLM: its promises, how a server is started, and what is said when that fails."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maru.demo import preflight, run_demo, vllm_servers, vllm_story
from maru.demo.show import Stage
from maru.demo.telling import Facts
from maru.demo.turns import Turn
from maru.demo.vllm_servers import Server, ServerLost, ServerNotStarted, command_line, halves, kv_transfer

DOCUMENT = Path(__file__).parents[2] / "docs" / "vllm.md"
BYTES_PER_TOKEN = 10
CLEAN_KILL = {"signal": 9, "half_written": 1, "left_over": 0, "violations": [], "still_attached": []}
FOREVER = "__import__('signal').pause()"

Program = Callable[[str], None]


def turn_of(process: str, **changes: Any) -> Turn:
    values: dict[str, Any] = {
        "process": process,
        "question": "?",
        "prompt_tokens": 3000,
        "reused_tokens": 2816,
        "ttft_cold_s": 6.0,
        "ttft_pool_s": 0.5,
        "bytes_shared": 2816 * BYTES_PER_TOKEN,
        "bytes_copied": None,
        "bytes_loaded": 2816 * BYTES_PER_TOKEN,
        "bytes_stored": None,
        "answer": "!",
        "answer_cold": "!",
        "same_answer": True,
        "reused_tokens_cold": 0,
        **changes,
    }
    return Turn(**values)


def promises(turns: list[Turn], kill: dict[str, Any]) -> dict[str, bool]:
    return vllm_story.promises_of(Facts(first={"kv_bytes_per_token": BYTES_PER_TOKEN}, turns=turns, kill=kill))


def test_a_faultless_run_keeps_every_promise() -> None:
    assert all(promises([turn_of("B"), turn_of("C")], CLEAN_KILL).values())


@pytest.mark.parametrize(
    ("turns", "kill"),
    [
        ([turn_of("B", reused_tokens=1792), turn_of("C")], CLEAN_KILL),
        ([turn_of("B", bytes_shared=2815 * BYTES_PER_TOKEN), turn_of("C")], CLEAN_KILL),
        ([turn_of("B", reused_tokens_cold=256), turn_of("C")], CLEAN_KILL),
        ([turn_of("B", same_answer=False), turn_of("C")], CLEAN_KILL),
        ([turn_of("B"), turn_of("C", reused_tokens=0)], CLEAN_KILL),
        ([turn_of("B")], CLEAN_KILL),
        ([turn_of("C")], CLEAN_KILL),
        ([turn_of("B"), turn_of("C")], {**CLEAN_KILL, "still_attached": [4711]}),
        ([turn_of("B"), turn_of("C")], {**CLEAN_KILL, "signal": 15}),
        ([turn_of("B"), turn_of("C")], {**CLEAN_KILL, "half_written": 0}),
        ([turn_of("B"), turn_of("C")], {**CLEAN_KILL, "left_over": 1}),
        ([turn_of("B"), turn_of("C")], {**CLEAN_KILL, "violations": ["a pin of the dead"]}),
    ],
)
def test_each_broken_promise_is_noticed(turns: list[Turn], kill: dict[str, Any]) -> None:
    assert sum(not kept for kept in promises(turns, kill).values()) == 1


def test_a_column_that_nobody_measured_is_left_out_with_its_note(capsys: pytest.CaptureFixture[str]) -> None:
    Stage(to_stderr=False).turns([turn_of("B")])
    told = capsys.readouterr().out
    assert "copied between" not in told
    assert "Copied between" not in told
    Stage(to_stderr=False).turns([turn_of("B"), turn_of("B", bytes_copied=0)])
    told = capsys.readouterr().out
    assert "not measured" in told
    assert "Copied between processes:" in told


# ---- the machine ------------------------------------------------------------------------------------------


def test_without_vllm_the_demo_says_which_line_brings_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(preflight, "VLLM_QUESTION", "import maru_no_such_module")
    monkeypatch.setattr(preflight, "find_problems", lambda *_, **__: [])
    assert run_demo(engine="vllm", cache_dir=tmp_path, pool_url=None, json_output=False, keep=False) == 3
    said = capsys.readouterr().out
    assert "maru_no_such_module" in said
    assert "make demo-vllm" in said
    assert list(tmp_path.iterdir()) == []


def test_a_vllm_that_computes_on_a_gpu_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "VLLM_QUESTION", "print('cuda 0.32.0 2.13.0 12.8 5.19.0')")
    found = preflight.find_vllm()
    assert isinstance(found, preflight.Finding)
    assert "cuda" in found.problem


def test_a_vllm_that_computes_on_the_cpu_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "VLLM_QUESTION", "print('a banner'); print('cpu 0.32.0 2.13.0+cpu - 5.19.0')")
    assert preflight.find_vllm() == preflight.Torch("2.13.0+cpu", None, "5.19.0", "0.32.0")


def test_two_servers_need_more_room_than_two_processes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(preflight, "memory_available_bytes", lambda: 5 << 30)
    monkeypatch.setattr(preflight, "shm_free_bytes", lambda: 1 << 30)
    assert preflight.find_problems(tmp_path, model_is_cached=True, own_pool=True) == []
    room, memory = preflight.find_problems(tmp_path, model_is_cached=True, own_pool=True, needs=preflight.VLLM_NEEDS)
    assert "needs 1600 MiB" in room.problem
    assert "takes 10.0 GiB" in memory.problem


# ---- a server ---------------------------------------------------------------------------------------------


def test_a_server_is_started_as_the_document_tells_users() -> None:
    configs = re.findall(r"--kv-transfer-config '(\{.*?\})'", DOCUMENT.read_text(), re.S)
    (told,) = [config for config in configs if "MaruConnector" in config]
    said = json.loads(told)
    assert kv_transfer("maru:///x") == {**said, "kv_connector_extra_config": {"pool": "maru:///x"}}
    command = command_line(Path("model"), "maru:///x", 4711)
    assert command[1:3] == ["-m", "vllm.entrypoints.openai.api_server"]
    assert json.loads(command[command.index("--kv-transfer-config") + 1]) == kv_transfer("maru:///x")


def test_what_is_reused_can_only_come_from_the_pool_and_is_told() -> None:
    command = command_line(Path("model"), "maru:///x", 4711)
    assert "--no-enable-prefix-caching" in command
    assert "--enable-prompt-tokens-details" in command
    assert command[command.index("--host") + 1] == "127.0.0.1"


@pytest.mark.parametrize(("cpus", "expected"), [([5], ([5], [5])), ([0, 1], ([0], [1])), ([2, 3, 6], ([2], [3, 6]))])
def test_two_servers_share_the_cpus_there_are(cpus: list[int], expected: tuple[list[int], list[int]]) -> None:
    assert halves(cpus) == expected


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Program:
    """Lets a server be another program than vLLM's."""
    return lambda source: monkeypatch.setattr(
        vllm_servers, "command_line", lambda *_: [sys.executable, "-u", "-c", source]
    )


def server_in(folder: Path) -> Server:
    return Server("B", folder / "model", "maru:///never", cpus=[0], folder=folder)


def test_a_server_that_dies_at_start_is_named_with_the_end_of_its_log(program: Program, tmp_path: Path) -> None:
    program("for n in range(30): print('line', n)\nraise SystemExit('no such model')")
    with server_in(tmp_path) as server, pytest.raises(ServerNotStarted) as lost:
        server.wait_ready()
    first, *last_lines = lost.value.message.splitlines()
    assert first == f"server B (pid {server.pid}) ended before it served anything; its log ends with:"
    assert last_lines == [*(f"line {n}" for n in range(11, 30)), "no such model"]


def test_a_server_that_never_serves_is_given_up_and_nothing_of_it_stays(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f"import subprocess; print(subprocess.Popen(['sleep', '600']).pid); {FOREVER}")
    monkeypatch.setattr(vllm_servers, "START_DEADLINE_S", 1.0)
    with server_in(tmp_path) as server:
        log, ends = tmp_path / "B.log", time.monotonic() + 60
        while not log.read_text().endswith("\n") and time.monotonic() < ends:
            os.sched_yield()
        with pytest.raises(ServerNotStarted, match="served nothing for 1 s") as lost:
            server.wait_ready()
    child = int(lost.value.message.splitlines()[1])
    assert not is_running(server.pid)
    deadline = time.monotonic() + 10
    while is_running(child) and time.monotonic() < deadline:
        os.sched_yield()
    assert not is_running(child)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_server_that_does_not_leave_is_named_and_ended(
    program: Program, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf')\nwhile True: {FOREVER}")
    with server_in(tmp_path) as server:
        deadline = time.monotonic() + 10
        while "deaf" not in (tmp_path / "B.log").read_text() and time.monotonic() < deadline:
            os.sched_yield()
        monkeypatch.setattr(vllm_servers, "LEAVE_DEADLINE_S", 0.1)
        with pytest.raises(ServerLost, match="did not leave"):
            server.leave()
        monkeypatch.undo()
    assert not is_running(server.pid)


def test_a_servers_port_is_nobody_elses(program: Program, tmp_path: Path) -> None:
    program(FOREVER)
    with server_in(tmp_path) as one, server_in(tmp_path) as other:
        assert one.port != other.port
        with socket.socket() as stranger, pytest.raises(OSError, match="in use"):
            stranger.bind(("127.0.0.1", one.port))
        assert one.owns(one.pid)
        assert not one.owns(other.pid)
