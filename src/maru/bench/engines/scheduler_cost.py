"""What our connector adds to a step of vLLM's scheduler while many requests wait: no engine, a real pool."""

from __future__ import annotations

import statistics
import time
from array import array
from types import SimpleNamespace
from typing import Any

from maru.bench import ground
from maru.key import Identity

WAITING = 256
PROMPT_TOKENS = 4096
STEPS = 50
_NOTHING = SimpleNamespace(
    scheduled_new_reqs=[],
    scheduled_cached_reqs=SimpleNamespace(req_ids=[], resumed_req_ids=set(), new_block_ids=[], num_computed_tokens=[]),
    num_scheduled_tokens={},
)


def cost_rows() -> dict[str, float]:
    """Seconds, by what they are for: medians over steps in which every waiting request is asked about."""
    from maru.engine.vllm.fit import Shape
    from maru.engine.vllm.scheduler import SchedulerSide

    shape = Shape(block_tokens=16, blocks_per_chunk=16, layer_names=("one",))
    rows: dict[str, float] = {}
    with ground.bench_pool("waiting", 256 * ground.MIB, "chunk_bytes=8192") as pool:
        pool.wait_ready(60)
        namespace = pool.namespace(Identity(model="bench", kv_layout="bench/vllm"))
        for title, share in (("whole prompts stored", 1.0), ("half of each stored", 0.5), ("nothing stored", 0.0)):
            side = SchedulerSide(pool, namespace, shape, 1, _fail)
            requests = [_request(f"{title} {number}", number + int(share * 1000)) for number in range(WAITING)]
            for request in requests:
                keys = namespace.chunk_keys(array("q", request.prompt_token_ids), shape.chunk_tokens)
                stored = int(share * len(keys) // 16)
                pool.put_many(keys[: 16 * stored], [bytes(8000)] * stored, namespace=namespace)
            begun = time.perf_counter()
            _ask(side, requests)
            rows[f"first step with {WAITING} new requests of {PROMPT_TOKENS} tokens, {title}"] = (
                time.perf_counter() - begun
            )
            taken = []
            for _ in range(STEPS):
                begun = time.perf_counter()
                _ask(side, requests)
                side.plan(_NOTHING)
                taken.append(time.perf_counter() - begun)
            rows[f"a later step while they wait, {title}"] = statistics.median(taken)
            side.close()
    return rows


def _ask(side: Any, requests: list[Any]) -> None:
    for request in requests:
        side.matched_tokens(request, 0)


def _request(name: str, number: int) -> Any:
    tokens = list(range(number * 7, number * 7 + PROMPT_TOKENS))
    return SimpleNamespace(
        request_id=name, prompt_token_ids=tokens, num_tokens=PROMPT_TOKENS, lora_request=None, cache_salt=None,
        mm_features=[], prompt_embeds=None,
    )  # fmt: skip


def _fail(doing: str, error: Exception) -> None:
    raise RuntimeError(f"could not {doing}") from error
