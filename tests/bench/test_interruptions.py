"""A run that is interrupted, or killed, leaves no process and no memory for long, and is taken up again."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from maru.bench import document as documents
from maru.bench import leftovers
from maru.bench.ground import SHM
from maru.bench.usage import family
from maru.config import shared_memory_root
from maru.pool import Pool

ROOT = Path(__file__).parents[2]
COMMAND = ["bench", "ttft", "--engine", "synthetic", "--systems", "maru", "--contexts", "256", "--rounds", "12"]


def start(out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "maru", *COMMAND, "--quick", "--out", str(out), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def until(process: subprocess.Popen[str], words: str) -> None:
    assert process.stdout is not None
    assert any(re.search(words, line) for line in process.stdout), "it ended before that"


def left_of(pid: int) -> list[str]:
    here = [*SHM.glob(f"maru-bench-{pid}-*"), *shared_memory_root().glob(f"bench-*{pid}*")]
    return [str(path) for path in here]


def await_end(pid: int) -> None:
    """Of a process that is nobody's child any more."""
    try:
        fd = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    with os.fdopen(fd):
        assert select.select([fd], [], [], 60)[0]


def test_ctrl_c_leaves_nothing_and_the_run_goes_on_from_there(tmp_path: Path) -> None:
    process = start(tmp_path)
    until(process, "round 3")
    children = family([process.pid]) - {process.pid}
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "--resume goes on" in told
    assert "Traceback" not in told
    assert len(children) == 2
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert left_of(process.pid) == []
    again = start(tmp_path, "--resume")
    again.communicate(timeout=120)
    assert again.returncode == 0
    document = documents.read(tmp_path / "ttft-synthetic.json")
    assert [len(document.values(measure, "maru", 256)) for measure in ("store", "warmup", "query")] == [12] * 3
    assert any("taken up again" in line for line in document.remarks)


def test_what_a_killed_run_left_is_taken_away_by_the_next_and_said(tmp_path: Path) -> None:
    process = start(tmp_path)
    until(process, "round 3")
    children = family([process.pid]) - {process.pid}
    process.kill()
    process.communicate(timeout=60)
    for pid in children:  # Their input has ended, and so do they.
        await_end(pid)
    assert any(Path(path).parent == SHM for path in left_of(process.pid))
    again = start(tmp_path, "--resume", "--json")
    told, _ = again.communicate(timeout=120)
    assert again.returncode == 0
    assert left_of(process.pid) == []
    assert any(f"maru-bench-{process.pid}-" in line for line in json.loads(told)["remarks"])


@pytest.fixture
def gone() -> int:
    """The number of a process that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_a_folder_is_left_over_when_its_run_is_gone_and_holds_no_lock(tmp_path: Path, gone: int) -> None:
    of_a_living, of_a_dead, of_another = (
        tmp_path / f"maru-bench-{pid}-{word}" for pid, word in ((os.getpid(), "a"), (gone, "b"), (gone, "c"))
    )
    for folder in (of_a_living, of_a_dead, of_another):
        folder.mkdir()
        (folder / "data").write_bytes(b"x")
    with leftovers.locked(of_another):  # As a run in another container, whose number here is nobody's.
        assert str(of_a_dead) in leftovers.clear(tmp_path)
    assert of_a_living.exists()
    assert of_another.exists()
    assert not of_a_dead.exists()


@pytest.mark.parametrize("name", ["bench-{}-0", "bench-engines-{}-0", "bench-engines-{}-0-near-1"])
def test_a_pool_is_left_over_when_its_run_is_gone_and_nobody_has_it_attached(
    name: str, tmp_path: Path, gone: int
) -> None:
    url = f"maru:///{name.format(gone)}"
    with Pool.create(f"{url}?size=1MiB"):
        assert url not in leftovers.clear(tmp_path)
    assert url in leftovers.clear(tmp_path)
    assert url not in leftovers.clear(tmp_path)
