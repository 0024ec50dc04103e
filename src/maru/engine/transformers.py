"""The door for Hugging Face transformers: a prompt's known prefix comes from the pool, the rest is computed.

    door = PoolCache(pool, model, model_name="SmolLM2-135M-Instruct", tokenizer_name="smollm2")
    past, reused_tokens = door.load(input_ids)          # a DynamicCache; the last token is always left to you
    output = model.generate(input_ids, past_key_values=past, return_dict_in_generate=True)
    door.store(input_ids, output.past_key_values)       # the prompt's full chunks, where they are missing

Holds:      the two copies between a `DynamicCache` and the pool, and a greedy loop that uses them.
Promises:   a prefix is used only where recomputing it would give the same values up to rounding; models for
            which that cannot be told are refused at construction; a `MaruError` later on is a miss, counted
            and logged once.
Leaves:     which models fit and what makes two of them interchangeable to `transformers_fit`; keys, pins,
            space and eviction to the pool; sampling to transformers.

One chunk is `chunk_tokens` tokens of every layer, contiguous, in the cache's dtype:

    [layers][2: keys, values][kv_heads][chunk_tokens][head_dim]

Keys are stored as the cache holds them, that is with their rotary positions applied: a prefix starts at
position 0 in every prompt, so they fit every prompt that shares it.

The price of a hit is one copy, from the pool's memory to one new tensor that the cache's layers are views of.
Storing is one copy too, straight into the reserved chunk.

Prefill and decode give the same KV only up to rounding (about 1e-4 in float32, since the matrix shapes
differ). `generate` here therefore stores what a prefill computed, the prompt, and not its own answer; the
answer gets into the pool with the next turn's prefill. Whoever would rather save those few tokens passes
prompt and answer to `store`.

Batch size 1, no padding. One door belongs to one thread and one model, whose weights, adapter and attention
implementation stay as they are. CUDA devices take the same path but are not covered by tests.
"""

from __future__ import annotations

import logging
import threading
import time
import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from maru import Outcome
from maru.engine.transformers_fit import ModelRefused, cache_shape, identity_of, refuse_by_config
from maru.errors import MaruError
from maru.tiering.prefill import PrefillClock
from maru.tiering.tiered import TieredPool

if TYPE_CHECKING:
    from maru import Pool, Reservation

__all__ = ["ChunkRefused", "Counters", "Generation", "ModelRefused", "PoolCache", "generate_greedy"]

log = logging.getLogger(__name__)

KEY_BYTES = 16


class ChunkRefused(MaruError):
    """A chunk found under our key has another size than every chunk of this model."""

    hint = "two programs share this tenant and disagree about the layout; give one of them another tenant"

    found_bytes: int = 0
    expected_bytes: int = 0


@dataclass
class Counters:
    """What one door did so far. Prompts too short for a chunk are no lookups."""

    lookups: int = 0
    hits: int = 0
    failures: int = 0
    tokens_reused: int = 0
    bytes_loaded: int = 0
    bytes_stored: int = 0


@dataclass(frozen=True)
class Generation:
    """One greedy answer and what it took. Times are in seconds from the call, loading included."""

    prompt_tokens: int
    reused_tokens: int
    ttft_s: float
    total_s: float
    bytes_loaded: int
    bytes_stored: int
    output_ids: list[int] = field(repr=False)


