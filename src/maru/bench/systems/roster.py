"""Which systems there are under each engine. Ours comes first wherever there is one."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from maru.bench.systems.contract import System
from maru.errors import MaruError

ENGINES = {
    "transformers": "maru.bench.systems.transformers",
    "synthetic": "maru.bench.systems.stores",
    "vllm": "maru.bench.systems.vllm",
    "lmcache": "maru.bench.systems.vllm",
}


class NoSuchSystem(MaruError):
    """A name that no system of this engine has."""

    hint = "`maru bench list` shows the systems of each engine"


def systems_of(engine: str) -> tuple[System, ...]:
    """All systems of an engine, whether they can take part here or not."""
    found: tuple[System, ...] = _named(engine, "SYSTEMS", ())
    return found


def by_daemon(engine: str) -> System | None:
    """Ours as another host has it, behind a daemon that can die; None where an engine cannot be had that way."""
    found: System | None = _named(engine, "BY_DAEMON", None)
    return found


def chosen(engine: str, names: Sequence[str] | None) -> tuple[System, ...]:
    """Those of these names, in the roster's order; all when there are none. Raises NoSuchSystem."""
    every = systems_of(engine)
    if not names:
        return every
    unknown = set(names) - {system.name for system in every}
    if unknown:
        raise NoSuchSystem(
            f"{engine} has no system {', '.join(sorted(unknown))}; it has {', '.join(s.name for s in every)}"
        )
    return tuple(system for system in every if system.name in names)


def _named(engine: str, what: str, otherwise: Any) -> Any:
    """Two engines share a module: what it has for LMCache says so."""
    return getattr(
        importlib.import_module(ENGINES[engine]), f"LMCACHE_{what}" if engine == "lmcache" else what, otherwise
    )
