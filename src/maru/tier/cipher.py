"""Encryption of what leaves the host: AES-256-GCM, frame by frame, with keys of a tenant's own.

Holds:      master keys and where they are read from, the keys made of them, sealing and opening one frame.
Promises:   whoever keeps the objects can neither read a chunk nor have a changed, cut, reordered, renamed or other
            tenant's one accepted; a nonce is used once per key; no key is ever in a message, a repr or a log.
Leaves:     what is written around the sealed frames to `envelope`; who may use which tenant to `maru.tiering`.

    master key  --HKDF-SHA256(salt "maru tier", info ID 0 TENANT)-->  the tenant's key
                --HKDF-SHA256(salt: 32 random bytes of the object)-->  the object's key, and a mask for its hash

A frame's nonce is its number. That is safe because an object's key serves one writing of one object: storing the same
chunk again draws a new salt, and two of 2**256 do not meet. So there is no counter to keep over restarts, and no limit
on how many objects one master key seals. What is authenticated with a frame is the whole header, its number, the word
before it, and whether it is the last.

Who watches the place still sees names (a digest of what tenant, model and layout are, and a digest of the tokens up to
the chunk's end), which chunk follows which, sizes before and after the codec, when it is written and read, until when
it is good, and the id of the master key. He sees no token, no value, no fingerprint of the values, and no tenant's
name. Who knows all of a namespace and a prompt can tell whether that prompt's chunks are there. An old object of the
same name can be put in place of a newer one: both are equal content by contract.

Keys are lines of `ID HEX` or `HEX` alone, of 64 hexadecimal digits; `#` begins a remark. The last line's key seals and
all of them open: to rotate, append a line, and take the old one away when its objects have expired. A key without an
id is known by the first eight digits of its fingerprint, which `Keyring.ids` shows.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import struct
from collections.abc import Mapping
from typing import TYPE_CHECKING

from maru.errors import BadCredential, TornObject
from maru.tier.codec import needed

if TYPE_CHECKING:
    from typing_extensions import Buffer

CIPHER_NONE = 0
CIPHER_AES_256_GCM = 1
KEY_BYTES = 32
SALT_BYTES = 32
ID_BYTES_MAX = 16
TAG_BYTES = 16
"""How much longer a sealed frame is."""
KEYS_MAX = 64
COMMAND_DEADLINE_S = 10.0
_HASH_BYTES = 8
_FRAME_FACTS = struct.Struct("<II?")
_ID = re.compile(r"[A-Za-z0-9._-]{1,16}")
_HEX = re.compile(r"[0-9A-Fa-f]{64}")
_FORM = "write `ID HEX` or `HEX`, with 64 hexadecimal digits: openssl rand -hex 32"


class ObjectKey:
    """What seals or opens the frames of one object, written once."""

    def __init__(self, tenant_key: bytes, salt: bytes) -> None:
        made = _derived(tenant_key, salt, b"maru object", KEY_BYTES + _HASH_BYTES)
        aead = needed("cryptography.hazmat.primitives.ciphers.aead", "encryption of tiers")
        self._aes = aead.AESGCM(made[:KEY_BYTES])
        self._mask = int.from_bytes(made[KEY_BYTES:], "little")

    def masked(self, content_hash: int) -> int:
        """The hash of the content as the header shows it, or back: else it would confirm a guess of the content."""
        return content_hash ^ self._mask

    def seal(self, frame: Buffer, header: bytes, number: int, word: int, is_last: bool) -> bytes:
        """`frame` encrypted, TAG_BYTES longer. Each number once per object."""
        sealed: bytes = self._aes.encrypt(_nonce(number), frame, header + _FRAME_FACTS.pack(number, word, is_last))
        return sealed

    def open(self, sealed: Buffer, header: bytes, number: int, word: int, is_last: bool) -> bytes:
        """The frame. Raises TornObject unless it was sealed with exactly this beside it."""
        exceptions = needed("cryptography.exceptions", "encryption of tiers")
        try:
            frame: bytes = self._aes.decrypt(_nonce(number), sealed, header + _FRAME_FACTS.pack(number, word, is_last))
        except exceptions.InvalidTag:
            raise TornObject(
                f"frame {number} is not what was sealed: changed, cut off, moved, or another tenant's"
            ) from None
        return frame

    def __repr__(self) -> str:
        return "ObjectKey(...)"


class TenantCipher:
    """A keyring in the hands of one tenant. Made by Keyring.for_tenant(); can be used by several threads."""

    number = CIPHER_AES_256_GCM

    def __init__(self, tenant: str, keys: Mapping[str, bytes]) -> None:
        """`keys`: the tenant's own by id, the one that seals last."""
        self.tenant = tenant
        self._keys = dict(keys)
        self.key_id = next(reversed(self._keys))

    def fresh(self) -> tuple[bytes, ObjectKey]:
        """A new object's salt, and the key for writing it, made with `key_id`."""
        salt = secrets.token_bytes(SALT_BYTES)
        return salt, ObjectKey(self._keys[self.key_id], salt)

    def object_key(self, key_id: str, salt: bytes) -> ObjectKey:
        """The key for reading. Raises TornObject for an id that is not in the keyring."""
        if key_id not in self._keys:
            raise TornObject(f"the object is sealed with key {key_id!r}, which is not among {', '.join(self._keys)}")
        return ObjectKey(self._keys[key_id], salt)

    def __repr__(self) -> str:
        return f"TenantCipher(tenant={self.tenant!r}, ids={list(self._keys)})"


