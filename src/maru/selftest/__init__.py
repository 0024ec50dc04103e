"""`maru selftest gpu`: what only a machine with a GPU can say, in one command for whoever has one first.

Rooms: content (bytes that follow from their key), ground (a pool, a device, and what lies between), gpu (the steps),
kills (worker processes that are killed in the middle of a copy), victim (such a worker). Everything is of its own: the
pool is made and destroyed here, and no engine is needed. Not run on a GPU: against a fake driver only.
"""

from __future__ import annotations

from typing import Any

from maru.doctor.line import Line, worst

SCHEMA = 1
"""Raised when a key of document() changes its meaning or goes; new lines and keys do not raise it."""

MISSING = 3
"""Exit code when there is no GPU to test."""


def document(lines: list[Line], facts: dict[str, Any]) -> dict[str, Any]:
    """What --json prints; `facts` as the doctor's survey of GPUs."""
    return {
        "schema": SCHEMA,
        "verdict": "missing" if "problem" in facts else worst(lines),
        "gpu": facts,
        "lines": [line.document() for line in lines],
    }
