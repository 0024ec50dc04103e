"""A TLS certificate of the daemon's own, for hosts that have no authority to ask for one.

Holds:      making a self-signed certificate, and finding it with what a client needs to pin it.
Promises:   key and certificate of the server are one file, so they always belong together; what clients get holds no
            secret; one that has run out is refused by name.
Leaves:     TLS itself to the web server.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import ipaddress
import re
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maru.credentials.folder import LOCK_DEADLINE_S, KeyFolder
from maru.errors import BadCredential, CredentialNotFound, MissingPackage

SERVER_PEM = "tls.pem"
CLIENT_PEM = "certificate.pem"
VALID_DAYS = 365
HOST_LIMIT = 64
_CLOCK_SKEW = datetime.timedelta(hours=1)
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")


@dataclass(frozen=True)
class Certificate:
    """The daemon's certificate. `server_pem` (with the key) is for the web server, as certificate and as key file."""

    server_pem: Path
    client_pem: Path
    hosts: tuple[str, ...]
    expires_unix_s: int
    sha256_fingerprint: str
    """Of the certificate, as browsers show it."""
    public_key_pin: str
    """Of its public key, as curl's --pinnedpubkey takes it."""


def default_hosts() -> list[str]:
    """What this machine is called from itself and, as far as it knows, from others."""
    names = ["localhost", "127.0.0.1", "::1", *(name for name in (socket.gethostname(),) if _is_dns_name(name))]
    return list(dict.fromkeys(names))


def make_certificate(
    folder: Path, hosts: list[str], now: datetime.datetime | None = None, deadline_s: float = LOCK_DEADLINE_S
) -> Certificate:
    """Make a certificate for these names and addresses, valid for `VALID_DAYS`; it takes an earlier one's place.

    `now`: an aware time, the present unless told. Raises BadCredential (a host that is none), CredentialsBusy,
    UnsafeCredentials, MissingPackage.
    """
    x509, hashes, serialization, ec = _cryptography()
    names = [_general_name(x509, host) for host in _checked_hosts(hosts)]
    key = ec.generate_private_key(ec.SECP256R1())
    public = key.public_key()
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "maru serve")])
    begins = (now or datetime.datetime.now(datetime.UTC)) - _CLOCK_SKEW
    usage = dict.fromkeys(
        (
            "content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "key_cert_sign", "crl_sign",
            "encipher_only", "decipher_only",
        ),
        False,
    )  # fmt: skip
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + _CLOCK_SKEW + datetime.timedelta(days=VALID_DAYS))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(digital_signature=True, **usage), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    shown = certificate.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keys = KeyFolder(folder)
    keys.make()
    with keys.locked(deadline_s):
        keys.write(SERVER_PEM, shown + secret)
        keys.write(CLIENT_PEM, shown)
    return _described(folder, certificate)


def load_certificate(folder: Path, now: datetime.datetime | None = None) -> Certificate:
    """The certificate in this folder, for a web server to use.

    Raises CredentialNotFound, UnsafeCredentials, BadCredential (it cannot be read, or has run out), MissingPackage.
    """
    found = read_certificate(folder)
    if found.expires_unix_s <= (now or datetime.datetime.now(datetime.UTC)).timestamp():
        raise BadCredential(
            f"{found.server_pem} has run out: `maru keys certificate` makes a new one", path=str(found.server_pem)
        )
    return found


def read_certificate(folder: Path) -> Certificate:
    """The certificate in this folder, even one that has run out. Raises as load_certificate."""
    x509 = _cryptography()[0]
    path = folder / SERVER_PEM
    raw = KeyFolder(folder).read(SERVER_PEM)
    if raw is None:
        raise CredentialNotFound(f"{path} does not exist: `maru keys certificate` makes one", path=str(path))
    try:
        certificate = x509.load_pem_x509_certificate(raw)
    except ValueError:
        raise BadCredential(f"{path} cannot be read: it holds no certificate", path=str(path)) from None
    return _described(folder, certificate)


def _described(folder: Path, certificate: Any) -> Certificate:
    x509, _, serialization, _ = _cryptography()
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    der = certificate.public_bytes(serialization.Encoding.DER)
    public = certificate.public_key().public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    digest = hashlib.sha256(der).hexdigest().upper()
    return Certificate(
        server_pem=folder / SERVER_PEM,
        client_pem=folder / CLIENT_PEM,
        hosts=tuple(str(name.value) for name in names),
        expires_unix_s=int(certificate.not_valid_after_utc.timestamp()),
        sha256_fingerprint=":".join(digest[at : at + 2] for at in range(0, 64, 2)),
        public_key_pin="sha256//" + base64.b64encode(hashlib.sha256(public).digest()).decode(),
    )


def _checked_hosts(hosts: list[str]) -> list[str]:
    if not 1 <= len(hosts) <= HOST_LIMIT:
        raise BadCredential(f"a certificate names 1 to {HOST_LIMIT} hosts, not {len(hosts)}")
    for host in hosts:
        if not _is_address(host) and not _is_dns_name(host):
            raise BadCredential(f"{host!r} is not a host: give a DNS name (*. in front is fine) or an IP address")
    return list(dict.fromkeys(hosts))


def _general_name(x509: Any, host: str) -> Any:
    return x509.IPAddress(ipaddress.ip_address(host)) if _is_address(host) else x509.DNSName(host)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return "%" not in host  # A scope is this machine's own business.


def _is_dns_name(host: str) -> bool:
    labels = host.removeprefix("*.").split(".")
    return len(host) <= 253 and all(_LABEL.fullmatch(label) for label in labels) and not labels[-1].isdigit()


def _cryptography() -> tuple[Any, Any, Any, Any]:
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ModuleNotFoundError:
        raise MissingPackage(
            f"certificates are made with the package 'cryptography', which {sys.executable} does not have: "
            "pip install 'maru-kvcache[serve]'",
            package="cryptography",
        ) from None
    return x509, hashes, serialization, ec
