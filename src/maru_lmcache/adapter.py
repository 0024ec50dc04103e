"""LMCache's memory allocator over a pool: tensors that lie in the pool's memory.

Holds:      the mapping between LMCache's MemoryObj and a page or a view of maru.MaruHandler.
Promises:   an object that is allocated and never stored gives its memory back when LMCache drops it, once. One that is
            stored turns read-only. One that was retrieved keeps its chunk as long as it, or a tensor made from it,
            lives. An object is what the caller allocated, or None: never a part of it. With a device the beginning of
            each segment is registered before an adapter is handed out, unless the device does not do it in time.
Leaves:     keys and order to the handler, space and eviction to the pool.

Shapes are LMCache's: [kv, layers, tokens, hidden] a group, tokens third. A shorter chunk has fewer tokens and its true
size in bytes.

LMCache calls free() while it holds the object's own lock: nothing here may ask the object for anything but `meta`.
"""

from __future__ import annotations

import logging
import warnings
import weakref
from typing import Any, TypeAlias

import torch
from lmcache.v1.memory_management import (
    MemoryAllocatorInterface,
    MemoryFormat,
    MemoryObj,
    MemoryObjMetadata,
    TensorMemoryObj,
)

from maru.errors import MaruError
from maru.handler import AllocHandle, MaruHandler
from maru_lmcache.registration import Device, Registration, device_of_lmcache, is_in_use

_log = logging.getLogger("maru.lmcache")

_REGION_SHIFT = 32
_PAGE_MASK = (1 << _REGION_SHIFT) - 1
_NOTHING = torch.empty(0, dtype=torch.uint8)
_KEPT_FOR_DEVICES: list[object] = []

Shapes: TypeAlias = "torch.Size | list[torch.Size]"
Dtypes: TypeAlias = "torch.dtype | list[torch.dtype]"


class LayoutRefused(MaruError, ValueError):
    """KV groups that cannot be cut at a token's edge, or that do not add up to the chunk that was configured."""

    hint = "give every group the same number of tokens in its third dimension, or use another storage backend"


class PoolMemoryObj(TensorMemoryObj):
    """A tensor in the pool. Dropping it is enough: what it holds, memory or a pin, goes with it."""

    def __init__(self, raw: torch.Tensor, meta: MemoryObjMetadata, parent: CxlMemoryAdapter) -> None:
        super().__init__(raw, meta, parent)
        self.handle: AllocHandle | None = None

    def __del__(self) -> None:
        """The base class would complain about the reference that LMCache keeps on everything it stored."""

    def become_reader(self, raw: torch.Tensor) -> None:
        """It was stored: from now on it is a reader like any other. Holds the chunk as long as it lives."""
        self.handle = None
        self.raw_data = raw

    def let_go(self) -> None:
        """Drop memory or pin now. Tensors that LMCache made from this object keep theirs."""
        self.invalidate()
        handle, self.handle = self.handle, None
        self.raw_data = _NOTHING
        if handle is not None and handle.page is not None:
            handle.page.discard()


