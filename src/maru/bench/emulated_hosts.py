"""Several hosts on one machine: network namespaces joined by virtual cables, or processes that share the loopback.

Holds:      making hosts and taking them away.
Promises:   the first host is joined with each other one by a cable of its own; the others do not see each other. What a
            run that was killed has left goes when the next begins. Where namespaces cannot be made everybody is on the
            loopback, and `why_no_namespaces` says why.
Leaves:     what runs on the hosts to whoever asked for them.

All hosts share this machine's cores and memory: a cable carries what its kernel copies, not what a network card does.
"""

from __future__ import annotations

import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PREFIX = "maru-bench"
LOOPBACK = "127.0.0.1"
_ANYWHERE = "0.0.0.0"  # Only hosts of the run are there to reach it.
_TIMEOUT_S = 20.0
_OURS = re.compile(rf"{PREFIX}-(\d+)-\d+-\d+")
_numbers = itertools.count()


@dataclass(frozen=True)
class Host:
    """One of them."""

    inside: tuple[str, ...]
    """Words before a command that is to run there; none on the loopback."""
    first: str
    """The first host's address, seen from here."""
    listen: str
    """What a server on the first host listens at, so that all hosts reach it."""


def _ip(*words: str) -> str:
    return subprocess.run(["ip", *words], check=True, capture_output=True, text=True, timeout=_TIMEOUT_S).stdout


@cache
def why_no_namespaces() -> str:
    """What this machine lacks for network namespaces; "" when they can be made."""
    if shutil.which("ip") is None:
        return "there is no `ip`, of iproute2"
    try:
        with _namespaces(1):
            return ""
    except (subprocess.CalledProcessError, subprocess.TimeoutExpired, OSError) as error:
        words = getattr(error, "stderr", "") or str(error)
        return f"network namespaces cannot be made here: {str(words).strip()[:200]}"


@contextmanager
def emulated(others: int) -> Iterator[list[Host]]:
    """The first host, and so many others; they go away afterwards, and so must everything on them before."""
    if why_no_namespaces():
        yield [Host((), LOOPBACK, LOOPBACK)] * (1 + others)
        return
    _clear()
    with _namespaces(others) as found:
        yield found


@contextmanager
def _namespaces(others: int) -> Iterator[list[Host]]:
    run = f"{PREFIX}-{os.getpid()}-{next(_numbers)}"
    first, made = f"{run}-0", list[Host]()
    with ExitStack() as stack:
        for number in range(1 + others):
            namespace = f"{run}-{number}"
            _ip("netns", "add", namespace)
            stack.callback(_ip, "netns", "del", namespace)
            _ip("-n", namespace, "link", "set", "lo", "up")
            if number:
                cable = f"to-{number}"
                _ip("link", "add", cable, "netns", first, "type", "veth", "peer", "name", "back", "netns", namespace)
                for end, place, last in ((cable, first, 1), ("back", namespace, 2)):
                    _ip("-n", place, "addr", "add", f"10.78.{number}.{last}/24", "dev", end)
                    _ip("-n", place, "link", "set", end, "up")
            address = f"10.78.{number}.1" if number else LOOPBACK
            made.append(Host(("ip", "netns", "exec", namespace), address, _ANYWHERE))
        yield made


def _clear() -> None:
    """Namespaces of runs that are no more."""
    for line in _ip("netns", "list").splitlines():
        found = _OURS.match(line)
        if found and not Path(f"/proc/{found[1]}").exists():
            _ip("netns", "del", line.split()[0])
