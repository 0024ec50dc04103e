"""Who may speak to a daemon: its keys, its clients, tokens for its HTTP face, and a certificate.

Everything lies in one folder that only its owner can read (`default_folder()` unless told otherwise):

    server.key        the daemon's CURVE pair
    clients.json      who may speak to it: names, public keys, tenants
    clients/NAME.key  pairs that were made here, each to be handed to its client
    tokens.json       names, roles and SHA-256 of bearer tokens
    tls.pem           the daemon's TLS key and certificate; certificate.pem: the certificate alone, for clients

    folder       files that nobody else reads, written whole       curve      the pairs, and sockets that use them
    records      what the lists have in common                     clients    the list of those let in
    authorised   asking all of it while a daemon runs              tokens     bearer tokens
                                                                   certificate   TLS
"""

from maru.credentials.authorised import Authorised, ZapCallback
from maru.credentials.certificate import (
    Certificate,
    default_hosts,
    load_certificate,
    make_certificate,
    read_certificate,
)
from maru.credentials.clients import (
    DEFAULT_TENANT,
    Client,
    add_client,
    generate_client,
    list_clients,
    revoke_client,
)
from maru.credentials.curve import (
    ZAP_DOMAIN,
    ClientKey,
    ServerKeys,
    generate_remote,
    generate_server,
    load_client_key,
    load_server_keys,
    secure_client,
    secure_server,
)
from maru.credentials.folder import default_folder
from maru.credentials.tokens import Role, Token, add_token, list_tokens, revoke_token

__all__ = [
    "DEFAULT_TENANT",
    "ZAP_DOMAIN",
    "Authorised",
    "Certificate",
    "Client",
    "ClientKey",
    "Role",
    "ServerKeys",
    "Token",
    "ZapCallback",
    "add_client",
    "add_token",
    "default_folder",
    "default_hosts",
    "generate_client",
    "generate_remote",
    "generate_server",
    "list_clients",
    "list_tokens",
    "load_certificate",
    "load_client_key",
    "load_server_keys",
    "make_certificate",
    "read_certificate",
    "revoke_client",
    "revoke_token",
    "secure_client",
    "secure_server",
]
