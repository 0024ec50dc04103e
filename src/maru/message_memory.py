"""Memory that messages arrive in: kept by the allocator instead of going back to the system after each one.

ZeroMQ takes fresh memory for every message. By its defaults glibc gives a megabyte back as soon as it is free, and the
kernel then fills the next one with zeros, page by page: that takes longer than copying what arrives. So a process that
gets chunks over the wire lets glibc keep KEPT_BYTES. Whoever has set glibc's own variables is left alone, and so is
every other allocator.
"""

from __future__ import annotations

import ctypes
import functools
import os

KEPT_BYTES = 32 << 20
"""Free memory that each of the allocator's arenas keeps: what is under way, several times."""
MAPPED_BYTES = 4 << 20
"""Larger pieces are mapped by themselves, as ever. A message is a megabyte at most."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_TUNED_BY = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TOP_PAD_")


@functools.cache
def keep_message_memory() -> bool:
    """Let this process's allocator keep it, once. False where it is not glibc's, or somebody has tuned it."""
    if any(name in os.environ for name in _TUNED_BY) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    process = ctypes.CDLL(None)
    if not hasattr(process, "gnu_get_libc_version") or not hasattr(process, "mallopt"):
        return False
    # Both: with one of them set, glibc does not move the other by itself any more.
    return bool(process.mallopt(_M_MMAP_THRESHOLD, MAPPED_BYTES) and process.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES))
