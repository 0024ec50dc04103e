"""The worker's side: the copies between vLLM's blocks and the pool's chunks, layer by layer while vLLM computes.

Holds:      the step that is under way: what is being loaded, what is being stored, which blocks could not be filled.
Promises:   a block is filled with the whole of what its key says before its layer is computed, or reported so that vLLM
            computes it; a chunk is sealed with the whole of what was computed, or never seen. What was computed upon
            blocks that could not be filled is not stored. Any trouble with the pool is that report, or nothing stored.
Leaves:     which chunks and blocks to the scheduler's side.

A step is begin, before_layer and after_layer as vLLM comes to its layers, end. A layer's KV is loaded in the background
only when this worker has seen vLLM ask for every layer of a step before: a model that computes a layer without asking
would read what is not there yet. Storing needs no such trust, for `end` copies whatever was not asked for.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from maru.engine.vllm.blocks import NO_PIECES, Blocks, Pieces, joined
from maru.engine.vllm.fit import Shape
from maru.engine.vllm.lane import CopyLane
from maru.engine.vllm.metrics import MaruStats
from maru.engine.vllm.plan import Done, Load, Save
from maru.errors import MaruError
from maru.native import core
from maru.pool import Namespace, Outcome, PinnedPrefix, Pool, ReservationBatch

KEY_BYTES = 16
COPY_DEADLINE_S = 30.0
STORE_DEADLINE_S = 300.0
"""How long a step may take before somebody else may store its chunks."""


@dataclass
class WorkerCounters:
    """What this worker did. Seconds are those that vLLM waited, not those that the copies took."""

    tokens_loaded: int = 0
    bytes_loaded: int = 0
    load_s: float = 0.0
    tokens_stored: int = 0
    bytes_stored: int = 0
    store_s: float = 0.0
    blocks_failed: int = 0


@dataclass
class _Step:
    """What is under way between begin and end."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    pinned: list[PinnedPrefix] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)
    """Requests whose loading failed."""
    loading: dict[int, int] = field(default_factory=dict)
    """Order by layer that is being loaded."""
    reserved: list[tuple[str, ReservationBatch]] | None = None
    """None until the first layer is done."""
    storing: Pieces = NO_PIECES
    stored: dict[int, int] = field(default_factory=dict)
    asked: list[int] = field(default_factory=list)
    """Layers that vLLM came to, in its order."""


