"""Processes that die, stop or dawdle at a named point.

    victim = spawn(put_one, url, die_at="seal.before_word")
    assert victim.wait() == -signal.SIGKILL

The target runs in a fresh interpreter with the test build of the core. Points are listed by `crash_points()`; each is
a place between two changes of shared words.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

WAIT_LIMIT_S = 60.0


@dataclass
class Victim:
    """A process started by spawn()."""

    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait(self, timeout: float = WAIT_LIMIT_S) -> int:
        """Exit code; minus the signal's number when it was killed. Raises TimeoutExpired."""
        return self.process.wait(timeout)

    def line(self) -> str:
        """The next line it prints; empty when it has ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()

    def tell(self, text: str) -> None:
        """Send it a line."""
        assert self.process.stdin is not None
        self.process.stdin.write(text + "\n")
        self.process.stdin.flush()

    def wait_stopped(self) -> None:
        """Wait until it has stopped itself at a point armed with "stop"."""
        os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOWAIT)

    def stop(self) -> None:
        """SIGSTOP it, and return when it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        self.wait_stopped()

    def resume(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL it, whatever it does, and wait until it is gone."""
        self.process.kill()
        self.process.wait(WAIT_LIMIT_S)

    def __enter__(self) -> Victim:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()


def spawn(
    target: Callable[..., object],
    *args: str | int | float | bool | None,
    die_at: str | None = None,
    action: str = "kill",
    after: int = 1,
    delay: float = 0.0,
    mutants: tuple[str, ...] = (),
) -> Victim:
    """Run `target(*args)`, a module-level function, in a new process that meets its fate at point `die_at`.

    `action`: "kill", "stop", "delay" (by `delay` seconds, each time) or "yield"; `after`: at the n-th hit. `mutants`:
    names of mutations of the core to switch on first. Arguments must be JSON values.
    """
    orders = {
        "module": target.__module__,
        "function": target.__qualname__,
        "args": args,
        "arm": {"name": die_at, "action": action, "after": after, "delay": delay} if die_at else None,
        "mutants": mutants,
    }
    environment = dict(os.environ, MARU_CORE="testing", PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    process = subprocess.Popen(
        [sys.executable, "-m", "maru.testing.crash", json.dumps(orders)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    return Victim(process)


def crash_points() -> list[str]:
    """Names of all points of the test build, made from the code."""
    return sorted(_ask_test_build("list(core.crash_points())"))


def mutants() -> list[str]:
    """Names of all mutants of the test build."""
    return sorted(_ask_test_build("core.mutants()"))


def _ask_test_build(expression: str) -> list[str]:
    code = f"import json; from maru.native import core; print(json.dumps({expression}))"
    environment = dict(os.environ, MARU_CORE="testing")
    out = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    names: list[str] = json.loads(out.stdout)
    return names


def _main(orders: dict[str, Any]) -> None:
    from maru.native import core

    target = getattr(importlib.import_module(orders["module"]), orders["function"])
    for name in orders["mutants"]:
        core.set_mutant(name, True)
    arm = orders["arm"]
    if arm is not None:
        core.arm_crash_point(arm["name"], arm["action"], arm["after"], arm["delay"])
    target(*orders["args"])


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
