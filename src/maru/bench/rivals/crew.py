"""The parent's side of a store's processes: one that hosts it and writes, and some that attach and read.

They live in sessions of their own, so that Ctrl-C reaches the parent alone, which then lets them end in good order.
Each of them ends by itself when its input does: no process outlives a parent that was killed.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from maru.bench.rivals import child
from maru.bench.rivals.contract import RivalFailed
from maru.bench.rivals.roster import Entry
from maru.bench.rivals.work import Job

ANSWER_TIMEOUT_S = 300.0
END_TIMEOUT_S = 30.0
LAST_WORDS_CHARS = 400


class Member:
    """One process of a store. Use ask(), or post() and collect() to have several at work at once."""

    def __init__(self, command: Sequence[str], log: Path, variables: Mapping[str, str] | None = None) -> None:
        """`command` runs `child`; see command_of. What it says besides its answers goes to `log`."""
        self._log, self._heard, self._number = log, b"", 0
        with log.open("ab") as words:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=words,
                bufsize=0,
                start_new_session=True,
                env=os.environ | dict(variables or {}),
            )

    def post(self, do: str, **what: Any) -> int:
        """Ask, and do not wait. Returns the number of the question. Raises RivalFailed."""
        assert self.process.stdin is not None
        self._number += 1
        try:
            self.process.stdin.write(json.dumps({"number": self._number, "do": do, **what}).encode() + b"\n")
        except OSError as error:
            raise RivalFailed(f"its process ended: {self._last_words()}") from error
        return self._number

    def collect(self, number: int) -> Any:
        """The answer to a question; earlier ones that nobody waited for are passed over. Raises RivalFailed."""
        while True:
            answer = self._next_answer()
            if answer["number"] == number:
                break
        if "error" in answer:
            raise RivalFailed(answer["error"])
        return answer["ok"]

    def _next_answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        deadline = time.monotonic() + ANSWER_TIMEOUT_S
        while b"\n" not in self._heard:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self.process.stdout], [], [], left_s)[0]:
                raise RivalFailed(f"no answer in {ANSWER_TIMEOUT_S:.0f} s")
            more = os.read(self.process.stdout.fileno(), 1 << 16)
            if not more:
                raise RivalFailed(f"its process ended: {self._last_words()}")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **what: Any) -> Any:
        """Ask, and wait for the answer. Raises RivalFailed."""
        return self.collect(self.post(do, **what))

    def _last_words(self) -> str:
        words = self._log.read_text(errors="replace").strip() if self._log.exists() else ""
        return words[-LAST_WORDS_CHARS:] or "it said nothing"

    def let_go(self) -> None:
        """End its input, which ends it."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.close()

    def await_end(self) -> None:
        """Wait until it ended; kill it and all it started when it does not."""
        try:
            self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()


def command_of(interpreter: str, *kinds: str, apart: bool = False) -> list[str]:
    """What runs `child` for `module:class`, with further ones that this class is made of."""
    return [interpreter, "-P", child.__file__, *kinds, *(["apart"] if apart else [])]


def variables_of(entry: Entry, password: str) -> dict[str, str]:
    return dict(entry.variables) | ({entry.password: password} if entry.password else {})


class Crew:
    """All processes of one store. Use as a context manager."""

    def __init__(self, entry: Entry, interpreter: str, job: Job, place: Path, reader_count: int) -> None:
        self.entry, self.version = entry, ""
        self._interpreter, self._job, self._place, self._reader_count = interpreter, job, place, reader_count
        self._members: list[Member] = []

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    @property
    def host(self) -> Member:
        return self._members[0]

    @property
    def readers(self) -> list[Member]:
        return self._members[1:]

    @property
    def is_alive(self) -> bool:
        """Do all of them run?"""
        return all(member.process.poll() is None for member in self._members)

    def start(self) -> None:
        """Start everything. Raises RivalFailed."""
        self._place.mkdir()
        password = secrets.token_hex(32)
        job, log = asdict(self._job), self._place / "log"
        command = command_of(self._interpreter, self.entry.kind, apart=bool(self.entry.folder))
        variables = variables_of(self.entry, password)
        self._members.append(Member(command, log, variables))
        address, self.version = self.host.ask("setup", place=str(self._place), job=job)
        for _ in range(self._reader_count):
            self._members.append(Member(command, log, variables))
            self._members[-1].ask("attach", address=address, job=job)

    def end(self) -> None:
        """End everything: those who read first, then the host."""
        for member in reversed(self._members):
            member.let_go()
            member.await_end()
        self._members.clear()
