"""The clients that may speak to a daemon: a list of names and public keys.

Holds:      authorising a client, with a pair made here or with the public key of its own, and revoking it.
Promises:   a name and a key stand in the list once; what is revoked has no key file here any more.
Leaves:     asking the list while a daemon runs to `authorised`.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maru.credentials.curve import CLIENTS_FOLDER, checked_key, client_file, load_server_keys, make_client_key
from maru.credentials.folder import LOCK_DEADLINE_S, KeyFolder
from maru.credentials.grants import EVERYTHING, Grant, read_grants
from maru.credentials.records import (
    DEFAULT_TENANT,
    checked_name,
    checked_tenant,
    decode,
    encode,
    rows_of,
    seconds_of,
    text_of,
)
from maru.errors import BadCredential, CredentialError, CredentialExists, CredentialNotFound

CLIENTS_FILE = "clients.json"
CLIENT_LIMIT = 4096
_KIND = "list of clients"


@dataclass(frozen=True)
class Client:
    """One that may speak to the daemon."""

    name: str
    public_z85: str
    tenant: str
    added_unix_s: int
    may_map: bool = True
    """May it map the pool's memory? Then it sees the bytes of every tenant, and can change them, whatever its grants.
    It may read the pool's KV events too, for they tell of every tenant's chunks."""
    grants: tuple[Grant, ...] = EVERYTHING
    """What it may do with its tenant's namespaces. No other tenant's are anything to it."""
    uid: int | None = None
    """Of a user of the daemon's host who is let in by the local socket; see `users`."""


def read_clients(raw: bytes | None, path: Path) -> list[Client]:
    """What the list says; none when there is no list. Raises BadCredential."""
    if raw is None:
        return []
    return [
        Client(
            row["name"],
            checked_key(text_of(row, "public", path), "public", path),
            checked_name(text_of(row, "tenant", path)),
            seconds_of(row, "added_unix_s", path),
            _may_map(row, path),
            _grants(row, path),
            _uid(row, path),
        )
        for row in rows_of(decode(_KIND, raw, path), "clients", CLIENT_LIMIT, path)
    ]


def list_clients(folder: Path) -> list[Client]:
    """Who may speak to the daemon, in the order they came. Raises CredentialError and its kinds."""
    return _list(KeyFolder(folder))


def add_client(
    folder: Path,
    name: str,
    public_z85: str,
    tenant: str = DEFAULT_TENANT,
    deadline_s: float = LOCK_DEADLINE_S,
    may_map: bool | None = None,
    grants: tuple[Grant, ...] = EVERYTHING,
) -> Client:
    """Let in whoever holds the other half of `public_z85`, under this name.

    `may_map`: may it map the pool's memory; None: only one of the default tenant that nobody limits.
    Raises BadCredential, CredentialExists (the name or the key is there), CredentialsBusy, UnsafeCredentials.
    """
    public = checked_key(public_z85, "PUBLIC_KEY")
    maps = maps_untold(tenant, grants) if may_map is None else may_map
    fresh = Client(checked_name(name), public, checked_tenant(tenant), int(time.time()), maps, grants)
    add_row(folder, fresh, deadline_s)
    return fresh


def add_row(folder: Path, fresh: Client, deadline_s: float) -> None:
    """Put a client on the list. Raises CredentialExists, CredentialsBusy, UnsafeCredentials, BadCredential."""
    keys = KeyFolder(folder)
    keys.make()
    with keys.locked(deadline_s):
        clients = _without(keys, fresh.name, fresh.public_z85)
        for one in clients:
            if fresh.uid is not None and one.uid == fresh.uid:
                raise CredentialExists(
                    f"the user {fresh.uid} is there already, as {one.name!r}: a user is one client",
                    path=str(keys.path),
                )
        _write(keys, [*clients, fresh])


