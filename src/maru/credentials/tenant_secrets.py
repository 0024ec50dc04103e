"""Secrets that seed tenants' keys: nobody else can compute them, so nobody else can ask for what they name.

Holds:      the pool secret beside the daemon's keys, the tenants' secrets made of it, and reading one on its own.
Promises:   a tenant's secret says nothing of the pool's, nor of another tenant's; no secret is in a repr or a message.
Leaves:     what is seeded to `maru.pool`, whose request it is to the daemon.

    pool secret  --HKDF-SHA256(no salt, info "maru tenant 1" 0 TENANT)-->  the tenant's secret

The pool secret never leaves its folder. A tenant's is handed to that tenant's processes on the pool's own host, as a
line of `TENANT HEX` in a file that only they can read; its clients elsewhere need none, for the daemon seeds theirs.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from maru.credentials.folder import LOCK_DEADLINE_S, KeyFolder
from maru.credentials.records import checked_tenant, decode, encode, text_of
from maru.credentials.sources import read_source
from maru.errors import BadCredential, CredentialError, CredentialExists, MissingPackage

POOL_SECRET_FILE = "pool.secret"
SECRET_BYTES = 32
_KIND = "pool secret"
_INFO = b"maru tenant 1\0"
_HEX = re.compile(r"[0-9a-f]{64}")


class PoolSecret:
    """What all tenants' secrets of one daemon are made of."""

    def __init__(self, secret: bytes) -> None:
        """`secret`: 32 random bytes. Raises MissingPackage."""
        assert len(secret) == SECRET_BYTES
        self._secret = secret
        self._made: dict[str, bytes] = {}
        _cryptography()

    def of(self, tenant: str) -> bytes:
        """The secret of one tenant: 32 bytes, always the same."""
        if tenant not in self._made:
            self._made[tenant] = hkdf_sha256(self._secret, _INFO + tenant.encode(), SECRET_BYTES)
        return self._made[tenant]

    def __repr__(self) -> str:
        return "PoolSecret(...)"


class TenantSecrets:
    """Secrets of some tenants, as a process on the pool's host is given them."""

    def __init__(self, by_tenant: Mapping[str, bytes]) -> None:
        self._by_tenant = dict(by_tenant)

    def of(self, tenant: str) -> bytes | None:
        """The secret of this tenant (32 bytes), None if it has none here."""
        return self._by_tenant.get(tenant)

    def __repr__(self) -> str:
        return f"TenantSecrets({', '.join(self._by_tenant)})"


def make_pool_secret(folder: Path, deadline_s: float = LOCK_DEADLINE_S) -> bool:
    """Make the pool secret unless it is there; was it made? Raises CredentialsBusy, CredentialNotFound (there is no
    such folder), UnsafeCredentials.
    """
    keys = KeyFolder(folder)
    with keys.locked(deadline_s):
        if keys.read(POOL_SECRET_FILE) is not None:
            return False
        keys.write(POOL_SECRET_FILE, encode(_KIND, {"secret": secrets.token_hex(SECRET_BYTES)}))
    return True


def load_pool_secret(folder: Path) -> PoolSecret | None:
    """The pool secret; None when there is none, as in folders of before there was one.

    Raises CredentialNotFound (no folder), UnsafeCredentials, BadCredential, MissingPackage.
    """
    path = folder / POOL_SECRET_FILE
    raw = KeyFolder(folder).read(POOL_SECRET_FILE)
    if raw is None:
        return None
    text = text_of(decode(_KIND, raw, path), "secret", path)
    if not _HEX.fullmatch(text):
        raise BadCredential(f"{path} cannot be read: 'secret' is not 64 hexadecimal digits", path=str(path))
    return PoolSecret(bytes.fromhex(text))


def tenant_secret_line(folder: Path, tenant: str) -> str:
    """`TENANT HEX`, for that tenant's processes on this host; makes the pool secret if there is none yet.

    Raises BadCredential, CredentialNotFound, CredentialsBusy, UnsafeCredentials, MissingPackage.
    """
    checked_tenant(tenant)
    make_pool_secret(folder)
    secret = load_pool_secret(folder)
    assert secret is not None
    return f"{tenant} {secret.of(tenant).hex()}"


def write_tenant_secret(folder: Path, tenant: str, file: Path) -> None:
    """Write that line into a new file that only this user can read.

    Raises CredentialExists, CredentialError (the system fails), and as tenant_secret_line.
    """
    line = tenant_secret_line(folder, tenant)
    try:
        made = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(made, "w") as stream:
            stream.write(line + "\n")
    except FileExistsError:
        raise CredentialExists(f"{file} exists; remove it first, or take another name", path=str(file)) from None
    except OSError as error:
        raise CredentialError(f"cannot write {file}: {error.strerror}", path=str(file)) from None


def read_tenant_secrets(source: str) -> TenantSecrets:
    """The secrets of "file:PATH", "env:NAME" or "command:PROGRAM ARGUMENT...": lines of `TENANT HEX`; `#` is a remark.

    Raises BadCredential, CredentialNotFound, UnsafeCredentials, CredentialError.
    """
    content, place = read_source(source)
    found: dict[str, bytes] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        # No message repeats a word of it, since any word may be a secret in a wrong place.
        if len(words) != 2 or not _HEX.fullmatch(words[1]) or not _is_tenant(words[0]) or words[0] in found:
            raise BadCredential(f"line {number} of {place} is no tenant's secret: `maru keys tenant-secret` writes one")
        found[words[0]] = bytes.fromhex(words[1])
    if not found:
        raise BadCredential(f"{place} holds no tenant's secret: `maru keys tenant-secret` writes one")
    return TenantSecrets(found)


def hkdf_sha256(secret: bytes, info: bytes, size_bytes: int) -> bytes:
    """What RFC 5869 makes of a secret, without a salt. Raises MissingPackage."""
    hashes, hkdf = _cryptography()
    made: bytes = hkdf.HKDF(hashes.SHA256(), size_bytes, None, info).derive(secret)
    return made


def _is_tenant(word: str) -> bool:
    try:
        checked_tenant(word)
    except BadCredential:
        return False
    return not _HEX.fullmatch(word)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.kdf import hkdf
    except ModuleNotFoundError:
        raise MissingPackage(
            f"tenants' secrets are made with the package 'cryptography', which {sys.executable} does not have: "
            "pip install 'maru-kvcache[serve]'",
            package="cryptography",
        ) from None
    return hashes, hkdf