class CxlMemoryAdapter(MemoryAllocatorInterface):
    """Allocates LMCache's objects in the pool, and finds stored ones there. Thread-safe."""

    def __init__(
        self,
        handler: MaruHandler,
        shapes: list[torch.Size],
        dtypes: list[torch.dtype],
        fmt: MemoryFormat,
        chunk_size: int,
        device: Device | None = None,
    ) -> None:
        """`shapes` and `dtypes`: one a KV group, of a full chunk; together `chunk_size` bytes. Raises LayoutRefused.

        `device`: LMCache's own, unless a test hands in another.
        """
        self._handler = handler
        self._shapes = list(shapes)
        self._dtypes = list(dtypes)
        self._fmt = fmt
        self._chunk_size = chunk_size
        self._token_dim = fmt.token_dim()
        self._chunk_tokens = _tokens_of(self._shapes, self._token_dim)
        size = _size_bytes(self._shapes, self._dtypes)
        if size != chunk_size:
            raise LayoutRefused(f"the KV groups take {size} bytes, and a chunk was configured with {chunk_size}")
        if chunk_size % self._chunk_tokens:
            raise LayoutRefused(f"a chunk of {chunk_size} bytes cannot be cut into {self._chunk_tokens} tokens")
        self._told: set[str] = set()
        _spend_read_only_warning()
        self._regions: dict[int, int] = {}
        self._device = device or device_of_lmcache()
        self._registration: Registration | None = None
        handler.set_on_region_added(self._region_is_there)

    def _region_is_there(self, region_id: int, page_count: int) -> None:
        """At start, and again when the pool was destroyed and the handler found the one in its place."""
        self._regions[region_id] = page_count
        if self._device is None:
            return
        address, ranges, slab = self._handler.writable_memory()
        old = self._registration
        if old is None or old.address != address:
            if old is not None:
                self._take_from_device(old)
            self._handler.device_writes = True
            self._registration = Registration(self._device, address, ranges, slab)
            if is_in_use():
                self._registration.begin()
                if not self._registration.wait_for_first():
                    self._tell_once("no memory is registered with the device: until it is, all is a miss, none stored")

    def _take_from_device(self, registration: Registration) -> None:
        if not registration.close():
            _log.error("the device keeps the pool's memory: it stays mapped until this process ends")
            _KEPT_FOR_DEVICES.append(self._handler.keep_mapped())

    # Addresses

    @staticmethod
    def encode_address(region_id: int, page_index: int) -> int:
        return region_id << _REGION_SHIFT | page_index

    @staticmethod
    def decode_address(address: int) -> tuple[int, int]:
        """(region id, page index)."""
        return address >> _REGION_SHIFT, address & _PAGE_MASK

    # Writing

    def allocate(
        self,
        shapes: Shapes,
        dtypes: Dtypes,
        fmt: MemoryFormat = MemoryFormat.UNDEFINED,
        allocator_type: str | None = None,
    ) -> MemoryObj | None:
        """Memory in the pool for one chunk, None when nothing can be evicted for it."""
        shape_list, dtype_list = self._adapt_shapes_and_dtypes(shapes, dtypes)
        size = _size_bytes(shape_list, dtype_list)
        try:
            handle = self._handler.alloc(size)
        except (ValueError, RuntimeError) as error:
            self._tell_once(f"no memory for a chunk of {size} bytes: {error}")
            return None
        if self._registration:
            self._registration.begin()
        place = handle.region_id, handle.page_index
        if not self._device_reaches(*place, size):
            self._tell_once(f"no memory for a chunk of {size} bytes yet: none that the device reaches")
            return None
        obj = PoolMemoryObj(_tensor_over(handle.buf), self._meta(shape_list, dtype_list, fmt, *place), self)
        obj.meta.ref_count = 1
        obj.handle = handle
        if handle.page is not None:
            # Weak: LMCache may run without the cycle collector.
            obj_ref = weakref.ref(obj)
            handle.page.after_store = lambda view: self._turn_reader(obj_ref, view)
        return obj

    def batched_allocate(
        self,
        shapes: Shapes,
        dtypes: Dtypes,
        batch_size: int,
        fmt: MemoryFormat = MemoryFormat.UNDEFINED,
        allocator_type: str | None = None,
    ) -> list[MemoryObj] | None:
        """`batch_size` of them, or None and nothing allocated."""
        objs: list[MemoryObj] = []
        for _ in range(batch_size):
            obj = self.allocate(shapes, dtypes, fmt)
            if obj is None:
                self.batched_free(objs)
                return None
            objs.append(obj)
        return objs

    def create_store_handle(self, obj: MemoryObj) -> AllocHandle:
        """What MaruHandler.store() takes for this object."""
        region_id, page_index = self.decode_address(obj.meta.address)
        handle = AllocHandle(memoryview(b""), region_id, page_index, obj.meta.phy_size)
        own = getattr(obj, "handle", None)
        handle.page = own.page if own is not None else None
        return handle

    # Reading

    def get_by_location(
        self, region_id: int, page_index: int, actual_size: int, single_token_size: int
    ) -> MemoryObj | None:
        """The chunk at this place, which somebody here must hold: retrieve it first and keep the MemoryInfo meanwhile.

        None for a place that nobody holds, and for a size that is not a whole number of tokens: another model's chunk.
        """
        try:
            view = self._handler.view_at(region_id, page_index)
        except RuntimeError:
            return None
        if view is None or view.nbytes != actual_size or single_token_size * self._chunk_tokens != self._chunk_size:
            return None
        tokens, rest = divmod(actual_size, single_token_size)
        if rest or not 0 < tokens <= self._chunk_tokens:
            return None
        if not self._device_reaches(region_id, page_index, actual_size):
            return None
        shapes = [self._with_tokens(shape, tokens) for shape in self._shapes]
        raw = self._reading(view, region_id, page_index)
        return PoolMemoryObj(raw, self._meta(shapes, self._dtypes, self._fmt, region_id, page_index), self)

    def _reading(self, view: memoryview, region_id: int, page_index: int) -> torch.Tensor:
        """What a reader gets: read-only memory; with a device the same bytes where the device reaches them."""
        offset = self._handler.offset_of(region_id, page_index) if self._registration else None
        if self._registration is None or offset is None:
            return _tensor_over(view)
        return self._registration.tensor_at(offset, view.nbytes, view)

    def _device_reaches(self, region_id: int, page_index: int, size: int) -> bool:
        if self._registration is None:
            return True
        offset = self._handler.offset_of(region_id, page_index)
        return offset is not None and self._registration.covers(offset, size)

    def _turn_reader(self, obj_ref: weakref.ref[PoolMemoryObj], view: memoryview | None) -> None:
        obj = obj_ref()
        if obj is not None and obj.is_valid():
            obj.become_reader(_NOTHING if view is None else self._reading(view, *self.decode_address(obj.meta.address)))

    def _tell_once(self, what: str) -> None:
        kind = what.partition(":")[2]
        if kind not in self._told:
            self._told.add(kind)
            _log.warning("%s (told once)", what)

    def ensure_region_pool(self, region_id: int) -> bool:
        """Is this a region of the pool?"""
        return region_id in self._regions

    # Giving back

    def free(self, memory_obj: MemoryObj, allocator_type: str | None = None) -> None:
        """LMCache needs it no more: unstored memory goes back, a read's pin ends. A second time does nothing."""
        if isinstance(memory_obj, PoolMemoryObj):
            memory_obj.let_go()

    def batched_free(
        self, memory_objs: list[MemoryObj], allocator_type: str | None = None, update_stats: bool = True
    ) -> None:
        for memory_obj in memory_objs:
            self.free(memory_obj)

    def close(self) -> None:
        """Take the memory from the device; the handler's owner closes the handler."""
        self._handler.set_on_region_added(None)
        if self._registration:
            self._take_from_device(self._registration)

    def memcheck(self) -> bool:
        """Is there a pool to allocate from?"""
        return self._handler.healthcheck()

    def _with_tokens(self, shape: torch.Size, tokens: int) -> torch.Size:
        return torch.Size([*shape[: self._token_dim], tokens, *shape[self._token_dim + 1 :]])

    def _meta(
        self, shapes: list[torch.Size], dtypes: list[torch.dtype], fmt: MemoryFormat, region_id: int, page_index: int
    ) -> MemoryObjMetadata:
        return MemoryObjMetadata(
            shape=shapes[0],
            dtype=dtypes[0],
            address=self.encode_address(region_id, page_index),
            phy_size=_size_bytes(shapes, dtypes),
            ref_count=0,
            fmt=self._fmt if fmt == MemoryFormat.UNDEFINED else fmt,
            shapes=list(shapes),
            dtypes=list(dtypes),
        )