class PoolCache:
    """Fills transformers' `DynamicCache` from a pool and stores what transformers computed."""

    def __init__(
        self,
        pool: Pool,
        model: Any,
        *,
        model_name: str,
        tokenizer_name: str,
        tenant: str = "default",
        revision: str | None = None,
        chunk_tokens: int = 256,
        ttl: float | None = None,
        measures_prefill: bool = True,
    ) -> None:
        """Look at the model and register its namespace in the pool.

        `revision` names the weights exactly (a commit, a digest of the files); without it, it is derived
        from the configuration and a sample of every weight tensor. `tokenizer_name` is part of the identity
        so that whoever asks for a namespace says what its token ids mean. `ttl` is in seconds.
        `measures_prefill`: where places lie below the pool, what `generate` computes is timed, and what would be
        computed sooner than loaded is left below; unless the pool's LadderSettings say what computing costs.

        Raises ModelRefused, and whatever `pool.namespace` raises: a door that cannot open is an error.
        """
        if chunk_tokens < 1:
            raise ValueError(f"chunk_tokens must be at least 1, not {chunk_tokens}")
        refuse_by_config(model)
        self.model = model
        self.chunk_tokens = chunk_tokens
        self.counters = Counters()
        self._pool = pool
        self._shape = cache_shape(model)
        self.identity = identity_of(
            model,
            self._shape,
            model_name=model_name,
            tokenizer_name=tokenizer_name,
            tenant=tenant,
            revision=revision,
            chunk_tokens=chunk_tokens,
        )
        self.namespace = pool.namespace(self.identity, ttl=ttl)
        self.prefill_clock: PrefillClock | None = None
        """Told what is computed; by `generate`, or by whoever calls the model otherwise."""
        if measures_prefill and isinstance(pool, TieredPool):
            self.prefill_clock = PrefillClock(chunk_tokens)
            pool.ladder.measure_prefill(self.prefill_clock)
        self._logged: set[type[MaruError]] = set()
        _spend_read_only_warning()

    @property
    def chunk_shape(self) -> tuple[int, int, int, int, int]:
        """[layers][2][kv_heads][chunk_tokens][head_dim]."""
        shape = self._shape
        return (shape.layers, 2, shape.kv_heads, self.chunk_tokens, shape.head_dim)

    @property
    def chunk_bytes(self) -> int:
        """Size of one chunk in the pool."""
        values = 1
        for extent in self.chunk_shape:
            values *= extent
        return values * int(self._shape.dtype.itemsize)

    def keys(self, input_ids: Any) -> bytes:
        """The packed keys (n x 16 bytes) of the prompt's full chunks."""
        return bytes(self.namespace.chunk_keys(_one_prompt(input_ids), chunk_tokens=self.chunk_tokens))

    def load(self, input_ids: Any) -> tuple[Any, int]:
        """A new `DynamicCache` with as much of the prompt's start as the pool has, and that many tokens.

        `input_ids` is one prompt, shaped [n] or [1, n]. At least its last token is left out, since a model
        needs one token to compute the next. A miss, or a pool that failed, is an empty cache and 0.
        """
        tokens = _one_prompt(input_ids)
        past = DynamicCache(config=self.model.config)
        try:
            return past, self._fill(past, tokens)
        except MaruError as error:
            self._failed("load a prefix", error)
            return past, 0

    def store(self, input_ids: Any, past: Any) -> int:
        """Store the full chunks of `input_ids` that `past` covers and the pool lacks; return their bytes.

        `past` must be what this model computed for exactly these tokens from position 0 on, without padding.
        It may reach further than `input_ids`, and the other way round: the shorter one counts. A full or
        failing pool stores less, or nothing.
        """
        tokens = _one_prompt(input_ids)
        chunk_count = min(len(tokens), past.get_seq_length()) // self.chunk_tokens
        if chunk_count == 0:
            return 0
        self._refuse_foreign(past)
        stored_before = self.counters.bytes_stored
        try:
            self._store_missing(tokens, past, chunk_count)
        except MaruError as error:
            self._failed("store a prefix", error)
        return self.counters.bytes_stored - stored_before

    def generate(self, input_ids: Any, *, max_new_tokens: int) -> Generation:
        """Answer greedily: load, prefill the rest, decode, store the prompt. See `generate_greedy`."""
        return generate_greedy(self.model, input_ids, max_new_tokens=max_new_tokens, door=self)

    def _fill(self, past: Any, tokens: Any) -> int:
        """Copy the leading run of resident chunks into `past`, all of it or nothing; return its tokens."""
        usable_chunks = (len(tokens) - 1) // self.chunk_tokens
        if usable_chunks == 0:
            return 0
        self.counters.lookups += 1
        with self._pool.pin(self.keys(tokens)[: usable_chunks * KEY_BYTES]) as prefix:
            chunk_count = len(prefix)
            if chunk_count == 0:
                return 0
            whole = self._copy_out(prefix.views, chunk_count)
        for index, layer in enumerate(past.layers):
            keys, values = whole[index, 0], whole[index, 1]
            # Set instead of `layer.update(keys, values)`, which would copy the prefix a second time.
            layer.lazy_initialization(keys, values)
            layer.keys, layer.values = keys, values
        self.counters.hits += 1
        self.counters.tokens_reused += chunk_count * self.chunk_tokens
        self.counters.bytes_loaded += chunk_count * self.chunk_bytes
        return chunk_count * self.chunk_tokens

    def _copy_out(self, views: Any, chunk_count: int) -> Any:
        """The one copy of a hit: pool memory to a new tensor [layers][2][1][kv_heads][tokens][head_dim].

        A frame of its own: the tensors that look into the pool end with it, before the pins do.
        """
        shape = self._shape
        size = self.chunk_tokens
        whole = torch.empty(
            (shape.layers, 2, 1, shape.kv_heads, chunk_count * size, shape.head_dim),
            dtype=shape.dtype,
            device=shape.device,
        )
        for index, view in enumerate(views):
            if view.nbytes != self.chunk_bytes:
                raise ChunkRefused(
                    f"a chunk of {view.nbytes} bytes where this model's have {self.chunk_bytes}",
                    found_bytes=view.nbytes,
                    expected_bytes=self.chunk_bytes,
                )
            chunk = torch.frombuffer(view, dtype=shape.dtype).view(self.chunk_shape)
            whole[:, :, 0, :, index * size : (index + 1) * size].copy_(chunk)
        return whole

    def _store_missing(self, tokens: Any, past: Any, chunk_count: int) -> None:
        keys = self.keys(tokens[: chunk_count * self.chunk_tokens])
        parent: bytes | None = None
        present = self._pool.lookup(keys)
        for index in range(chunk_count):
            key = keys[index * KEY_BYTES : (index + 1) * KEY_BYTES]
            # Somebody else storing this chunk right now (EXISTS, IN_FLIGHT) is as good as our storing it.
            # FULL, BUSY and LOST end the run: without its parent a later chunk could not be found.
            if index >= present and self._store_one(key, parent, past, index) in (
                Outcome.FULL,
                Outcome.BUSY,
                Outcome.LOST,
            ):
                return
            parent = key

    def _store_one(self, key: bytes, parent: bytes | None, past: Any, index: int) -> Outcome:
        with self._pool.reserve(key, self.chunk_bytes, namespace=self.namespace, parent=parent) as reservation:
            if reservation.outcome is not Outcome.RESERVED:
                return reservation.outcome
            self._copy_in(reservation, past, index)
            outcome = reservation.seal()
        if outcome is Outcome.STORED:
            self.counters.bytes_stored += self.chunk_bytes
        return outcome

    def _copy_in(self, reservation: Reservation, past: Any, index: int) -> None:
        """Write chunk `index` of `past` into the pool.

        A frame of its own, since `seal` refuses while a tensor still looks into the buffer.
        """
        chunk = torch.frombuffer(reservation.buffer, dtype=self._shape.dtype).view(self.chunk_shape)
        tokens = slice(index * self.chunk_tokens, (index + 1) * self.chunk_tokens)
        for layer_index, layer in enumerate(past.layers):
            chunk[layer_index, 0].copy_(layer.keys[0, :, tokens])
            chunk[layer_index, 1].copy_(layer.values[0, :, tokens])

    def _refuse_foreign(self, past: Any) -> None:
        shape = self._shape
        wanted = (1, shape.kv_heads, past.get_seq_length(), shape.head_dim)
        layers = getattr(past, "layers", [])
        if len(layers) != shape.layers or any(
            type(layer) is not DynamicLayer
            or layer.dtype != shape.dtype
            or tuple(layer.keys.shape) != wanted
            or tuple(layer.values.shape) != wanted
            for layer in layers
        ):
            raise ValueError(f"past is not a DynamicCache of this model with {shape.layers} layers of {wanted}")

    def _failed(self, doing: str, error: MaruError) -> None:
        self.counters.failures += 1
        if type(error) not in self._logged:
            self._logged.add(type(error))
            log.warning("could not %s, computing it instead (logged once): %s", doing, error)


