"""What a drop-in handler has of one pool: regions and pages, memory without a key, views that can be found, key pins.

Holds:      the tables from places to unstored memory and to held views, both weak: they keep nothing alive.
Promises:   a place is answered only while somebody in this process holds what lies there. Never "whatever lies there".
Leaves:     keys, their order, and what to tell the caller to the handler.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from maru.address import Address
from maru.config import format_size, redact
from maru.errors import ChunkTooLarge, NotAttached, PoolError
from maru.key_pins import KeyPins
from maru.pool import Draft, Pool
from maru.string_keys import lmcache_namespace


class Page:
    """Memory that has no key yet. Its one owner is whoever holds it: dropped, it goes back."""

    __slots__ = ("__weakref__", "_draft", "after_store", "pool", "size")

    def __init__(self, draft: Draft, pool: Pool) -> None:
        self._draft: Draft | None = draft
        self.pool = pool
        self.size = draft.size
        self.after_store: Callable[[memoryview | None], None] | None = None
        """Called with the read-only view of what was stored, in place of leaving it in the handle."""

    @property
    def buffer(self) -> memoryview | None:
        """Writable memory, None once it was stored or given back."""
        draft = self._draft
        return memoryview(draft.buffer) if draft else None  # type: ignore[arg-type]

    def take(self) -> Draft | None:
        """The draft, once: whoever gets it ends it."""
        draft, self._draft = self._draft, None
        return draft

    def discard(self) -> bool:
        """Give the memory back; it goes when the last buffer made of it dies. False when it was taken before."""
        draft = self.take()
        if draft is None:
            return False
        try:
            draft.discard()
        except NotAttached:
            return False
        return True


class Attachment:
    """One pool with everything that ends when the pool does."""

    def __init__(self, pool: Pool, address: Address) -> None:
        self.pool = pool
        self.namespace = lmcache_namespace(pool, address.tenant)
        self.key_pins = KeyPins(address.key_pin_age_s, self._tell_key_pins, self._tell_expired)
        figures = pool.stats()
        self.unit_bytes: int = figures["unit_bytes"]
        self.slab_bytes: int = figures["slab_bytes"]
        self.regions: list[tuple[int, int]] = [(row["first_byte"], row["bytes"]) for row in figures["segments"]]
        self._pages: weakref.WeakValueDictionary[int, Page] = weakref.WeakValueDictionary()
        self._views: weakref.WeakValueDictionary[int, memoryview] = weakref.WeakValueDictionary()
        self._views_lock = threading.Lock()

    @property
    def view_count(self) -> int:
        """Chunks that somebody in this process holds by a view."""
        return len(self._views)

    def close(self) -> None:
        """Drop the key pins and let go of the pool. Held views stay good; pages go back when they are dropped."""
        self.key_pins.close()
        self.pool.close()

    def page_of(self, draft: Draft) -> tuple[Page, int, int]:
        """New memory as (page, region, page index), to be found again as long as the page lives."""
        page = Page(draft, self.pool)
        self._pages[draft.offset] = page
        return page, *self._place_of(draft.offset)

    @property
    def writable_memory(self) -> tuple[int, list[tuple[int, int]], int]:
        """(address, (offset, bytes) of each region, slab size) of the mapping that a device may be shown."""
        address, _, _ = self.pool._data_range()
        return address, list(self.regions), self.slab_bytes

    def page_at(self, region: int, page_index: int) -> Page | None:
        """The unstored memory at this place."""
        offset = self.offset_of(region, page_index)
        return None if offset is None else self._pages.get(offset)

    def leading(self, packed: memoryview) -> list[tuple[memoryview, int, int]]:
        """(view, region, page index) of each of the leading keys that are there. Raises BadKey, NotAttached."""
        with self.pool.pin(packed) as prefix:
            extents = memoryview(prefix.extents()).cast("Q")
            offsets = [extents[at] for at in range(0, len(extents), 2)]
            views = prefix.views
        return [(self._keep_findable(at, view), *self._place_of(at)) for at, view in zip(offsets, views, strict=True)]

    def view_at(self, region: int, page_index: int) -> memoryview | None:
        """The view of a chunk at this place that somebody in this process holds."""
        offset = self.offset_of(region, page_index)
        return None if offset is None else self._views.get(offset)

    def buffer_view(self, region: int, offset: int, size: int) -> memoryview | None:
        """Part of unstored memory (writable) or of a held view (read-only), by bytes from the region's start."""
        if not 0 <= region < len(self.regions) or offset < 0 or size < 0:
            return None
        first = self.regions[region][0] + offset
        for start, page in list(self._pages.items()):
            whole = page.buffer
            if whole is not None and start <= first and first + size <= start + page.size:
                return whole[first - start : first - start + size]
        for start, view in list(self._views.items()):
            if start <= first and first + size <= start + view.nbytes:
                return view[first - start : first - start + size]
        return None

    def keep_stored(self, region: int, page_index: int, view: memoryview) -> memoryview:
        """The view of what was just stored at this place, to be found like any other."""
        offset = self.offset_of(region, page_index)
        return view if offset is None else self._keep_findable(offset, view)

    def _keep_findable(self, offset: int, view: memoryview) -> memoryview:
        """The view by which this place can be found as long as somebody holds it: the one there is, or this one."""
        with self._views_lock:
            return self._views.setdefault(offset, view)

    def _place_of(self, offset: int) -> tuple[int, int]:
        for region, (first, size) in enumerate(self.regions):
            if first <= offset < first + size:
                return region, (offset - first) // self.unit_bytes
        raise PoolError(f"byte {offset} lies in none of the pool's segments")

    def offset_of(self, region: int, page_index: int) -> int | None:
        """The byte of the pool's data where a page begins, None for a page that there is not."""
        if not 0 <= region < len(self.regions) or page_index < 0:
            return None
        first, size = self.regions[region]
        return first + page_index * self.unit_bytes if page_index * self.unit_bytes < size else None

    def _tell_key_pins(self, count: int, oldest_age_s: float) -> None:
        if not self.pool.closed:
            self.pool._tell_key_pins(count, int(oldest_age_s * 1e9))

    def _tell_expired(self, count: int) -> None:
        if not self.pool.closed:
            self.pool._count("key_pins_expired", count)


def refuse_small_slabs(pool: Pool, chunk_bytes: int) -> None:
    """A chunk that no slab holds could never be stored: better said at the start. Raises ChunkTooLarge."""
    slab_bytes = pool.stats()["slab_bytes"]
    if chunk_bytes > slab_bytes:
        raise ChunkTooLarge(
            f"a chunk of {format_size(chunk_bytes)} does not fit the slabs of {format_size(slab_bytes)} that pool "
            f"{redact(pool.config.url)} was made with",
            wanted_bytes=chunk_bytes,
            slab_bytes=slab_bytes,
        )
