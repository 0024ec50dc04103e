"""The door for LMCache's remote storage: `remote_url: "maru://..."` over a pool, by a plug-in of its connectors.

    remote_url: "maru://localhost:6555?pool_size=64G"
    remote_serde: "naive"
    remote_storage_plugins: ["maru"]
    extra_config:
      remote_storage_plugin.maru.module_path: maru_lmcache.remote
      remote_storage_plugin.maru.class_name: MaruConnectorAdapter
      save_chunk_meta: false

Holds:      LMCache's connector interface over `copying`, and the shape that a chunk of so many bytes has.
Promises:   what it stores is a chunk's bytes and nothing else, under the key that LMCache's MaruBackend uses too, so
            instances behind either door hit what the other stored. Opening what cannot be opened is an error that
            names it; later trouble is a miss.
Leaves:     the copies to `copying`, LMCache's buffers to its LocalCPUBackend.

LMCache 0.5.6 finds a class outside its tree by `remote_storage_plugins` only, also for a `remote_url`. It then makes
two backends: one for the plug-in and one for the URL. The first of them stands aside here, as one pool needs one door.

Without chunk metadata the size of a chunk tells its tokens: a chunk is always whole tokens of one model's layout, and
the key names model, rank and dtype. `save_chunk_meta` is therefore not looked at.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import torch
from lmcache.utils import CacheEngineKey, LayerCacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.exceptions import IrrecoverableException
from lmcache.v1.memory_management import MemoryFormat, MemoryObj
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.connector import ConnectorAdapter, ConnectorContext, extract_plugin_type
from lmcache.v1.storage_backend.connector.base_connector import RemoteConnector
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

from maru.config import parse_size
from maru.errors import BadUrl, MaruError
from maru.string_keys import KEY_BYTES
from maru_lmcache.copying import PoolCopies

__all__ = ["MaruConnector", "MaruConnectorAdapter"]

SCHEME = "maru://"
PLUGIN_TYPE = "maru"
COPY_THREADS = 4

Answer = TypeVar("Answer")
# The interface has a method `list`, which hides the type inside its classes.
Keys: TypeAlias = list[CacheEngineKey]
Objects: TypeAlias = list[MemoryObj]
Loaded: TypeAlias = "list[MemoryObj | None]"
Strings: TypeAlias = list[str]
Shapes: TypeAlias = "list[torch.Size]"
Dtypes: TypeAlias = "list[torch.dtype]"


class SettingRefused(MaruError, ValueError):
    """A setting of LMCache under which the bytes in the pool would not be what their keys say."""

    hint = "use remote_serde: naive"


class MaruConnectorAdapter(ConnectorAdapter):
    """Tells LMCache that `maru://` URLs, and the plug-in `maru`, are ours."""

    def __init__(self) -> None:
        super().__init__(SCHEME)

    def can_parse(self, url: str) -> bool:
        """Ours are maru://..., plugin://maru and plugin://maru.ANYTHING."""
        prefix = "plugin://"
        return url.startswith(SCHEME) or (
            url.startswith(prefix) and extract_plugin_type(url[len(prefix) :]) == PLUGIN_TYPE
        )

    def create_connector(self, context: ConnectorContext) -> RemoteConnector:
        """Raises IrrecoverableException, with the MaruError as its cause: retrying would not help."""
        if (
            context.plugin_name
            and _plugin_address(context.config, context.plugin_name) is None
            and (context.config.remote_url or "").startswith(SCHEME)
        ):
            return IdleConnector(context.config, context.metadata)
        return MaruConnector(
            loop=context.loop,
            local_cpu_backend=context.local_cpu_backend,
            config=context.config,
            metadata=context.metadata,
            plugin_name=context.plugin_name,
        )


class IdleConnector(RemoteConnector):
    """The plug-in's own backend while `remote_url` has one already: knows nothing, keeps nothing."""

    async def exists(self, key: CacheEngineKey) -> bool:
        return False

    def exists_sync(self, key: CacheEngineKey) -> bool:
        return False

    def support_batched_contains(self) -> bool:
        return True

    def batched_contains(self, keys: Keys) -> int:
        return 0

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        return None

    def support_batched_put(self) -> bool:
        return True

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        """Nothing: the backend of `remote_url` stores it."""

    async def batched_put(self, keys: Keys, memory_objs: Objects) -> None:
        """Nothing: the backend of `remote_url` stores them."""

    def remove_sync(self, key: CacheEngineKey) -> bool:
        return False

    async def list(self) -> Strings:
        return []

    async def close(self) -> None:
        """Nothing to let go of."""


