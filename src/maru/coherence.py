"""Sharing memory between hosts whose caches know nothing of each other: who flushes what, and when.

Holds:      the order of store, flush and word, over any memory that can do these three.
Promises:   what one host published and another was told of is read whole, or not at all: every reading is compared
            with a checksum that travelled beside the memory, not in it.
Leaves:     the telling to RPC; which bytes belong to whom to the pool's one authority.

    authority   flush an extent  ──▶ tells a writer (offset)
    writer      store past the caches, flush  ──▶ tells the authority (checksum)
    authority   flush, compare, publish; flush again what its own processes wrote  ──▶ tells a reader (checksum)
    reader      flush what its caches fetched too early, compare, use

No word is written by two hosts: bytes are stored once, by the extent's current owner, and everything else is said by
messages. One missing flush shows as a checksum that differs, which is a miss. `maru.testing.noncoherent` emulates the
caches, since hosts that share such memory are not at hand: *not run on hardware*.
"""

from __future__ import annotations

from typing import Protocol

from maru.native import core


class Memory(Protocol):
    """The pool's data as one host sees it through its caches; offsets are bytes in the pool's data."""

    def view(self, offset: int, size: int) -> memoryview:
        """These bytes, through this host's caches."""

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Write them. Nothing says when they leave this host's caches."""

    def flush(self, offset: int, size: int) -> None:
        """Write back and drop every line of these bytes that any cache of this host holds."""


def hand_out(memory: Memory, offset: int, size: int) -> None:
    """Authority, before another host writes there: what its own processes stored in the extent's last life leaves this
    host's caches now. Later it would be written back over the other host's bytes.
    """
    memory.flush(offset, size)


def write_for_others(memory: Memory, offset: int, data: bytes | memoryview) -> int:
    """Writer: store bytes so that every host can read them afterwards. Returns their XXH3-64, to be told."""
    memory.store(offset, data)
    memory.flush(offset, len(data))
    return core.xxh3_64(data)


def publishable(memory: Memory, offset: int, size: int, checksum: int) -> bool:
    """Authority, before it publishes what another host wrote: does this host read what the writer meant?

    The flush also takes out of this host's caches what they hold of the extent's last life, which its own processes,
    who flush nothing, would read.
    """
    memory.flush(offset, size)
    return core.xxh3_64(memory.view(offset, size)) == checksum


def show_to_others(memory: Memory, offset: int, size: int) -> int:
    """Authority, before it tells another host of a pinned chunk: its bytes leave this host's caches. Their XXH3-64."""
    memory.flush(offset, size)
    return core.xxh3_64(memory.view(offset, size))


def read_of_others(memory: Memory, offset: int, size: int, checksum: int) -> memoryview | None:
    """Reader, after it was told: the bytes in place, None where they are not what was told."""
    memory.flush(offset, size)
    view = memory.view(offset, size)
    return view if core.xxh3_64(view) == checksum else None


def copy_of_others(memory: Memory, offset: int, buffer: memoryview, checksum: int) -> bool:
    """Reader, after it was told: copy the bytes into `buffer`. False where they are not what was told; then `buffer` is
    not to be used. One pass over them, where reading in place and copying are three.
    """
    memory.flush(offset, len(buffer))
    return core.xxh3_64_copying(buffer, memory.view(offset, len(buffer))) == checksum
