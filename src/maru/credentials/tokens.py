"""Bearer tokens for the daemon's HTTP face: who may read figures, and who may change things.

Holds:      making, listing and revoking tokens.
Promises:   only a token's SHA-256 is kept, so nobody can read one from the disk; it is shown once, by whoever makes it.
            Comparing takes the same time whatever is asked.
Leaves:     asking while a daemon runs to `authorised`.

A token is 256 random bits, so a plain hash is enough: there is nothing to guess that a slow hash would protect.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast, get_args

from maru.credentials.folder import LOCK_DEADLINE_S, KeyFolder
from maru.credentials.records import checked_name, decode, encode, rows_of, seconds_of, text_of
from maru.errors import BadCredential, CredentialError, CredentialExists, CredentialNotFound

Role = Literal["read", "admin"]
TOKENS_FILE = "tokens.json"
TOKEN_LIMIT = 1024
TOKEN_CHARACTERS_MAX = 256
_KIND = "list of tokens"
_PREFIX = "maru_"  # So that programs which look for leaked secrets know one.
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, eq=False)
class Token:
    """What is kept of a token."""

    name: str
    role: Role
    added_unix_s: int
    sha256_hex: str = field(repr=False)


def checked_role(text: str) -> Role:
    """The role, if it is one. Raises BadCredential."""
    if text not in get_args(Role):
        raise BadCredential(f"{text!r} is not a role; there are {' and '.join(get_args(Role))}")
    return cast("Role", text)


def read_tokens(raw: bytes | None, path: Path) -> list[Token]:
    """What the list says; none when there is no list. Raises BadCredential."""
    if raw is None:
        return []
    tokens = [
        Token(
            row["name"],
            checked_role(text_of(row, "role", path)),
            seconds_of(row, "added_unix_s", path),
            text_of(row, "sha256", path),
        )
        for row in rows_of(decode(_KIND, raw, path), "tokens", TOKEN_LIMIT, path)
    ]
    if not all(_SHA256.fullmatch(one.sha256_hex) for one in tokens):
        raise BadCredential(f"{path} cannot be read: a 'sha256' is not 64 hexadecimal digits", path=str(path))
    return tokens


def role_of(tokens: list[Token], token: str) -> Role | None:
    """The role that goes with a token, None for one that nobody made. Looks at all of them, whatever matches."""
    found = token_of(tokens, token)
    return found.role if found else None


def token_of(tokens: list[Token], token: str) -> Token | None:
    """What is kept of a token, None for one that nobody made. Looks at all of them, whatever matches."""
    if len(token) > TOKEN_CHARACTERS_MAX:
        return None
    shown = _sha256(token)
    found: Token | None = None
    for one in tokens:
        if hmac.compare_digest(one.sha256_hex, shown):
            found = one
    return found


def list_tokens(folder: Path) -> list[Token]:
    """What is kept of each token, in the order they came. Raises CredentialError and its kinds."""
    return _list(KeyFolder(folder))


def add_token(folder: Path, name: str, role: str, deadline_s: float = LOCK_DEADLINE_S) -> str:
    """Make a token and return it: the only time that anybody sees it.

    Raises BadCredential, CredentialExists, CredentialsBusy, UnsafeCredentials.
    """
    keys = KeyFolder(folder)
    checked_name(name), checked_role(role)
    keys.make()
    with keys.locked(deadline_s):
        tokens = _list(keys)
        if any(one.name == name for one in tokens):
            raise CredentialExists(
                f"there is a token {name!r}; `maru keys token revoke {name}` ends it", path=str(folder)
            )
        if len(tokens) >= TOKEN_LIMIT:
            raise CredentialError(f"{folder} holds {TOKEN_LIMIT} tokens, and takes no more", path=str(folder))
        token = _PREFIX + secrets.token_urlsafe(32)
        _write(keys, [*tokens, Token(name, checked_role(role), int(time.time()), _sha256(token))])
    return token


def revoke_token(folder: Path, name: str, deadline_s: float = LOCK_DEADLINE_S) -> Token:
    """Let a token count no more. Raises CredentialNotFound, CredentialsBusy, UnsafeCredentials, BadCredential."""
    keys = KeyFolder(folder)
    with keys.locked(deadline_s):
        tokens = _list(keys)
        gone = next((one for one in tokens if one.name == name), None)
        if gone is None:
            known = ", ".join(one.name for one in tokens) or "none"
            raise CredentialNotFound(f"there is no token {name!r} in {folder}; there are: {known}", path=str(folder))
        _write(keys, [one for one in tokens if one is not gone])
    return gone


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def _list(keys: KeyFolder) -> list[Token]:
    return read_tokens(keys.read(TOKENS_FILE), keys.path / TOKENS_FILE)


def _write(keys: KeyFolder, tokens: list[Token]) -> None:
    rows = [
        {"name": one.name, "role": one.role, "sha256": one.sha256_hex, "added_unix_s": one.added_unix_s}
        for one in tokens
    ]
    keys.write(TOKENS_FILE, encode(_KIND, {"tokens": rows}))
