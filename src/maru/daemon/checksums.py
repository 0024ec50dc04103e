"""Checksums of bytes that do not change, each computed once: by whatever names them for as long as they are the same.

A sealed chunk's stamp is such a name. Bytes that are not any more what they were when they were first told of no longer
fit what is remembered, so whoever receives them notices, as he would not if they were hashed again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable


class Checksums:
    """At most `limit` of them; the one remembered for longest goes first."""

    def __init__(self, limit: int) -> None:
        self._known: OrderedDict[bytes, int] = OrderedDict()
        self._limit = limit

    def of(self, name: bytes, compute: Callable[[], int]) -> int:
        """What was computed for this name, or is now."""
        found = self._known.get(name)
        if found is None:
            found = self._known[name] = compute()
            if len(self._known) > self._limit:
                self._known.popitem(last=False)
        return found
