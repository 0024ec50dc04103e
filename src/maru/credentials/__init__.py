"""Who may speak to a daemon: its keys, its clients, tokens for its HTTP face, and a certificate.

Everything lies in one folder that only its owner can read (`default_folder()` unless told otherwise):

    server.key        the daemon's CURVE pair
    pool.secret       what the tenants' secrets are made of
    clients.json      who may speak to it: names, public keys, tenants, grants
    clients/NAME.key  pairs that were made here, each to be handed to its client
    tokens.json       names, roles and SHA-256 of bearer tokens
    tls.pem           the daemon's TLS key and certificate; certificate.pem: the certificate alone, for clients

    folder       files that nobody else reads, written whole       curve      the pairs, and sockets that use them
    records      what the lists have in common                     clients    the list of those let in
    grants       what a client may do with its tenant's namespaces  users    those of this host, by their uid
    tenant_secrets  what makes a tenant's keys its own              sources    where a secret is read from
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
    Client,
    add_client,
    generate_client,
    list_clients,
    revoke_client,
)
from maru.credentials.curve import (
    EVENTS_ZAP_DOMAIN,
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
from maru.credentials.grants import EVERYTHING, Grant, Level, level_anywhere, level_for, read_grants
from maru.credentials.records import DEFAULT_TENANT, TENANT_BYTES_MAX
from maru.credentials.tenant_secrets import (
    PoolSecret,
    TenantSecrets,
    load_pool_secret,
    make_pool_secret,
    read_tenant_secrets,
    tenant_secret_line,
    write_tenant_secret,
)
from maru.credentials.tokens import Role, Token, add_token, list_tokens, revoke_token
from maru.credentials.users import add_user, key_of_user

__all__ = [
    "DEFAULT_TENANT",
    "EVENTS_ZAP_DOMAIN",
    "EVERYTHING",
    "TENANT_BYTES_MAX",
    "ZAP_DOMAIN",
    "Authorised",
    "Certificate",
    "Client",
    "ClientKey",
    "Grant",
    "Level",
    "PoolSecret",
    "Role",
    "ServerKeys",
    "TenantSecrets",
    "Token",
    "ZapCallback",
    "add_client",
    "add_token",
    "add_user",
    "default_folder",
    "default_hosts",
    "generate_client",
    "generate_remote",
    "generate_server",
    "key_of_user",
    "level_anywhere",
    "level_for",
    "list_clients",
    "list_tokens",
    "load_certificate",
    "load_client_key",
    "load_pool_secret",
    "load_server_keys",
    "make_certificate",
    "make_pool_secret",
    "read_certificate",
    "read_grants",
    "read_tenant_secrets",
    "revoke_client",
    "revoke_token",
    "secure_client",
    "secure_server",
    "tenant_secret_line",
    "write_tenant_secret",
]
