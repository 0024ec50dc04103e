"""Two vLLM processes with LMCache behind our connector, one pool: users with other salts, and other LoRA adapters, do
not get each other's KV. A real trained model; its adapters are made of random numbers, large enough to change answers.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from in_vllm import CHUNK_TOKENS, config_in_vllm

from engine_kit import settled, stored
from maru.bench.engines.vllm_instance import About, VllmInstance

CHUNKS = 2
ANSWER_TOKENS = 8

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM: see make engines"),
]


def adapter(folder: Path, model: Path, seed: int) -> Path:
    """A LoRA adapter of rank 8 for every layer's q_proj and v_proj."""
    import torch
    from safetensors.torch import save_file

    shape = json.loads((model / "config.json").read_text())
    hidden, heads, groups = shape["hidden_size"], shape["num_attention_heads"], shape["num_key_value_heads"]
    numbers = torch.Generator().manual_seed(seed)
    rows = {}
    for layer in range(shape["num_hidden_layers"]):
        for name, size in (("q_proj", hidden), ("v_proj", hidden // heads * groups)):
            place = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            rows[f"{place}.lora_A.weight"] = torch.randn(8, hidden, generator=numbers) / hidden**0.5
            rows[f"{place}.lora_B.weight"] = torch.randn(size, 8, generator=numbers) / 8**0.5
    folder.mkdir()
    save_file(rows, folder / "adapter_model.safetensors")
    told = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    return folder


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return adapter(folder / "one", model, 1), adapter(folder / "other", model, 2)


@pytest.fixture(scope="module")
def two(
    model: Path, pool_of_module: str, adapters: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[list[VllmInstance]]:
    folder = tmp_path_factory.mktemp("vllm")
    configs = [
        config_in_vllm(folder, model, pool_of_module, number, 1, connector="SaltedLMCacheOnCPU") for number in (0, 1)
    ]
    instances = [VllmInstance(replace(config, adapters=adapters, max_tokens=2048)) for config in configs]
    try:
        yield [instance.wait_ready() for instance in instances]
    finally:
        for instance in instances:
            instance.close()


def prompt(text_ids: list[int], number: int) -> list[int]:
    return text_ids[number * 700 :][: CHUNKS * CHUNK_TOKENS + 30]


NOBODY = About()
ONE, OTHER = About(salt="one"), About(salt="other")


@pytest.mark.parametrize(
    ("number", "mine", "theirs", "shared"),
    [
        pytest.param(0, ONE, ONE, True, id="equal salts share"),
        pytest.param(1, ONE, OTHER, False, id="other salts do not"),
        pytest.param(2, ONE, NOBODY, False, id="a salt and none do not"),
        pytest.param(3, NOBODY, ONE, False, id="none and a salt do not"),
        pytest.param(4, NOBODY, NOBODY, True, id="without salts they share"),
    ],
)
def test_users_share_exactly_when_their_salts_are_equal(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str,
    number: int, mine: About, theirs: About, shared: bool,
) -> None:  # fmt: skip
    a, b = two
    before = stored(pool_of_module)
    asked = prompt(text_ids, number)
    computed = a.ask(asked, ANSWER_TOKENS, mine)
    settled(pool_of_module, CHUNKS, before)
    answer = b.ask(asked, ANSWER_TOKENS, theirs)
    assert answer.cached_tokens == (CHUNKS * CHUNK_TOKENS if shared else 0)
    assert answer.output_ids == computed.output_ids
    settled(pool_of_module, CHUNKS if shared else 2 * CHUNKS, before)


def test_who_brings_the_tag_of_another_salt_gets_nothing_by_it(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str
) -> None:
    from types import SimpleNamespace

    from maru_lmcache.salted import TAG, apartness

    a, b = two
    before = stored(pool_of_module)
    asked = prompt(text_ids, 5)
    a.ask(asked, ANSWER_TOKENS, ONE)
    settled(pool_of_module, CHUNKS, before)
    forged = {TAG: apartness(SimpleNamespace(cache_salt="one", lora_request=None))}
    assert b.ask(asked, ANSWER_TOKENS, About(transfer=forged)).cached_tokens == 0
    assert b.ask(asked, ANSWER_TOKENS, About(transfer=forged, salt="other")).cached_tokens == 0
    assert b.ask(asked, ANSWER_TOKENS, ONE).cached_tokens == CHUNKS * CHUNK_TOKENS
    settled(pool_of_module, 3 * CHUNKS, before)


def test_an_adapter_is_not_served_what_another_one_or_none_computed(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str, adapters: tuple[Path, Path]
) -> None:
    """Each answer is that of an engine which finds nothing; one adapter's on both instances is the same."""
    a, b = two
    asked = prompt(text_ids, 6)
    answers = []
    for about in (NOBODY, About(adapter=adapters[0]), About(adapter=adapters[1])):
        before = stored(pool_of_module)
        cold = a.ask(asked, ANSWER_TOKENS, about)
        settled(pool_of_module, CHUNKS, before)
        warm = b.ask(asked, ANSWER_TOKENS, about)
        assert (cold.cached_tokens, warm.cached_tokens) == (0, CHUNKS * CHUNK_TOKENS)
        assert warm.output_ids == cold.output_ids
        answers.append(cold.output_ids)
    assert len(set(answers)) == 3
