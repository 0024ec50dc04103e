"""Which transformers models fit the door, and what makes two of them interchangeable.

Holds:      the refusals, the cache's shape as one forward pass shows it, and the identity of a model.
Promises:   equal identities mean that one model's chunks are the other's, up to rounding; a model whose KV is
            more than a function of the tokens so far raises ModelRefused.
Leaves:     every use of a chunk to `transformers`, the door.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from transformers.cache_utils import DynamicCache, DynamicLayer

from maru import Identity
from maru.errors import MaruError

__all__ = ["CacheShape", "ModelRefused", "cache_shape", "fingerprint", "identity_of", "refuse_by_config"]

# Raised whenever the chunk layout that `transformers` describes changes: chunks of another number are then
# simply not found.
LAYOUT_VERSION = 1
# Values hashed of each weight tensor. Training, merging or quantising changes practically every value, so a
# sample tells two models apart at a cost that does not grow with them.
SAMPLE_VALUES = 256
# These rescale the rotary frequencies with the length of the prompt, so a prefix's keys depend on what
# follows it.
LENGTH_DEPENDENT_ROPE = ("dynamic", "longrope")


class ModelRefused(MaruError):
    """This model's cache cannot be rebuilt from chunks of tokens; the message says why."""

    hint = "the door takes decoder-only text models with full attention in every layer, on one device"


@dataclass(frozen=True)
class CacheShape:
    """What a one-token forward pass showed about the model's cache."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: Any
    device: Any


def refuse_by_config(model: Any) -> None:
    """Raise ModelRefused for every model whose KV is more than a function of the tokens so far."""
    config = model.config
    name = type(model).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise ModelRefused(f"{name} is an encoder-decoder: its cache depends on the encoder's input too")
    if config.get_text_config(decoder=True) is not config:
        raise ModelRefused(f"{name} takes more than text: its cache depends on images or sound too")
    if model.training:
        raise ModelRefused(f"{name} is in training mode: dropout makes its cache random; call model.eval()")
    if getattr(model, "tp_size", None) not in (None, 1):
        raise ModelRefused(f"{name} is split over {model.tp_size} tensor-parallel ranks")
    rope = json.dumps(getattr(config, "rope_parameters", None), default=str)
    if any(f'"{kind}"' in rope for kind in LENGTH_DEPENDENT_ROPE):
        raise ModelRefused(f"{name} scales its rotary positions with the prompt's length: {rope}")
    try:
        layers = DynamicCache(config=config).layers
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ModelRefused(f"{name}: transformers builds no DynamicCache for it ({error!r})") from error
    kinds = sorted({type(layer).__name__ for layer in layers})
    if kinds != [DynamicLayer.__name__]:
        raise ModelRefused(f"{name} does not keep every token in every layer: it caches in {', '.join(kinds)}")


def cache_shape(model: Any) -> CacheShape:
    """Run one token through the model and read the cache's shape: truer than any reading of the config."""
    past = DynamicCache(config=model.config)
    with torch.no_grad():
        model(input_ids=torch.zeros((1, 1), dtype=torch.long, device=model.device), past_key_values=past)
    seen = {
        (tuple(tensor.shape), tensor.dtype, tensor.device)
        for layer in past.layers
        if layer.is_initialized
        for tensor in (layer.keys, layer.values)
    }
    filled = sum(1 for layer in past.layers if layer.is_initialized)
    if len(seen) != 1 or filled != len(past.layers):
        raise ModelRefused(
            f"{type(model).__name__} filled {filled} of {len(past.layers)} cache layers, "
            f"with tensors of {len(seen)} shapes: {sorted(str(one) for one in seen)}"
        )
    ((shape, dtype, device),) = seen
    return CacheShape(layers=len(past.layers), kv_heads=shape[1], head_dim=shape[3], dtype=dtype, device=device)


def identity_of(
    model: Any,
    shape: CacheShape,
    *,
    model_name: str,
    tokenizer_name: str,
    tenant: str,
    revision: str | None,
    chunk_tokens: int,
) -> Identity:
    """Everything that must be equal for one's chunks to be another's."""
    parts = {
        "layout": f"transformers-dynamic-{LAYOUT_VERSION}",
        "transformers": transformers.__version__,
        "torch": torch.__version__,
        "attention": model.config._attn_implementation,
        "device": shape.device.type,
        # Kernels of another instruction set round differently.
        "isa": torch.backends.cpu.get_cpu_capability() if shape.device.type == "cpu" else "",
        "layers": shape.layers,
        "kv_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "chunk_tokens": chunk_tokens,
    }
    return Identity(
        model=model_name,
        kv_layout=";".join(f"{name}={value}" for name, value in parts.items()),
        tenant=tenant,
        revision=revision or fingerprint(model),
        tokenizer=tokenizer_name,
        dtype=str(shape.dtype).removeprefix("torch."),
    )


def fingerprint(model: Any) -> str:
    """32 hex digits from the model's configuration and a sample of each of its tensors.

    Tells models apart; it is not a proof that all weights are equal. Costs milliseconds.
    Raises ModelRefused when a weight is not in memory: then name a `revision`.
    """
    config = model.config.to_dict()
    for of_no_effect in ("_name_or_path", "transformers_version"):
        config.pop(of_no_effect, None)
    digest = hashlib.blake2b(json.dumps(config, sort_keys=True, default=str).encode(), digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        if tensor.device.type == "meta":
            raise ModelRefused(f"weight {name} is not in memory, so no fingerprint; pass revision=")
        digest.update(f"{name}{list(tensor.shape)}{tensor.dtype}".encode())
        flat = tensor.detach().reshape(-1)
        sample = flat[:: max(1, flat.numel() // SAMPLE_VALUES)].contiguous().cpu()
        if sample.numel():
            digest.update(sample.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
