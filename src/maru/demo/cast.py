"""The parent's side of one inference process: start it, ask it, kill it.

Promises:   every wait has a deadline; a worker that died is an `ActorLost` with its last words; a worker
            outlives neither its `with` block nor, for long, its parent (its stdin ends then).
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

from maru.errors import MaruError

__all__ = ["Actor", "ActorLost"]

# Loading half a gigabyte of weights from a slow disk, or a 4K prefill on a busy core, fit in these.
START_DEADLINE_S = 180.0
ASK_DEADLINE_S = 300.0
LEAVE_DEADLINE_S = 20.0
LAST_WORDS_BYTES = 2000


class ActorLost(MaruError):
    """A process of the demo ended, or did not answer in time, when nobody had asked it to."""

    hint = "its last words are above; too little memory is the usual cause (`dmesg` tells)"


class Actor:
    """One worker process."""

    def __init__(self, name: str, model_folder: Path, pool_url: str) -> None:
        self.name = name
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by __exit__
        self._lines: queue.Queue[str | None] = queue.Queue()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "maru.demo.worker", "--model", str(model_folder), "--pool", pool_url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            # The model is a folder on disk: nothing may be looked up anywhere.
            env={
                **os.environ,
                "HF_HUB_OFFLINE": "1",
                "HF_HUB_DISABLE_TELEMETRY": "1",
                "TOKENIZERS_PARALLELISM": "false",
                # A thread that waits for its peers sleeps instead of spinning: nothing slower on an idle
                # machine, and twice as fast on one that is busy with something else too.
                "OMP_WAIT_POLICY": "PASSIVE",
            },
            # Ctrl-C reaches the parent alone, which then ends its workers in order.
            start_new_session=True,
        )
        threading.Thread(target=self._listen, daemon=True).start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self.kill()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                try:
                    stream.close()
                except BrokenPipeError:
                    continue

    @property
    def pid(self) -> int:
        return self._process.pid

    def wait_ready(self) -> dict[str, Any]:
        """Wait until the model is loaded and the pool attached. Raises ActorLost."""
        return self._hear(START_DEADLINE_S)

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """Send one request and wait for its report. Raises ActorLost."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._lost("is gone") from None
        return self._hear(ASK_DEADLINE_S)

    def kill(self) -> int:
        """SIGKILL; return the exit status, -9."""
        self._process.send_signal(signal.SIGKILL)
        return self._process.wait(LEAVE_DEADLINE_S)

    def leave(self) -> int:
        """Let the process end by itself; return its exit status. Raises ActorLost."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            return self._process.wait(LEAVE_DEADLINE_S)
        except subprocess.TimeoutExpired:
            raise self._lost(f"did not leave within {LEAVE_DEADLINE_S:.0f} s") from None

    def _listen(self) -> None:
        assert self._process.stdout is not None
        try:
            for line in self._process.stdout:
                self._lines.put(line)
        except ValueError:  # Closed under us by __exit__.
            pass
        self._lines.put(None)

    def _hear(self, deadline_s: float) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=deadline_s)
        except queue.Empty:
            raise self._lost(f"said nothing for {deadline_s:.0f} s") from None
        if line is None:
            raise self._lost("is gone")
        report: dict[str, Any] = json.loads(line)
        return report

    def _lost(self, what: str) -> ActorLost:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(0, size - LAST_WORDS_BYTES))
        last_words = self._errors.read().decode(errors="replace").strip()
        return ActorLost(f"process {self.name} (pid {self.pid}) {what}:\n{last_words}")
