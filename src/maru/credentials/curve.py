"""CURVE keys: the daemon's pair, a client's pair, and a socket that uses them.

Holds:      making, storing and loading the pairs, and setting them on a ZeroMQ socket.
Promises:   one file is all that a client needs; a pair whose halves do not belong together is refused; a secret is in
            no repr, no message and no comparison.
Leaves:     who is let in to `authorised`.

Keys are text in Z85, as ZeroMQ writes them: 40 characters for 32 bytes.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maru.credentials.folder import LOCK_DEADLINE_S, KeyFolder, read_private_file
from maru.credentials.records import checked_name, decode, encode, text_of
from maru.credentials.tenant_secrets import SECRET_BYTES, hkdf_sha256, make_pool_secret
from maru.errors import BadCredential, CredentialExists, CredentialNotFound, MissingPackage

if TYPE_CHECKING:
    import zmq

ZAP_DOMAIN = "maru"
EVENTS_ZAP_DOMAIN = "maru-events"
"""Of sockets that tell of every tenant's chunks."""
SERVER_FILE = "server.key"
CLIENTS_FOLDER = "clients"
_USER_INFO = b"maru user 1\0"
_SERVER_KIND, _CLIENT_KIND = "server key", "client key"
_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_KEY = re.compile(f"[{re.escape(_Z85)}]{{40}}")


@dataclass(frozen=True, eq=False)
class ServerKeys:
    """The daemon's pair. Whoever has the public half can speak to it; the secret half never leaves its folder."""

    public_z85: str
    secret_z85: str = field(repr=False)


@dataclass(frozen=True, eq=False)
class ClientKey:
    """A client's pair, and the public key of the daemon that it speaks to."""

    name: str
    public_z85: str
    server_public_z85: str
    secret_z85: str = field(repr=False)


def checked_key(text: str, what: str, path: Path | None = None) -> str:
    """The key, if it is one of 40 characters in Z85. Raises BadCredential, which does not show it."""
    groups = (text[at : at + 5] for at in range(0, 40, 5))
    if not _KEY.fullmatch(text) or any(_number(group) >= 1 << 32 for group in groups):
        raise BadCredential(
            f"{f'{path}: ' if path else ''}{what} is not a key of 40 characters in Z85"
            " (in a shell it needs single quotes around it)",
            path=str(path or ""),
        )
    return text


def _number(group: str) -> int:
    number = 0
    for letter in group:
        number = number * 85 + _Z85.index(letter)
    return number


def generate_server(folder: Path, deadline_s: float = LOCK_DEADLINE_S) -> ServerKeys:
    """Make the daemon's pair, and its pool secret unless there is one.

    Raises CredentialExists, CredentialsBusy, UnsafeCredentials, MissingPackage.
    """
    keys = KeyFolder(folder)
    keys.make()
    with keys.locked(deadline_s):
        if keys.read(SERVER_FILE) is not None:
            raise CredentialExists(
                f"{folder / SERVER_FILE} exists: the daemon has its keys. To change them remove that file, make new "
                "ones, and hand every client a key file anew",
                path=str(folder / SERVER_FILE),
            )
        public, secret = _new_pair()
        keys.write(SERVER_FILE, encode(_SERVER_KIND, {"public": public, "secret": secret}))
    make_pool_secret(folder, deadline_s)
    return ServerKeys(public, secret)


def load_server_keys(folder: Path) -> ServerKeys:
    """The daemon's pair. Raises CredentialNotFound, UnsafeCredentials, BadCredential, MissingPackage."""
    path = folder / SERVER_FILE
    raw = KeyFolder(folder).read(SERVER_FILE)
    if raw is None:
        raise CredentialNotFound(f"{path} does not exist: `maru keys generate` makes the daemon's keys", path=str(path))
    public, secret = _pair_of(decode(_SERVER_KIND, raw, path), path)
    return ServerKeys(public, secret)


