"""The file from which an interrupted run is taken up again: a line for each step that is done.

Holds:      samples, checks, the answers that others are compared with, and what else the machine did, step by step.
Promises:   a line that was cut off is as if it had never been written, and nothing is lost that comes after it; what
            was measured by another commit, or with other settings, is never mixed in. A place that cannot be written to
            is a named error, before anything is measured where possible.
Leaves:     what a step is to `session`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from maru.bench.document import Disturbance, Sample
from maru.bench.settings import BadSetting
from maru.errors import MaruError


class NoPlace(MaruError):
    """Results cannot be written where they should lie."""

    hint = "choose another place with --out, or make room there; --resume goes on with what is done"


class OtherRun(BadSetting):
    """What is there to be taken up is of a run with other settings, or of another commit."""

    hint = "run it without --resume to begin anew"


class DoneStep(msgspec.Struct, array_like=True):
    """One step that is done, whole."""

    key: str
    samples: list[Sample]
    compared: int
    wrong: int
    disturbance: Disturbance
    answers: dict[str, tuple[int, ...]]
    """What was generated for questions that nobody had answered before, by the question's digest."""


class StepLog:
    """Steps that are done, beside the JSON file that the run will write."""

    def __init__(self, json_path: Path, header: dict[str, Any]) -> None:
        self._path = json_path.with_name(json_path.name + ".steps")
        self._header = msgspec.json.encode(header)

    def insist_on_place(self) -> None:
        """Raises NoPlace when nothing can be written there."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self._path.parent):
                pass
        except OSError as error:
            raise NoPlace(f"results cannot be written to {self._path.parent}: {error.strerror}") from error

    def add(self, step: DoneStep) -> None:
        """Raises NoPlace."""
        try:
            if not self._path.exists():
                self._path.write_bytes(self._header + b"\n")
            with self._path.open("ab") as file:
                file.write(msgspec.json.encode(step) + b"\n")
        except OSError as error:
            raise NoPlace(f"{self._path}: {error.strerror}") from error

    def read(self) -> Iterator[DoneStep]:
        """What is there; what was cut off is taken away, so that the next step begins a line. Raises OtherRun."""
        if not self._path.exists():
            return
        header, *lines = self._path.read_bytes().split(b"\n")
        if header != self._header:
            raise OtherRun(f"{self._path} is of a run with other settings, or of another commit")
        good_bytes = len(header) + 1
        for line in lines:
            try:
                step = msgspec.json.decode(line, type=DoneStep)
            except msgspec.DecodeError:
                break
            good_bytes += len(line) + 1
            yield step
        with self._path.open("r+b") as file:
            file.truncate(good_bytes)

    def forget(self) -> None:
        self._path.unlink(missing_ok=True)
