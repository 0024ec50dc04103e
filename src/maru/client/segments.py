"""The pool's memory on another host: its data segments, found by their identity and mapped.

Holds:      a read-write and a read-only mapping of each segment, side by side as the pool numbers its bytes.
Promises:   maps only what says in its own header that it is that segment of that pool; anything else is PoolMismatch,
            or, where it came later, is not reached. Writes nowhere but where the daemon reserved for this client.
Leaves:     caches to `coherence`, who may read what to the daemon, when segments are asked for to `reach`.

The index is never mapped here: it lies in the daemon host's own memory, and its words are that host's alone.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from maru import wire
from maru.errors import PoolMismatch
from maru.native import core

DEVICES = "dax*"


class SegmentsMemory:
    """All segments of one pool in this process: `reach.Mapped`."""

    def __init__(self, welcome: wire.Welcome, paths: Iterable[str] = ()) -> None:
        """`paths`: where to look besides where the daemon has them. Raises PoolMismatch."""
        self._pool_uuid, self._paths = welcome.pool_uuid, tuple(paths)
        self._maps: list[tuple[int, int, mmap.mmap, memoryview]] = []
        try:
            for segment in welcome.segments:
                self._maps.append(_map_segment(segment, welcome.pool_uuid, (segment.path, *self._paths)))
        except BaseException:
            self.close()
            raise

    def reaches(self, offset: int, size: int) -> bool:
        """Do these bytes lie in a segment that is mapped here?"""
        return any(first <= offset and offset + size <= end for first, end, _, _ in self._maps)

    def learn(self, segments: Iterable[wire.Segment]) -> None:
        """Map those that came since. What is not here is passed over."""
        for segment in segments:
            if not self.reaches(segment.first_byte, segment.size_bytes):
                with contextlib.suppress(PoolMismatch):
                    self._maps.append(_map_segment(segment, self._pool_uuid, (segment.path, *self._paths)))

    def view(self, offset: int, size: int) -> memoryview:
        """Read-only bytes, `offset` as the pool counts. Raises PoolMismatch for what lies in no segment."""
        for first, end, _, readable in self._maps:
            if first <= offset and offset + size <= end:
                return readable[offset - first : offset - first + size]
        raise PoolMismatch(f"bytes {offset} + {size} lie in none of the pool's segments")

    def _writable(self, offset: int, size: int) -> memoryview:
        for first, end, mapped, _ in self._maps:
            if first <= offset and offset + size <= end:
                return memoryview(mapped)[offset - first : offset - first + size]
        raise PoolMismatch(f"bytes {offset} + {size} lie in none of the pool's segments")

    def store(self, offset: int, data: bytes | memoryview) -> None:
        core.stream_copy(self._writable(offset, len(data)), data)

    def flush(self, offset: int, size: int) -> None:
        core.flush_lines(self.view(offset, size))

    def close(self) -> None:
        """Let go. Views that live keep their mapping."""
        self._maps.clear()


def _map_segment(segment: wire.Segment, pool_uuid: str, paths: Iterable[str]) -> tuple[int, int, mmap.mmap, memoryview]:
    seen = []
    for path in dict.fromkeys((*paths, *sorted(map(str, Path("/dev").glob(DEVICES))))):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            seen.append(f"{path}: {error.strerror}")
            continue
        try:
            if not _is_segment(fd, segment, pool_uuid):
                seen.append(f"{path}: another segment, or none")
                continue
            size, offset = segment.size_bytes, segment.data_offset
            writable = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset)
            readable = mmap.mmap(fd, size, mmap.MAP_SHARED, mmap.PROT_READ, offset=offset)
            return segment.first_byte, segment.first_byte + size, writable, memoryview(readable)
        except (OSError, ValueError) as error:
            seen.append(f"{path}: {error}")
        finally:
            os.close(fd)
    raise PoolMismatch(f"segment {segment.uuid} is not to be mapped here ({'; '.join(seen) or 'no path'})")


def _is_segment(fd: int, segment: wire.Segment, pool_uuid: str) -> bool:
    """Does the memory behind `fd` say that it is this segment, and is all of it there?"""
    places, magic = _header()
    head = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ)
    try:
        core.flush_lines(memoryview(head))  # What this host's caches hold of it may be older than the pool.
        found = bytes(head[:4096])
    finally:
        head.close()
    size = os.fstat(fd).st_size
    if 0 < size < segment.data_offset + segment.size_bytes:  # A device says 0.
        return False
    return (
        int.from_bytes(found[:8], "little") == magic
        and found[places["pool_uuid"] :][:16].hex() == pool_uuid
        and found[places["segment_uuid"] :][:16].hex() == segment.uuid
        and int.from_bytes(found[places["data_offset"] :][:8], "little") == segment.data_offset
    )


@cache
def _header() -> tuple[dict[str, int], int]:
    """Offsets of the segment header's fields, and its magic."""
    layout = json.loads(core.layout_description())
    struct = next(item for item in layout["structs"] if item["name"] == "SegmentHeader")
    return {field["name"]: field["offset"] for field in struct["fields"]}, layout["constants"]["segment_magic"]
