"""Which namespaces a place takes, when, and how exactly: what its URL says by tenant, or by a namespace's digest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from maru.errors import BadUrl

Write = Literal["back", "through", "never"]
"""Copied ahead of eviction; soon after it was stored; not at all."""
PARAMETERS = ("back", "through", "never", "lossy")
NAMES_MAX = 256
_LOSSY_CODECS = ("int8", "fp8")


@dataclass(frozen=True)
class Policy:
    """Of one place. Names are tenants' names, or digests of namespaces (32 hexadecimal digits, as `maru stat --json`
    shows them); what is said of a digest counts before what is said of its tenant.
    """

    write: Literal["back", "through"] = "back"
    """Of whatever is not named."""
    named: tuple[tuple[str, Write], ...] = ()
    lossy: frozenset[str] | None = None
    """Who opted in to the place's lossy codec; None: the place's URL did so for all."""

    def write_of(self, tenant: str, digest: bytes) -> Write:
        told = dict(self.named)
        return told.get(digest.hex()) or told.get(tenant) or self.write

    def may_lose(self, tenant: str, digest: bytes) -> bool:
        """A lossy codec may be used."""
        return self.lossy is None or tenant in self.lossy or digest.hex() in self.lossy

    def writes(self) -> set[Write]:
        """All that write_of() may answer."""
        return {self.write, *(write for _, write in self.named)}


def read_policy(query: Mapping[str, str], write: Literal["back", "through"], codec: str) -> Policy:
    """`back=`, `through=`, `never=` and `lossy=`, each NAME,NAME,... Raises BadUrl."""
    told: dict[str, Write] = {}
    modes: tuple[Write, ...] = ("back", "through", "never")
    for mode in modes:
        for name in _names(query, mode):
            if name in told:
                raise BadUrl(f"{name[:64]!r} is named in {told[name]}= and in {mode}=", hint="name it in one of them")
            told[name] = mode
    lossy = frozenset(_names(query, "lossy")) if "lossy" in query else None
    if lossy is not None and codec.partition(":")[0] not in _LOSSY_CODECS:
        raise BadUrl(
            f"lossy= names who may lose precision, but codec={codec[:64]} loses none",
            hint=f"leave lossy= out, or name one of the codecs {', '.join(_LOSSY_CODECS)}",
        )
    return Policy(write, tuple(told.items()), lossy)


def _names(query: Mapping[str, str], parameter: str) -> list[str]:
    if parameter not in query:
        return []
    names = query[parameter].split(",")
    if not all(names) or any(name != name.strip() for name in names) or len(names) > NAMES_MAX:
        raise BadUrl(
            f"{parameter}={query[parameter][:64]} is not a list of names",
            hint=f"write tenants or digests of namespaces with commas between them, at most {NAMES_MAX}, no blanks",
        )
    if len(set(names)) < len(names):
        raise BadUrl(f"{parameter}={query[parameter][:64]} names somebody twice", hint="name each once")
    return names
