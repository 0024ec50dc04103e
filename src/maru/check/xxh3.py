"""XXH3-64 with seed 0, from its published specification: the checksum of chunks and of extent headers.

The package `xxhash` does it when it is installed. This is the same function without it, at a few megabytes a second.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

_LOW32, _LOW64 = (1 << 32) - 1, (1 << 64) - 1
_PRIME32 = (0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D)
_PRIME64 = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)
_MIX = (0x165667919E3779F9, 0x9FB21C651E98DF25)
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671f"
    "cb79e64eccc0e578825ad07dccff7221b8084674f743248ee03590e6813a264c"
    "3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364"
    "eac5ac8334d3ebc3c581a0fffa1363eb170ddd51b7f0da49d316552629d4689e"
    "2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_STRIPE, _SHORT_MAX = 64, 240
_BLOCK_STRIPES = (len(_SECRET) - _STRIPE) // 8
_EIGHT = struct.Struct("<8Q")


def _read(data: bytes, at: int) -> int:
    return int.from_bytes(data[at : at + 8], "little")


def _secret(at: int) -> int:
    return _read(_SECRET, at)


def _fold(a: int, b: int) -> int:
    product = a * b
    return (product & _LOW64) ^ (product >> 64)


def _avalanche(x: int) -> int:
    x = ((x ^ x >> 37) * _MIX[0]) & _LOW64
    return x ^ x >> 32


def _avalanche_old(x: int) -> int:
    """The finish of XXH64, which the shortest inputs use."""
    x = ((x ^ x >> 33) * _PRIME64[1]) & _LOW64
    x = ((x ^ x >> 29) * _PRIME64[2]) & _LOW64
    return x ^ x >> 32


def _mix16(data: bytes, at: int, secret: int) -> int:
    return _fold(_read(data, at) ^ _secret(secret), _read(data, at + 8) ^ _secret(secret + 8))


def _up_to_16(data: bytes) -> int:
    size = len(data)
    if size == 0:
        return _avalanche_old(_secret(56) ^ _secret(64))
    if size <= 3:
        joined = data[0] << 16 | data[size >> 1] << 24 | data[-1] | size << 8
        return _avalanche_old(joined ^ (_secret(0) & _LOW32) ^ (_secret(4) & _LOW32))
    if size <= 8:
        first, last = int.from_bytes(data[:4], "little"), int.from_bytes(data[-4:], "little")
        x = (last + (first << 32)) ^ _secret(8) ^ _secret(16)
        x ^= (x << 49 | x >> 15) & _LOW64 ^ (x << 24 | x >> 40) & _LOW64
        x = (x * _MIX[1]) & _LOW64
        x = ((x ^ ((x >> 35) + size)) * _MIX[1]) & _LOW64
        return x ^ x >> 28
    low = _read(data, 0) ^ _secret(24) ^ _secret(32)
    high = _read(data, size - 8) ^ _secret(40) ^ _secret(48)
    swapped = int.from_bytes(low.to_bytes(8, "big"), "little")
    return _avalanche((size + swapped + high + _fold(low, high)) & _LOW64)


def _up_to_240(data: bytes) -> int:
    size = len(data)
    x = size * _PRIME64[0]
    if size <= 128:
        for n in reversed(range((size - 1) // 32 + 1)):
            x += _mix16(data, 16 * n, 32 * n) + _mix16(data, size - 16 * (n + 1), 32 * n + 16)
        return _avalanche(x & _LOW64)
    for n in range(8):
        x += _mix16(data, 16 * n, 16 * n)
    x = _avalanche(x & _LOW64)
    for n in range(8, size // 16):
        x += _mix16(data, 16 * n, 16 * (n - 8) + 3)
    return _avalanche((x + _mix16(data, size - 16, 136 - 17)) & _LOW64)


def _longer(data: bytes) -> int:
    sums = [_PRIME32[2], *_PRIME64[:4], _PRIME32[1], _PRIME64[4], _PRIME32[0]]

    def add(at: int, secret: int) -> None:
        words, keys = _EIGHT.unpack_from(data, at), _EIGHT.unpack_from(_SECRET, secret)
        for n in range(8):
            keyed = words[n] ^ keys[n]
            sums[n ^ 1] += words[n]
            sums[n] = (sums[n] + (keyed & _LOW32) * (keyed >> 32)) & _LOW64

    size = len(data)
    block_bytes = _BLOCK_STRIPES * _STRIPE
    blocks = (size - 1) // block_bytes
    scramble = _EIGHT.unpack_from(_SECRET, len(_SECRET) - _STRIPE)
    for block in range(blocks):
        for stripe in range(_BLOCK_STRIPES):
            add(block * block_bytes + stripe * _STRIPE, 8 * stripe)
        for n in range(8):
            value = sums[n] & _LOW64
            sums[n] = ((value ^ value >> 47 ^ scramble[n]) * _PRIME32[0]) & _LOW64
    for stripe in range((size - 1 - blocks * block_bytes) // _STRIPE):
        add(blocks * block_bytes + stripe * _STRIPE, 8 * stripe)
    add(size - _STRIPE, len(_SECRET) - _STRIPE - 7)
    x = size * _PRIME64[0]
    for n in range(4):
        a, b = sums[2 * n] & _LOW64, sums[2 * n + 1] & _LOW64
        x += _fold(a ^ _secret(11 + 16 * n), b ^ _secret(19 + 16 * n))
    return _avalanche(x & _LOW64)


def xxh3_64(data: bytes) -> int:
    """The hash of `data`, any length."""
    if len(data) <= 16:
        return _up_to_16(data)
    return _up_to_240(data) if len(data) <= _SHORT_MAX else _longer(data)


def fastest() -> Callable[[bytes], int]:
    """The function of the package `xxhash`, or ours where it is not installed."""
    try:
        from xxhash import xxh3_64_intdigest
    except ImportError:
        return xxh3_64
    return xxh3_64_intdigest
