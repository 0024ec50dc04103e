"""LMCache's two copying doors side by side with its own: L2 adapters of the MP server, and remote backends.

Holds:      adapters and backends as LMCache makes them from their configuration, and the rows about them.
Promises:   what they keep lies in a Place, which vanishes with its context.
Leaves:     the calls, and the look at what came of them, to `lmcache_copy_lanes`, the sampling to `measure`, and the
            command line to `lmcache_copies`.

All figures are of whole batches, by the chunk. A lookup is the whole way of asking: a task, its thread, its signal;
its ratio is its time by that of copying the chunk.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.distributed.l2_adapters.config import get_l2_adapter_config_class
from lmcache.v1.distributed.l2_adapters.factory import create_l2_adapter_from_registry
from lmcache.v1.memory_management import MemoryFormat
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend
from lmcache.v1.storage_backend.remote_backend import RemoteBackend

from maru.address import slab_bytes_for
from maru.bench import ground, machine, report
from maru.bench.engines.lmcache_copy_lanes import (
    COPY,
    Batch,
    CopyFailed,
    L2Lane,
    RemoteLane,
    Steps,
    bytes_of,
    plain_copy,
)
from maru.bench.measure import Progress, Row, interleave
from maru.config import format_size
from maru.pool import Pool

OURS = "maru"
L2_KINDS = (OURS, "dax", "fs")
REMOTE_KINDS = (OURS, "fs")

# Stores rotate over so many batches of bytes, as a batch is removed before the next one is stored.
_ROOM_BATCHES = 4
# Beside the stores: two folders of files, what is copied and where it arrives, and what LMCache's buffers hold.
_BUFFER_BATCHES = 3
_OTHER_BATCHES = 4 + _BUFFER_BATCHES
# A model of 32 KiB a token, so that any number of MiB is whole tokens.
_LAYERS, _HEADS, _HEAD_DIM, _DTYPE = 8, 8, 128, torch.float16
_TOKEN_BYTES = _LAYERS * 2 * _HEADS * _HEAD_DIM * _DTYPE.itemsize


@dataclass(frozen=True)
class Sizes:
    """How many bytes a sample moves, and in chunks of which sizes. Raises ValueError."""

    batch_bytes: int
    chunk_bytes: tuple[int, ...]

    def __post_init__(self) -> None:
        for size in self.chunk_bytes:
            if size <= 0 or size % _TOKEN_BYTES or self.batch_bytes % size or self.batch_bytes < size:
                raise ValueError(
                    f"a batch of {format_size(self.batch_bytes)} is not whole chunks of {format_size(size)}"
                )
        if not self.chunk_bytes or len(set(self.chunk_bytes)) != len(self.chunk_bytes):
            raise ValueError("name each chunk size once, and at least one")

    @property
    def room_bytes(self) -> int:
        """Size of each store."""
        return max(_ROOM_BATCHES * self.batch_bytes, ground.DATA_BYTES_MIN)

    @property
    def group_count(self) -> int:
        """How many tables there will be: two doors for each size."""
        return 2 * len(self.chunk_bytes)


@dataclass(frozen=True)
class Place:
    """Where everything is kept that the contestants store."""

    pool: Pool
    folder: Path
    room_bytes: int


@dataclass(frozen=True)
class Group:
    """One table: its rows, and a line for each contestant that could not take part."""

    title: str
    rows: list[Row]
    absent: list[str]


@contextmanager
def make_place(sizes: Sizes) -> Iterator[Place]:
    """A ready pool and a folder in /dev/shm; both are gone afterwards. Raises TooSmall."""
    in_shm_bytes = 2 * sizes.room_bytes + 2 * sizes.batch_bytes
    needed_bytes = 2 * sizes.room_bytes + _OTHER_BATCHES * sizes.batch_bytes
    mounted = os.statvfs(ground.SHM)
    shm_bytes, memory_bytes = mounted.f_bavail * mounted.f_frsize, machine.memory_available_bytes()
    if in_shm_bytes > shm_bytes or needed_bytes > memory_bytes:
        raise ground.TooSmall(
            f"batches of {format_size(sizes.batch_bytes)} need {format_size(in_shm_bytes)} in {ground.SHM}, which has "
            f"{format_size(shm_bytes)} free, and {format_size(needed_bytes)} of memory, of which "
            f"{format_size(memory_bytes)} are available"
        )
    slab_bytes = slab_bytes_for(sizes.room_bytes, max(sizes.chunk_bytes))
    with (
        ground.bench_pool("copies", sizes.room_bytes, f"slab_bytes={slab_bytes}") as pool,
        tempfile.TemporaryDirectory(prefix=f"maru-bench-{os.getpid()}-", dir=ground.SHM) as folder,
    ):
        yield Place(pool, Path(folder), sizes.room_bytes)


def measure(place: Place, sizes: Sizes, rounds: int, show: report.Show) -> list[Group]:
    """All groups, in the order of the tables. Raises CopyFailed, TooSmall."""
    source, landing = ground.source_array(sizes.batch_bytes), ground.touched_array(sizes.batch_bytes)
    groups = []
    for size in sizes.chunk_bytes:
        for title, figures in (("L2 adapters", l2_group), ("Remote backends", remote_group)):
            title = f"{title}, chunks of {format_size(size)}"
            show(title, 0, 1)
            groups.append(figures(title, place, Batch(source, landing, size), rounds, partial(show, title)))
    return groups


def _contest(lanes: list[L2Lane | RemoteLane], batch: Batch, rounds: int, progress: Progress) -> list[Row]:
    """The rows of all lanes, and of the copy that they are compared with. Raises CopyFailed."""
    steps = Steps(len(batch))
    timed = [plain_copy(batch, steps), *(one for lane in lanes for one in lane.timed(steps))]
    seconds = interleave([one.contestant for one in timed], rounds, progress=progress)
    steps.settle()
    for lane in lanes:
        lane.clear()  # The next group is to find as much room as this one did.
    rows = []
    for one in timed:
        name = one.contestant.name
        compared = (COPY, seconds[COPY]) if name != COPY else ("", ())
        rows.append(Row(name, seconds[name], batch.chunk_bytes if one.moves_bytes else 0, *compared))
    return rows


def _opened(stack: ExitStack, kind: str, opening: AbstractContextManager[Any], absent: list[str]) -> Any:
    """Open one of LMCache's own, or say why it is absent and return None. Ours has to open."""
    try:
        return stack.enter_context(opening)
    except Exception as error:  # Whatever LMCache raises where a machine lacks something that one of its own needs.
        if kind == OURS:
            raise
        absent.append(f"{kind}: {type(error).__name__}: {error}")
        return None


