"""Maru's doors into LMCache. Importing this loads neither torch nor LMCache; using a name from it does.

CxlMemoryAdapter        what LMCache's own MaruBackend asks for: tensors that lie in the pool
MaruConnectorAdapter    LMCache's remote storage: `remote_url: "maru://..."`
SaltedLMCacheConnector  LMCache's connector for vLLM, with salts and adapters in its keys
MaruL2Adapter           the second level of LMCache's MP server
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maru_lmcache.adapter import CxlMemoryAdapter
    from maru_lmcache.l2 import MaruL2Adapter
    from maru_lmcache.remote import MaruConnectorAdapter
    from maru_lmcache.salted import SaltedLMCacheConnector

__all__ = ["CxlMemoryAdapter", "MaruConnectorAdapter", "MaruL2Adapter", "SaltedLMCacheConnector"]

_ROOMS = {
    "CxlMemoryAdapter": ("maru_lmcache.adapter", "CxlMemoryAdapter"),
    "CxlMemoryAllocator": ("maru_lmcache.adapter", "CxlMemoryAdapter"),
    "MaruConnectorAdapter": ("maru_lmcache.remote", "MaruConnectorAdapter"),
    "MaruL2Adapter": ("maru_lmcache.l2", "MaruL2Adapter"),
    "SaltedLMCacheConnector": ("maru_lmcache.salted", "SaltedLMCacheConnector"),
}


def __getattr__(name: str) -> Any:
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    room, found = _ROOMS[name]
    return getattr(import_module(room), found)
