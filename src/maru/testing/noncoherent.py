"""Memory that several hosts share and no hardware keeps coherent, emulated: for hosts and cards that are not at hand.

    fabric = Fabric(1 << 20, seed=7)
    a, b = fabric.host(), fabric.host()
    a.store(0, b"x" * 100)          # in a's store buffer, or its cache, or written back: as chance has it
    a.flush(0, 100)                 # now in memory
    b.view(0, 100)                  # what b's cache holds: the new bytes, or what it fetched earlier
    b.flush(0, 100); b.view(0, 100) # the new bytes

Holds:      the memory, and for each host a store buffer and a write-back cache of 64-byte lines.
Promises:   everything that real caches may do happens at some time: stores that linger, lines written back early or
            never, whole old lines written over another host's newer bytes, lines fetched before anybody asked. The same
            seed does the same again.
Leaves:     the protocol to `maru.coherence`, which runs on it unchanged.

What is emulated is x86 with CLFLUSHOPT between two MFENCEs: stores leave in order, write-backs in any.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

LINE_BYTES = 64


@dataclass
class Faults:
    """What goes wrong besides. Shares are of flushes."""

    flush_dropped: float = 0.0
    """The flush does nothing: a driver that lies, a platform that does not implement it."""
    first_fence_missing: bool = False
    """Stores of ours may still be in the store buffer when their lines are flushed."""
    last_fence_missing: bool = False
    """Flushed lines may still be on their way when the next thing is done."""


class Fabric:
    """The shared memory itself."""

    def __init__(self, size: int, seed: int) -> None:
        self.memory = bytearray(size)
        self.random = random.Random(seed)
        self.hosts: list[Host] = []

    def host(self, faults: Faults | None = None) -> Host:
        """A host with caches of its own."""
        host = Host(self, faults or Faults())
        self.hosts.append(host)
        return host

    def wander(self) -> None:
        """What caches do by themselves between two steps of anybody."""
        for host in self.hosts:
            host.wander()


class Host:
    """One host's way to the memory: `coherence.Memory`."""

    def __init__(self, fabric: Fabric, faults: Faults) -> None:
        self._fabric = fabric
        self._faults = faults
        self._buffer: list[tuple[int, bytes]] = []
        """Stores that have not reached the cache, oldest first."""
        self._lines: dict[int, bytearray] = {}
        self._dirty: set[int] = set()
        self._leaving: list[tuple[int, bytes]] = []
        """Lines written back that have not reached the memory."""

    # What programs do

    def store(self, offset: int, data: bytes | memoryview) -> None:
        """Into the store buffer, line by line."""
        raw = bytes(data)
        at = 0
        while at < len(raw):
            size = min(LINE_BYTES - (offset + at) % LINE_BYTES, len(raw) - at)
            self._buffer.append((offset + at, raw[at : at + size]))
            at += size
        self._fabric.wander()

    def view(self, offset: int, size: int) -> memoryview:
        """Through the cache: lines that it holds are not fetched again. A copy, as a CPU's loads are."""
        out = bytearray()
        for line in _lines_of(offset, size):
            out += self._fetched(line)
        for at, data in self._buffer:  # A host reads its own stores first.
            for n, byte in enumerate(data):
                if offset <= at + n < offset + size:
                    out[at + n - offset // LINE_BYTES * LINE_BYTES] = byte
        self._fabric.wander()
        first = offset % LINE_BYTES
        return memoryview(bytes(out[first : first + size]))

    def flush(self, offset: int, size: int) -> None:
        """Write back and drop every line of these bytes, between two fences."""
        chance = self._fabric.random
        if not self._faults.first_fence_missing:
            self._drain_stores()
        if chance.random() >= self._faults.flush_dropped:
            for line in _lines_of(offset, size):
                self._write_back(line)
                self._lines.pop(line, None)
        if not self._faults.last_fence_missing:
            self._land(len(self._leaving))
        self._fabric.wander()

    def reaches(self, offset: int, size: int) -> bool:
        """Every host has all of it."""
        return offset + size <= len(self._fabric.memory)

    def learn(self, segments: object) -> None:
        """There is one piece of memory, and it is known."""

    def close(self) -> None:
        """Nothing to let go of."""

    def die(self) -> None:
        """Power goes: whatever is not in memory by now never will be."""
        self._buffer.clear()
        self._lines.clear()
        self._dirty.clear()
        self._leaving.clear()

    # What caches do

    def wander(self) -> None:
        """A few steps that nobody asked for."""
        chance = self._fabric.random
        if self._buffer and chance.random() < 0.3:
            self._apply(*self._buffer.pop(0))
        if self._dirty and chance.random() < 0.1:
            self._write_back(chance.choice(sorted(self._dirty)))
        if self._lines and chance.random() < 0.1:
            line = chance.choice(sorted(self._lines))
            self._write_back(line)
            self._lines.pop(line, None)
        if self._leaving and chance.random() < 0.3:
            self._land(1)
        if chance.random() < 0.5:  # Fetched before anybody asked.
            self._fetched(chance.randrange(len(self._fabric.memory) // LINE_BYTES))

    def _drain_stores(self) -> None:
        while self._buffer:
            self._apply(*self._buffer.pop(0))

    def _apply(self, at: int, data: bytes) -> None:
        line = at // LINE_BYTES
        first = at % LINE_BYTES
        self._fetched(line)[first : first + len(data)] = data
        self._dirty.add(line)

    def _fetched(self, line: int) -> bytearray:
        if line not in self._lines:
            for at, data in self._leaving:  # Its own write-back is seen before it lands.
                if at == line:
                    self._lines[line] = bytearray(data)
            self._lines.setdefault(line, bytearray(self._fabric.memory[line * LINE_BYTES : (line + 1) * LINE_BYTES]))
        return self._lines[line]

    def _write_back(self, line: int) -> None:
        if line in self._dirty:
            self._dirty.discard(line)
            self._leaving.append((line, bytes(self._lines[line])))

    def _land(self, count: int) -> None:
        chance = self._fabric.random
        for _ in range(count):
            line, data = self._leaving.pop(chance.randrange(len(self._leaving)))
            self._fabric.memory[line * LINE_BYTES : (line + 1) * LINE_BYTES] = data


def _lines_of(offset: int, size: int) -> range:
    return range(offset // LINE_BYTES, (offset + size + LINE_BYTES - 1) // LINE_BYTES)
