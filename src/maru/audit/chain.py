"""How a line is tied to the one before it.

    {"hash":"<64 hex>","seq":17,"at_unix_ns":…,"what":"removed",…}

The hash is of the hash before it and of all that follows it in its own line: SHA-256, or HMAC-SHA-256 with a key.
Without a key a chain shows a change only to who knows a later hash; who can write the folder can write a whole new
chain. With a key only who has the key can.

Leaves:     files to `log`, judging to `verify`.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from maru.credentials.folder import read_private_file
from maru.errors import AuditError, BadCredential

FORMAT = 1
KEY_BYTES = 32
HASH_BYTES = 32
BEGINNING = bytes(HASH_BYTES)
"""What stands before the first line of all."""
_LINE = re.compile(rb'\{"hash":"([0-9a-f]{64})",(.*\})', re.DOTALL)
_KEY = re.compile(rb"[0-9a-f]{64}\n?")


@dataclass(frozen=True, eq=False)
class ChainKey:
    """The key of a chain; `id` tells it from others and says nothing of it."""

    secret: bytes = field(repr=False)

    @property
    def id(self) -> str:
        return hmac.digest(self.secret, b"maru audit key id", "sha256")[:8].hex()


def read_key(path: Path) -> ChainKey:
    """The key in a file of 64 hex digits that only this user can read.

    Raises CredentialNotFound, UnsafeCredentials (readable by others, a link), BadCredential. None shows the key.
    """
    content = read_private_file(path)
    if not _KEY.fullmatch(content):
        raise BadCredential(
            f"{path} holds no key of {KEY_BYTES} bytes in hex; `maru audit key FILE` makes one", path=str(path)
        )
    return ChainKey(bytes.fromhex(content.decode()))


def make_key(path: Path) -> ChainKey:
    """A new key in a new file of mode 0600. Raises AuditError: the file exists, or cannot be made."""
    secret = secrets.token_bytes(KEY_BYTES)
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(file, "wb") as stream:
            stream.write(secret.hex().encode() + b"\n")
            stream.flush()
            os.fsync(file)
    except OSError as error:
        raise AuditError(f"cannot make a key at {path}: {error.strerror}", path=str(path)) from None
    return ChainKey(secret)


def hash_of(previous: bytes, body: bytes, key: ChainKey | None) -> bytes:
    """32 bytes: of a line's body, after the line with hash `previous`."""
    if key is None:
        return hashlib.sha256(previous + body).digest()
    return hmac.digest(key.secret, previous + body, "sha256")


def make_line(previous: bytes, fields: dict[str, Any], key: ChainKey | None) -> tuple[bytes, bytes]:
    """One line with its newline, and its hash."""
    body = json.dumps(fields, separators=(",", ":")).encode()
    made = hash_of(previous, body, key)
    return b'{"hash":"' + made.hex().encode() + b'",' + body[1:] + b"\n", made


@dataclass(frozen=True)
class Line:
    """A line as it was read: what it says its hash is, and what that hash is of."""

    stated: bytes
    body: bytes
    fields: dict[str, Any]

    @property
    def seq(self) -> int:
        return int(self.fields["seq"])

    def is_after(self, previous: bytes, key: ChainKey | None) -> bool:
        return hmac.compare_digest(hash_of(previous, self.body, key), self.stated)


def read_line(raw: bytes) -> Line | None:
    """A line without its newline; None for what is none of ours."""
    match = _LINE.fullmatch(raw)
    if not match:
        return None
    body = b"{" + match[2]
    try:
        fields = json.loads(body)
    except (ValueError, RecursionError):
        return None
    if not isinstance(fields, dict) or not isinstance(fields.get("seq"), int) or isinstance(fields["seq"], bool):
        return None
    return Line(bytes.fromhex(match[1].decode()), body, fields)
