"""vLLM's own OffloadingConnector with `MaruTier`, in whole engines: what one computed, another process takes from the
pool, and answers as one without any offloading.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import maru
from maru.bench.engines.vllm_instance import EngineConfig, EngineFailed, VllmInstance

ANSWER = 12
SPEC = "maru.bench.engines.on_cpu.offloading_spec"
BLOCK = 128
"""vLLM's own on a CPU, and with the spec of these tests a chunk too."""

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def config(
    model: Path, pool_of_module: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[..., EngineConfig]]:
    folder = tmp_path_factory.mktemp("vllm")

    def make(name: str, core: int, **change: object) -> EngineConfig:
        tier = {
            "type": "MaruTier",
            "module_path": "maru.engine.vllm.tier",
            "pool": f"maru:///{pool_of_module}?size=1GiB",
            "revision": "as the tests set it",
        }
        spec = {"spec_name": "CpuTieringSpec", "spec_module_path": SPEC, "cpu_bytes_to_use": 256 << 20}
        return EngineConfig(
            model=model,
            kv_transfer={
                "kv_connector": "OffloadingConnector",
                "kv_role": "kv_both",
                "engine_id": f"{pool_of_module}-{name}",
                "kv_connector_extra_config": {**spec, "secondary_tiers": [tier], **change},
            },
            core=core,
            log=folder / f"{name}.log",
        )

    yield make
    for rows in Path("/dev/shm").glob(f"vllm_offload_{pool_of_module}-*.mmap"):
        rows.unlink()  # Engines of tests end without vLLM's farewell.


@pytest.fixture(scope="module")
def three(config: Callable[..., EngineConfig], model: Path) -> Iterator[tuple[VllmInstance, ...]]:
    """A and B over one pool, and one that offloads nothing."""
    engines = [VllmInstance(config("a", 0)), VllmInstance(config("b", 1)), VllmInstance(EngineConfig(model, core=0))]
    try:
        for engine in engines:
            engine.wait_ready()
        yield tuple(engines)
    finally:
        for engine in engines:
            engine.close()


@pytest.fixture
def until_stored(pool_of_module: str, text_ids: list[int]) -> Callable[[VllmInstance, int], None]:
    """Keeps an engine stepping until `count` chunks more are stored than when the test began.

    vLLM hands a step's chunks over in one of the steps after it.
    """
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        before = pool.stats()["counters"]["stored"]

    def wait(engine: VllmInstance, count: int) -> None:
        with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
            for _ in range(100):
                if pool.stats()["counters"]["stored"] >= before + count:
                    return
                engine.ask(text_ids[5_000:5_040])  # Less than a chunk.
        pytest.fail(f"{count} chunks were not stored")

    return wait


def test_what_a_computed_b_loads_and_answers_the_same(
    three: tuple[VllmInstance, ...], text_ids: list[int], until_stored: Callable[[VllmInstance, int], None]
) -> None:
    a, b, plain = three
    prompt = text_ids[: 8 * BLOCK + 76]
    wanted = plain.ask(prompt, ANSWER).output_ids
    cold = a.ask(prompt, ANSWER)
    assert (cold.cached_tokens, cold.output_ids) == (0, wanted)
    until_stored(a, 8)
    hit = b.ask(prompt, ANSWER)
    assert (hit.cached_tokens, hit.output_ids) == (8 * BLOCK, wanted)


def test_a_shared_beginning_is_found_and_the_rest_computed(
    three: tuple[VllmInstance, ...], text_ids: list[int], until_stored: Callable[[VllmInstance, int], None]
) -> None:
    a, b, plain = three
    first = text_ids[3_000 : 3_010 + 7 * BLOCK]
    second = first[: 4 * BLOCK + 90] + text_ids[9_000:9_300]
    a.ask(first)
    until_stored(a, 7)
    answer = b.ask(second, ANSWER)
    assert answer.cached_tokens == 4 * BLOCK
    assert answer.output_ids == plain.ask(second, ANSWER).output_ids


def test_four_requests_at_once_answer_as_one_at_a_time_does(
    three: tuple[VllmInstance, ...], text_ids: list[int], until_stored: Callable[[VllmInstance, int], None]
) -> None:
    a, b, plain = three
    shared = text_ids[7_000 : 7_000 + 3 * BLOCK]
    prompts = [shared + text_ids[10_000 + 300 * at : 10_010 + 300 * at + BLOCK] for at in range(4)]
    wanted = [plain.ask(prompt, ANSWER).output_ids for prompt in prompts]
    assert [answer.output_ids for answer in a.ask_many(prompts, ANSWER)] == wanted
    until_stored(a, 3 + 4)
    answers = b.ask_many(prompts, ANSWER)
    assert [answer.output_ids for answer in answers] == wanted
    assert [answer.cached_tokens for answer in answers] == [4 * BLOCK] * 4


def test_the_pool_is_sound_and_nothing_stays_pinned(three: tuple[VllmInstance, ...], pool_of_module: str) -> None:
    with maru.Pool.attach(f"maru:///{pool_of_module}") as pool:
        assert pool.check() == []
        assert [row["pins"] for row in pool.stats()["processes"]] == [0] * len(pool.stats()["processes"])
        assert pool.stats()["reservations"] == []


def test_vllms_own_spec_still_refuses_a_cpu(config: Callable[..., EngineConfig]) -> None:
    """When this fails, the tier can be used on CPUs as it is: docs/vllm.md says otherwise."""
    stock = config("stock", 1, spec_name="TieringOffloadingSpec")
    with VllmInstance(stock) as engine, pytest.raises(EngineFailed, match="only supported on CUDA-alike"):
        engine.wait_ready()


def test_without_its_pool_an_engine_computes_and_says_so_once(
    three: tuple[VllmInstance, ...], text_ids: list[int], pool_of_module: str
) -> None:
    b, plain = three[1:]
    maru.Pool.destroy(f"maru:///{pool_of_module}", force=True)
    for at in (12_000, 13_000):
        prompt = text_ids[at : at + 500]
        answer = b.ask(prompt, ANSWER)
        assert (answer.cached_tokens, answer.output_ids) == (0, plain.ask(prompt, ANSWER).output_ids)
    assert b.config.log is not None
    assert b.config.log.read_text().count("its pool was destroyed") == 1
