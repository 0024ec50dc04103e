"""What vLLM's scheduler shows a connector, as far as ours looks at it."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


@dataclass
class Request:
    request_id: str
    prompt_token_ids: list[int] | None
    output_tokens: int = 0
    lora_request: Any = None
    cache_salt: str | None = None
    mm_features: list[Any] = field(default_factory=list)
    prompt_embeds: Any = None
    block_hashes: list[bytes] = field(default_factory=list)
    kv_transfer_params: Any = None

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_token_ids or []) + self.output_tokens


def blocks_of(ids: list[int]) -> Any:
    return SimpleNamespace(get_block_ids=lambda: (ids,))


def step(
    new: dict[str, tuple[list[int], int, int]] | None = None,
    cached: dict[str, tuple[list[int], int, int]] | None = None,
    resumed: set[str] | None = None,
    answering: set[str] | None = None,
) -> Any:
    """One step's output. Each request: (block ids, tokens computed before, tokens of this step). `answering`: those of
    `cached` whose prompts are computed."""
    new, cached = new or {}, cached or {}
    return SimpleNamespace(
        scheduled_new_reqs=[
            SimpleNamespace(req_id=name, block_ids=(blocks,), num_computed_tokens=computed)
            for name, (blocks, computed, _) in new.items()
        ],
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=list(cached),
            resumed_req_ids=resumed or set(),
            new_block_ids=[(blocks,) if blocks else None for blocks, _, _ in cached.values()],
            num_computed_tokens=[computed for _, computed, _ in cached.values()],
            num_output_tokens=[int(name in (answering or ())) for name in cached],
        ),
        num_scheduled_tokens={name: count for name, (_, _, count) in (new | cached).items()},
    )
