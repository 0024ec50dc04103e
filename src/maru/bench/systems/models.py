"""The KV sizes of named models, from their published configurations.

Bytes of KV a token = 2 (keys and values) x layers x KV heads x head size x bytes of a value.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from maru.errors import MaruError


class UnknownModel(MaruError):
    """Nobody knows the KV size of a model of that name."""

    hint = "where nothing is computed: a named model, or the bytes of KV a token; else a folder with a model's files"


@dataclass(frozen=True)
class KvModel:
    """What a model's KV cache is made of."""

    name: str
    layers: int
    kv_heads: int
    head_size: int
    value_bytes: int = 2
    tokens_max: int = 0
    """Of a prompt and its answer; 0 where nothing is computed."""

    @property
    def token_bytes(self) -> int:
        return 2 * self.layers * self.kv_heads * self.head_size * self.value_bytes


# Each from the config.json that its publisher ships: num_hidden_layers, num_key_value_heads, head_dim.
MODELS = {
    model.name: model
    for model in (
        KvModel("Llama-3.1-8B", 32, 8, 128),
        KvModel("Llama-3.1-70B", 80, 8, 128),
        KvModel("Qwen3-8B", 36, 8, 128),
        KvModel("Qwen3-30B-A3B", 48, 4, 128),
        KvModel("Qwen3-32B", 64, 8, 128),
        KvModel("SmolLM2-135M", 30, 3, 64, 4),
    )
}


def model_named(text: str) -> KvModel:
    """A named model, or one of so many bytes a token. Raises UnknownModel."""
    if text in MODELS:
        return MODELS[text]
    if text.isdigit() and int(text) > 0:
        return _of_bytes(int(text))
    raise UnknownModel(f"no model named {text!r}; there are {', '.join(MODELS)}")


def folder_model(folder: Path, name: str) -> KvModel:
    """The KV of a model in a folder, in float32, as its own config.json says. Raises UnknownModel."""
    try:
        told = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        heads, hidden = int(told["num_attention_heads"]), int(told["hidden_size"])
        found = KvModel(
            name, int(told["num_hidden_layers"]), int(told.get("num_key_value_heads") or heads),
            int(told.get("head_dim") or hidden // heads), 4, int(told["max_position_embeddings"]),
        )  # fmt: skip
        (folder / "tokenizer.json").stat()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnknownModel(f"{folder} is no folder of a model: {type(error).__name__} {error}") from None
    return found


def _of_bytes(token_bytes: int) -> KvModel:
    if token_bytes % 2:
        raise UnknownModel(f"{token_bytes} bytes of KV a token: keys and values take as much, so it is an even number")
    return KvModel(f"{token_bytes} bytes a token", 1, 1, token_bytes // 2, 1)
