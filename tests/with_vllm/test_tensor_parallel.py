"""A real vLLM of two tensor-parallel ranks: each rank's worker writes and reads its part of every chunk."""

from __future__ import annotations

from pathlib import Path

import pytest
from vllm_server import Server

import maru

CHUNK = 256

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def split_model(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    """A small random Llama whose heads two ranks can share, with the real model's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("split-model")
    tokenizer = AutoTokenizer.from_pretrained(model)
    torch.manual_seed(7)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=256, intermediate_size=512, num_hidden_layers=4,
        num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=4096, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_two_ranks_answer_from_the_pool_as_they_computed(
    split_model: Path, pool_name: str, text_ids: list[int], tmp_path: Path
) -> None:
    server = Server(split_model, pool_name, "0|1", tmp_path / "tp.log", ("--tensor-parallel-size", "2"))
    try:
        server.wait_ready()
        prompt = text_ids[: 4 * CHUNK + 20]
        computed, _ = server.ask(prompt)
        before = server.metrics()
        answered, _ = server.ask(prompt)
        after = server.metrics()
        assert answered == computed
        assert before["stored_tokens_total"] == 2 * 4 * CHUNK  # Each rank its part.
        assert after["loaded_tokens_total"] - before["loaded_tokens_total"] == 2 * 4 * CHUNK
        assert after["stored_tokens_total"] == before["stored_tokens_total"]
        with maru.Pool.attach(f"maru:///{pool_name}") as pool:
            assert pool.stats()["counters"]["stored"] == 4
            assert pool.check() == []
    finally:
        server.kill()