def generate_greedy(model: Any, input_ids: Any, *, max_new_tokens: int, door: PoolCache | None = None) -> Generation:
    """Answer one prompt ([n] or [1, n]) greedily; without a door, cold: the whole prompt is computed.

    Both ways run the same code, so that their times compare. The prompt is stored after the first token is
    known, which keeps the store out of `ttft_s`. Stops at the generation config's end-of-sequence tokens.
    """
    started = time.perf_counter()
    tokens = _one_prompt(input_ids)
    prompt = torch.as_tensor(tokens, dtype=torch.long, device=model.device)[None, :]
    loaded_before = door.counters.bytes_loaded if door else 0
    past, reused_tokens = door.load(tokens) if door else (DynamicCache(config=model.config), 0)
    bytes_loaded = door.counters.bytes_loaded - loaded_before if door else 0
    clock = door.prefill_clock if door else None
    step = clock.began(len(tokens) - reused_tokens, (reused_tokens + len(tokens)) / 2) if clock else 0
    next_id = _next_token(model, prompt[:, reused_tokens:], past)
    if clock:
        clock.ended(step)
    ttft_s = time.perf_counter() - started
    bytes_stored = door.store(tokens, past) if door else 0
    output_ids = [next_id]
    stop_ids = _stop_ids(model)
    while len(output_ids) < max_new_tokens and next_id not in stop_ids:
        next_id = _next_token(model, torch.tensor([[next_id]], device=model.device), past)
        output_ids.append(next_id)
    return Generation(
        prompt_tokens=len(tokens),
        reused_tokens=reused_tokens,
        ttft_s=ttft_s,
        total_s=time.perf_counter() - started,
        bytes_loaded=bytes_loaded,
        bytes_stored=bytes_stored,
        output_ids=output_ids,
    )