# The MP server's second level


def l2_group(title: str, place: Place, batch: Batch, rounds: int, progress: Progress) -> Group:
    """Store, lookup and load of each L2 adapter."""
    lanes, absent = list[L2Lane | RemoteLane](), list[str]()
    with ExitStack() as stack:
        for kind in L2_KINDS:
            adapter = _opened(stack, kind, _l2_adapter(kind, place, batch.chunk_bytes), absent)
            if adapter is not None:
                lanes.append(L2Lane(kind, adapter, batch))
        return Group(title, _contest(lanes, batch, rounds, progress), absent)


@contextmanager
def _l2_adapter(kind: str, place: Place, chunk_bytes: int) -> Iterator[Any]:
    """An adapter as LMCache's server makes it from `--l2-adapter`."""
    with ExitStack() as stack:
        spec: dict[str, Any]
        if kind == OURS:
            spec = {"type": "plugin", "module_path": "maru_lmcache.l2", "class_name": "MaruL2Adapter"}
            spec |= {"adapter_params": {"pool": place.pool.config.url}}
        elif kind == "dax":
            device = place.folder / "dax"
            stack.callback(device.unlink, missing_ok=True)
            with device.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, place.room_bytes)
            spec = {"type": "dax", "device_path": str(device), "slot_bytes": chunk_bytes}
            spec |= {"max_dax_size_gb": place.room_bytes / 2**30}
        else:
            spec = {"type": "fs", "base_path": str(place.folder / "l2")}
        config = get_l2_adapter_config_class(spec["type"]).from_dict(spec)
        adapter = stack.enter_context(closing(create_l2_adapter_from_registry(config)))
        if kind == OURS:
            _wait_until_touched(adapter._copies)
        yield adapter


