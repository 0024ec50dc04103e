"""What left a pool for elsewhere, came up and was removed there, for an audit log: by namespace, chunks and bytes.

Leaves:     sums, lines and files to `maru.audit`: noting waits for nothing, and there are as many rows as that allows.
"""

from __future__ import annotations

from maru.audit import Audit, this_process
from maru.audit.record import Door, What


class Notes:
    """Of one process and pool. Without an audit log nothing is noted."""

    def __init__(self, audit: Audit | None = None, pool: str = "", door: Door = "tier") -> None:
        self._audit, self._pool, self._door = audit, pool, door
        self._who = this_process()

    def note(self, what: What, where: str, digest: bytes, tenant: str, chunks: int, size_bytes: int = 0) -> None:
        """`where`: what kind of place, in a word or two. `digest`: the namespace's; empty where it is not known."""
        if self._audit is not None and chunks:
            who = self._who._replace(tenant=tenant)
            self._audit.note((what, self._door, who, self._pool, digest.hex(), "done", where), chunks, size_bytes)