def make_client_key(folder: KeyFolder, name: str, server_public_z85: str) -> tuple[Path, str]:
    """Make a pair for a client, and its key file. Returns the file and the public key."""
    public, secret = _new_pair()
    content = {"name": name, "public": public, "secret": secret, "server_public": server_public_z85}
    return folder.write(client_file(name), encode(_CLIENT_KIND, content)), public


def generate_remote(
    folder: Path, name: str, server_public_z85: str, deadline_s: float = LOCK_DEADLINE_S
) -> tuple[Path, str]:
    """Make a key file on the client's own host, for a daemon elsewhere: the secret never travels.

    Returns the file and the public key, which the daemon's host is to let in.

    Raises BadCredential, CredentialExists, CredentialsBusy, UnsafeCredentials, MissingPackage.
    """
    checked_name(name), checked_key(server_public_z85, "the daemon's public key")
    KeyFolder(folder).make()
    keys = KeyFolder(folder / CLIENTS_FOLDER)
    keys.make()
    with keys.locked(deadline_s):
        if keys.read(client_file(name)) is not None:
            path = keys.path / client_file(name)
            raise CredentialExists(f"{path} exists; remove it first, or take another name", path=str(path))
        return make_client_key(keys, name, server_public_z85)


def client_file(name: str) -> str:
    """What a client's key file is called."""
    return f"{name}.key"


def load_client_key(path: Path) -> ClientKey:
    """What a client key file says: its pair, and the daemon it is for.

    Raises CredentialNotFound, UnsafeCredentials, BadCredential, MissingPackage.
    """
    document = decode(_CLIENT_KIND, read_private_file(path), path)
    public, secret = _pair_of(document, path)
    server = checked_key(text_of(document, "server_public", path), "server_public", path)
    return ClientKey(checked_name(text_of(document, "name", path)), public, server, secret)


def secure_server(socket: zmq.Socket[Any], keys: ServerKeys, domain: str = ZAP_DOMAIN) -> None:
    """Let a socket take only encrypted connections that were asked about. Call it before bind(). `domain`: whom to ask.

    Without a ZAP handler ZeroMQ lets everybody in who encrypts at all; with its domain enforced it lets in nobody then.
    """
    socket.zap_domain = domain.encode()
    socket.zap_enforce_domain = 1
    socket.curve_secretkey = keys.secret_z85.encode()
    socket.curve_publickey = keys.public_z85.encode()
    socket.curve_server = 1


def secure_client(socket: zmq.Socket[Any], key: ClientKey) -> None:
    """Let a socket speak only to the daemon that holds the other half of the key. Call it before connect()."""
    socket.curve_secretkey = key.secret_z85.encode()
    socket.curve_publickey = key.public_z85.encode()
    socket.curve_serverkey = key.server_public_z85.encode()


def derive_pair(keys: ServerKeys, whose: str) -> tuple[str, str]:
    """(public, secret) of a pair that only the daemon can make, and can make again. Raises MissingPackage."""
    zmq = _zmq()
    from zmq.utils import z85

    secret = z85.encode(hkdf_sha256(z85.decode(keys.secret_z85.encode()), _USER_INFO + whose.encode(), SECRET_BYTES))
    return zmq.curve_public(secret).decode(), secret.decode()


def _pair_of(document: dict[str, Any], path: Path) -> tuple[str, str]:
    public = checked_key(text_of(document, "public", path), "public", path)
    secret = checked_key(text_of(document, "secret", path), "secret", path)
    if _zmq().curve_public(secret.encode()).decode() != public:
        raise BadCredential(f"{path} cannot be read: its two keys do not belong together", path=str(path))
    return public, secret


def _new_pair() -> tuple[str, str]:
    while True:
        public, secret = (half.decode() for half in _zmq().curve_keypair())
        if not public.startswith("-"):  # One in 85 does, and a command line would take it for an option.
            return public, secret


def _zmq() -> Any:
    try:
        import zmq
    except ModuleNotFoundError:
        raise MissingPackage(
            f"keys are made with the package 'pyzmq', which {sys.executable} does not have: "
            "pip install 'maru-kvcache[remote]'",
            package="pyzmq",
        ) from None
    return zmq
