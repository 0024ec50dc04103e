"""LMCache's connector for vLLM, with requests kept apart that LMCache itself takes for the same.

LMCache 0.5.6 inside an engine's process makes its keys of the tokens alone: it looks neither at a request's
`cache_salt` nor at its LoRA adapter. So users who were to be parted hit each other's prompts, and an adapter is served
the KV of another one. What LMCache does put into its keys are tags of a request (`lmcache.tag.*` in its
`kv_transfer_params`). This connector makes one of both, on the scheduler's side, before LMCache looks at the request,
and overwrites what the request itself says under that name. A request without salt and adapter keeps the keys that it
has without this connector, so engines with and without it share those.

    --kv-transfer-config '{"kv_connector": "SaltedLMCacheConnector",
                           "kv_connector_module_path": "maru_lmcache", "kv_role": "kv_both"}'

LMCache is imported by vLLM's own connector, and late: see `maru.bench.engines.on_cpu`.
"""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from collections.abc import Mapping
from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.lmcache_connector import LMCacheConnectorV1
from vllm.sampling_params import SamplingParams

TAG = "lmcache.tag.maru_salt"
"""The tag's name, as LMCache reads it from a request."""

_TRANSFER = "kv_transfer_params"


def apartness(request: Any) -> str | None:
    """32 hex digits of what keeps a vLLM request apart from others of the same tokens; None: nothing does.

    BLAKE2b over salt, adapter's name and adapter's path, each behind its length, so that no two of them run together.
    """
    lora = request.lora_request
    parts = [request.cache_salt or "", "", ""]
    if lora is not None:
        parts[1:] = [str(lora.lora_name), str(getattr(lora, "lora_path", ""))]
    if not any(parts):
        return None
    raw = b"".join(len(part.encode()).to_bytes(4, "little") + part.encode() for part in parts)
    return hashlib.blake2b(raw, digest_size=16, person=b"maru salt").hexdigest()


def tag(request: Any) -> bool:
    """Give a request its tag, or take away one that it brought itself. False: it needs one and can carry none, as a
    request for an embedding, which has no sampling parameters.
    """
    apart = apartness(request)
    if request.sampling_params is None:
        return apart is None
    extra = request.sampling_params.extra_args or {}
    brought = extra.get(_TRANSFER)
    brought = brought if isinstance(brought, Mapping) else {}
    transfer = {name: value for name, value in brought.items() if name != TAG}
    if apart is not None:
        transfer[TAG] = apart
    if transfer != brought:
        # A copy: in an engine of one process the caller may ask with the same object again.
        request.sampling_params = copy.copy(request.sampling_params)
        request.sampling_params.extra_args = {**extra, _TRANSFER: transfer}
    return True


class SaltedLMCacheConnector(LMCacheConnectorV1):
    """LMCacheConnectorV1 that honours `cache_salt` and LoRA adapters. Takes what that one takes."""

    def __init__(self, vllm_config: Any, role: Any, kv_cache_config: Any) -> None:
        super().__init__(vllm_config=vllm_config, role=role, kv_cache_config=kv_cache_config)
        self._kept_back: set[str] = set()

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int | None, bool]:
        """As LMCache's; of a request that can carry no tag, nothing is looked up."""
        if not tag(request):
            return 0, False
        found: tuple[int | None, bool] = super().get_num_new_matched_tokens(request, num_computed_tokens)
        return found

    def update_state_after_alloc(self, request: Any, blocks: Any, num_external_tokens: int) -> None:
        """As LMCache's. A request comes here before each time that it is scheduled as a new one."""
        if not tag(request):
            self._kept_back.add(request.request_id)
        super().update_state_after_alloc(request, blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: Any) -> Any:
        """As LMCache's; a request that can carry no tag is marked, in a copy, as one of which nothing is stored."""
        new = scheduler_output.scheduled_new_reqs
        if any(request.req_id in self._kept_back for request in new):
            scheduler_output = copy.copy(scheduler_output)
            scheduler_output.scheduled_new_reqs = [
                _not_to_be_stored(request) if request.req_id in self._kept_back else request for request in new
            ]
            self._kept_back.clear()
        return super().build_connector_meta(scheduler_output)


def _not_to_be_stored(request: Any) -> Any:
    params = SamplingParams(extra_args={_TRANSFER: {"lmcache.skip_save": True}})
    return dataclasses.replace(request, sampling_params=params)
