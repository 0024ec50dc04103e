"""Ways to configure LMCache for the remote storage door, and a connector made by LMCache's own loader."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import torch
from lmcache.utils import CacheEngineKey
from lmcache.v1.config import LMCacheEngineConfig
from lmcache.v1.metadata import LMCacheMetadata
from lmcache.v1.storage_backend.connector import CreateConnector
from lmcache.v1.storage_backend.local_cpu_backend import LocalCPUBackend

import maru
from engine import CHUNK_TOKENS, HEAD_DIM, HEADS, LAYERS
from maru.string_keys import lmcache_namespace, pack_keys

CHUNK_BYTES = LAYERS * 2 * CHUNK_TOKENS * HEADS * HEAD_DIM * 2
DEADLINE_S = 20.0


def plugin(module: str = "maru_lmcache.remote", name: str = "MaruConnectorAdapter") -> dict[str, Any]:
    return {"remote_storage_plugin.maru.module_path": module, "remote_storage_plugin.maru.class_name": name}


def published(url: str) -> dict[str, Any]:
    """`remote_url` as the system's first figures were published with, and the plug-in that LMCache needs for it."""
    return {
        "remote_url": url,
        "remote_serde": "naive",
        "remote_storage_plugins": ["maru"],
        "extra_config": {**plugin(), "save_chunk_meta": False},
    }


def by_plugin(url: str) -> dict[str, Any]:
    return {
        "remote_storage_plugins": ["maru"],
        "extra_config": {**plugin(), "remote_storage_plugin.maru.url": url},
    }


def by_class(url: str) -> dict[str, Any]:
    """The connector's class itself, which LMCache wraps."""
    return {
        "remote_storage_plugins": ["maru"],
        "extra_config": {**plugin(name="MaruConnector"), "remote_storage_plugin.maru.url": url},
    }


def external(url: str) -> dict[str, Any]:
    """The older way in, by a URL that names module and class."""
    return {
        "remote_url": "external://host:0/maru_lmcache.remote/?connector_name=MaruConnector",
        "extra_config": {"remote_storage_plugin.maru.url": url},
    }


def config_of(settings: dict[str, Any]) -> LMCacheEngineConfig:
    return LMCacheEngineConfig.from_defaults(
        **{"chunk_size": CHUNK_TOKENS, "local_cpu": False, "max_local_cpu_size": 0.1, **settings}
    )


def metadata_of(dtype: torch.dtype = torch.float16, role: str = "worker") -> LMCacheMetadata:
    return LMCacheMetadata(
        model_name="m",
        world_size=1,
        local_world_size=1,
        worker_id=0,
        local_worker_id=0,
        kv_dtype=dtype,
        kv_shape=(LAYERS, 2, CHUNK_TOKENS, HEADS, HEAD_DIM),
        role=role,
        chunk_size=CHUNK_TOKENS,
    )


def connector_of(
    settings: dict[str, Any],
    local: LocalCPUBackend | None = None,
    role: str = "worker",
    dtype: torch.dtype = torch.float16,
) -> Any:
    config = config_of(settings)
    name = None if config.remote_url else "maru"
    loop = asyncio.new_event_loop()
    try:
        connector = CreateConnector(
            config.remote_url or "plugin://maru", loop, local, config, metadata_of(dtype, role), plugin_name=name
        )
    finally:
        loop.close()
    return connector.getWrappedConnector()


def key_of(number: int) -> CacheEngineKey:
    return CacheEngineKey("m", 1, 0, number, torch.float16)


def packed(pool: maru.Pool, key: CacheEngineKey) -> bytes:
    return pack_keys(lmcache_namespace(pool), [key.to_string()])


def eventually(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S:.0f} s: {what}"
        time.sleep(0.002)
