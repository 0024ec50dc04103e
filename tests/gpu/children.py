"""Processes of their own, for tests that must have another driver, or none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any


def environment_with(changes: dict[str, str]) -> dict[str, str]:
    paths = os.pathsep.join(path for path in sys.path if path)
    return dict(os.environ, PYTHONPATH=paths, **changes)


def say(environment: dict[str, str], program: str) -> str:
    """What a program prints."""
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment_with(environment), capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def ask(environment: dict[str, str], *words: str) -> tuple[int, dict[str, Any]]:
    """Exit code and document of a `maru … --json`."""
    done = subprocess.run(
        [sys.executable, "-m", "maru", *words, "--json"], env=environment_with(environment),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout)
