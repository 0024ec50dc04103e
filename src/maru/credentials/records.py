"""Lists of named things in a folder of keys: a JSON file with a format number and rows.

Holds:      reading such a file with every field checked, writing it, and what may be a name.
Promises:   a file that cannot be read whole is refused by name; nothing is guessed, and no message repeats a value that
            may be a secret.
Leaves:     what the fields mean to its neighbours.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from maru.errors import BadCredential

FORMAT = 1
DEFAULT_TENANT = "default"
TENANT_BYTES_MAX = 63
"""As much as a pool's table of namespaces holds of a name: no two tenants may look alike there."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")  # None is taken for an option, or for a folder.


def checked_name(name: str) -> str:
    """The name, if it is one. Raises BadCredential."""
    if not _NAME.fullmatch(name):
        raise BadCredential(
            f"{name!r} is not a name: 1 to 64 letters, digits, '_', '-' or '.', beginning with none of the last two"
        )
    return name


def checked_tenant(name: str) -> str:
    """The name, if it is one of a tenant. Raises BadCredential."""
    if len(checked_name(name)) > TENANT_BYTES_MAX:
        raise BadCredential(f"a tenant's name has at most {TENANT_BYTES_MAX} characters; {name!r} has {len(name)}")
    return name


def encode(kind: str, content: dict[str, Any]) -> bytes:
    """The bytes of a file of this kind."""
    return json.dumps({"maru": kind, "format": FORMAT, **content}, indent=2).encode() + b"\n"


def decode(kind: str, raw: bytes, path: Path) -> dict[str, Any]:
    """What `encode` was given. Raises BadCredential."""
    try:
        document = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadCredential(f"{path} cannot be read: it is not JSON", path=str(path)) from None
    if not isinstance(document, dict) or document.get("maru") != kind:
        raise BadCredential(f"{path} is not a Maru {kind}", path=str(path))
    if document.get("format") != FORMAT:
        raise BadCredential(f"{path} has a format that this version of Maru does not know", path=str(path))
    return document


def text_of(row: Any, field: str, path: Path) -> str:
    """One field that must be text. Raises BadCredential."""
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, str):
        raise BadCredential(f"{path} cannot be read: {field!r} is missing, or is not text", path=str(path))
    return value


def seconds_of(row: Any, field: str, path: Path) -> int:
    """One field that must be a time in seconds since 1970. Raises BadCredential."""
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise BadCredential(f"{path} cannot be read: {field!r} is missing, or is not a time", path=str(path))
    return value


def rows_of(document: dict[str, Any], field: str, limit: int, path: Path) -> list[Any]:
    """The list of rows, each with a name of its own. Raises BadCredential."""
    rows = document.get(field)
    if not isinstance(rows, list) or len(rows) > limit:
        raise BadCredential(f"{path} cannot be read: {field!r} is not a list of at most {limit}", path=str(path))
    names = [checked_name(text_of(row, "name", path)) for row in rows]
    if len(set(names)) != len(names):
        raise BadCredential(f"{path} cannot be read: it names somebody twice", path=str(path))
    return rows
