"""The scheduler's side: which chunks a request finds in the pool, which blocks they go to, and what it leaves behind.

Holds:      for each request its keys, what of its prefix is pinned, its blocks, and how far it was stored.
Promises:   what a request was told stays pinned until every worker has loaded it, or the request has gone, or
            `PIN_AGE_S` is over. Asking twice changes nothing. Any trouble with the pool is a miss. No request is held
            back longer than it was allowed to be, nor when nobody is computing what it waits for.
Leaves:     bytes to the workers.

Only prompts are stored, not answers: what decoding computes differs from what a prefill would in the last bits, and the
next turn's prefill brings it anyway.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from typing import Any

from maru.engine.vllm.events import Announcer
from maru.engine.vllm.fit import Shape, marked, request_seed
from maru.engine.vllm.metrics import MaruStats
from maru.engine.vllm.plan import Done, Load, Plan, Save
from maru.errors import MaruError
from maru.native import core
from maru.pool import Namespace, PinnedPrefix, Pool
from maru.tiering.prefill import PrefillClock

KEY_BYTES = 16
PIN_AGE_S = 120.0
BETWEEN_STEPS_S = 0.25
"""Another instance that computes a prompt in pieces has none of them reserved for this long at most."""
IDLE_WAIT_S = 0.01


@dataclass
class _Request:
    keys: bytes
    """Of the prompt's whole chunks."""
    stores: bool = True
    """What is computed of it may be stored: it carries no marker."""
    request: Any = None
    """vLLM's own, kept only to announce what is stored of it."""
    pinned: PinnedPrefix | None = None
    pinned_at_s: float = 0.0
    local_tokens: int = 0
    """Computed by this engine before, as it said when it asked."""
    load: tuple[int, int] | None = None
    """Tokens to load: from, to."""
    blocks: list[int] = field(default_factory=list)
    stored_chunks: int = 0
    """Leading chunks that are in the pool, or were handed to a worker to store."""
    was_asked: bool = False
    waits_since_s: float | None = None
    """Since when it is held back, None when it never was."""
    seen_written_s: float = 0.0
    waited: bool = False
    """It was held back, and is no more."""
    was_found_whole: bool = False
    rising: Future[int] | None = None
    """What brings more of it from below the pool."""
    was_raised: bool = False
    """That has ended."""

    @property
    def chunk_count(self) -> int:
        return len(self.keys) // KEY_BYTES

    @property
    def first_missing(self) -> bytes:
        """Key of the first chunk that is not pinned."""
        found = len(self.pinned) if self.pinned else 0
        return self.keys[found * KEY_BYTES : (found + 1) * KEY_BYTES]

    def let_go(self) -> None:
        if self.pinned is not None:
            self.pinned.release()
            self.pinned = None


