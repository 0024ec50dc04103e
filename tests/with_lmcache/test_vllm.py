"""Two vLLM processes with LMCache's MaruBackend on one pool, a real trained model, real text.

LMCache supports no CPU with vLLM; `maru.bench.engines.on_cpu` gives it the one function that it lacks, nothing else is
touched.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from in_vllm import CHUNK_TOKENS, config_in_vllm

import maru
from engine_kit import settled, stored
from maru.bench.engines.vllm_instance import About, EngineFailed, VllmInstance

ANSWER_TOKENS = 12

pytestmark = [
    pytest.mark.engines,
    pytest.mark.timeout(900),
    pytest.mark.skipif(importlib.util.find_spec("vllm") is None, reason="no vLLM: see make engines"),
]


@pytest.fixture(scope="module")
def two(model: Path, pool_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[VllmInstance]]:
    """Two instances; the pool holds four chunks of a prompt of eight, and so less than any test's traffic."""
    folder = tmp_path_factory.mktemp("vllm")
    instances = [VllmInstance(config_in_vllm(folder, model, pool_of_module, number, 0.25)) for number in (0, 1)]
    try:
        yield [instance.wait_ready() for instance in instances]
    finally:
        for instance in instances:
            instance.close()


def prompt(text_ids: list[int], number: int, tokens: int = 4 * CHUNK_TOKENS + 30) -> list[int]:
    return text_ids[number * 400 :][:tokens]


def test_what_one_instance_computed_the_other_answers_from(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    asked = prompt(text_ids, 0)
    cold = a.ask(asked, ANSWER_TOKENS)
    settled(pool_of_module, 4)
    warm = b.ask(asked, ANSWER_TOKENS)
    assert cold.cached_tokens == 0
    assert warm.cached_tokens == 4 * CHUNK_TOKENS
    assert warm.output_ids == cold.output_ids


def test_a_request_that_lmcache_is_told_to_keep_back_leaves_nothing_behind(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str
) -> None:
    """LMCache's own marker, in the request's kv_transfer_params."""
    a, b = two
    before = stored(pool_of_module)
    secret, plain = prompt(text_ids, 9), prompt(text_ids, 10)
    kept_back = a.ask(secret, ANSWER_TOKENS, About(transfer={"lmcache.skip_save": True}))
    a.ask(plain, ANSWER_TOKENS)
    settled(pool_of_module, 4, before)
    assert stored(pool_of_module) == before + 4
    answer = b.ask(secret, ANSWER_TOKENS)
    assert (answer.cached_tokens, answer.output_ids) == (0, kept_back.output_ids)
    settled(pool_of_module, 8, before)


@pytest.mark.parametrize(("mine", "theirs", "hit"), [("one", "one", 4 * CHUNK_TOKENS), ("one", "other", 0)])
def test_a_tag_in_a_request_parts_what_lmcache_keeps(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str, mine: str, theirs: str, hit: int
) -> None:
    a, b = two
    before = stored(pool_of_module)
    asked = prompt(text_ids, 11 if hit else 12)
    a.ask(asked, ANSWER_TOKENS, About(transfer={"lmcache.tag.user": mine}))
    settled(pool_of_module, 4, before)
    answer = b.ask(asked, ANSWER_TOKENS, About(transfer={"lmcache.tag.user": theirs}))
    assert answer.cached_tokens == hit
    settled(pool_of_module, 4 if hit else 8, before)


def test_two_at_once_on_a_pool_too_small_for_their_traffic_answer_right(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str
) -> None:
    answers: dict[int, set[tuple[int, ...]]] = {}
    cached = 0
    order = [1, 2, 1, 3, 2, 4, 5, 1, 4, 5]
    for left, right in zip(order, reversed(order), strict=True):
        for instance, number in zip(two, (left, right), strict=True):
            instance.send(prompt(text_ids, number, tokens=1000 + 150 * number), ANSWER_TOKENS)
        for instance, number in zip(two, (left, right), strict=True):
            answer = instance.receive()
            answers.setdefault(number, set()).add(answer.output_ids)
            cached += answer.cached_tokens
    assert {number: len(found) for number, found in answers.items()} == dict.fromkeys(range(1, 6), 1)
    assert cached > 0
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        assert pool.stats()["counters"]["evicted"] > 0
        assert pool.check() == []


@pytest.mark.crash
def test_the_survivor_of_a_kill_goes_on_and_answers_right(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str
) -> None:
    a, b = two
    asked = prompt(text_ids, 6)
    known = a.ask(asked, ANSWER_TOKENS)
    b.send(prompt(text_ids, 7, tokens=3000), ANSWER_TOKENS)
    b.kill()
    with pytest.raises(EngineFailed, match="died"):
        b.receive()
    assert a.ask(asked, ANSWER_TOKENS).output_ids == known.output_ids
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        pool.reap()
        assert pool.check() == []
        assert [row["pins"] for row in pool.stats()["processes"] if not row["alive"]] == []


def test_without_a_pool_the_engine_still_answers(
    two: list[VllmInstance], text_ids: list[int], pool_of_module: str
) -> None:
    a = two[0]
    asked = prompt(text_ids, 8)
    known = a.ask(asked, ANSWER_TOKENS)
    maru.Pool.destroy(f"maru:///{pool_of_module}", force=True)
    answer = a.ask(asked, ANSWER_TOKENS)
    assert answer.output_ids == known.output_ids
    assert answer.cached_tokens == 0


def test_a_daemon_that_is_not_there_degrades_to_computing_and_says_why(
    model: Path, text_ids: list[int], tmp_path: Path
) -> None:
    remote = config_in_vllm(tmp_path, model, "unused", 0, 0.25)
    yaml = Path(remote.environment["LMCACHE_CONFIG_FILE"])
    yaml.write_text(yaml.read_text().replace("maru:///unused", "maru://cache-7:5555"))
    with VllmInstance(replace(remote)) as instance:
        assert len(instance.wait_ready().ask(prompt(text_ids, 0), ANSWER_TOKENS).output_ids) == ANSWER_TOKENS
    assert "no daemon answers" in (tmp_path / "vllm-0.log").read_text()
