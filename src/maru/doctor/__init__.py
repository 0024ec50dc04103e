"""`maru doctor`: what this machine offers to a pool, and the command that makes it better.

Rooms: machine (where facts are read), line (what a fact looks like), the facts: memory, devices, software, keys,
lmcache, gpu; and show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maru.doctor.devices import look_at_devices
from maru.doctor.gpu import look_at_gpus
from maru.doctor.keys import fingerprint, look_at_keys
from maru.doctor.line import Line, Verdict, worst
from maru.doctor.lmcache import look_at_lmcache
from maru.doctor.machine import Machine
from maru.doctor.memory import look_at_memory
from maru.doctor.software import (
    PoolSeen,
    look_at_container,
    look_at_cpu,
    look_at_kernel,
    look_at_pools,
    look_at_versions,
)

__all__ = ["Line", "Machine", "PoolSeen", "Verdict", "document", "examine", "look_at_gpus", "worst"]

SCHEMA = 1
"""Raised when a key of document() changes its meaning or goes; new lines and keys do not raise it."""


def examine(machine: Machine, pools: list[PoolSeen], place: Path) -> list[Line]:
    """Every line, in the order people read them. `pools`: those of this user, which lie in `place`."""
    return [
        *look_at_memory(machine),
        *look_at_devices(machine),
        *look_at_cpu(),
        *look_at_kernel(machine),
        *look_at_container(machine),
        *look_at_versions(),
        *look_at_keys(),
        *look_at_lmcache(),
        *look_at_pools(pools, place),
    ]


def document(lines: list[Line]) -> dict[str, Any]:
    """What --json prints."""
    return {
        "schema": SCHEMA,
        "verdict": worst(lines),
        "fingerprint": fingerprint(),
        "lines": [line.document() for line in lines],
    }
