"""KV events: telling routers, by vLLM's own mechanism, which blocks this host's instances can take from the pool.

Holds:      which chunks were announced, and those that this instance asked its workers to store.
Promises:   announced is only what was seen in the pool; what is seen to have left, or is not watched any more, is taken
            back. Looking costs a step no more than `LOOKS_A_STEP` questions.
Leaves:     publishing to vLLM.

A pool has no list of who left, so the announced are asked for in turn: an eviction is told late, by the time that a
round takes. Requests with pictures, an adapter or a cache salt are not announced: their hashes hang on more than
tokens.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vllm.distributed.kv_events import MEDIUM_CPU, BlockRemoved, BlockStored, KVCacheEvent
from vllm.v1.core.kv_cache_utils import maybe_convert_block_hash

from maru.engine.vllm.fit import Shape

LOOKS_A_STEP = 64
TRIES = 16
WATCHED = 1 << 16
OWNER = "maru"


@dataclass
class _Expected:
    key: bytes
    event: BlockStored
    tries: int = 0


class Announcer:
    """One a scheduler. Not thread-safe, as the scheduler is not."""

    def __init__(self, exists: Callable[[bytes], bool], shape: Shape, watched: int = WATCHED) -> None:
        """`exists`: Pool.exists. `watched`: how many chunks to answer for, the longest-known go first."""
        self._exists = exists
        self._shape = shape
        self._watched = watched
        self._expected: deque[_Expected] = deque()
        self._announced: OrderedDict[bytes, list[Any]] = OrderedDict()
        """vLLM's hashes by key, next to be asked for first."""

    def expect(self, request: Any, keys: bytes, first: int, end: int) -> None:
        """Chunks `first` up to `end` of this request are in the pool, or will be in a few steps. `keys`: all of its."""
        if request.lora_request is not None or request.cache_salt or request.mm_features:
            return
        tokens, hashes = request.prompt_token_ids, request.block_hashes
        if len(hashes) < request.num_tokens // self._shape.block_tokens:
            return  # vLLM hashes other pieces than its blocks.
        per_chunk, chunk_tokens = self._shape.blocks_per_chunk, self._shape.chunk_tokens
        for number in range(first, end):
            key = keys[number * 16 : (number + 1) * 16]
            if key in self._announced:
                continue
            at = number * per_chunk
            event = BlockStored(
                block_hashes=[maybe_convert_block_hash(one) for one in hashes[at : at + per_chunk]],
                parent_block_hash=maybe_convert_block_hash(hashes[at - 1]) if at else None,
                token_ids=list(tokens[number * chunk_tokens : (number + 1) * chunk_tokens]),
                block_size=self._shape.block_tokens,
                lora_id=None,
                lora_name=None,
                medium=MEDIUM_CPU,
                group_idx=0,
                locality="LOCAL",
                ownership=OWNER,
            )
            self._expected.append(_Expected(key, event))

    def take(self) -> list[KVCacheEvent]:
        """Events since the last call: what came, what left."""
        events: list[KVCacheEvent] = []
        looks = min(LOOKS_A_STEP, len(self._expected))
        for _ in range(looks):
            one = self._expected.popleft()
            if one.key in self._announced:
                continue
            if self._exists(one.key):
                self._announced[one.key] = one.event.block_hashes
                events.append(one.event)
            elif one.tries < TRIES:
                one.tries += 1
                self._expected.append(one)
        for _ in range(min(LOOKS_A_STEP - looks, len(self._announced))):
            key, hashes = next(iter(self._announced.items()))
            if self._exists(key):
                self._announced.move_to_end(key)
            else:
                del self._announced[key]
                events.append(_removed(hashes))
        while len(self._announced) > self._watched:
            events.append(_removed(self._announced.popitem(last=False)[1]))
        return events


def _removed(hashes: list[Any]) -> BlockRemoved:
    return BlockRemoved(block_hashes=hashes, medium=MEDIUM_CPU, group_idx=0, locality="LOCAL", ownership=OWNER)
