"""LMCache's own multi-process connector, on a vLLM without a GPU. For measurements only; LMCache itself is untouched.

vLLM 0.32 looks through the attributes of every loaded module for kernels to replace, and takes it that each has a plain
dict; a C library's object that LMCache brings has none, and start-up fails. Here such objects count as empty.
"""

from __future__ import annotations

import builtins
from typing import Any

import vllm.triton_utils.dispatcher as dispatcher


def _plain_vars(value: Any) -> Any:
    found = builtins.vars(value)
    return found if isinstance(found, dict) or type(found).__name__ == "mappingproxy" else {}


dispatcher.vars = _plain_vars

from lmcache.integration.vllm.lmcache_mp_connector import LMCacheMPConnector  # noqa: E402

__all__ = ["LMCacheMPConnector"]
