"""Users of the daemon's own host, who are let in as whom the system says they are: by their uid.

Holds:      putting a user on the list of clients, and the CURVE pair that is such a user's.
Promises:   the pair is the same as long as the user stays on the list and the daemon keeps its keys; who is taken off
            and put on again later gets another. Nothing secret is kept for it.
Leaves:     asking the system who somebody is, and handing over what is theirs, to the daemon.

    server's secret key  --HKDF-SHA256(no salt, info "maru user 1" 0 "UID NAME ADDED")-->  the user's secret key
"""

from __future__ import annotations

import time
from pathlib import Path

from maru.credentials.clients import Client, add_row, maps_untold
from maru.credentials.curve import ClientKey, ServerKeys, derive_pair, load_server_keys
from maru.credentials.folder import LOCK_DEADLINE_S
from maru.credentials.grants import EVERYTHING, Grant
from maru.credentials.records import DEFAULT_TENANT, checked_name, checked_tenant
from maru.errors import BadCredential, CredentialNotFound

UID_MAX = (1 << 32) - 2
"""The last one means nobody in particular to the kernel."""


def add_user(
    folder: Path,
    name: str,
    uid: int,
    tenant: str = DEFAULT_TENANT,
    deadline_s: float = LOCK_DEADLINE_S,
    may_map: bool | None = None,
    grants: tuple[Grant, ...] = EVERYTHING,
) -> Client:
    """Let in the processes of one user of this host, by the daemon's local socket.

    `may_map`: may they map the pool's memory; as of add_client. Raises BadCredential, CredentialNotFound (the daemon
    has no keys yet), CredentialExists (the name or the uid is there), CredentialsBusy, UnsafeCredentials,
    MissingPackage.
    """
    checked_name(name), checked_tenant(tenant)
    if not 0 <= uid <= UID_MAX:
        raise BadCredential(f"{uid} is no user's number: `id -u NAME` shows it")
    maps = maps_untold(tenant, grants) if may_map is None else may_map
    row = Client(name, "", tenant, int(time.time()), maps, grants, uid)
    public, _ = _pair_of(load_server_keys(folder), row)
    fresh = Client(name, public, tenant, row.added_unix_s, maps, grants, uid)
    add_row(folder, fresh, deadline_s)
    return fresh


def key_of_user(keys: ServerKeys, client: Client) -> ClientKey:
    """The pair of a client that is let in by its uid. Raises CredentialNotFound when the daemon's keys have changed."""
    public, secret = _pair_of(keys, client)
    if public != client.public_z85:
        raise CredentialNotFound(
            f"the daemon's keys have changed since the user {client.name!r} was let in: `maru keys revoke` it, and "
            "`maru keys add` it again"
        )
    return ClientKey(client.name, public, keys.public_z85, secret)


def _pair_of(keys: ServerKeys, client: Client) -> tuple[str, str]:
    return derive_pair(keys, f"{client.uid} {client.name} {client.added_unix_s}")
