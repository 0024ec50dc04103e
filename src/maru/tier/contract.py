"""What a place below the pool has to do: keep whole objects under names, and give them back.

An object is written whole or not at all, and never changed afterwards: to store a name again replaces it by equal
content, so two writers need not know of each other. Names are `NAMESPACE/KEY` in lower-case hexadecimal, made by
`name_of`; a tier treats them as opaque, but for the folder before the slash, and refuses others with BadKey.

The folder also says whether an object's bytes are to be overwritten before it goes (`is_overwritten`), so that whoever
takes it away knows: another process, after a restart, or to make room. A tier that can do that says so, and does it
whenever it lets go of such an object, one that is replaced and one that was only half stored too; when it cannot, the
object stays, and the failure is told. A tier that says nothing is given no such objects.

Everything is a coroutine, and whoever calls puts a deadline around it (`asyncio.timeout`): a tier must be cancellable
at every await, leave nothing half-visible then, and go on working. Work that blocks (files) belongs in threads of the
tier's own, a bounded number of them. A tier reports what went wrong as TierFailed, and never guesses: bytes that it
is not sure of are not its affair, since what is in an object is verified by whoever opens it.

`maru.testing.tier_contract` holds every tier to this page.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from maru.errors import BadKey

if TYPE_CHECKING:
    from typing_extensions import Buffer

_NAME = re.compile(r"([0-9a-f]{32})/([0-9a-f]{32})")
_FOLDER = re.compile(r"[0-9a-f]{32}|")

PIECE_BYTES = 1 << 20
"""What load() gives at a time, about; nobody needs more memory than a few of these."""
DIGEST_BYTES = KEY_BYTES = 16


@dataclass(frozen=True)
class Capabilities:
    """What can be relied on beyond the contract."""

    survives_restart: bool
    """What store() returned from is there after the tier's machine lost power."""
    is_shared: bool
    """Other hosts see the same objects."""
    reads_ranges: bool
    """A part of an object costs about that part; else load() reads all of it and skips."""
    object_bytes_max: int
    """The largest object that it takes."""
    has_one_writer: bool = False
    """Only one process at a time may store and remove; others leave that alone."""
    overwrites: bool = False
    """Objects whose names ask for it are overwritten before they go, as far as the medium lets that be said."""
    may_be_swept: bool = False
    """To list everything and read some bytes of each object costs next to nothing, so what has run out is looked for;
    elsewhere that is left to the place's own rules."""


@dataclass(frozen=True)
class Listed:
    """One object, as list() tells of it."""

    name: str
    size_bytes: int
    stored_at: float
    """Seconds since 1970, by the tier's own clock."""


class Tier(ABC):
    """One place. Made with open_tier(); ended with close()."""

    url: str
    """Where it is, fit to be shown: no secrets."""
    kind: str
    """Its scheme, for figures: "file", "s3", "redis"."""

    @property
    @abstractmethod
    def capabilities(self) -> Capabilities: ...

    @abstractmethod
    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:
        """Keep `frames`, joined, under `name`, and return when it would be found: whole, by everybody.

        `ttl_s`: seconds after which it may go; a tier that cannot count them keeps it, since the object says itself
        until when it is good. Raises TierFull when there is no room and none can be made, TierFailed.
        """

    @abstractmethod
    def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[bytes | memoryview]:
        """The bytes of an object, from byte `start`, `size` of them or all that follow, in pieces of about PIECE_BYTES.

        A piece is good until the next one is asked for. Raises NoSuchObject, TierFailed (also half-way).
        """

    @abstractmethod
    async def contains(self, names: Sequence[str]) -> list[bool]:
        """Which of these are there, in one round trip where the place can do that. Raises TierFailed."""

    @abstractmethod
    async def remove(self, names: Sequence[str]) -> None:
        """Take these away; what is not there is no error. Raises TierFailed.

        Where the tier overwrites, those that ask for it are overwritten first: one that could not be is still there.
        """

    @abstractmethod
    def list(self, folder: str = "") -> AsyncIterator[Listed]:
        """Everything, or what lies in one folder (a namespace's digest); in any order. It may lag behind, for example
        tell of what was removed a moment ago. Raises TierFailed."""

    @abstractmethod
    async def health(self) -> None:
        """Return if the place can be used now: reached, and written to. Raises TierFailed."""

    @abstractmethod
    async def close(self) -> None:
        """Give everything back: threads, connections, descriptors. What was being stored is there or not there."""


def name_of(namespace_digest: bytes, key: bytes) -> str:
    """The name of a chunk's object. Raises BadKey."""
    if len(namespace_digest) != DIGEST_BYTES or len(key) != KEY_BYTES:
        raise BadKey(f"a name is made of {DIGEST_BYTES} and {KEY_BYTES} bytes", got_bytes=len(key))
    return f"{namespace_digest.hex()}/{key.hex()}"


def marked(folder: bytes, is_overwritten: bool) -> bytes:
    """A folder of 16 bytes that says whether what lies in it is overwritten before it goes: by its lowest bit."""
    return folder[:-1] + bytes([folder[-1] & ~1 | is_overwritten])


def is_overwritten(name: str) -> bool:
    """Are the bytes of this object to be overwritten before it goes? Raises BadKey.

    A namespace's marker (a key of zeros) has no content, and lies in a folder that says nothing.
    """
    folder, key = split_name(name)
    return bool(int(folder[-1], 16) & 1) and key.strip("0") != ""


def split_name(name: str) -> tuple[str, str]:
    """The folder and the key of a name, both in hexadecimal. Whatever else a name might do as a path, an address or a
    pattern, it does not pass here. Raises BadKey."""
    match = _NAME.fullmatch(name)
    if match is None:
        raise BadKey(f"{name[:80]!r} is not a name: NAMESPACE/KEY, each of 32 hexadecimal digits", got_bytes=len(name))
    return match[1], match[2]


def check_folder(folder: str) -> str:
    """A folder as list() takes it: "" for all, or a namespace's digest. Raises BadKey."""
    if not _FOLDER.fullmatch(folder):
        raise BadKey(f"{folder[:80]!r} is not a folder: 32 hexadecimal digits", got_bytes=len(folder))
    return folder
