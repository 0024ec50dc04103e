"""Which vLLM configurations fit, and what makes two instances interchangeable.

A chunk is some whole blocks of vLLM's, of every layer, as bytes: on a CPU the kernels pack keys and values inside a
block as they like. So everything that decides how those bytes lie is part of the identity, and what this file does not
know is refused: a model whose layers have different kinds of KV (sliding windows beside full attention, state-space
layers, MLA) needs more than one kind of chunk.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.platforms import current_platform

from maru import Identity
from maru.errors import MaruError

CHUNK_TOKENS = 256
_SAMPLE_BYTES = 1 << 16
_WEIGHTS = ("*.safetensors", "*.bin", "*.pt", "*.gguf")


class ModelRefused(MaruError, ValueError):
    """A model or a setting whose KV cache this door does not know."""

    hint = "start vLLM without this connector, or with LMCache's on Maru: docs/lmcache.md"


@dataclass(frozen=True)
class Shape:
    """What a chunk of this engine is."""

    block_tokens: int
    blocks_per_chunk: int
    layer_names: tuple[str, ...]

    @property
    def chunk_tokens(self) -> int:
        return self.block_tokens * self.blocks_per_chunk


def shape_of(vllm_config: Any, kv_cache_config: Any, chunk_tokens: int) -> Shape:
    """Raises ModelRefused, saying why."""
    groups = kv_cache_config.kv_cache_groups
    if len(groups) != 1:
        raise ModelRefused(f"the model has {len(groups)} kinds of KV cache; only one is known here")
    spec = groups[0].kv_cache_spec
    if type(spec).__name__ != "FullAttentionSpec":
        raise ModelRefused(f"the model's KV cache is a {type(spec).__name__}; only full attention is known here")
    if vllm_config.speculative_config is not None:
        raise ModelRefused("speculative decoding keeps a KV cache of its own beside the model's")
    if vllm_config.parallel_config.pipeline_parallel_size > 1:
        raise ModelRefused("pipeline parallelism: each stage has other layers, and nobody would have a whole chunk")
    block_tokens = int(spec.block_size)
    if chunk_tokens < 1:
        raise ModelRefused(f"chunk_tokens must be at least 1, not {chunk_tokens}")
    return Shape(block_tokens, max(1, chunk_tokens // block_tokens), tuple(groups[0].layer_names))


def identity_of(vllm_config: Any, kv_cache_config: Any, shape: Shape, tenant: str) -> Identity:
    """Equal on every instance that may share chunks with this one; equal on the scheduler and its workers."""
    model, cache, parallel = vllm_config.model_config, vllm_config.cache_config, vllm_config.parallel_config
    spec = kv_cache_config.kv_cache_groups[0].kv_cache_spec
    layout = [
        f"vllm {vllm.__version__}",
        f"platform {_platform()}",
        f"attention {getattr(vllm_config, 'attention_config', '')}",
        f"layout {kv_cache_config.kv_cache_layout}",
        f"block {shape.block_tokens} x {shape.blocks_per_chunk}",
        f"layers {len(shape.layer_names)}",
        f"spec {spec!r}",
    ]
    return Identity(
        model=name_of(model.model),
        revision=revision_of(model),
        tokenizer=name_of(model.tokenizer),
        dtype=f"{model.dtype} kv {cache.cache_dtype}, quantization {model.quantization}",
        kv_layout="; ".join(layout),
        parallel=f"tp={parallel.tensor_parallel_size}",
        tenant=tenant,
    )


def request_seed(digest: bytes, request: Any) -> bytes:
    """16 bytes that a request's chain of keys begins with.

    The namespace's digest, and what makes equal tokens mean other KV: an adapter, a cache salt, pictures. These count
    for the whole prompt: a request with a picture shares with those that have the same pictures in the same places.
    """
    parts: list[str] = []
    if request.lora_request is not None:
        lora = request.lora_request
        parts += ["lora", str(lora.lora_name), str(getattr(lora, "lora_path", ""))]
    if getattr(request, "cache_salt", None):
        parts += ["salt", str(request.cache_salt)]
    for feature in getattr(request, "mm_features", None) or ():
        place = feature.mm_position
        parts += ["mm", str(feature.identifier), str(place.offset), str(place.length)]
    if not parts:
        return digest
    raw = b"".join(len(part.encode()).to_bytes(4, "little") + part.encode() for part in parts)
    return hashlib.blake2b(raw, digest_size=16, key=digest).digest()


MARKER = "maru.cache"
"""In a request's kv_transfer_params: "off", nothing of it is looked up or stored; "read", nothing is stored."""


def marked(request: Any) -> str:
    """What a request says of itself by MARKER: "on" without one, "read" or "off". Anything else counts as "off": who
    writes a marker means to keep something back.
    """
    parameters = getattr(request, "kv_transfer_params", None)
    said = parameters.get(MARKER, "on") if isinstance(parameters, dict) else "on"
    return said if said in ("on", "read") else "off"


def _platform() -> str:
    """What the kernels were chosen for. Instances on other kinds of machine do not share."""
    if current_platform.is_cuda_alike():
        # vLLM's answers come without a context: a scheduler must not have one.
        return f"{current_platform.get_device_name()} {current_platform.get_device_capability()} {torch.version.cuda}"
    return f"cpu {torch.backends.cpu.get_cpu_capability()}"


def name_of(model: Any) -> str:
    """A hub's name with its owner; of a local folder its own name, wherever it lies."""
    path = Path(str(model))
    return path.name if path.is_dir() else str(model)


def revision_of(model: Any) -> str:
    """Digest of the configuration as vLLM runs it, overrides and all, and of which weights these are.

    The weights' commit where there is one; of a local folder, its files' names and sizes and a sample of each.
    """
    facts = model.hf_config.to_dict()
    for where in ("_name_or_path", "transformers_version"):
        facts.pop(where, None)
    digest = hashlib.blake2b(json.dumps(facts, sort_keys=True, default=str).encode(), digest_size=16)
    folder = Path(str(model.model))
    if not folder.is_dir():
        digest.update(str(getattr(model.hf_config, "_commit_hash", None) or model.revision).encode())
    for file in sorted(file for pattern in _WEIGHTS for file in folder.glob(pattern)):
        size = file.stat().st_size
        digest.update(f"{file.name} {size}\n".encode())
        with file.open("rb") as weights:
            for at in {0, size // 3, 2 * size // 3, max(0, size - _SAMPLE_BYTES)}:
                weights.seek(at)
                digest.update(weights.read(_SAMPLE_BYTES))
    return digest.hexdigest()