def _wait_until_touched(copies: Any) -> None:
    """A door maps the pool by itself, and a thread touches that mapping: it is not to run beside a sample."""
    ground.until_ready(copies._attached.pool)


# Remote storage


def remote_group(title: str, place: Place, batch: Batch, rounds: int, progress: Progress) -> Group:
    """Put and get of each remote backend, between the store and LMCache's own buffers."""
    lanes, absent = list[L2Lane | RemoteLane](), list[str]()
    tokens = batch.chunk_bytes // _TOKEN_BYTES
    metadata = LMCacheMetadata(
        model_name="bench",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=_DTYPE,
        kv_shape=(_LAYERS, 2, tokens, _HEADS, _HEAD_DIM),
        role="worker",
        chunk_size=tokens,
    )
    with ExitStack() as stack:
        buffers_bytes = _BUFFER_BATCHES * batch.source.nbytes
        local = LocalCPUBackend(_remote_config(OURS, place, tokens, buffers_bytes), metadata, "cpu")
        stack.callback(local.close)
        loop = stack.enter_context(_event_loop())
        sources = [
            local.allocate(metadata.get_shapes(), metadata.get_dtypes(), MemoryFormat.KV_2LTD)
            for _ in range(len(batch))
        ]
        for memory_obj, wanted in zip(sources, batch.sources, strict=True):
            bytes_of(memory_obj)[:] = wanted
            stack.callback(memory_obj.ref_count_down)
        for kind in REMOTE_KINDS:
            config = _remote_config(kind, place, tokens, buffers_bytes)
            backend = _opened(stack, kind, _remote_backend(kind, config, metadata, loop, local), absent)
            if backend is not None:
                lanes.append(RemoteLane(kind, backend, batch, sources, _DTYPE))
        return Group(title, _contest(lanes, batch, rounds, progress), absent)


def _remote_config(kind: str, place: Place, tokens: int, buffers_bytes: int) -> LMCacheEngineConfig:
    extra: dict[str, Any] = {"save_chunk_meta": False}
    settings: dict[str, Any] = {"remote_url": f"fs://host:0/{place.folder / 'remote'}"}
    if kind == OURS:
        settings = {"remote_storage_plugins": ["maru"]}
        extra |= {
            "remote_storage_plugin.maru.module_path": "maru_lmcache.remote",
            "remote_storage_plugin.maru.class_name": "MaruConnectorAdapter",
            "remote_storage_plugin.maru.url": place.pool.config.url,
        }
    return LMCacheEngineConfig.from_defaults(
        chunk_size=tokens,
        local_cpu=False,
        max_local_cpu_size=buffers_bytes / 2**30,
        remote_serde="naive",
        extra_config=extra,
        **settings,
    )


@contextmanager
def _event_loop() -> Iterator[asyncio.AbstractEventLoop]:
    """A loop in a thread of its own, as LMCache's engine has one."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="bench-remote", daemon=True)
    thread.start()
    try:
        yield loop
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def _remote_backend(
    kind: str, config: LMCacheEngineConfig, metadata: LMCacheMetadata, loop: asyncio.AbstractEventLoop, local: Any
) -> Iterator[Any]:
    backend = RemoteBackend(config, metadata, loop, local, "cpu", plugin_name="maru" if kind == OURS else None)
    if backend.connection is None:  # LMCache goes on without remote storage, and says why in its log.
        raise CopyFailed(f"LMCache could not connect its remote backend {kind}")
    with closing(backend):
        if kind == OURS:
            _wait_until_touched(backend.connection.getWrappedConnector().copies)
        yield backend
