"""Which ways from vLLM into a pool keep requests of different `cache_salt` apart. docs/security.md tells it."""

from __future__ import annotations

import inspect

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256_cbor
from vllm.v1.core import kv_cache_utils
from vllm.v1.request import Request

from maru.key import Identity
from maru.native import core

TOKENS = list(range(64))
BLOCK_TOKENS = 16


def hashes(cache_salt: str | None) -> list[bytes]:
    """vLLM's hashes of a prompt's blocks, of which a tier's keys are made."""
    hasher = kv_cache_utils.get_request_block_hasher(BLOCK_TOKENS, sha256_cbor)
    request = Request("r", TOKENS, SamplingParams(), None, cache_salt=cache_salt, block_hasher=hasher)
    return [bytes(block) for block in request.block_hashes]


def test_the_hashes_that_vllm_gives_a_tier_hang_on_the_salt_in_every_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache_utils, "NONE_HASH", bytes(32), raising=False)
    plain, one, other = hashes(None), hashes("one"), hashes("other")
    assert len(plain) == len(TOKENS) // BLOCK_TOKENS
    assert len({*plain, *one, *other}) == 3 * len(plain)
    assert hashes("one") == one


def test_lmcache_in_an_engines_own_process_does_not_know_a_salt() -> None:
    """When this fails LMCache has learnt it: docs/security.md and docs/lmcache.md say otherwise."""
    adapter = pytest.importorskip("lmcache.integration.vllm.vllm_v1_adapter")
    assert "cache_salt" not in inspect.getsource(adapter)
    assert "cache_salt" not in inspect.getsource(pytest.importorskip("lmcache.utils").CacheEngineKey)


def test_a_tag_in_a_request_parts_what_lmcache_keeps_of_it() -> None:
    utils = pytest.importorskip("lmcache.utils")
    digest = core.blake3(Identity(model="lmcache", kv_layout="any").encode(), 16)
    tags = [None, {"lmcache.tag.user": "one"}, {"lmcache.tag.user": "other"}]
    keys = [utils.CacheEngineKey("m", 1, 0, 7, torch.bfloat16, tag).to_string() for tag in tags]
    assert len({core.blake3(digest + key.encode(), 16) for key in keys}) == 3
