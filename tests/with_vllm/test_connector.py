"""Whole vLLM engines over one pool, a real trained model, real text: the answers are those of one without a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import maru
from maru.bench.engines.vllm_instance import EngineConfig, EngineFailed, VllmInstance

CHUNK = 256
ANSWER = 12

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def config(model: Path, pool_of_module: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., EngineConfig]:
    folder = tmp_path_factory.mktemp("vllm")

    def make(name: str, core: int, size: str = "1GiB", pool: str = pool_of_module, **settings: object) -> EngineConfig:
        return EngineConfig(
            model=model,
            kv_transfer={
                "kv_connector": "MaruConnector",
                "kv_connector_module_path": "maru.engine.vllm",
                "kv_role": "kv_both",
                "kv_load_failure_policy": "recompute",
                "kv_connector_extra_config": {"pool": f"maru:///{pool}?size={size}"},
            },
            core=core,
            log=folder / f"{name}.log",
            **settings,  # type: ignore[arg-type]
        )

    return make


@pytest.fixture(scope="module")
def three(config: Callable[..., EngineConfig]) -> Iterator[tuple[VllmInstance, VllmInstance, VllmInstance]]:
    """A as it comes; B with vLLM's prefix cache and prefills of 512 tokens at a time; and one without a pool."""
    engines = [
        VllmInstance(config("a", 0)),
        VllmInstance(config("b", 1, prefix_caching=True, batched_tokens=512)),
        VllmInstance(replace(config("plain", 0), kv_transfer=None)),
    ]
    try:
        for engine in engines:
            engine.wait_ready()
        yield engines[0], engines[1], engines[2]
    finally:
        for engine in engines:
            engine.close()


def cut(text_ids: list[int], at: int, tokens: int) -> list[int]:
    return text_ids[at : at + tokens]


def test_a_hit_in_another_process_answers_as_computing_does(
    three: tuple[VllmInstance, ...], text_ids: list[int]
) -> None:
    a, b, plain = three
    prompt = cut(text_ids, 0, 4 * CHUNK + 30)
    wanted = plain.ask(prompt, ANSWER).output_ids
    cold, hit, again = a.ask(prompt, ANSWER), b.ask(prompt, ANSWER), a.ask(prompt, ANSWER)
    assert (cold.cached_tokens, hit.cached_tokens, again.cached_tokens) == (0, 4 * CHUNK, 4 * CHUNK)
    assert {cold.output_ids, hit.output_ids, again.output_ids} == {wanted}


def test_a_prompt_of_whole_chunks_leaves_its_last_token_to_compute(
    three: tuple[VllmInstance, ...], text_ids: list[int]
) -> None:
    a, b, plain = three
    prompt = cut(text_ids, 2_000, 2 * CHUNK)
    wanted = plain.ask(prompt, ANSWER).output_ids
    assert a.ask(prompt, ANSWER).output_ids == wanted
    hit = b.ask(prompt, ANSWER)
    assert (hit.cached_tokens, hit.output_ids) == (CHUNK, wanted)


def test_a_shared_beginning_is_found_and_the_rest_computed(
    three: tuple[VllmInstance, ...], text_ids: list[int]
) -> None:
    a, b, plain = three
    first = cut(text_ids, 3_000, 3 * CHUNK + 10)
    second = first[: 2 * CHUNK + 100] + cut(text_ids, 9_000, 400)
    a.ask(first)
    answer = b.ask(second, ANSWER)
    assert answer.cached_tokens == 2 * CHUNK
    assert answer.output_ids == plain.ask(second, ANSWER).output_ids


def test_a_conversation_grows_over_five_turns_on_changing_instances(
    three: tuple[VllmInstance, ...], text_ids: list[int]
) -> None:
    a, b, plain = three
    prompt = cut(text_ids, 5_000, 300)
    for turn in range(5):
        answer = (a, b)[turn % 2].ask(prompt, ANSWER)
        assert answer.output_ids == plain.ask(prompt, ANSWER).output_ids
        assert turn == 0 or answer.cached_tokens >= (len(prompt) - 340) // CHUNK * CHUNK
        prompt = [*prompt, *answer.output_ids, *cut(text_ids, 6_000 + 300 * turn, 300)]


def test_a_prefill_in_pieces_stores_what_a_whole_one_finds(
    three: tuple[VllmInstance, ...], text_ids: list[int]
) -> None:
    a, b, plain = three
    prompt = cut(text_ids, 11_000, 6 * CHUNK + 20)
    wanted = plain.ask(prompt, ANSWER).output_ids
    assert b.ask(prompt, ANSWER).output_ids == wanted
    hit = a.ask(prompt, ANSWER)
    assert (hit.cached_tokens, hit.output_ids) == (6 * CHUNK, wanted)


def test_eight_requests_at_once_answer_as_one_at_a_time_does(
    three: tuple[VllmInstance, ...], text_ids: list[int]
) -> None:
    a, b, plain = three
    shared = cut(text_ids, 13_000, 2 * CHUNK)
    prompts = [shared + cut(text_ids, 14_000 + 200 * number, 100 + 30 * number) for number in range(8)]
    wanted = [plain.ask(prompt, ANSWER).output_ids for prompt in prompts]
    assert [answer.output_ids for answer in a.ask_many(prompts, ANSWER)] == wanted
    answers = b.ask_many(prompts, ANSWER)
    assert [answer.output_ids for answer in answers] == wanted
    assert all(answer.cached_tokens >= 2 * CHUNK for answer in answers)