class MaruConnector(RemoteConnector):
    """LMCache's remote storage in a pool of this host. Works for workers and, without buffers, for schedulers."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        local_cpu_backend: LocalCPUBackend,
        config: LMCacheEngineConfig,
        metadata: LMCacheMetadata | None = None,
        plugin_name: str | None = None,
    ) -> None:
        """The arguments are those with which LMCache makes a connector by its class alone, and two more.

        Raises IrrecoverableException; its cause is SettingRefused, BadUrl, NoDaemon, ChunkTooLarge, NoSpace or whatever
        else keeps the pool from being opened.
        """
        self._metadata: LMCacheMetadata = metadata or local_cpu_backend.metadata
        super().__init__(config, self._metadata)
        self.loop = loop
        self._buffers = local_cpu_backend
        self._blending = bool(config.enable_blending)
        try:
            self._refuse_serde(config)
            self._copies = PoolCopies(
                _address(config, plugin_name), _default_size_bytes(config), int(self.full_chunk_size_bytes)
            )
        except (MaruError, OSError) as error:
            raise IrrecoverableException(f"{type(error).__name__}: {error}") from error
        self._workers = ThreadPoolExecutor(COPY_THREADS, thread_name_prefix="maru-remote")

    @property
    def copies(self) -> PoolCopies:
        """The pool behind this door and its counters."""
        return self._copies

    # What is there

    async def exists(self, key: CacheEngineKey) -> bool:
        return self.exists_sync(key)

    def exists_sync(self, key: CacheEngineKey) -> bool:
        """Microseconds, no I/O: fit for any thread."""
        return self._copies.is_there(self._pack([key]))

    def support_batched_contains(self) -> bool:
        return True

    def batched_contains(self, keys: Keys) -> int:
        """How many leading keys are there. LMCache asks in the prompt's order, which is remembered for the stores."""
        return self._copies.leading(self._pack(keys))

    async def batched_async_contains(self, lookup_id: str, keys: Keys, pin: bool = False) -> int:
        """As batched_contains. `pin` has no effect: LMCache gives no sign by which a pin would end.

        A chunk that is evicted between this and the load is a shorter prefix, which LMCache expects.
        """
        return self._copies.leading(self._pack(keys))

    # In and out

    def support_batched_put(self) -> bool:
        return True

    async def put(self, key: CacheEngineKey, memory_obj: MemoryObj) -> None:
        packed = self._pack([key])
        await self._store(packed, [memory_obj], self._copies.lookups.place(packed).parent)

    async def batched_put(self, keys: Keys, memory_objs: Objects) -> None:
        """Store a stretch of one prompt, in its order. A full pool keeps less, or nothing, and that is no error."""
        packed = self._pack(keys)
        if packed:
            await self._store(packed, memory_objs, self._copies.lookups.place(packed[:KEY_BYTES]).parent)

    async def get(self, key: CacheEngineKey) -> MemoryObj | None:
        return (await self.batched_get([key]))[0]

    def support_batched_get(self) -> bool:
        return True

    async def batched_get(self, keys: Keys) -> Loaded:
        """One object a key, None for a miss: absent, of a size that is not whole tokens, or no buffer free."""
        return await self._load_beside(lambda: self._load(keys))

    async def batched_get_non_blocking(self, lookup_id: str, keys: Keys) -> Objects:
        """The leading run of objects."""
        return await self._load_beside(lambda: self._load_leading(keys))

    def remove_sync(self, key: CacheEngineKey) -> bool:
        """False when it is absent, or pinned by any process."""
        return self._copies.remove(self._pack([key]))

    async def list(self) -> Strings:
        """Raises NotImplementedError: the pool keeps digests of keys, from which no key can be read."""
        raise NotImplementedError("a pool cannot list its keys: it keeps 16 bytes of digest each")

    async def close(self) -> None:
        """Finish what is being copied, then let go of the pool. Idempotent."""
        await asyncio.get_running_loop().run_in_executor(None, self._workers.shutdown)
        self._copies.close()

    def _pack(self, keys: Keys) -> bytes:
        return self._copies.pack([key.to_string() for key in keys])

    async def _store(self, packed: bytes, memory_objs: Objects, parent: bytes | None) -> None:
        """The copy holds references of its own: LMCache may drop its own while the copy runs, and reuse the memory."""

        def let_go(_: object = None) -> None:
            for memory_obj in memory_objs:
                memory_obj.ref_count_down()

        for memory_obj in memory_objs:
            memory_obj.ref_count_up()
        try:
            future = self._workers.submit(
                lambda: self._copies.store(packed, [memory_obj.byte_array for memory_obj in memory_objs], parent)
            )
        except RuntimeError:  # Closed.
            let_go()
            raise
        future.add_done_callback(let_go)  # Also of a copy that was given up before it began.
        await asyncio.wrap_future(future)

    async def _load_beside(self, load: Callable[[], Answer]) -> Answer:
        """Load in another thread than the event loop's. What comes after the caller gave up waiting is given back."""
        future = self._workers.submit(load)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            future.add_done_callback(_give_back)
            raise

    def _load(self, keys: Keys) -> Loaded:
        views = self._copies.views(self._pack(keys))  # All pinned before the first is copied.
        return [self._load_one(key, view) for key, view in zip(keys, views, strict=True)]

    def _load_leading(self, keys: Keys) -> Objects:
        loaded = []
        for key, view in zip(keys, self._copies.views(self._pack(keys)), strict=True):
            memory_obj = self._load_one(key, view)
            if memory_obj is None:
                break
            loaded.append(memory_obj)
        return loaded

    def _load_one(self, key: CacheEngineKey, view: memoryview | None) -> MemoryObj | None:
        if view is None:
            return None
        shapes_of, dtypes, fmt, token_bytes = self._layout_of(key)
        tokens, rest_bytes = divmod(view.nbytes, token_bytes)
        if rest_bytes or not 0 < tokens <= self._metadata.chunk_size:
            self._copies.wrong_size(view.nbytes, self._metadata.chunk_size * token_bytes)
            return None
        memory_obj = self._buffers.allocate(shapes_of(tokens), dtypes, fmt)
        if memory_obj is not None and not self._copies.fill(memory_obj.byte_array, view):
            memory_obj.ref_count_down()
            return None
        return memory_obj

    def _layout_of(self, key: CacheEngineKey) -> tuple[Callable[[int], Shapes], Dtypes, MemoryFormat, int]:
        """Shapes of so many tokens, dtypes, format and bytes a token of this key's chunk: all layers, or one."""
        if not isinstance(key, LayerCacheEngineKey):
            return self._metadata.get_shapes, self.meta_dtypes, self.meta_fmt, int(self.single_token_size)
        _, kv, _, heads, head_size = self._metadata.kv_shape
        hidden, dtype = heads * head_size, self._metadata.kv_dtype
        if self._metadata.use_mla:
            return (
                lambda tokens: [torch.Size([tokens, hidden])],
                [dtype],
                MemoryFormat.KV_MLA_FMT,
                _nbytes(hidden, dtype),
            )
        token_bytes = _nbytes(kv * hidden, dtype)
        if self._blending:
            return lambda tokens: [torch.Size([kv, tokens, hidden])], [dtype], MemoryFormat.KV_2TD, token_bytes
        return lambda tokens: [torch.Size([tokens, kv, hidden])], [dtype], MemoryFormat.KV_T2D, token_bytes

    @staticmethod
    def _refuse_serde(config: LMCacheEngineConfig) -> None:
        """Bytes of another serde under the same keys would be read as raw KV by every other instance."""
        if (config.remote_serde or "naive") != "naive":
            raise SettingRefused(f"remote_serde: {config.remote_serde} stores something else than a chunk's KV")


