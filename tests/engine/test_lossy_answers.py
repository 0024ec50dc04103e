"""What codecs do to a model's answers: nothing when they are lossless, little when they are not, and it is measured."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maru.demo.model import ensure_model

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_llama import build_llama  # noqa: E402

from maru.bench.lossy_answers import (  # noqa: E402
    ANSWER_TOKENS,
    Effect,
    Exact,
    Reader,
    effect_of,
    rounded,
    texts_of,
    through,
    ways_for,
)

CACHE = Path(os.environ.get("MARU_DEMO_CACHE", Path(__file__).resolve().parents[2] / ".cache"))
CONTEXT_TOKENS, TEXT_TOKENS = 200, 48
LOGIT_MAX, DIVERGENCE_MAX, SAME_TOP_MIN = {"int8": 4.0, "fp8": 12.0}, {"int8": 0.1, "fp8": 0.5}, 0.75
"""Generous: several times what the command found."""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many small steps: with more threads they wait for each other, the longer the busier the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def effects(model: Any, dtype: str, tokens: list[int]) -> dict[str, Effect]:
    reader = Reader(model)
    kv = reader.kv_of(tokens[:CONTEXT_TOKENS])
    exact = Exact.of(reader, kv, tokens[CONTEXT_TOKENS:][:TEXT_TOKENS])
    return {name: effect_of(reader, exact, change(kv)) for name, change in ways_for(dtype, kv.shape[-1]).items()}


def is_exact(effect: Effect) -> bool:
    zeros = (effect.logit_max, effect.logit_mean, effect.divergence, effect.perplexity - effect.perplexity_exact)
    return zeros == (0.0, 0.0, 0.0, 0.0) and (effect.same_top, effect.answer_tokens) == (1.0, ANSWER_TOKENS)


@pytest.mark.parametrize("dtype", ["bf16", "fp32"])
def test_lossless_codecs_change_nothing_and_lossy_ones_are_noticed(dtype: str) -> None:
    model = build_llama(initializer_range=0.02).to({"bf16": torch.bfloat16, "fp32": torch.float32}[dtype])
    tokens = torch.randint(0, 200, (CONTEXT_TOKENS + TEXT_TOKENS,), generator=torch.Generator().manual_seed(1)).tolist()
    found = effects(model, dtype, tokens)
    lossless = {"none", "zstd", "blosc2"} & set(found)
    assert lossless
    assert {name for name, effect in found.items() if is_exact(effect)} == lossless
    for effect in found.values():
        assert effect.logit_mean <= effect.logit_max
        assert effect.perplexity_exact == found[next(iter(lossless))].perplexity


def test_kv_comes_back_in_its_place_and_shape() -> None:
    reader = Reader(build_llama())
    kv = reader.kv_of(list(range(CONTEXT_TOKENS)))
    assert torch.equal(through("none")(kv), kv)
    narrow = kv.to(torch.bfloat16)
    assert torch.equal(rounded(None)(kv), narrow.float())
    near = through(f"int8:bf16:channels={kv.shape[-1]}")(narrow)
    assert near.dtype == torch.bfloat16
    assert near.shape == kv.shape
    assert 0 < (near.float() - narrow.float()).abs().max() < 0.05 * narrow.float().abs().max()


def test_an_answer_that_differs_is_told_by_the_token_where_it_does() -> None:
    reader = Reader(build_llama())
    tokens = list(range(CONTEXT_TOKENS))
    kv = reader.kv_of(tokens)
    exact = Exact.of(reader, kv, [7, 8, 9])
    assert len(exact.answer) == ANSWER_TOKENS
    assert reader.answer(kv, 7, [*exact.answer[:5], -1, *exact.answer[6:]]) == exact.answer[:6]
    effect = effect_of(reader, exact, torch.zeros_like(kv))
    assert effect.answer_tokens < ANSWER_TOKENS
    assert effect.logit_max > 0
    assert effect.divergence > 0


@pytest.mark.demo
def test_on_the_real_model_lossless_is_exact_and_lossy_is_not_far_off() -> None:
    folder = ensure_model(CACHE)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).eval()
    found = effects(model, "bf16", next(texts_of(folder, 1)))
    for name, effect in found.items():
        if name in LOGIT_MAX:
            assert not is_exact(effect)
            assert effect.logit_max < LOGIT_MAX[name]
            assert effect.divergence < DIVERGENCE_MAX[name]
            assert effect.same_top > SAME_TOP_MIN
        else:
            assert is_exact(effect)
