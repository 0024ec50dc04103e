"""The process that one store is measured in: takes one request a line on its standard input, answers each with a line.

Run by its path, with the interpreter that has the store: `python -P child.py module:class [apart]`. *apart* means that
this interpreter has no pool: then the package is its pure modules only. A class that is an Answering, no store, is made
of the classes that follow it, and answers by itself. When the input ends, however that came about,
the store is torn down and the process ends. What the store itself prints goes to the log, never between answers.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import select
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

INPUT_FD = 0


def import_apart() -> None:
    """Make `maru.bench` importable without the pool: a package of that name which has the modules and no content."""
    package = ModuleType("maru")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["maru"] = package


def is_spoken_to() -> bool:
    """Is there input to read, or its end?"""
    return bool(select.select([INPUT_FD], [], [], 0)[0])


def class_of(kind: str) -> Any:
    module, _, name = kind.partition(":")
    return getattr(importlib.import_module(module), name)


class Child:
    """One store. Each request has `do`, what that needs, and a number that the answer repeats."""

    def __init__(self, rival: Any) -> None:
        self._rival = rival
        self._place: Path | None = None

    def answer(self, request: dict[str, Any]) -> Any:
        """Do what is asked. Raises whatever goes wrong."""
        do = request.pop("do")
        if do == "setup":
            self._place = Path(request["place"])
            self._begin(request["job"])
            address = self._rival.setup(self._place, request["job"]["capacity_bytes"])
            return [address, self._rival.version()]
        if do == "attach":
            self._begin(request["job"])
            return self._rival.attach(request["address"])
        if do == "write":
            return self._worker.write_until(is_spoken_to, **request)
        if do == "stop":
            return None
        if do in ("store_prefix", "verify", "fill", "sample"):
            return getattr(self._worker, do)(**request)
        raise ValueError(f"nobody knows how to {do!r}")

    def _begin(self, job: dict[str, int]) -> None:
        from maru.bench.rivals.work import Job, Worker

        self._worker = Worker(self._rival, Job(**job))

    def end(self) -> None:
        """Tear down, and take the folder away."""
        try:
            self._rival.teardown()
        finally:
            if self._place is not None:
                shutil.rmtree(self._place, ignore_errors=True)
                with suppress(OSError):  # Others of the run may still be there.
                    self._place.parent.rmdir()


def made_of(kinds: list[str]) -> Any:
    """The first class made of the others, or the child of a store."""
    from maru.bench.rivals.contract import Answering

    first, *others = map(class_of, kinds)
    made = first(*(other() for other in others))
    return made if isinstance(made, Answering) else Child(made)


def serve(child: Any, answers: Any) -> None:
    """Answer until the input ends."""
    gc.collect()
    gc.disable()  # No collection falls into a sample.
    with open(INPUT_FD, "rb", buffering=0, closefd=False) as requests:
        while line := requests.readline():
            request = json.loads(line)
            number = request.pop("number")
            try:
                told = {"number": number, "ok": child.answer(request)}
            except Exception as error:
                told = {"number": number, "error": f"{type(error).__name__}: {error}"}
            answers.write(json.dumps(told).encode() + b"\n")
            gc.collect()


def main() -> None:
    kinds = [word for word in sys.argv[1:] if word != "apart"]
    if len(kinds) < len(sys.argv) - 1:
        import_apart()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    child = made_of(kinds)
    try:
        with suppress(BrokenPipeError):
            serve(child, answers)
    finally:
        child.end()


if __name__ == "__main__":
    main()