def _give_back(future: Future[Any]) -> None:
    """LMCache stopped waiting: what was loaded meanwhile has no owner."""
    if future.cancelled() or future.exception():
        return
    for memory_obj in future.result():
        if memory_obj is not None:
            memory_obj.ref_count_down()


def _nbytes(values: int, dtype: torch.dtype) -> int:
    return values * int(dtype.itemsize)


def _address(config: LMCacheEngineConfig, plugin_name: str | None) -> str:
    """The plug-in's own `url`, else `remote_url` where it is one of ours. Raises BadUrl."""
    address = _plugin_address(config, plugin_name or PLUGIN_TYPE)
    if address is not None:
        return address
    remote_url = config.remote_url or ""
    if remote_url.startswith(SCHEME):
        return str(remote_url)
    raise BadUrl(f"no pool is named: set remote_storage_plugin.{plugin_name or PLUGIN_TYPE}.url in extra_config")


def _plugin_address(config: LMCacheEngineConfig, plugin_name: str) -> str | None:
    address = (config.extra_config or {}).get(f"remote_storage_plugin.{plugin_name}.url")
    return None if address is None else str(address)


def _default_size_bytes(config: LMCacheEngineConfig) -> int:
    """`maru_pool_size` of extra_config ("64G"), for an address that gives no size; 0 is the pool's own default."""
    size = (config.extra_config or {}).get("maru_pool_size")
    return 0 if size is None else parse_size(str(size))
