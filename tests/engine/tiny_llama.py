"""Random models that are small enough to build in every test. Nothing here is downloaded."""

from __future__ import annotations

from typing import Any

import torch
import transformers


def build_llama(seed: int = 0, **changes: Any) -> Any:
    """A random Llama of 2 layers, 2 KV heads x 32, in float32; its answers are noise, but the same noise."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        **{
            "vocab_size": 200,
            "hidden_size": 128,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            # Large enough that no two logits of a random model are near each other.
            "initializer_range": 0.3,
            "eos_token_id": None,
            "bos_token_id": None,
            **changes,
        }
    )
    return transformers.LlamaForCausalLM(config).eval()