def test_the_pool_is_sound_and_nothing_stays_pinned(
    three: tuple[VllmInstance, ...], text_ids: list[int], pool_of_module: str
) -> None:
    a, b, _ = three
    a.ask(cut(text_ids, 0, 600))
    b.ask(cut(text_ids, 0, 600))
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        assert pool.check() == []
        assert [row["pins"] for row in pool.stats()["processes"]] == [0] * len(pool.stats()["processes"])
        assert pool.stats()["reservations"] == []


@pytest.mark.crash
def test_killed_while_it_stores_it_hurts_nobody(
    three: tuple[VllmInstance, ...], config: Callable[..., EngineConfig], text_ids: list[int], pool_of_module: str
) -> None:
    a, _, plain = three
    prompt = cut(text_ids, 16_000, 5 * CHUNK + 3)
    with VllmInstance(config("victim", 1)) as victim:
        victim.wait_ready().send(prompt, ANSWER)
        with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
            stored = pool.stats()["counters"]["stored"]
            for _ in range(60_000):
                if pool.stats()["counters"]["stored"] > stored:  # In the middle of its five chunks.
                    break
            victim.kill()
            pool.reap()
            assert pool.check() == []
        with pytest.raises(EngineFailed, match="died"):
            victim.receive(1)
    assert a.ask(prompt, ANSWER).output_ids == plain.ask(prompt, ANSWER).output_ids


def test_what_a_worker_cannot_load_is_computed_and_never_guessed(
    three: tuple[VllmInstance, ...], config: Callable[..., EngineConfig], text_ids: list[int], pool_of_module: str
) -> None:
    a, _, plain = three
    prompt = cut(text_ids, 18_000, 3 * CHUNK + 11)
    wanted = a.ask(prompt, ANSWER).output_ids
    assert wanted == plain.ask(prompt, ANSWER).output_ids
    made = config("forgetful", 1, import_path=(str(Path(__file__).parent),))
    own = {"kv_connector": "ForgetfulConnector", "kv_connector_module_path": "forgetful_connector"}
    with VllmInstance(replace(made, kv_transfer={**(made.kv_transfer or {}), **own})) as forgetful:
        answer = forgetful.wait_ready().ask(prompt, ANSWER)
    assert answer.output_ids == wanted
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        pool.reap()
        assert pool.check() == []


def test_with_few_blocks_requests_are_preempted_and_answer_right(
    three: tuple[VllmInstance, ...], config: Callable[..., EngineConfig], text_ids: list[int], pool_name: str
) -> None:
    """Four prompts take all of the twenty blocks of 128 tokens; their answers need eight more."""
    plain = three[2]
    prompts = [cut(text_ids, 1_000 * number, 2 * CHUNK + 100) for number in range(4)]
    wanted = [plain.ask(prompt, 160).output_ids for prompt in prompts]
    few = config("few", 1, pool=pool_name, block_count=20, max_tokens=2048)
    with VllmInstance(few) as engine:
        answers = engine.wait_ready().ask_many(prompts, 160)
    assert [answer.output_ids for answer in answers] == wanted
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        pool.reap()
        assert pool.check() == []


def test_a_pool_smaller_than_the_traffic_goes_on_and_answers_right(
    three: tuple[VllmInstance, ...], config: Callable[..., EngineConfig], text_ids: list[int], pool_name: str
) -> None:
    plain = three[2]
    prompts = [cut(text_ids, 2_000 * number, 3 * CHUNK + 7) for number in range(5)]
    wanted = [plain.ask(prompt, ANSWER).output_ids for prompt in prompts]
    with VllmInstance(config("small", 1, pool=pool_name, size="80MiB&slab_bytes=16MiB")) as engine:
        engine.wait_ready()
        for _ in range(2):
            assert [engine.ask(prompt, ANSWER).output_ids for prompt in prompts] == wanted
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        assert pool.stats()["counters"]["evicted"] + pool.stats()["counters"]["full"] > 0
        pool.reap()
        assert pool.check() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": "maru:///x", "chunktokens": 3}, "chunktokens"),
        ({}, "`pool` is missing"),
    ],
    ids=["an unknown setting", "no pool"],
)
def test_what_will_never_work_is_refused_at_start_and_says_why(
    config: Callable[..., EngineConfig], change: dict[str, object], said: str
) -> None:
    made = config(f"refused-{len(said)}", 0)
    wrong = replace(made, kv_transfer={**(made.kv_transfer or {}), "kv_connector_extra_config": change})
    with VllmInstance(wrong) as engine, pytest.raises(EngineFailed) as caught:
        engine.wait_ready()
    assert said in str(caught.value)


def test_without_its_pool_the_engine_computes_and_says_so_once(
    three: tuple[VllmInstance, ...], text_ids: list[int], pool_of_module: str
) -> None:
    a, _, plain = three
    prompt = cut(text_ids, 0, 4 * CHUNK + 30)
    maru.Pool.destroy(f"maru:///{pool_of_module}", force=True)
    for _ in range(2):
        answer = a.ask(prompt, ANSWER)
        assert (answer.cached_tokens, answer.output_ids) == (0, plain.ask(prompt, ANSWER).output_ids)
    assert a.config.log is not None
    assert a.config.log.read_text().count("the pool was destroyed") == 1