class SchedulerSide:
    """One a scheduler. Not thread-safe, as the scheduler is not."""

    def __init__(
        self,
        pool: Pool,
        namespace: Namespace,
        shape: Shape,
        worker_count: int,
        failed: Callable[[str, Exception], None],
        clock: Callable[[], float] = time.monotonic,
        wait_for_others_s: float = 0.0,
        announcer: Announcer | None = None,
        begin_rise: Callable[[bytes], Future[int] | None] | None = None,
        found_whole: Callable[[int], None] | None = None,
        prefill: PrefillClock | None = None,
    ) -> None:
        """`wait_for_others_s`: how long a request may be held back because another instance computes its beginning.

        `begin_rise`: bring the missing chunks of these keys from places below the pool, within a deadline.
        `found_whole`: told of each prefix for which nothing is missing, how many chunks it has. `prefill`: told what
        steps compute, and when they end.
        """
        self._pool = pool
        self._digest = namespace.digest
        self._shape = shape
        self._worker_count = worker_count
        self._failed = failed
        self._clock = clock
        self._wait_for_others_s = wait_for_others_s
        self._announcer = announcer
        self._begin_rise = begin_rise
        self._found_whole = found_whole
        self._prefill = prefill
        self._is_idle = True
        """The last step had nothing to compute."""
        self.stats = MaruStats()
        self._requests: dict[str, _Request] = {}
        self._loaded: dict[str, int] = {}

    def matched_tokens(self, request: Any, computed_tokens: int) -> int | None:
        """How many tokens beyond `computed_tokens` are in the pool, and pinned from now on.

        None: ask again, for another instance is computing more of it just now.
        """
        state = self._state_of(request)
        # The last token is always computed: the model needs one to answer from.
        usable = min(state.chunk_count, (request.num_tokens - 1) // self._shape.chunk_tokens)
        state.local_tokens = computed_tokens
        if usable * self._shape.chunk_tokens <= computed_tokens:
            return 0
        if self._still_rises(state):
            return None
        if (state.pinned is None or len(state.pinned) < usable) and self._may_find_more(state):
            if self._still_waits(state):
                return None
            self._pin(state, usable)
            if self._begins_to_rise(state, usable):
                return None
            if self._begins_to_wait(state, usable):
                return None
            self._announce(request, state)
        found = min(usable, len(state.pinned) if state.pinned else 0) * self._shape.chunk_tokens
        return int(max(0, found - computed_tokens))

    def _begins_to_rise(self, state: _Request, usable: int) -> bool:
        """Pinned as far as possible: does more of it come from below? Asked once a request."""
        if self._begin_rise is None or state.rising is not None:
            return False
        if state.pinned is not None and len(state.pinned) >= usable:
            if self._found_whole and not state.was_found_whole:
                self._found_whole(usable)
            state.was_found_whole = True
            return False
        state.rising = self._begin_rise(state.keys[: usable * KEY_BYTES])
        return self._still_rises(state)

    def _still_rises(self, state: _Request) -> bool:
        """More of it is on its way. What has come when that ends is found like anything else, by looking once more."""
        if state.rising is None or state.was_raised:
            return False
        if self._is_idle:  # Once a step, however many wait: vLLM would ask again at once, and again.
            self._is_idle = False
            wait([state.rising], IDLE_WAIT_S)
        if not state.rising.done():
            return True
        state.was_raised, state.was_asked = True, False
        return False

    def _may_find_more(self, state: _Request) -> bool:
        """A request that waits for its turn is asked about in every step: looking at one chunk is enough then."""
        if not state.was_asked or (state.waits_since_s is not None and not state.waited):
            state.was_asked = True
            return True
        try:
            return self._pool.exists(state.first_missing)
        except MaruError as error:
            self._failed("look a prompt up", error)
            return False

    def _still_waits(self, state: _Request) -> bool:
        """Is it held back, and the chunk it waits for not there yet?"""
        if state.waits_since_s is None or state.waited:
            return False
        missing = state.first_missing
        try:
            if self._is_idle:  # vLLM would ask again at once, and again. Once a step, however many wait.
                self._is_idle = False
                self._pool.wait(missing, IDLE_WAIT_S)
            if self._pool.exists(missing):
                state.seen_written_s = self._clock()
                return False
        except MaruError:
            return False  # Pinning says so.
        return self._may_wait(state)

    def _begins_to_wait(self, state: _Request, usable: int) -> bool:
        """Pinned as far as possible: is the first chunk that is missing on its way?"""
        if state.waited or self._wait_for_others_s <= 0:
            return False
        if state.pinned is not None and len(state.pinned) >= usable:
            self._end_wait(state)
            return False
        return self._may_wait(state)

    def _may_wait(self, state: _Request) -> bool:
        """Whoever began earlier ends earlier, so waiting for what is under way beats computing it a second time. The
        bound is for those who got slower than we are, or stopped.
        """
        now = self._clock()
        try:
            if self._pool.being_written(state.first_missing):
                state.seen_written_s = now
                if state.waits_since_s is None:
                    state.waits_since_s = now
                    self.stats.add("waits", 1)
        except MaruError as error:
            self._failed("look a prompt up", error)
            return False
        if state.waits_since_s is None:
            return False
        over = now - state.waits_since_s > self._wait_for_others_s or now - state.seen_written_s > BETWEEN_STEPS_S
        if over:
            self._end_wait(state)
        return not over

    def _end_wait(self, state: _Request) -> None:
        if state.waits_since_s is not None and not state.waited:
            state.waited = True
            self.stats.add("wait_seconds", self._clock() - state.waits_since_s)

    def _announce(self, request: Any, state: _Request) -> None:
        if self._announcer and state.pinned:
            self._announcer.expect(request, state.keys, 0, len(state.pinned))

    def allocated(self, request: Any, blocks: Any, external_tokens: int) -> None:
        """vLLM has blocks for the request; `external_tokens` of them are ours to fill."""
        state = self._state_of(request)
        state.load = (state.local_tokens, state.local_tokens + external_tokens) if external_tokens > 0 else None
        state.blocks = list(blocks.get_block_ids()[0])
        if external_tokens == 0:
            state.let_go()

    def plan(self, output: Any) -> Plan:
        """What the workers do in this step."""
        plan = Plan()
        self._is_idle = not output.num_scheduled_tokens
        for new in output.scheduled_new_reqs:
            self._step(plan, new.req_id, list(new.block_ids[0]), True, new.num_computed_tokens, output)
        cached = output.scheduled_cached_reqs
        for at, request_id in enumerate(cached.req_ids):
            added = cached.new_block_ids[at]
            blocks = list(added[0]) if added is not None else []
            whole = request_id in cached.resumed_req_ids
            self._step(plan, request_id, blocks, whole, cached.num_computed_tokens[at], output)
        self._let_go_of_the_old()
        if self._prefill and output.num_scheduled_tokens:
            plan.timed_step = self._prefill.began(*_computed_in(output), is_pure=not plan.loads)
        return plan

    def done(self, done: Done) -> None:
        """Workers have loaded: the last of them ends the pins, for the worker's copies need them no more."""
        if self._prefill:
            self._prefill.ended(done.timed_step)
        for request_id, count in done.loaded.items():
            self._loaded[request_id] = self._loaded.get(request_id, 0) + count
            if self._loaded[request_id] >= self._worker_count:
                del self._loaded[request_id]
                if request_id in self._requests:
                    self._requests[request_id].let_go()

    def not_loaded(self, blocks: set[int]) -> None:
        """These blocks could not be filled: vLLM computes them again, and what comes after them is stored again."""
        for state in self._requests.values():
            if not blocks.isdisjoint(state.blocks):
                state.stored_chunks = 0
                state.let_go()

    def finished(self, request_id: str) -> None:
        """The request has gone, however."""
        self._loaded.pop(request_id, None)
        state = self._requests.pop(request_id, None)
        if state is not None:
            state.let_go()

    def close(self) -> None:
        for request_id in list(self._requests):
            self.finished(request_id)

    @property
    def pinned_requests(self) -> int:
        return sum(state.pinned is not None for state in self._requests.values())

    def _state_of(self, request: Any) -> _Request:
        state = self._requests.get(request.request_id)
        if state is None:
            kept = request if self._announcer else None
            stores = marked(request) == "on"
            state = self._requests[request.request_id] = _Request(self._keys_of(request), stores, kept)
        return state

    def _keys_of(self, request: Any) -> bytes:
        """Empty for a prompt that has no token ids, since embeddings have no keys, and for one that is marked "off"."""
        tokens = request.prompt_token_ids
        if tokens is None or getattr(request, "prompt_embeds", None) is not None or marked(request) == "off":
            return b""
        seed = request_seed(self._digest, request)
        return core.chunk_keys(array("q", tokens), self._shape.chunk_tokens, seed)

    def _pin(self, state: _Request, usable: int) -> None:
        begun = time.perf_counter()
        try:
            pinned = self._pool.pin(memoryview(state.keys)[: usable * KEY_BYTES])
        except MaruError as error:
            self._failed("look a prompt up", error)
            return
        self.stats.add("lookups", 1)
        self.stats.add("lookup_seconds", time.perf_counter() - begun)
        state.let_go()
        if len(pinned) == 0:
            pinned.release()
            return
        state.pinned, state.pinned_at_s = pinned, self._clock()
        state.stored_chunks = max(state.stored_chunks, len(pinned))

    def _step(self, plan: Plan, request_id: str, blocks: list[int], whole: bool, computed: int, output: Any) -> None:
        state = self._requests.get(request_id)
        if state is None:
            return
        state.blocks = blocks if whole else state.blocks + blocks
        if state.load is not None:
            plan.loads.append(self._load(request_id, state, *state.load))
            state.load = None
        done = (computed + output.num_scheduled_tokens[request_id]) // self._shape.chunk_tokens
        done = min(done, state.chunk_count, len(state.blocks) // self._shape.blocks_per_chunk)
        if done > state.stored_chunks and state.stores:
            plan.saves.append(self._save(request_id, state, state.stored_chunks, done))
            if self._announcer and state.request is not None:
                self._announcer.expect(state.request, state.keys, state.stored_chunks, done)
            state.stored_chunks = done

    def _load(self, request_id: str, state: _Request, first_token: int, end_token: int) -> Load:
        shape = self._shape
        first_chunk, end_chunk = first_token // shape.chunk_tokens, -(-end_token // shape.chunk_tokens)
        first_block, end_block = first_token // shape.block_tokens, end_token // shape.block_tokens
        return Load(
            request_id,
            state.keys[first_chunk * KEY_BYTES : end_chunk * KEY_BYTES],
            tuple(state.blocks[first_block:end_block]),
            first_block - first_chunk * shape.blocks_per_chunk,
        )

    def _save(self, request_id: str, state: _Request, first: int, end: int) -> Save:
        per_chunk = self._shape.blocks_per_chunk
        return Save(
            request_id,
            state.keys[first * KEY_BYTES : end * KEY_BYTES],
            state.keys[(first - 1) * KEY_BYTES : first * KEY_BYTES] if first else None,
            tuple(state.blocks[first * per_chunk : end * per_chunk]),
        )

    def _let_go_of_the_old(self) -> None:
        """A request that waits for a place longer than this asks again, and may find less."""
        too_old = self._clock() - PIN_AGE_S
        for state in self._requests.values():
            if state.pinned is not None and state.pinned_at_s < too_old and state.load is None:
                state.let_go()


def _computed_in(output: Any) -> tuple[int, float, int]:
    """Tokens of prompts that a step computes, their mean position, and tokens of answers. What a request computes again
    that was preempted while it answered counts with the answers."""
    cached, counts = output.scheduled_cached_reqs, output.num_scheduled_tokens
    prompts = [(new.req_id, new.num_computed_tokens) for new in output.scheduled_new_reqs]
    rows = zip(cached.req_ids, cached.num_computed_tokens, cached.num_output_tokens, strict=True)
    prompts += [(request_id, computed) for request_id, computed, answered in rows if not answered]
    tokens = sum(counts[request_id] for request_id, _ in prompts)
    position = sum(counts[request_id] * (computed + counts[request_id] / 2) for request_id, computed in prompts)
    return tokens, position / max(1, tokens), sum(counts.values()) - tokens
