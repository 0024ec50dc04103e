"""Chunks whose bytes follow from their key, so that another process can tell right bytes from wrong ones."""

from __future__ import annotations

from maru.native import core

CHUNK_BYTES_MAX = 256 << 10


def chunk_bytes_in(slab_bytes: int) -> int:
    """How large the self-test's chunks are in a pool of such slabs."""
    return min(CHUNK_BYTES_MAX, slab_bytes // 4)


def key_of(family: str, number: int) -> bytes:
    """The 16-byte key of a numbered chunk."""
    return core.blake3(f"{family}-{number}".encode(), 16)


def bytes_of(key: bytes, size_bytes: int) -> bytes:
    """The only right content of chunk `key`. No two places of it are equal: pieces that changed places show."""
    return core.blake3(key, size_bytes)