class WorkerSide:
    """One a worker process, driven by its model runner's thread."""

    def __init__(
        self,
        pool: Pool,
        namespace: Namespace,
        shape: Shape,
        rank: int,
        ranks: int,
        failed: Callable[[str, Exception], None],
        in_background: bool = True,
    ) -> None:
        """`in_background`: copy while vLLM computes; else all at once, before and after."""
        self._pool = pool
        self._namespace = namespace
        self._shape = shape
        self._rank = rank
        self._ranks = ranks
        self._failed = failed
        self._in_background = in_background
        self._numbers = {name: number for number, name in enumerate(shape.layer_names)}
        self._blocks: Blocks | None = None
        self._lane = CopyLane("maru-copies")
        self._step = _Step()
        self._asks_for_layers = False
        self._invalid: set[int] = set()
        self._done = Done()
        self._stuck: list[object] = []
        """What a copy that never ended may still touch: kept as long as this process."""
        self.counters = WorkerCounters()
        self._told = WorkerCounters()

    def register(self, kv_caches: dict[str, torch.Tensor]) -> None:
        """Each layer's blocks, block index first. Raises ModelRefused where a block does not lie in one piece."""
        self._blocks = Blocks(self._pool, self._shape, kv_caches)

    # A step

    def begin(self, loads: list[Load]) -> None:
        """Pin and start filling the blocks; those that cannot be filled are reported."""
        if not loads:
            return
        begun = time.monotonic()
        self._step.loads += loads
        pieces = joined([piece for load in loads for piece in self._pieces_of(load)])
        if pieces.count and self._blocks is not None:
            for layer in range(self._blocks.layer_count):
                here, there = self._blocks.of_layer(layer, pieces)
                if self._in_background and self._asks_for_layers:
                    self._step.loading[layer] = self._lane.order(here, there, self._blocks.block_bytes)
                else:
                    core._copy_pieces(here, there, self._blocks.block_bytes)
        self.counters.load_s += time.monotonic() - begun

    def before_layer(self, name: str, saves: list[Save]) -> None:
        """vLLM is about to compute a layer: return when its blocks are filled. `saves`: what this step will store."""
        layer = self._numbers.get(name)
        if layer is None:
            return
        self._step.asked.append(layer)
        self._reserve(saves)
        order = self._step.loading.pop(layer, None)
        if order is not None:
            begun = time.monotonic()
            self._wait_for_loads(order)
            self.counters.load_s += time.monotonic() - begun

    def after_layer(self, name: str, saves: list[Save]) -> None:
        """A layer's KV is computed: start storing it."""
        layer = self._numbers.get(name)
        self._reserve(saves)
        if layer is None or not self._in_background or layer in self._step.stored or self._blocks is None:
            return
        if self._step.storing.count:
            here, there = self._blocks.of_layer(layer, self._step.storing)
            self._step.stored[layer] = self._lane.order(there, here, self._blocks.block_bytes)

    def end(self, saves: list[Save]) -> None:
        """The step is computed: store what is not stored yet, seal, and let go of what was loaded."""
        if self._step.loads:
            begun = time.monotonic()
            self._finish_loading()
            self.counters.load_s += time.monotonic() - begun
        if saves or self._step.reserved:
            begun = time.monotonic()
            self._reserve(saves)
            self._finish_storing()
            self.counters.store_s += time.monotonic() - begun
        if self._step.asked:
            self._asks_for_layers = sorted(self._step.asked) == list(range(len(self._numbers)))
        self._step = _Step()

    def take_invalid(self) -> set[int]:
        """Blocks that vLLM has to compute, told once."""
        invalid, self._invalid = self._invalid, set()
        return invalid

    def take_done(self) -> Done | None:
        """Requests loaded since the last call."""
        done, self._done = self._done, Done()
        return done if done.loaded else None

    def take_stats(self) -> MaruStats:
        """What this worker did since the last call."""
        now, before = self.counters, self._told
        self._told = replace(now)
        stats = MaruStats()
        stats.add("loaded_tokens", now.tokens_loaded - before.tokens_loaded)
        stats.add("loaded_bytes", now.bytes_loaded - before.bytes_loaded)
        stats.add("load_seconds", now.load_s - before.load_s)
        stats.add("stored_tokens", now.tokens_stored - before.tokens_stored)
        stats.add("stored_bytes", now.bytes_stored - before.bytes_stored)
        stats.add("store_seconds", now.store_s - before.store_s)
        stats.add("failed_blocks", now.blocks_failed - before.blocks_failed)
        return stats

    def close(self) -> None:
        """End the thread that copies."""
        if not self._lane.close(COPY_DEADLINE_S):
            self._stuck.append(self._step)

    # Loading

    def _pieces_of(self, load: Load) -> list[Pieces]:
        """Where the leading chunks lie that are there; the rest's blocks are reported."""
        found: list[Pieces] = []
        filled = 0
        per_chunk = self._shape.blocks_per_chunk
        try:
            prefix = self._pool.pin(load.keys)
            self._step.pinned.append(prefix)
            extents = memoryview(prefix.extents()).cast("Q")
            for number in range(len(prefix)):
                offset, size = extents[2 * number], extents[2 * number + 1]
                if self._blocks is None or size != self._blocks.part_bytes * self._ranks:
                    break
                skip = load.skip_blocks if number == 0 else 0
                blocks = load.blocks[filled : filled + per_chunk - skip]
                found.append(self._blocks.to_read(offset + self._rank * self._blocks.part_bytes, skip, blocks))
                filled += len(blocks)
        except MaruError as error:
            self._failed("load a prefix", error)
        if filled < len(load.blocks):
            self._spoil(load, filled)
        self.counters.tokens_loaded += filled * self._shape.block_tokens
        self.counters.bytes_loaded += filled * (
            self._blocks.block_bytes * self._blocks.layer_count if self._blocks else 0
        )
        return found

    def _finish_loading(self) -> None:
        if self._step.loading:
            self._wait_for_loads(max(self._step.loading.values()))
        for prefix in self._step.pinned:
            prefix.release()
        for load in self._step.loads:
            self._done.loaded[load.request_id] = 1

    def _spoil(self, load: Load, filled: int) -> None:
        self._invalid.update(load.blocks[filled:])
        self._step.spoilt.add(load.request_id)
        self.counters.blocks_failed += len(load.blocks) - filled

    def _wait_for_loads(self, order: int) -> None:
        """A copy that does not end spoils the whole step; what it may still write to stays pinned for good."""
        if self._lane.wait(order, COPY_DEADLINE_S):
            return
        self._failed("load a prefix", TimeoutError(f"a copy took more than {COPY_DEADLINE_S:.0f} s"))
        for load in self._step.loads:
            self._spoil(load, 0)
        self._stuck.append(self._step.pinned)
        self._step.pinned, self._step.loading = [], {}
        self._lane, self._in_background = CopyLane("maru-copies"), False

    # Storing

    def _reserve(self, saves: list[Save]) -> None:
        """Once a step: memory for what it will store, so that others can see that it is being computed."""
        if self._step.reserved is not None or self._blocks is None:
            return
        self._step.reserved = []
        pieces: list[Pieces] = []
        for save in saves:
            if save.request_id not in self._step.spoilt:
                try:
                    pieces += self._reserve_one(save)
                except MaruError as error:
                    self._failed("store a prompt", error)
        self._step.storing = joined(pieces)

    def _reserve_one(self, save: Save) -> list[Pieces]:
        assert self._blocks is not None
        assert self._step.reserved is not None
        per_chunk = self._shape.blocks_per_chunk
        batch = self._pool.reserve_many(
            save.keys, self._blocks.part_bytes * self._ranks, namespace=self._namespace, parent=save.parent,
            deadline=STORE_DEADLINE_S, part=self._rank, parts=self._ranks,
        )  # fmt: skip
        self._step.reserved.append((save.request_id, batch))
        return [
            self._blocks.to_write(offset, save.blocks[number * per_chunk : (number + 1) * per_chunk])
            for number, offset in enumerate(batch.offsets)
            if offset is not None
        ]

    def _finish_storing(self) -> None:
        step = self._step
        if not step.reserved or self._blocks is None:
            return
        for layer in range(self._blocks.layer_count) if step.storing.count else ():
            if layer not in step.stored:
                here, there = self._blocks.of_layer(layer, step.storing)
                core._copy_pieces(there, here, self._blocks.block_bytes)
        if step.stored and not self._lane.wait(max(step.stored.values()), COPY_DEADLINE_S):
            self._failed("store a prompt", TimeoutError(f"a copy took more than {COPY_DEADLINE_S:.0f} s"))
            self._stuck.append(step.reserved)  # Neither sealed nor given back: the copy may still write.
            self._lane, self._in_background = CopyLane("maru-copies"), False
            return
        for request_id, batch in step.reserved:
            try:
                self._seal(request_id, batch)
            except MaruError as error:
                self._failed("store a prompt", error)

    def _seal(self, request_id: str, batch: ReservationBatch) -> None:
        assert self._blocks is not None
        if request_id in self._step.spoilt:
            batch.discard()
            return
        stored = sum(outcome == Outcome.STORED for outcome in batch.seal())
        self.counters.tokens_stored += stored * self._shape.chunk_tokens
        self.counters.bytes_stored += stored * self._blocks.part_bytes