def _next_token(model: Any, suffix: Any, past: Any) -> int:
    with torch.no_grad():
        # logits_to_keep: the logits of a 4K prompt over a 49K vocabulary would be 800 MB that nobody reads.
        output = model(input_ids=suffix, past_key_values=past, use_cache=True, logits_to_keep=1)
    return int(output.logits[0, -1].argmax())


def _stop_ids(model: Any) -> frozenset[int]:
    stop = getattr(model.generation_config, "eos_token_id", None)
    if stop is None:
        return frozenset()
    return frozenset([stop] if isinstance(stop, int) else stop)


def _one_prompt(input_ids: Any) -> Any:
    """The prompt as a one-dimensional int64 numpy array; ValueError for a batch of several."""
    tokens = torch.as_tensor(input_ids)
    if tokens.ndim == 2 and tokens.shape[0] == 1:
        tokens = tokens[0]
    if tokens.ndim != 1 or tokens.numel() == 0:
        raise ValueError(f"one prompt of shape [n] or [1, n] is needed, not {list(tokens.shape)}")
    return tokens.to(device="cpu", dtype=torch.long).contiguous().numpy()


_warning_lock = threading.Lock()


def _spend_read_only_warning() -> None:
    """Make torch give its once-per-process warning about read-only buffers now, unheard.

    Sealed chunks are read-only on purpose and `_copy_out` only reads them. Catching the warning around every
    load instead would touch the interpreter's global filters from whatever thread is serving.
    """
    with _warning_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable", category=UserWarning)
        torch.frombuffer(b"\0", dtype=torch.uint8)