class Keyring:
    """Master keys by id."""

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        """`keys`: 32 random bytes each, the one that seals last. Raises BadCredential, MissingPackage."""
        if not 0 < len(keys) <= KEYS_MAX:
            raise BadCredential(f"a keyring holds 1 to {KEYS_MAX} keys, not {len(keys)}")
        if not all(_ID.fullmatch(key_id) and len(key) == KEY_BYTES for key_id, key in keys.items()):
            raise BadCredential(f"keys have {KEY_BYTES} bytes, and ids {ID_BYTES_MAX} letters, digits, '.', '_' or '-'")
        needed("cryptography.hazmat.primitives.ciphers.aead", "encryption of tiers")
        self._keys = dict(keys)

    @property
    def ids(self) -> tuple[str, ...]:
        """All keys' ids; the last one's seals."""
        return tuple(self._keys)

    def for_tenant(self, tenant: str) -> TenantCipher:
        """The keys that this tenant's objects are sealed with, which say nothing of any other's."""
        return TenantCipher(
            tenant,
            {
                key_id: _derived(key, b"maru tier", key_id.encode() + b"\0" + tenant.encode(), KEY_BYTES)
                for key_id, key in self._keys.items()
            },
        )

    @classmethod
    def read(cls, source: str, deadline_s: float = COMMAND_DEADLINE_S) -> Keyring:
        """The keys of "file:PATH", "env:NAME" or "command:PROGRAM ARGUMENT..." (run without a shell).

        Raises BadCredential, CredentialNotFound, UnsafeCredentials (a file that others can read), CredentialError
        (a program that fails, says too much, or takes longer than `deadline_s`), MissingPackage.
        """
        # Late, for what it is kept beside: the rest of that room is about daemons.
        from maru.credentials.sources import read_source

        return cls(_keys_in(*read_source(source, deadline_s)))

    def __repr__(self) -> str:
        return f"Keyring(ids={list(self._keys)})"


def _derived(key: bytes, salt: bytes, info: bytes, size: int) -> bytes:
    hkdf = needed("cryptography.hazmat.primitives.kdf.hkdf", "encryption of tiers")
    hashes = needed("cryptography.hazmat.primitives.hashes", "encryption of tiers")
    made: bytes = hkdf.HKDF(algorithm=hashes.SHA256(), length=size, salt=salt, info=info).derive(key)
    return made


def _nonce(number: int) -> bytes:
    return number.to_bytes(12, "big")


def _keys_in(content: bytes, place: str) -> dict[str, bytes]:
    """The keys of a source's lines. No message repeats a word of them, since any word may be a key in a wrong place."""
    keys: dict[str, bytes] = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) > 2 or not _HEX.fullmatch(words[-1]) or not _ID.fullmatch(words[0][:16]):
            raise BadCredential(f"line {number} of {place} is no key: {_FORM}")
        key = bytes.fromhex(words[-1])
        key_id = words[0] if len(words) == 2 else hashlib.sha256(b"maru key id" + key).hexdigest()[:8]
        if not _ID.fullmatch(key_id):
            raise BadCredential(f"line {number} of {place} has an id of more than {ID_BYTES_MAX} characters: {_FORM}")
        if key_id in keys:
            raise BadCredential(f"line {number} of {place} has the id of a key above it: {_FORM}")
        keys[key_id] = key
    if not keys:
        raise BadCredential(f"{place} holds no key: {_FORM}")
    return keys
