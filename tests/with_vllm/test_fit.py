"""Promises about who shares with whom: what changes a chunk's bytes changes the identity; the unknown is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from maru import Identity
from maru.engine.vllm.fit import ModelRefused, identity_of, shape_of


class FullAttentionSpec(SimpleNamespace):
    """Named as vLLM's."""


class SlidingWindowSpec(SimpleNamespace):
    """Named as vLLM's."""


class HFConfig(SimpleNamespace):
    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "here" / "a-model"
    made.mkdir(parents=True)
    (made / "model.safetensors").write_bytes(bytes(range(256)) * 2000)
    return made


def make(folder: Path, **change: Any) -> tuple[Any, Any]:
    """vLLM's two configurations. `change`: by the name of what is changed."""
    spec = change.get("spec", FullAttentionSpec(block_size=128, num_kv_heads=3, head_size=64, dtype="float32"))
    config = SimpleNamespace(
        model_config=SimpleNamespace(
            model=str(change.get("model", folder)),
            tokenizer=str(change.get("tokenizer", folder)),
            revision=change.get("revision"),
            dtype=change.get("dtype", "float32"),
            quantization=change.get("quantization"),
            hf_config=HFConfig(_name_or_path=str(folder), rope_theta=change.get("rope_theta", 1e4)),
        ),
        cache_config=SimpleNamespace(cache_dtype=change.get("cache_dtype", "auto")),
        parallel_config=SimpleNamespace(
            tensor_parallel_size=change.get("tp", 1), pipeline_parallel_size=change.get("pp", 1)
        ),
        speculative_config=change.get("speculative"),
        attention_config=change.get("attention", "default"),
    )
    groups = [SimpleNamespace(kv_cache_spec=spec, layer_names=["a", "b"][: change.get("layers", 2)])]
    groups *= change.get("groups", 1)
    return config, SimpleNamespace(kv_cache_groups=groups, kv_cache_layout=change.get("layout", "LBHNC"))


def identity(folder: Path, tenant: str = "default", chunk_tokens: int = 256, **change: Any) -> Identity:
    config, cache = make(folder, **change)
    return identity_of(config, cache, shape_of(config, cache, chunk_tokens), tenant)


def test_equal_instances_are_equal_wherever_their_model_lies(folder: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "there" / "a-model"
    elsewhere.parent.mkdir()
    elsewhere.symlink_to(folder)
    assert identity(folder) == identity(folder)
    assert identity(folder) == identity(elsewhere)


@pytest.mark.parametrize(
    "change",
    [
        {"tenant": "other"}, {"chunk_tokens": 128}, {"dtype": "bfloat16"}, {"quantization": "awq"}, {"rope_theta": 1e6},
        {"cache_dtype": "fp8"}, {"tp": 2}, {"attention": "another"}, {"layout": "other"}, {"layers": 1},
        {"model": "owner/a-model"}, {"tokenizer": "owner/other"},
        {"spec": FullAttentionSpec(block_size=128, num_kv_heads=1, head_size=64, dtype="float32")},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_changes_the_bytes_changes_the_identity(folder: Path, change: dict[str, Any]) -> None:
    assert identity(folder, **change) != identity(folder)


def test_two_owners_of_one_name_are_two_models(folder: Path) -> None:
    assert identity(folder, model="a/m") != identity(folder, model="b/m")
    assert identity(folder, model="a/m", revision="1") != identity(folder, model="a/m", revision="2")


@pytest.mark.parametrize("at", [0, 200_000, 511_999])
def test_other_weights_in_the_same_folder_are_another_model(folder: Path, at: int) -> None:
    before = identity(folder)
    weights = folder / "model.safetensors"
    raw = bytearray(weights.read_bytes())
    raw[at] ^= 1
    weights.write_bytes(raw)
    assert identity(folder) != before


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"groups": 2}, "2 kinds of KV cache"),
        ({"spec": SlidingWindowSpec(block_size=128)}, "SlidingWindowSpec"),
        ({"speculative": object()}, "speculative"),
        ({"pp": 2}, "pipeline"),
        ({"chunk_tokens": 0}, "chunk_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_known_is_refused_with_the_reason(
    folder: Path, change: dict[str, Any], why: str, refuse: Callable[..., None]
) -> None:
    refuse(folder, why, **change)


@pytest.fixture
def refuse() -> Callable[..., None]:
    def attempt(folder: Path, why: str, **change: Any) -> None:
        with pytest.raises(ModelRefused, match=why):
            identity(folder, **change)

    return attempt


@pytest.mark.parametrize(("wanted", "blocks"), [(256, 2), (300, 2), (128, 1), (5, 1), (1024, 8)])
def test_a_chunk_is_whole_blocks_and_at_least_one(folder: Path, wanted: int, blocks: int) -> None:
    config, cache = make(folder)
    assert shape_of(config, cache, wanted).blocks_per_chunk == blocks
