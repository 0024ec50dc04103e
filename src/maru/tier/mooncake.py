"""Mooncake Store below the pool: memory that many hosts lend to each other, for what outgrows a rack.

    PREFIX/NAMESPACE/KEY    microseconds since 1970 when it was stored (u64, the storing host's clock), the object's
                            size (u64), then the object

Holds:      the coroutines of a MooncakeTier, on Mooncake's own client. Its calls block, so `crew` does them.
Promises:   an object appears whole: it is written in parts of a put that others see when it ends, or, if it is small,
            by one upsert; bytes travel through `buffer=` of registered memory, whatever an object's size; an object
            that is replaced while it is read is noticed; a call that hangs costs one of a bounded number of threads,
            and whoever waits for it his own deadline.
Leaves:     where an object lies, and what goes when memory is full, to `mooncake_master`; a time to live to the object
            itself, since Mooncake counts none.

What Mooncake does by itself, and what this makes of it (0.3.13):

- An object is not changed by a second put. A small one is replaced by an upsert, in place; a larger one is removed and
  put again, unless somebody read it in the last seconds: then it has a lease, and stays as it is.
- The same client's second put of a name would end the first one's. One store at a time, therefore, of a name.
- A full store evicts behind its callers' backs, and refuses them meanwhile: a put is tried again for a second.
- A master that starts anew knows nothing; clients that lend memory come back to it by themselves within seconds.
- What is removed is not overwritten, and a put of more than some KiB is not changed afterwards: nothing is stored here
  that is to be overwritten (Capabilities.overwrites).
- A client is a process's own: a forked child's calls would speak with its parent's connections. They are refused.
"""

from __future__ import annotations

import asyncio
import builtins
import http.client
import os
import re
import secrets
import struct
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from maru.config import parse_size
from maru.errors import BadKey, BadUrl, NoSuchObject, TierFailed, TierFull
from maru.tier.contract import PIECE_BYTES, Capabilities, Listed, Tier, check_folder, split_name
from maru.tier.crew import Crew
from maru.tier.mooncake_client import (
    BEING_STORED,
    EXISTS,
    HINTS,
    LEASED,
    MISSING,
    NO_ROOM,
    OK,
    QUOTA,
    SAID,
    ClientRefused,
    api,
    end_client,
    open_client,
)
from maru.tier.mooncake_keys import AllKeys
from maru.tier.mooncake_memory import HEAD_ROOM_BYTES, PART_BYTES, SLOT_BYTES, Memory, Slot

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from maru.tier.opening import TierConfig

OBJECT_BYTES_MAX = 1 << 30
"""What one client lends must hold an object in one piece; more than this was not tried."""
SMALL_BYTES = 64 << 10
"""Up to here an object is replaced in place, and goes last when memory is full: a namespace's marker is such."""
BUFFER_BYTES = 64 << 20
THREADS, THREADS_MAX = 8, 64
ADMIN_PORT = 9003
DEFAULT_METADATA = "P2PHANDSHAKE"
CONNECT_S_MAX = 5.0
NAMES_AT_ONCE = 500
AGAIN_S_MAX = 1.0
"""So long a put is tried again that found no room, or another host at the same object."""
AGAIN_PAUSE_S = 0.02
CLOSE_S_MAX = 5.0
_HEAD = struct.Struct("<QQ")
_PREFIX = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/-]{0,99}")
_WORD = re.compile(r"[\x21-\x3f\x41-\x7e]{1,200}")  # No @: a password would be shown.
_T = TypeVar("_T")


