"""One entry of the audit log: what a line says, and what it can never say.

Promises:   an entry has names, counts and reasons of bounded length. There is no field for content, keys of chunks,
            tokens or URLs, so none of them can be written by mistake.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

What = Literal[
    "stored", "hit", "missed", "refused", "removed", "expired", "policy", "exported", "keys", "left_out", "gap"
]
"""The last two are of the log itself: lines that were too many in one second, and lines that a disk did not take."""
Door = Literal["local", "rpc", "http", "tier", "command", "audit"]

TEXT_CHARS_MAX = 128
_OTHERS = "others"


class Who(NamedTuple):
    """Who it was, as far as it is known; empty where it is not."""

    tenant: str = ""
    client: str = ""
    """Name of its key or token; where nobody asks for one, what it calls itself, with a ? before it."""
    process: str = ""
    """uid:pid and the program's name, of a process on this host."""


OTHERS = Who(client=_OTHERS)
"""Everybody who found no row of its own in one second."""


@dataclass(frozen=True)
class Entry:
    """Something that was done, or `calls` times the same within a second."""

    what: What
    door: Door
    who: Who = field(default_factory=Who)
    pool: str = ""
    namespace: str = ""
    """Digest of 16 bytes in hex; empty where it is not known, or concerns none."""
    chunks: int = 0
    bytes: int = 0
    calls: int = 1
    outcome: str = "done"
    reason: str = ""
    at_unix_ns: int = field(default_factory=time.time_ns)
    """When it was done, the first of them where it stands for several."""

    def fields(self) -> dict[str, Any]:
        """As a line says it, without what is empty; texts are cut at TEXT_CHARS_MAX."""
        told = {
            "at_unix_ns": self.at_unix_ns, "what": self.what, "door": self.door, "tenant": self.who.tenant,
            "client": self.who.client, "process": self.who.process, "pool": self.pool, "namespace": self.namespace,
            "chunks": self.chunks, "bytes": self.bytes, "calls": self.calls, "outcome": self.outcome,
            "reason": self.reason,
        }  # fmt: skip
        return {
            name: value[:TEXT_CHARS_MAX] if isinstance(value, str) else value
            for name, value in told.items()
            if value or name in ("at_unix_ns", "calls")
        }


def this_process() -> Who:
    """This process, as `uid:pid program`. Its arguments are left out: they may hold what nobody should read."""
    program = Path(sys.argv[0] if sys.argv and sys.argv[0] not in ("", "-", "-c", "-m") else sys.executable)
    name = program.parent.name if program.name == "__main__.py" else program.name
    return Who(process=f"{os.getuid()}:{os.getpid()} {name}"[:TEXT_CHARS_MAX])
