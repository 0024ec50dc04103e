"""Chunks whose bytes follow from their key, so that any reader can tell right bytes from wrong ones."""

from __future__ import annotations

import hashlib


def key_of(number: int, family: str = "") -> bytes:
    """The 16-byte key of a numbered test chunk."""
    return hashlib.blake2b(f"{family}{number}".encode(), digest_size=16).digest()


def bytes_of(key: bytes, size: int) -> bytes:
    """The only right content of chunk `key`, `size` bytes long."""
    unit = hashlib.blake2b(key, digest_size=64).digest()
    return (unit * (size // 64 + 1))[:size]


def is_right(key: bytes, view: memoryview | bytes) -> bool:
    """Does the view hold what its key demands, in every byte?"""
    return bytes(view) == bytes_of(key, len(view))