class MooncakeTier(Tier):
    """What lies under one prefix of one master's store. Made by open_tier()."""

    def __init__(self, config: TierConfig) -> None:
        """Raises BadUrl, MissingPackage. Nothing is sent yet."""
        self._api = api()
        self.url, self.kind = config.shown, config.kind
        self._deadline_s = config.deadline_s
        address, _, prefix = config.place.partition("/")
        host, _, port = address.rpartition(":")
        self._master = (host.strip("[]"), int(port))
        self._prefix = _plain(config, "prefix", prefix, _PREFIX)
        self._admin_port = config.count("admin", ADMIN_PORT, 65535)
        self._setup = _setup_of(config, address)
        buffer_bytes = _size(config, "buffer", BUFFER_BYTES)
        if buffer_bytes < SLOT_BYTES:
            raise BadUrl(f"{config.shown!r}: buffer={buffer_bytes} is less than {SLOT_BYTES} bytes", hint="")
        self._memory = Memory(buffer_bytes // SLOT_BYTES)
        self._slots: asyncio.Queue[Slot] = asyncio.Queue()
        for slot in self._memory.slots:
            self._slots.put_nowait(slot)
        self._storing: dict[str, asyncio.Event] = {}
        self._crew = Crew("maru-mooncake", config.count("threads", THREADS, THREADS_MAX))
        self._jobs: set[Future[Any]] = set()
        self._opening = threading.Lock()
        self._client: Any = None
        self._process, self._is_closed = os.getpid(), False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(False, True, True, OBJECT_BYTES_MAX)

    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:  # noqa: ARG002
        key = self._key_of(name)
        views = [memoryview(frame).cast("B") for frame in frames]
        size = sum(map(len, views))
        if size > OBJECT_BYTES_MAX:
            raise TierFull(f"{self.url}: an object of {size} bytes is too large", place=self.url, wanted_bytes=size)
        while (other := self._storing.get(key)) is not None:
            await other.wait()
        done = self._storing[key] = asyncio.Event()
        slot, last, given_up = None, None, threading.Event()
        try:
            slot = await self._slots.get()
            views.insert(0, memoryview(_HEAD.pack(time.time_ns() // 1000, size)))
            ends = time.monotonic() + AGAIN_S_MAX
            while True:
                last = self._submit(self._put, key, views, slot, given_up)
                code = await asyncio.wrap_future(last)
                if code == OK:
                    return
                if code == EXISTS:
                    last = self._submit(self._take_away, key)
                    code = await asyncio.wrap_future(last)
                    if code == LEASED:
                        return  # Somebody uses it: it is what would be stored now, or is found not to be and removed.
                    if code in (OK, MISSING):
                        continue
                if code not in (NO_ROOM, BEING_STORED) or time.monotonic() > ends:
                    raise self._named(code, size)
                await asyncio.sleep(AGAIN_PAUSE_S)
        finally:
            given_up.set()  # The thread may still be at it, and sees this before it lets others see the object.

            def let_go() -> None:
                del self._storing[key]
                done.set()
                if slot is not None:
                    self._slots.put_nowait(slot)

            _after(last, let_go)

    async def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[memoryview]:
        key = self._key_of(name)
        stored = await self._size_of(key, name)
        end = stored if size is None else min(start + size, stored)
        if start >= end:
            return
        slot, last, head, at = await self._slots.get(), None, b"", start
        try:
            last = coming = self._submit(self._fill, key, slot, 0, at, min(PART_BYTES, end - at))
            turn = 0
            while at < end:
                found = await asyncio.wrap_future(coming)
                if head not in (b"", found) or _HEAD.unpack(found)[1] != stored:
                    raise TierFailed(f"{self.url}: {name} was replaced while it was read", place=self.url)
                head, piece = found, slot.part(turn)[: min(PART_BYTES, end - at)]
                at, turn = at + len(piece), 1 - turn
                if at < end:  # Two parts in turn: while one is looked at, the other is filled.
                    last = coming = self._submit(self._fill, key, slot, turn, at, min(PART_BYTES, end - at))
                for cut in range(0, len(piece), PIECE_BYTES):
                    yield piece[cut : cut + PIECE_BYTES]
        finally:
            _after(last, lambda: self._slots.put_nowait(slot))  # Not under a thread that is reading into it.

    async def contains(self, names: Sequence[str]) -> list[bool]:
        keys = [self._key_of(name) for name in names]
        found: list[bool] = []
        for at in range(0, len(keys), NAMES_AT_ONCE):
            answers = await self._call("batch_is_exist", keys[at : at + NAMES_AT_ONCE])
            self._insist(min(answers))
            found += map(bool, answers)
        return found

    async def remove(self, names: Sequence[str]) -> None:
        keys = [self._key_of(name) for name in names]
        for at in range(0, len(keys), NAMES_AT_ONCE):
            # By force: whoever reads it now finds out that it has other bytes, and shall not find it again.
            for code in await self._call("batch_remove", keys[at : at + NAMES_AT_ONCE], True):
                if code not in (MISSING, BEING_STORED):
                    self._insist(code)

    async def list(self, folder: str = "") -> AsyncIterator[Listed]:
        wanted = f"{self._prefix}/{check_folder(folder)}"
        keys = AllKeys(self._master[0], self._admin_port, self._deadline_s)
        last = None
        try:
            while True:
                last = reading = self._submit(self._names_in, keys, wanted)
                names = await asyncio.wrap_future(reading)
                if not names:
                    return
                for one in await self._described(names):
                    yield one
        finally:
            _after(last, keys.close)

    async def health(self) -> None:
        probe = f"{self._prefix}/health-{secrets.token_hex(8)}"
        slot, last = await self._slots.get(), None
        try:
            last = self._submit(self._put, probe, [memoryview(b"Maru asks")], slot, threading.Event())
            code = await asyncio.wrap_future(last)
        finally:
            _after(last, lambda: self._slots.put_nowait(slot))
        self._insist(code)
        self._insist(min(await self._call("batch_remove", [probe], True)))

    async def close(self) -> None:
        if self._is_closed or os.getpid() != self._process:
            return
        self._is_closed = True  # What is being stored sees it, and gives up.
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S_MAX):
                await asyncio.gather(*map(asyncio.wrap_future, list(self._jobs)), return_exceptions=True)
        if not self._jobs:  # Else some call hangs, and the client ends when that returns.
            ending = asyncio.wrap_future(self._crew.submit(self._end))
            await asyncio.wait([ending], timeout=CLOSE_S_MAX)
        self._crew.end(patience_s=0.0 if self._jobs else CLOSE_S_MAX)

    def _key_of(self, name: str) -> str:
        split_name(name)
        return f"{self._prefix}/{name}"

    async def _size_of(self, key: str, name: str) -> int:
        """Bytes of an object. Raises NoSuchObject, TierFailed."""
        ends = time.monotonic() + 5 * AGAIN_PAUSE_S
        while (code := await self._call("get_size", key)) == BEING_STORED and time.monotonic() < ends:
            await asyncio.sleep(AGAIN_PAUSE_S)  # A small one is not there while it is replaced.
        if code in (MISSING, BEING_STORED):
            raise NoSuchObject(f"{self.url} has no {name}", place=self.url)
        self._insist(code)
        if code < _HEAD.size:
            raise TierFailed(f"{self.url}: {name} was stored by somebody else", place=self.url)
        return int(code) - _HEAD.size

    async def _described(self, names: Sequence[str]) -> Sequence[Listed]:
        slot, last = await self._slots.get(), None
        try:
            last = self._submit(self._heads, [self._key_of(name) for name in names], slot)
            heads = await asyncio.wrap_future(last)
        finally:
            _after(last, lambda: self._slots.put_nowait(slot))
        return [
            Listed(name, head[1], head[0] / 1e6) for name, head in zip(names, heads, strict=True) if head is not None
        ]

    async def _call(self, method: str, *args: Any) -> Any:
        """What a method of the client answers."""
        return await asyncio.wrap_future(self._submit(lambda: getattr(self._opened(), method)(*args)))

    def _submit(self, job: Callable[..., _T], *args: Any) -> Future[_T]:
        if self._is_closed:
            raise TierFailed(f"{self.url} was closed", place=self.url)
        if os.getpid() != self._process:
            raise TierFailed(f"{self.url} was opened before this process was forked", hint="open it again here")
        future = self._crew.submit(job, *args)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future

    def _insist(self, code: int) -> None:
        if code < 0:
            raise self._named(code)

    def _named(self, code: int, wanted_bytes: int = 0) -> TierFailed:
        message = f"{self.url}: {SAID.get(code, 'Mooncake failed')} ({code})"
        if code in (NO_ROOM, QUOTA):
            return TierFull(message, place=self.url, wanted_bytes=wanted_bytes, hint=HINTS.get(code, ""))
        return TierFailed(message, place=self.url, hint=HINTS.get(code, ""))

    # What follows runs in threads.

    def _opened(self) -> Any:
        """The client. Raises TierFailed."""
        with self._opening:
            if self._client is None:
                try:
                    self._client = open_client(self._api, self._setup, self._master, self._memory, self._deadline_s)
                except OSError as error:
                    why = error.strerror or str(error) or type(error).__name__
                    raise TierFailed(
                        f"{self.url}: no mooncake_master: {why}", place=self.url, hint=HINTS[-900]
                    ) from None
                except ClientRefused as refused:
                    raise self._named(refused.code) from None
            return self._client

    def _put(self, key: str, views: Sequence[memoryview], slot: Slot, given_up: threading.Event) -> int:
        """The client's answer, 0 when everybody sees the object."""
        client, total = self._opened(), sum(map(len, views))
        if total <= SMALL_BYTES:
            slot.view[:total] = b"".join(views)
            config = self._api.ReplicateConfig()
            config.soft_pin_action = self._api.SoftPinAction.ENABLE
            return int(client.upsert_from(key, slot.address, total, config))
        [code] = client.batch_put_session_start([key], [total])
        if code:
            return int(code)
        is_done = False
        try:
            at = 0
            for size in slot.fillings(views):
                if given_up.is_set() or self._is_closed:
                    raise TierFailed(f"{self.url}: given up", place=self.url)
                [code] = client.batch_put_from_multi_buffer_ranges([key], [[slot.address]], [[size]], [[at]])
                if code != size:
                    return int(min(code, -1))
                at += size
            if given_up.is_set():
                raise TierFailed(f"{self.url}: given up", place=self.url)
            [code] = client.batch_put_session_end([key])
            is_done = code == OK
            return int(code)
        finally:
            if not is_done:
                client.batch_put_session_revoke([key])

    def _take_away(self, key: str) -> int:
        [code] = self._opened().batch_remove([key], False)
        return int(code)

    def _fill(self, key: str, slot: Slot, turn: int, at: int, size: int) -> bytes:
        """Read bytes of an object into a part of the slot, and its head, which is returned."""
        address, sizes = slot.address_of(turn), [_HEAD.size, size]
        [[got]] = self._opened().get_into_ranges(
            [address - HEAD_ROOM_BYTES], [[key]], [[[0, HEAD_ROOM_BYTES]]], [[[0, _HEAD.size + at]]], [[sizes]]
        )
        if got != sizes:
            code = min(*got, -1)
            if code in (MISSING, BEING_STORED):
                raise NoSuchObject(f"{self.url} lost {key} while it was read", place=self.url)
            raise self._named(code)
        return slot.head_of(turn, _HEAD.size)

    def _heads(self, keys: Sequence[str], slot: Slot) -> builtins.list[tuple[int, int] | None]:
        """What these objects say first: time and size. None for what is not ours, or was removed meanwhile."""
        places = [[number * _HEAD.size] for number in range(len(keys))]
        [answers] = self._opened().get_into_ranges(
            [slot.address], [list(keys)], [places], [[[0]] * len(keys)], [[[_HEAD.size]] * len(keys)]
        )
        heads: builtins.list[tuple[int, int] | None] = []
        for [place], [got] in zip(places, answers, strict=True):
            if got not in (_HEAD.size, MISSING, BEING_STORED, -600):
                raise self._named(min(got, -1))
            heads.append(_HEAD.unpack_from(slot.view, place) if got == _HEAD.size else None)
        return heads

    def _names_in(self, keys: AllKeys, wanted: str) -> builtins.list[str]:
        """The next names of objects of ours, NAMES_AT_ONCE at most; none when there are no more."""
        names: builtins.list[str] = []
        try:
            while len(names) < NAMES_AT_ONCE and (key := keys.next()) is not None:
                if key.startswith(wanted):
                    with suppress(BadKey):
                        split_name(key[len(self._prefix) + 1 :])
                        names.append(key[len(self._prefix) + 1 :])
        except (OSError, http.client.HTTPException) as error:
            raise TierFailed(
                f"{self.url}: what lies there is not told on port {self._admin_port}: {error or type(error).__name__}",
                place=self.url,
                hint="admin=PORT names the port that mooncake_master was given as --metrics_port",
            ) from None
        return names

    def _end(self) -> None:
        with self._opening:
            client, self._client = self._client, None
            if client is not None:
                end_client(client, self._memory, self._master)


def _after(job: Future[Any] | None, let_go: Callable[[], Any]) -> None:
    """Call `let_go` in this loop when the job has ended, which may be long after nobody waits for it any more."""
    if job is None or job.done():
        let_go()
        return
    loop = asyncio.get_running_loop()

    def tell(_: Future[Any]) -> None:
        with suppress(RuntimeError):  # The loop has ended too.
            loop.call_soon_threadsafe(let_go)

    job.add_done_callback(tell)


def _setup_of(config: TierConfig, master: str) -> dict[str, str]:
    """What the client is told, but for its own address."""
    protocol = config.options.get("protocol", "tcp")
    if protocol not in ("tcp", "rdma"):
        raise BadUrl(f"{config.shown!r}: protocol={protocol[:64]} is not tcp or rdma", hint="")
    return {
        "metadata_server": _plain(config, "metadata", config.options.get("metadata", DEFAULT_METADATA), _WORD),
        "master_server_addr": master,
        "global_segment_size": str(_size(config, "segment", 0)),
        "local_buffer_size": str(_size(config, "buffer", BUFFER_BYTES)),
        "protocol": protocol,
        "rdma_devices": _plain(config, "device", config.options["device"], _WORD) if "device" in config.options else "",
    }


def _size(config: TierConfig, name: str, default: int) -> int:
    text = config.options.get(name)
    if text is None or text == "0":
        return default
    try:
        return parse_size(text)
    except BadUrl as error:
        raise BadUrl(f"{config.shown!r}: {name}: {error.message}", hint="") from None


def _plain(config: TierConfig, name: str, text: str, pattern: re.Pattern[str]) -> str:
    if not pattern.fullmatch(text):
        raise BadUrl(f"{config.shown!r}: {name} {text[:64]!r} has characters that it may not have", hint="")
    return text