def generate_client(
    folder: Path,
    name: str,
    tenant: str = DEFAULT_TENANT,
    deadline_s: float = LOCK_DEADLINE_S,
    may_map: bool | None = None,
    grants: tuple[Grant, ...] = EVERYTHING,
) -> tuple[Client, Path]:
    """Make a pair for a client and let it in. Returns the client and its key file, which is to be handed over.

    `may_map`: as of add_client.

    Raises CredentialNotFound (the daemon has no keys yet), CredentialExists, BadCredential, CredentialsBusy,
    UnsafeCredentials, MissingPackage.
    """
    keys = KeyFolder(folder)
    checked_name(name), checked_tenant(tenant)
    server = load_server_keys(folder)
    with keys.locked(deadline_s):
        clients = _without(keys, name, "")
        # The file first: a list that names a key which nobody has would be of no use to anybody.
        handed = KeyFolder(folder / CLIENTS_FOLDER)
        handed.make()
        path, public = make_client_key(handed, name, server.public_z85)
        maps = maps_untold(tenant, grants) if may_map is None else may_map
        fresh = Client(name, public, tenant, int(time.time()), maps, grants)
        _write(keys, [*clients, fresh])
    return fresh, path


def revoke_client(folder: Path, name: str, deadline_s: float = LOCK_DEADLINE_S) -> Client:
    """Let a client in no more. Raises CredentialNotFound, CredentialsBusy, UnsafeCredentials, BadCredential."""
    keys = KeyFolder(folder)
    with keys.locked(deadline_s):
        clients = _list(keys)
        gone = next((one for one in clients if one.name == name), None)
        if gone is None:
            known = ", ".join(one.name for one in clients) or "none"
            raise CredentialNotFound(f"there is no client {name!r} in {folder}; there are: {known}", path=str(folder))
        _write(keys, [one for one in clients if one is not gone])
        handed = KeyFolder(folder / CLIENTS_FOLDER)
        if handed.exists():
            handed.remove(client_file(name))
    return gone


def _list(keys: KeyFolder) -> list[Client]:
    return read_clients(keys.read(CLIENTS_FILE), keys.path / CLIENTS_FILE)


def maps_untold(tenant: str, grants: tuple[Grant, ...]) -> bool:
    """May a client map the pool of which nobody said it?"""
    return tenant == DEFAULT_TENANT and grants == EVERYTHING


def _may_map(row: dict[str, Any], path: Path) -> bool:
    """Lists of before there was this question do not answer it: then the default tenant's may, and no others."""
    value = row.get("may_map", maps_untold(row["tenant"], _grants(row, path)))
    if not isinstance(value, bool):
        raise BadCredential(f"{path} cannot be read: 'may_map' is not true or false", path=str(path))
    return value


def _uid(row: dict[str, Any], path: Path) -> int | None:
    value = row.get("uid")
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise BadCredential(f"{path} cannot be read: 'uid' is not a user's number", path=str(path))
    return value


def _grants(row: dict[str, Any], path: Path) -> tuple[Grant, ...]:
    texts = row.get("grants", [str(grant) for grant in EVERYTHING])
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise BadCredential(f"{path} cannot be read: 'grants' is not a list of texts", path=str(path))
    return read_grants(texts)


def _without(keys: KeyFolder, name: str, public_z85: str) -> list[Client]:
    """The list, in which neither this name nor this key stands and there is room for one more."""
    clients = _list(keys)
    for one in clients:
        if one.name == name:
            raise CredentialExists(
                f"{name!r} may already speak to the daemon; `maru keys revoke {name}` ends that", path=str(keys.path)
            )
        if one.public_z85 == public_z85:
            raise CredentialExists(f"that key is there already, as {one.name!r}", path=str(keys.path))
    if len(clients) >= CLIENT_LIMIT:
        raise CredentialError(f"{keys.path} names {CLIENT_LIMIT} clients, and takes no more", path=str(keys.path))
    return clients


def _write(keys: KeyFolder, clients: list[Client]) -> None:
    rows = [
        {
            "name": one.name,
            "public": one.public_z85,
            "tenant": one.tenant,
            "added_unix_s": one.added_unix_s,
            "may_map": one.may_map,
            "grants": [str(grant) for grant in one.grants],
            **({} if one.uid is None else {"uid": one.uid}),
        }
        for one in clients
    ]
    keys.write(CLIENTS_FILE, encode(_KIND, {"clients": rows}))
