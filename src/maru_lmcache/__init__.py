"""Maru's doors into LMCache. Importing this loads neither torch nor LMCache; using a name from it does.

`CxlMemoryAdapter` is what LMCache's own MaruBackend asks for.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from maru_lmcache.adapter import CxlMemoryAdapter

__all__ = ["CxlMemoryAdapter"]

_ADAPTER_NAMES = ("CxlMemoryAdapter", "CxlMemoryAllocator")


def __getattr__(name: str) -> Any:
    if name in _ADAPTER_NAMES:
        from maru_lmcache.adapter import CxlMemoryAdapter

        return CxlMemoryAdapter
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
