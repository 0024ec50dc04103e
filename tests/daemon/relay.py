"""A link that is slow, breaks or records: a TCP relay between clients and a daemon.

Holds:      one listening socket in a thread of its own; everything that comes in goes on to one other address.
Promises:   bytes pass in order and unchanged, at most `bytes_per_s` of them in each direction of all connections
            together, `delay_s` late. A connection that is to end or to stall does so after exactly so many bytes.
Leaves:     cutting a real link to `hosts`.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import urlsplit

STEP_BYTES = 16 << 10
STEPS_UNDER_WAY = 64


@dataclass
class Link:
    """How the link is now. A test may change it while bytes pass."""

    bytes_per_s: float = 0.0
    """0: as many as will."""
    delay_s: float = 0.0
    ends_after: list[int] = field(default_factory=list)
    """For the next connections: each ends both ways after so many bytes from the daemon."""
    stalls_after: list[int] = field(default_factory=list)
    """For the next connections: each passes no more after so many bytes from the daemon, and stays."""


@dataclass
class Passed:
    """What passed on one connection."""

    up: bytearray = field(default_factory=bytearray)
    """From the client to the daemon."""
    down: bytearray = field(default_factory=bytearray)
    is_over: bool = False


class Relay:
    """Its address is `url`; what passes is in `connections` when it records."""

    def __init__(self, url: str, link: Link, records: bool = False) -> None:
        parts = urlsplit(url)
        assert parts.hostname
        self._target = (parts.hostname, parts.port)
        self.link = link
        self.connections: list[Passed] = []
        self.count = 0
        """Connections so far."""
        self._records = records
        self._free_at_s = {"up": 0.0, "down": 0.0}
        self._port = 0
        self._loop = asyncio.new_event_loop()
        self._over = asyncio.Event()
        self._listens = threading.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),))

    @property
    def url(self) -> str:
        return f"tcp://127.0.0.1:{self._port}"

    @property
    def address(self) -> str:
        return f"maru://127.0.0.1:{self._port}"

    def start(self) -> None:
        self._thread.start()
        assert self._listens.wait(20)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(20)
        self._loop.close()

    async def _serve(self) -> None:
        carried: set[asyncio.Task[None]] = set()

        def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            carried.add(asyncio.ensure_future(self._carry(reader, writer)))

        server = await asyncio.start_server(carry, "127.0.0.1", 0, limit=STEP_BYTES)
        self._port = server.sockets[0].getsockname()[1]
        self._listens.set()
        await self._over.wait()
        server.close()
        for task in carried:
            task.cancel()
        await asyncio.gather(*carried, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        passed = Passed()
        if self._records:
            self.connections.append(passed)
        self.count += 1
        ends = self.link.ends_after.pop(0) if self.link.ends_after else None
        stalls = self.link.stalls_after.pop(0) if self.link.stalls_after else None
        writers = [writer]
        try:
            far_reader, far_writer = await asyncio.open_connection(*self._target, limit=STEP_BYTES)
            writers.append(far_writer)
            ways = [
                asyncio.ensure_future(self._pass(reader, far_writer, "up", passed.up)),
                asyncio.ensure_future(self._pass(far_reader, writer, "down", passed.down, ends, stalls)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        except OSError:
            pass  # Nobody there: the client sees its connection end.
        finally:
            passed.is_over = True
            for one in writers:
                with contextlib.suppress(OSError):
                    one.transport.abort()

    async def _pass(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        way: str,
        record: bytearray,
        ends_after: int | None = None,
        stalls_after: int | None = None,
    ) -> None:
        left = min(part for part in (ends_after, stalls_after, 1 << 62) if part is not None)
        under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(STEPS_UNDER_WAY)
        arriving = asyncio.ensure_future(self._arrive(under_way, writer, record))
        try:
            while left and (data := await reader.read(min(STEP_BYTES, left))):
                left -= len(data)
                await under_way.put((self._arrival_s(way, len(data)), data))
            if not left and stalls_after is not None:
                await self._over.wait()
            await under_way.put((0.0, b""))
            await arriving
        finally:
            arriving.cancel()

    async def _arrive(
        self, under_way: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, record: bytearray
    ) -> None:
        while (step := await under_way.get())[1]:
            due_s, data = step
            if (wait_s := due_s - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if self._records:
                record += data
            writer.write(data)
            await writer.drain()

    def _arrival_s(self, way: str, size: int) -> float:
        """The link carries one thing after another, and each of them takes its time."""
        sent_s = self._loop.time()
        if self.link.bytes_per_s:
            sent_s = max(sent_s, self._free_at_s[way]) + size / self.link.bytes_per_s
        self._free_at_s[way] = sent_s
        return sent_s + self.link.delay_s


@contextlib.contextmanager
def relay(url: str, link: Link | None = None, records: bool = False) -> Iterator[Relay]:
    """A relay to the daemon at `url`."""
    one = Relay(url, link or Link(), records)
    one.start()
    try:
        yield one
    finally:
        one.stop()