def _tensor_over(view: memoryview) -> torch.Tensor:
    """A flat tensor of bytes over this memory, which it keeps. Writing to read-only memory is a fault."""
    return torch.frombuffer(view, dtype=torch.uint8)


def _spend_read_only_warning() -> None:
    """Torch cannot mark a tensor read-only and says so, once in a process: have it said here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.frombuffer(memoryview(b"\0"), dtype=torch.uint8)


def _size_bytes(shapes: list[torch.Size], dtypes: list[torch.dtype]) -> int:
    return sum(shape.numel() * dtype.itemsize for shape, dtype in zip(shapes, dtypes, strict=True))


def _tokens_of(shapes: list[torch.Size], token_dim: int) -> int:
    """How many tokens a full chunk has; every group must say the same. Raises LayoutRefused."""
    counts: set[Any] = {shape[token_dim] if len(shape) > token_dim else 0 for shape in shapes}
    if len(counts) != 1 or min(counts) < 1:
        raise LayoutRefused(f"the KV groups {[tuple(shape) for shape in shapes]} do not agree on a number of tokens")
    return int(counts.pop())


def __getattr__(name: str) -> Any:
    """Published configurations name `maru_lmcache.adapter` as the module of the remote storage plug-in too."""
    if name == "MaruConnectorAdapter":
        from maru_lmcache.remote import MaruConnectorAdapter

        return MaruConnectorAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
