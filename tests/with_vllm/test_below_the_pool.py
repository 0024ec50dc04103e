"""Whole vLLM engines over a pool far too small for their prompts, a folder below it: what left the pool is not computed
again, and the answers are those of an engine without a pool.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from maru.bench.engines.vllm_instance import EngineConfig, VllmInstance
from maru.native import core
from maru.pool import Pool

CHUNK = 256
PROMPTS = 8
PROMPT_TOKENS = 3 * CHUNK + 20
ANSWER = 12
COPY_DEADLINE_S = 60.0
MARKER = "0" * 32

pytestmark = [pytest.mark.engines, pytest.mark.timeout(900)]


def engine_config(model: Path, log: Path, core_number: int, settings: dict[str, object] | None) -> EngineConfig:
    connector = {
        "kv_connector": "MaruConnector",
        "kv_connector_module_path": "maru.engine.vllm",
        "kv_role": "kv_both",
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": settings,
    }
    return EngineConfig(model=model, kv_transfer=connector if settings else None, core=core_number, log=log)


def has_objects(folder: Path, count: int) -> bool:
    """So many chunks lie below, soon."""
    ends, pause = time.monotonic() + COPY_DEADLINE_S, threading.Event()
    while (found := sum(one.name != MARKER for one in folder.glob("[0-9a-f]*/*/*"))) < count:
        if time.monotonic() > ends:
            return False
        pause.wait(0.02)
    return found == count


def test_prompts_that_left_the_pool_are_loaded_from_below_and_answered_alike(
    model: Path, pool_name: str, tmp_path: Path, text_ids: list[int]
) -> None:
    below = tmp_path / "below"
    below.mkdir()
    settings: dict[str, object] = {
        "pool": f"maru:///{pool_name}?size=192MiB&slab_bytes=16MiB&gate=off",
        "tiers": [f"file://{below}?size=1GiB&write=through"],
    }
    prompts = [text_ids[1_000 * n : 1_000 * n + PROMPT_TOKENS] for n in range(PROMPTS)]
    engines = [
        VllmInstance(engine_config(model, tmp_path / "a.log", 0, settings)),
        VllmInstance(engine_config(model, tmp_path / "b.log", 1, settings)),
        VllmInstance(engine_config(model, tmp_path / "plain.log", 0, None)),
    ]
    a, b, plain = engines
    try:
        for engine in engines:
            engine.wait_ready()
        wanted = [plain.ask(prompt, ANSWER).output_ids for prompt in prompts]
        for number, (prompt, answer) in enumerate(zip(prompts, wanted, strict=True)):
            assert a.ask(prompt, ANSWER).output_ids == answer
            assert has_objects(below, 3 * (number + 1))  # Else what leaves before its turn is lost, and rightly so.
        with Pool.attach(f"maru:///{pool_name}") as pool:
            assert pool.stats()["counters"]["evicted"] > 0
            evicted = pool.stats()["counters"]["evicted"]
        for prompt, answer in zip(prompts, wanted, strict=True):
            hit = b.ask(prompt, ANSWER)
            assert (hit.output_ids, hit.cached_tokens) == (answer, 3 * CHUNK)
        with Pool.attach(f"maru:///{pool_name}") as pool:
            assert pool.stats()["counters"]["evicted"] > evicted  # It came from below, at others' cost.
            assert core.PoolCore.check(pool) == []
    finally:
        for engine in engines:
            engine.close()
