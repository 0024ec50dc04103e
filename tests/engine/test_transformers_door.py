"""The transformers door: a reused prefix is as good as a recomputed one, a failing pool is only a miss."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import maru
from maru.config import parse_url

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from tiny_llama import build_llama  # noqa: E402

from maru.engine.transformers import ModelRefused, PoolCache, generate_greedy  # noqa: E402
from maru.engine.transformers_fit import fingerprint  # noqa: E402
from maru.tiering.ladder import LadderSettings  # noqa: E402
from maru.tiering.prefill import STEPS_MIN, Prefill  # noqa: E402
from maru.tiering.tiered import TieredPool  # noqa: E402

CHUNK_TOKENS = 16


def open_door(pool: maru.Pool, model: Any, **changes: Any) -> PoolCache:
    names = {"model_name": "tiny", "tokenizer_name": "none", "chunk_tokens": CHUNK_TOKENS, **changes}
    return PoolCache(pool, model, **names)


@pytest.fixture
def door(pool: maru.Pool, model: Any) -> PoolCache:
    return open_door(pool, model)


def prompt_of(token_count: int, seed: int = 1) -> Any:
    return torch.randint(0, 200, (1, token_count), generator=torch.Generator().manual_seed(seed))


def prefill(model: Any, prompt: Any, past: Any = None) -> Any:
    """Logits of the last token and the cache."""
    with torch.no_grad():
        start = past.get_seq_length() if past else 0
        return model(input_ids=prompt[:, start:], past_key_values=past, use_cache=True)


def test_a_reused_prefix_gives_the_logits_of_a_recomputed_one(door: PoolCache, model: Any) -> None:
    prompt = prompt_of(100)
    cold = prefill(model, prompt)
    assert door.store(prompt, cold.past_key_values) == 6 * door.chunk_bytes
    past, reused_tokens = door.load(prompt)
    assert reused_tokens == 96
    assert past.get_seq_length() == 96
    warm = prefill(model, prompt, past)
    assert (warm.logits[0, -1] - cold.logits[0, -1]).abs().max() < 1e-4


def test_what_comes_out_of_the_pool_is_bit_for_bit_what_went_in(door: PoolCache, model: Any) -> None:
    prompt = prompt_of(50)
    cold = prefill(model, prompt).past_key_values
    door.store(prompt, cold)
    past, reused_tokens = door.load(prompt)
    assert reused_tokens == 48
    for ours, theirs in zip(past.layers, cold.layers, strict=True):
        assert torch.equal(ours.keys, theirs.keys[:, :, :48])
        assert torch.equal(ours.values, theirs.values[:, :, :48])


def test_greedy_answers_are_identical_with_and_without_the_pool(door: PoolCache, model: Any) -> None:
    prompt = prompt_of(75)
    cold = generate_greedy(model, prompt, max_new_tokens=24)
    first = door.generate(prompt, max_new_tokens=24)
    second = door.generate(prompt, max_new_tokens=24)
    assert (first.reused_tokens, second.reused_tokens) == (0, 64)
    assert (first.bytes_stored, second.bytes_stored) == (4 * door.chunk_bytes, 0)
    assert (first.bytes_loaded, second.bytes_loaded) == (0, 4 * door.chunk_bytes)
    assert cold.output_ids == first.output_ids == second.output_ids
    assert len(cold.output_ids) == 24


def test_transformers_own_generate_takes_the_loaded_cache(door: PoolCache, model: Any) -> None:
    prompt = prompt_of(60)
    first = door.generate(prompt, max_new_tokens=8)
    past, reused_tokens = door.load(prompt)
    assert reused_tokens == 48
    with torch.no_grad():
        answer = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            past_key_values=past,
            max_new_tokens=8,
            do_sample=False,
        )
    assert answer[0, 60:].tolist() == first.output_ids


def test_another_door_of_an_equal_model_finds_the_chunks(pool_url: str, pool: maru.Pool, model: Any) -> None:
    prompt = prompt_of(40)
    open_door(pool, model).generate(prompt, max_new_tokens=2)
    with maru.Pool.attach(pool_url) as other_pool:
        assert open_door(other_pool, build_llama()).load(prompt)[1] == 32


def test_a_prompt_that_parts_ways_reuses_the_common_chunks_only(door: PoolCache, model: Any) -> None:
    prompt = prompt_of(80)
    door.generate(prompt, max_new_tokens=2)
    other = prompt.clone()
    other[0, 40] = (other[0, 40] + 1) % 200  # In the third chunk.
    assert door.load(other)[1] == 32
    assert (
        door.generate(other, max_new_tokens=12).output_ids
        == generate_greedy(model, other, max_new_tokens=12).output_ids
    )


def test_each_turn_of_a_conversation_adds_its_own_chunks(door: PoolCache, model: Any) -> None:
    prompt = prompt_of(40)
    reused = []
    for turn in range(4):
        answer = door.generate(prompt, max_new_tokens=10)
        assert answer.output_ids == generate_greedy(model, prompt, max_new_tokens=10).output_ids
        reused.append(answer.reused_tokens)
        prompt = torch.cat([prompt, torch.tensor([answer.output_ids]), prompt_of(14, seed=turn)], dim=1)
    assert reused == [0, 32, 64, 80]


def test_a_prompt_shorter_than_a_chunk_asks_the_pool_nothing(door: PoolCache) -> None:
    answer = door.generate(prompt_of(CHUNK_TOKENS - 1), max_new_tokens=3)
    assert (answer.reused_tokens, answer.bytes_stored, door.counters.lookups) == (0, 0, 0)


@pytest.mark.parametrize("chunk_count", [1, 3])
def test_the_last_token_is_computed_even_when_every_chunk_is_resident(door: PoolCache, chunk_count: int) -> None:
    prompt = prompt_of(chunk_count * CHUNK_TOKENS)
    stored = door.generate(prompt, max_new_tokens=5)
    assert stored.bytes_stored == chunk_count * door.chunk_bytes
    again = door.generate(prompt, max_new_tokens=5)
    assert again.reused_tokens == (chunk_count - 1) * CHUNK_TOKENS
    assert again.output_ids == stored.output_ids


def test_a_chunk_that_was_removed_is_stored_again(door: PoolCache, pool: maru.Pool) -> None:
    prompt = prompt_of(70)
    door.generate(prompt, max_new_tokens=2)
    assert pool.remove(door.keys(prompt)[16:32])
    again = door.generate(prompt, max_new_tokens=2)
    assert again.reused_tokens == CHUNK_TOKENS
    assert again.bytes_stored == door.chunk_bytes
    assert door.load(prompt)[1] == 64


def test_more_tokens_than_the_cache_covers_are_not_stored(door: PoolCache, model: Any) -> None:
    past = prefill(model, prompt_of(30)).past_key_values
    assert door.store(prompt_of(100), past) == door.chunk_bytes


def test_models_with_other_weights_share_nothing(pool: maru.Pool, model: Any) -> None:
    prompt = prompt_of(40)
    open_door(pool, model).generate(prompt, max_new_tokens=2)
    assert open_door(pool, build_llama(seed=7)).load(prompt)[1] == 0


@pytest.mark.parametrize(
    "changes", [{"tenant": "other"}, {"revision": "r2"}, {"chunk_tokens": 8}, {"tokenizer_name": "other"}]
)
def test_another_identity_shares_nothing(pool: maru.Pool, model: Any, changes: dict[str, Any]) -> None:
    prompt = prompt_of(40)
    open_door(pool, model).generate(prompt, max_new_tokens=2)
    assert open_door(pool, model, **changes).load(prompt)[1] == 0


def test_another_attention_implementation_shares_nothing(pool: maru.Pool, model: Any) -> None:
    prompt = prompt_of(40)
    open_door(pool, model).generate(prompt, max_new_tokens=2)
    assert open_door(pool, build_llama(attn_implementation="eager")).load(prompt)[1] == 0


def test_a_full_pool_stores_nothing_and_the_answer_is_the_same(door: PoolCache, pool: maru.Pool, model: Any) -> None:
    held = []
    full_answers = 0
    for number in range(100_000):
        # A key's bucket may be full before the pool is, so one FULL does not make a full pool.
        key = hashlib.blake2b(number.to_bytes(8, "big"), digest_size=16).digest()
        if pool.put(key, bytes(door.chunk_bytes)) is maru.Outcome.FULL:
            full_answers += 1
            if full_answers == 2000:
                break
        else:
            full_answers = 0
            held.append(pool.get(key))  # Pinned: eviction cannot make room.
    else:
        pytest.fail("the pool never became full")
    prompt = prompt_of(40)
    answer = door.generate(prompt, max_new_tokens=6)
    assert (answer.reused_tokens, answer.bytes_stored) == (0, 0)
    assert answer.output_ids == generate_greedy(model, prompt, max_new_tokens=6).output_ids
    held.clear()


def test_a_destroyed_pool_is_a_miss(door: PoolCache, pool_url: str) -> None:
    prompt = prompt_of(40)
    before = door.generate(prompt, max_new_tokens=6)
    maru.Pool.destroy(pool_url, force=True)
    after = door.generate(prompt, max_new_tokens=6)
    assert (after.reused_tokens, after.bytes_stored) == (0, 0)
    assert after.output_ids == before.output_ids


def test_a_failing_pool_is_counted_each_time_and_logged_once(
    door: PoolCache, pool: maru.Pool, caplog: pytest.LogCaptureFixture
) -> None:
    prompt = prompt_of(40)
    expected = door.generate(prompt, max_new_tokens=4).output_ids
    pool.close()
    with caplog.at_level(logging.WARNING):
        answers = [door.generate(prompt, max_new_tokens=4).output_ids for _ in range(2)]
    assert answers == [expected, expected]
    assert door.counters.failures == 4  # Two loads and two stores.
    assert len(caplog.records) == 1


def test_a_chunk_of_another_size_under_our_key_is_a_miss(door: PoolCache, pool: maru.Pool) -> None:
    prompt = prompt_of(40)
    pool.put(door.keys(prompt)[:16], bytes(door.chunk_bytes // 2), namespace=door.namespace)
    past, reused_tokens = door.load(prompt)
    assert (past.get_seq_length(), reused_tokens) == (0, 0)
    assert door.counters.failures == 1


def test_sealing_is_refused_while_a_tensor_can_still_write(pool: maru.Pool) -> None:
    with pool.reserve(b"k" * 16, 4096) as reservation:
        # torch.frombuffer gives its buffer export back at once and keeps only a reference, so a count of
        # exports does not see it.
        tensor = torch.frombuffer(reservation.buffer, dtype=torch.float32)
        with pytest.raises(BufferError):
            reservation.seal()
        del tensor
        assert reservation.seal() is maru.Outcome.STORED


def test_a_tensor_over_a_sealed_chunk_keeps_it_alive(pool: maru.Pool) -> None:
    pool.put(b"k" * 16, b"\1" * 4096)
    tensor = torch.frombuffer(pool.get(b"k" * 16), dtype=torch.uint8)
    assert not pool.remove(b"k" * 16)
    assert int(tensor.sum()) == 4096
    del tensor
    assert pool.remove(b"k" * 16)


def test_nothing_of_a_load_stays_pinned(door: PoolCache, pool: maru.Pool) -> None:
    prompt = prompt_of(40)
    door.generate(prompt, max_new_tokens=2)
    past, _ = door.load(prompt)
    assert pool.remove(door.keys(prompt)[:16])
    assert past.get_seq_length() == 32


@pytest.mark.parametrize("shape", [(2, 40), (0,), (1, 2, 3)])
def test_anything_but_one_prompt_is_refused(door: PoolCache, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="one prompt"):
        door.load(torch.zeros(shape, dtype=torch.long))


def test_another_kind_of_cache_is_refused(door: PoolCache, model: Any) -> None:
    static = transformers.StaticCache(config=model.config, max_cache_len=64)
    with torch.no_grad():
        model(input_ids=prompt_of(40), past_key_values=static)
    with pytest.raises(ValueError, match="not a DynamicCache"):
        door.store(prompt_of(40), static)


def build_sliding_window() -> Any:
    config = transformers.MistralConfig(
        vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, sliding_window=32,
    )  # fmt: skip
    return transformers.MistralForCausalLM(config).eval()


def build_hybrid() -> Any:
    config = transformers.Gemma3TextConfig(
        vocab_size=200, hidden_size=64, intermediate_size=64, num_hidden_layers=6, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, sliding_window=32,
    )  # fmt: skip
    return transformers.Gemma3ForCausalLM(config).eval()


def build_state_space() -> Any:
    config = transformers.MambaConfig(vocab_size=200, hidden_size=64, num_hidden_layers=2, state_size=8)
    return transformers.MambaForCausalLM(config).eval()


def build_encoder_decoder() -> Any:
    config = transformers.T5Config(vocab_size=200, d_model=64, d_kv=16, d_ff=64, num_layers=2, num_heads=4)
    return transformers.T5ForConditionalGeneration(config).eval()


def build_latent_attention() -> Any:
    config = transformers.DeepseekV3Config(
        vocab_size=200, hidden_size=64, intermediate_size=64, moe_intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, n_routed_experts=4, num_experts_per_tok=2, n_group=1,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8,
        qk_nope_head_dim=16, v_head_dim=16,
    )  # fmt: skip
    return transformers.DeepseekV3ForCausalLM(config).eval()


def build_length_dependent_rope() -> Any:
    return build_llama(rope_parameters={"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0})


def build_in_training() -> Any:
    return build_llama().train()


@pytest.mark.parametrize(
    ("build", "why"),
    [
        (build_sliding_window, "DynamicSlidingWindowLayer"),
        (build_hybrid, "DynamicSlidingWindowLayer"),
        (build_state_space, "MambaForCausalLM"),
        (build_encoder_decoder, "encoder-decoder"),
        (build_latent_attention, "shapes"),
        (build_length_dependent_rope, "rotary"),
        (build_in_training, "training"),
    ],
)
def test_a_model_whose_cache_is_more_than_its_tokens_is_refused(pool: maru.Pool, build: Any, why: str) -> None:
    with pytest.raises(ModelRefused, match=why):
        open_door(pool, build())


def test_weights_that_are_not_in_memory_need_a_revision() -> None:
    with torch.device("meta"):
        absent = build_llama()
    with pytest.raises(ModelRefused, match="revision"):
        fingerprint(absent)


# Places below the pool


@pytest.fixture
def below(pool_url: str, tmp_path: Path) -> Iterator[TieredPool]:
    """The pool with a folder below it, which copies nothing down by itself."""
    with TieredPool(parse_url(pool_url), [f"file://{tmp_path}?size=64MiB"], LadderSettings(demotes=False)) as pool:
        yield pool


def test_what_generate_computes_is_timed_where_places_lie_below(below: TieredPool, model: Any) -> None:
    door = open_door(below, model)
    assert below.ladder.stats()["decision"]["prefill_is"] == "none"
    for seed in range(1 + STEPS_MIN):
        door.generate(prompt_of(300, seed), max_new_tokens=1)
    told = below.ladder.stats()["decision"]
    assert told["prefill_is"] == "measured"
    assert told["prefill_tokens_per_s"] > 0
    assert door.prefill_clock is not None
    assert door.prefill_clock.measured is not None
    assert door.prefill_clock.measured.chunk_tokens == CHUNK_TOKENS


def test_timing_can_be_left_out_and_a_rate_that_was_told_counts(
    below: TieredPool, pool: maru.Pool, model: Any, tmp_path: Path
) -> None:
    assert open_door(below, model, measures_prefill=False).prefill_clock is None
    assert open_door(pool, model).prefill_clock is None
    told = LadderSettings(demotes=False, prefill=Prefill(CHUNK_TOKENS, 123.0))
    with TieredPool(pool.config, [f"file://{tmp_path}?size=64MiB"], told) as other:
        door = open_door(other, model)
        for seed in range(1 + STEPS_MIN):
            door.generate(prompt_of(300, seed), max_new_tokens=1)
        assert other.ladder.stats()["decision"]["prefill_tokens_per_s"] == 123.0
        assert other.ladder.stats()["decision"]["prefill_is"] == "told"
