"""What a client may do with its tenant's namespaces: look what is there, read it, or write too.

Holds:      levels, grants, and how both are written in lists and on a command line.
Promises:   what no grant covers is allowed to nobody; each level includes those before it.
Leaves:     which namespaces are a tenant's, and what a request needs, to the daemon.

    lookup   lookup, find, watch           what is there
    read     and pin, read, fetch          its bytes
    write    and reserve, allocate, publish, remove
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum

from maru.errors import BadCredential

GRANTS_MAX = 256
ALL_NAMESPACES = "*"
_PREFIX = re.compile(r"[0-9a-f]{1,32}")


class Level(IntEnum):
    """What is allowed, each including those before it."""

    LOOKUP = 1
    READ = 2
    WRITE = 3


@dataclass(frozen=True)
class Grant:
    """One level, for the namespaces whose digests begin so."""

    level: Level
    namespace: str = ALL_NAMESPACES
    """"*": all of the client's tenant. Else the first hexadecimal digits of a digest, as `maru stat` shows it."""

    def covers(self, digest: bytes) -> bool:
        """Is the namespace with this digest (16 bytes) one of them?"""
        return self.namespace == ALL_NAMESPACES or digest.hex().startswith(self.namespace)

    def __str__(self) -> str:
        name = self.level.name.lower()
        return name if self.namespace == ALL_NAMESPACES else f"{name}={self.namespace}"


EVERYTHING = (Grant(Level.WRITE),)
"""What a client may that nobody limited: all, within its tenant."""


def read_grant(text: str) -> Grant:
    """The grant of "LEVEL" or "LEVEL=DIGEST". Raises BadCredential."""
    name, equals, prefix = text.partition("=")
    levels = {level.name.lower(): level for level in Level}
    if name not in levels:
        raise BadCredential(f"{name!r} is nothing to allow; there are {', '.join(levels)}")
    prefix = prefix.lower() if equals else ALL_NAMESPACES
    if prefix != ALL_NAMESPACES and not _PREFIX.fullmatch(prefix):
        raise BadCredential(
            f"{prefix!r} names no namespace: write the first of the 32 hexadecimal digits of its digest, or *"
        )
    return Grant(levels[name], prefix)


def read_grants(texts: Iterable[str]) -> tuple[Grant, ...]:
    """Several; all of EVERYTHING when there is none. Raises BadCredential."""
    grants = tuple(read_grant(text) for text in texts)
    if len(grants) > GRANTS_MAX:
        raise BadCredential(f"a client has at most {GRANTS_MAX} grants, not {len(grants)}")
    return grants or EVERYTHING


def level_for(grants: Iterable[Grant], digest: bytes) -> int:
    """The highest level that covers the namespace with this digest; 0: none."""
    return max((grant.level for grant in grants if grant.covers(digest)), default=0)


def level_anywhere(grants: Iterable[Grant]) -> int:
    """The highest level of all, whatever it is for."""
    return max((grant.level for grant in grants), default=0)
