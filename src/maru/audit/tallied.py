"""What a process stored, hit and removed in a pool, as entries: the pool counts it by namespace, this reads the counts.

The counting is the core's, some relaxed additions a call, and only in a process that asked for an audit log.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Protocol

from maru.audit.log import AuditLog, default_key
from maru.audit.record import Entry, What, this_process
from maru.audit.summing import Audit

_KINDS: tuple[What, ...] = ("stored", "hit", "removed")


class Tallying(Protocol):
    """A pool that counts for an audit log."""

    def _start_tally(self) -> None: ...

    def _tally(self) -> list[tuple[bytes, str, int, int, int, int]]:
        """(namespace's digest, its tenant, kind, calls, chunks, bytes) since the last time, without what is zero."""


def audit_pool(pool: Tallying, name: str, folder: Path, key: Path | None) -> Audit:
    """Keep an audit log of what this process does in the pool. Raises AuditError, CredentialError and its kinds."""
    log = AuditLog(folder, default_key(folder, key))
    pool._start_tally()
    audit = Audit(log)

    def since_last() -> list[Entry]:
        now_ns = time.time_ns()
        who = this_process()
        return [
            Entry(
                _KINDS[kind], "local", who._replace(tenant=tenant), name, digest.hex(), chunks, size, calls,
                at_unix_ns=now_ns,
            )
            for digest, tenant, kind, calls, chunks, size in pool._tally()
        ]  # fmt: skip

    audit.add_source(since_last)
    return audit
