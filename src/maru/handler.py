"""The drop-in face for LMCache's MaruBackend: MaruConfig, MaruHandler, AllocHandle, MemoryInfo, over one pool.

Holds:      string keys in, places (region, page) and views out; key pins; what LMCache's lookups told about order.
Promises:   nothing here raises for a miss, a full pool or a pool that failed: that is None, False or a shorter list,
            logged once. A list of answers is as long as the list of questions. Bytes that somebody views stay.
Leaves:     torch to `maru_lmcache`, space, eviction and pins to the pool.

The words region and page are the caller's: a region is one of the pool's data segments, a page index counts the pool's
allocation units from that segment's start. Whoever has allocated holds the memory by holding the AllocHandle; dropping
it gives the memory back, and so does the death of the process.

The interface is that of LMCache 0.4.3 to 0.5.6 (lmcache/v1/storage_backend/maru_backend.py).
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from maru.address import Address, read_address
from maru.attachment import Attachment, Page, refuse_small_slabs
from maru.client.opening import open_pool, reopened, settled
from maru.config import redact
from maru.errors import MaruError
from maru.handler_config import MaruConfig, show_log
from maru.handler_stats import Allocator, RegionManager, handler_stats
from maru.pool import Outcome
from maru.string_keys import KEY_BYTES, Lookups, pack_keys

__all__ = ["AllocHandle", "MaruConfig", "MaruHandle", "MaruHandler", "MemoryInfo"]

_log = logging.getLogger("maru")

REATTACH_PAUSE_S = 1.0

Key = str | int | bytes


class MaruHandle(NamedTuple):
    """One region as the caller's bookkeeping wants it."""

    region_id: int
    offset: int
    length: int
    auth_token: int = 0


@dataclass(eq=False)
class AllocHandle:
    """Where to write a chunk, and what to store it by. `buf` is writable until the chunk is stored.

    Made by MaruHandler.alloc(). One that is built from the two ids alone stands for the same memory as long as the
    original lives.
    """

    buf: memoryview
    _region_id: int
    _page_index: int
    _size: int

    def __post_init__(self) -> None:
        self.page: Page | None = None

    @property
    def region_id(self) -> int:
        return self._region_id

    @property
    def page_index(self) -> int:
        return self._page_index

    @property
    def size(self) -> int:
        return self._size


@dataclass
class MemoryInfo:
    """A stored chunk, in place and read-only. It stays as long as `view`, or anything made from it, lives."""

    view: memoryview
    region_id: int = 0
    page_index: int = 0


class MaruHandler:
    """One client of a pool. Thread-safe; making one does no I/O, connect() does."""

    def __init__(self, config: MaruConfig | None = None) -> None:
        self._config = config or MaruConfig()
        self._attached: Attachment | None = None
        self._address: Address | None = None
        self._lookups = Lookups()
        self._operations: Counter[str] = Counter()
        self._logged: set[str] = set()
        self.device_writes = False
        """A device writes into what alloc() gives: after a death it rests before somebody else gets it."""
        self._closed = False
        self._next_attempt_s = 0.0
        self._on_region_added: Callable[[int, int], None] | None = None
        self._lock = threading.Lock()

    # Life

    def connect(self) -> bool:
        """Attach to the pool, or make it. True when attached; False, with one line in the log, when that cannot be."""
        show_log()
        with self._lock:
            if self._closed:
                _log.error("this MaruHandler was closed; make a new one")
                return False
            if self._attached:
                return True
            try:
                self._attached = self._attach()
            except (MaruError, OSError) as error:
                _log.error("cannot use %s: %s", redact(self._config.server_url), error)
                return False
        self._tell_regions()
        return True

    def _attach(self) -> Attachment:
        config = self._config
        address = read_address(config.server_url, config.pool_size, config.chunk_size_bytes)
        if not config.populate and "populate=" not in address.url:
            address = replace(address, url=_with(address.url, "populate=off"))
        pool = open_pool(address, config.timeout_ms / 1000)
        self._address = settled(address, pool)
        try:
            refuse_small_slabs(pool, config.chunk_size_bytes)
            attached = Attachment(pool, address)
        except BaseException:
            pool.close()
            raise
        _log.info("attached to %s", attached.pool.config.url)
        return attached

    def close(self) -> None:
        """Let go of the pool. What was stored stays, held views stay good, pages go back when they are dropped."""
        with self._lock:
            self._closed = True
            attached, self._attached = self._attached, None
        if attached:
            attached.close()

    def __enter__(self) -> MaruHandler:
        if self._config.auto_connect:
            self.connect()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _need(self) -> Attachment:
        attached = self._attached
        if attached is None:
            raise RuntimeError("this MaruHandler is closed" if self._closed else "call connect() first")
        return self._attach_again(attached) if attached.pool.destroyed else attached

    def _attach_again(self, dead: Attachment) -> Attachment:
        """The pool was destroyed under us: take the one that stands in its place, as soon as there is one."""
        with self._lock:
            if self._attached is not dead or time.monotonic() < self._next_attempt_s or self._address is None:
                return self._attached or dead
            self._next_attempt_s = time.monotonic() + REATTACH_PAUSE_S
            try:
                fresh = Attachment(reopened(self._address, self._config.timeout_ms / 1000), self._address)
            except (MaruError, OSError) as error:
                self._log_once("the pool was destroyed; everything is a miss until there is one again", error)
                return dead
            dead.key_pins.close()
            self._attached = fresh
            self._logged.clear()
            _log.warning("attached to %s again", fresh.pool.config.url)
        self._tell_regions()
        return fresh

    def _log_once(self, what: str, error: Exception) -> None:
        kind = f"{what} {type(error).__name__}"
        if kind not in self._logged:
            self._logged.add(kind)
            _log.warning("%s: %s (told once)", what, error)

    def _counted(self, operation: str) -> None:
        if self._config.enable_stats:
            self._operations[operation] += 1

    # Writing

    def alloc(self, size: int) -> AllocHandle:
        """Memory for a chunk of `size` bytes, which nobody sees until store().

        Raises RuntimeError when not connected, ValueError when `size` exceeds chunk_size or the pool is exhausted:
        nothing is left that could be evicted.
        """
        attached = self._need()
        self._counted("alloc")
        if not 0 < size <= self._config.chunk_size_bytes:
            raise ValueError(f"{size} bytes exceeds chunk_size {self._config.chunk_size_bytes}, or is no size")
        try:
            draft = attached.pool.allocate(size, device=self.device_writes)
        except MaruError as error:
            raise ValueError(f"pool exhausted: {error}") from error
        if draft is None:
            raise ValueError("pool exhausted: everything in it is pinned or being written")
        page, region_id, page_index = attached.page_of(draft)
        handle = AllocHandle(memoryview(draft.buffer), region_id, page_index, size)  # type: ignore[arg-type]
        handle.page = page
        return handle

    def free(self, handle: AllocHandle) -> None:
        """Give memory back that was not stored. Raises ValueError when it was given back or stored before, KeyError for
        a region that there is not.
        """
        attached = self._need()
        self._counted("free")
        if not 0 <= handle.region_id < len(attached.regions):
            raise KeyError(f"there is no region {handle.region_id}")
        page = _page_behind(attached, handle)
        if page is None or not page.discard():
            raise ValueError(f"page {handle.page_index} of region {handle.region_id} was freed or stored already")

    def store(self, key: Key, handle: AllocHandle) -> bool:
        """Publish under `key`. False when somebody stored it before, or it cannot be; the memory goes back then."""
        return self.batch_store([key], [handle])[0]

    def batch_store(self, keys: Sequence[Key], handles: Sequence[AllocHandle]) -> list[bool]:
        """Publish chunks of one prompt in its order: each is the next one's parent.

        After one that finds no room the rest is False too: without it nobody could reach them. Raises ValueError when
        there are not as many handles as keys, RuntimeError when not connected.
        """
        if len(keys) != len(handles):
            raise ValueError(f"{len(keys)} keys and {len(handles)} handles")
        attached = self._need()
        self._counted("batch_store")
        pages = [_page_behind(attached, handle) for handle in handles]
        stored = [False] * len(keys)
        try:
            self._store_chain(attached, pack_keys(attached.namespace, keys), pages, handles, stored)
        except MaruError as error:
            self._log_once("storing failed", error)
        finally:
            for page in pages:
                if page:
                    page.discard()
        return stored

    def _store_chain(
        self,
        attached: Attachment,
        packed: bytes,
        pages: Sequence[Page | None],
        handles: Sequence[AllocHandle],
        stored: list[bool],
    ) -> None:
        place = self._lookups.place(packed[:KEY_BYTES])
        parent = place.parent
        for number, page in enumerate(pages):
            key = packed[number * KEY_BYTES : (number + 1) * KEY_BYTES]
            draft = page.take() if page and page.size == handles[number].size else None
            if page is None or draft is None:
                self._log_once("storing failed", ValueError("a handle whose memory was freed, stored or never ours"))
                return
            outcome, view = draft.publish_held(key, attached.namespace, parent, allow_exports=True)
            if outcome == Outcome.STORED:
                stored[number] = True
                if number == 0:
                    self._count_place(attached, place.known, parent)
                handle = handles[number]
                if view is not None:
                    view = attached.keep_stored(handle.region_id, handle.page_index, view)
                # One owner: a handle may outlive the object that was stored, in an executor's queue for instance.
                handle.buf = view if view is not None and not page.after_store else memoryview(b"")
                if page.after_store:
                    page.after_store(view)
            elif outcome != Outcome.LOST:
                draft.discard()
            if outcome in (Outcome.FULL, Outcome.BUSY, Outcome.LOST):
                return
            parent = key

    def _count_place(self, attached: Attachment, known: bool, parent: bytes | None) -> None:
        if not known:
            attached.pool._count("suffixes_unplaced")
        elif parent is not None:
            attached.pool._count("suffixes_linked" if attached.pool.exists(parent) else "suffixes_orphaned")

    # Reading

    def retrieve(self, key: Key) -> MemoryInfo | None:
        """The chunk in place, as long as stored; None on a miss."""
        return self.batch_retrieve([key])[0]

    def batch_retrieve(self, keys: Sequence[Key]) -> list[MemoryInfo | None]:
        """One answer a key, in order; None for what is not there."""
        attached = self._need()
        self._counted("batch_retrieve")
        found: list[MemoryInfo | None] = []
        try:
            packed = memoryview(pack_keys(attached.namespace, keys))
            while len(found) < len(keys):
                found += [MemoryInfo(*held) for held in attached.leading(packed[len(found) * KEY_BYTES :])]
                if len(found) < len(keys):
                    found.append(None)
        except MaruError as error:
            self._log_once("reading failed", error)
        return found + [None] * (len(keys) - len(found))

    def exists(self, key: Key) -> bool:
        return self.batch_exists([key])[0]

    def batch_exists(self, keys: Sequence[Key]) -> list[bool]:
        """One answer a key, holes and all. Hints: pin what must stay."""
        attached = self._need()
        self._counted("batch_exists")
        try:
            packed = pack_keys(attached.namespace, keys)
            self._remember(packed)
            return attached.pool.find(packed)
        except MaruError as error:
            self._log_once("looking up failed", error)
            return [False] * len(keys)

    def _remember(self, packed: bytes) -> None:
        """A prompt of one chunk says nothing that matters, and single questions are no prompts."""
        if len(packed) > KEY_BYTES:
            self._lookups.remember(packed)

    def view_at(self, region_id: int, page_index: int) -> memoryview | None:
        """The view of a chunk at this place that somebody in this process holds; None when nobody does."""
        return self._need().view_at(region_id, page_index)

    def get_buffer_view(self, region_id: int, offset: int, size: int) -> memoryview | None:
        """`size` bytes at byte `offset` of a region: writable inside a page that is not stored yet, read-only inside a
        chunk that somebody here holds, else None.
        """
        return self._need().buffer_view(region_id, offset, size)

    # For devices

    def offset_of(self, region_id: int, page_index: int) -> int | None:
        """The byte of the pool's data where a page begins, None for a page that there is not."""
        return self._need().offset_of(region_id, page_index)

    def writable_memory(self) -> tuple[int, list[tuple[int, int]], int]:
        """(address, (offset, bytes) of each region, slab size) of the mapping that a device may be shown."""
        return self._need().writable_memory

    def keep_mapped(self) -> object:
        """As long as this lives, the pool's memory stays mapped, also after close()."""
        return self._need().pool.pin(b"")

    # Pins by key, removal

    def pin(self, key: Key) -> bool:
        """Keep a chunk until unpin(), at most for the maximum age. False when it is not there."""
        return self._pin([key], remember=False)[0]

    def batch_pin(self, keys: Sequence[Key]) -> list[bool]:
        """Pin the leading run that is there; the rest is False and not pinned."""
        return self._pin(keys, remember=True)

    def _pin(self, keys: Sequence[Key], remember: bool) -> list[bool]:
        attached = self._need()
        self._counted("batch_pin")
        count = 0
        try:
            packed = pack_keys(attached.namespace, keys)
            if remember:
                self._remember(packed)
            with attached.pool.pin(packed) as prefix:
                views = prefix.views
            count = len(views)
            attached.key_pins.add([packed[n * KEY_BYTES : (n + 1) * KEY_BYTES] for n in range(count)], views)
        except MaruError as error:
            self._log_once("pinning failed", error)
        return [True] * count + [False] * (len(keys) - count)

    def unpin(self, key: Key) -> bool:
        """One pin less. False when this process holds none on `key`."""
        return self.batch_unpin([key])[0]

    def batch_unpin(self, keys: Sequence[Key]) -> list[bool]:
        attached = self._need()
        self._counted("batch_unpin")
        try:
            packed = pack_keys(attached.namespace, keys)
        except MaruError as error:
            self._log_once("unpinning failed", error)
            return [False] * len(keys)
        return [attached.key_pins.drop(packed[n * KEY_BYTES : (n + 1) * KEY_BYTES]) for n in range(len(keys))]

    def delete(self, key: Key) -> bool:
        """Remove a chunk. False when it is absent, or pinned by anybody: then nothing changed."""
        attached = self._need()
        self._counted("delete")
        try:
            return attached.pool.remove(pack_keys(attached.namespace, [key]))
        except MaruError as error:
            self._log_once("removing failed", error)
            return False

    # What there is to know

    def healthcheck(self) -> bool:
        """Is there a pool to work with?"""
        try:
            return not self._need().pool.destroyed
        except (RuntimeError, MaruError):
            return False

    def get_stats(self) -> dict[str, Any]:
        """The pool's figures in the shape that the reference's server answers."""
        attached = self._need()
        return handler_stats(attached.pool.stats(), self._config.chunk_size_bytes, self._operations)

    @property
    def view_pin_count(self) -> int:
        """Chunks that somebody in this process holds by a view."""
        return self._attached.view_count if self._attached else 0

    @property
    def key_pin_count(self) -> int:
        return len(self._attached.key_pins) if self._attached else 0

    def get_region_page_count(self, region_id: int) -> int | None:
        attached = self._need()
        if not 0 <= region_id < len(attached.regions):
            return None
        return attached.regions[region_id][1] // attached.unit_bytes

    def get_owned_region_ids(self) -> list[int]:
        """Every region: all of them belong to all clients."""
        return list(range(len(self._need().regions)))

    def get_chunk_size(self) -> int:
        return self._config.chunk_size_bytes

    def set_on_region_added(self, callback: Callable[[int, int], None] | None) -> None:
        """`callback(region_id, page_count)` for every region, those that are there at once."""
        self._on_region_added = callback
        self._tell_regions()

    def _tell_regions(self) -> None:
        callback, attached = self._on_region_added, self._attached
        if callback and attached:
            for region, (_, size) in enumerate(attached.regions):
                callback(region, size // attached.unit_bytes)

    @property
    def connected(self) -> bool:
        return self._attached is not None

    @property
    def instance_id(self) -> str:
        return str(self._config.instance_id)

    @property
    def pool_handle(self) -> MaruHandle | None:
        """The first region, None when not connected."""
        if self._attached is None:
            return None
        first, size = self._attached.regions[0]
        return MaruHandle(0, first, size)

    @property
    def allocator(self) -> Allocator | None:
        return Allocator(self.get_stats) if self._attached else None

    @property
    def owned_region_manager(self) -> RegionManager | None:
        """None after close()."""
        return RegionManager(self.get_stats) if self._attached else None

    @property
    def mapper(self) -> None:
        """There is none: the pool is mapped as a whole."""
        return None


def _with(url: str, parameter: str) -> str:
    return url + ("&" if "?" in url else "?") + parameter


def _page_behind(attached: Attachment, handle: AllocHandle) -> Page | None:
    """None also for memory of a pool that was destroyed since: the one in its place has other memory."""
    page = handle.page or attached.page_at(handle.region_id, handle.page_index)
    return page if page and page.pool is attached.pool else None
