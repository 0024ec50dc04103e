"""The worker's side: what is copied between vLLM's blocks and the pool's chunks in a step, and what becomes of it.

Holds:      the step that is under way: what is being loaded, what is being stored, which blocks could not be filled.
Promises:   a block is filled with the whole of what its key says before it is computed upon, or reported so that vLLM
            computes it; a chunk is sealed with the whole of what was computed, or never seen. What was computed upon
            blocks that could not be filled is not stored. Any trouble with the pool is that report, or nothing stored.
Leaves:     which chunks and blocks to the scheduler's side, moving bytes to `copies`.

A step is begin, before_layer and after_layer as vLLM comes to its layers, end. What a step will store is reserved
before its first layer is computed, so that others can see that it is being computed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from maru.engine.vllm.blocks import NO_PIECES, Pieces, joined
from maru.engine.vllm.copies import Copies, CopyLate
from maru.engine.vllm.fit import Shape
from maru.engine.vllm.metrics import MaruStats
from maru.engine.vllm.plan import Done, Load, Save
from maru.errors import MaruError
from maru.pool import Namespace, Outcome, PinnedPrefix, Pool, ReservationBatch

KEY_BYTES = 16
STORE_DEADLINE_S = 300.0
"""How long a step may take before somebody else may store its chunks."""


@dataclass
class WorkerCounters:
    """What this worker did. Seconds are those that vLLM waited, not those that the copies took."""

    tokens_loaded: int = 0
    bytes_loaded: int = 0
    bytes_loaded_remote: int = 0
    load_s: float = 0.0
    tokens_stored: int = 0
    bytes_stored: int = 0
    bytes_stored_remote: int = 0
    store_s: float = 0.0
    blocks_failed: int = 0


@dataclass
class _Step:
    """What is under way between begin and end."""

    loads: list[Load] = field(default_factory=list)
    spoilt: set[str] = field(default_factory=set)
    """Requests whose loading failed."""
    reserved: list[tuple[str, ReservationBatch]] | None = None
    """By request; None until the step comes to its first layer."""
    storing: Pieces = NO_PIECES


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
    ) -> None:
        self._pool = pool
        self._namespace = namespace
        self._shape = shape
        self._rank = rank
        self._ranks = ranks
        self._failed = failed
        self._numbers = {name: number for number, name in enumerate(shape.layer_names)}
        self._copies: Copies | None = None
        self._step = _Step()
        self._invalid: set[int] = set()
        self._done = Done()
        self._told = WorkerCounters()
        self._sealing = threading.Lock()
        self.counters = WorkerCounters()

    def register(self, copies: Copies) -> None:
        """How its blocks are copied. Before that nothing is filled or stored."""
        self._copies = copies

    # A step

    def before_step(self) -> None:
        """Before vLLM launches any work of a step."""
        if self._copies:
            try:
                self._copies.before_step()
            except MaruError as error:
                self._failed("order copies before a step", error)

    def begin(self, loads: list[Load], timed_step: int = 0) -> None:
        """Pin, and start filling the blocks; those that cannot be filled are reported.

        `timed_step`: as the plan has it, for take_done.
        """
        self._done.timed_step = timed_step
        if not loads:
            return
        begun = time.monotonic()
        self._step.loads += loads
        pinned: list[PinnedPrefix] = []
        pieces = joined([piece for load in loads for piece in self._pieces_of(load, pinned)])
        if self._copies and pieces.count:
            try:
                self._copies.load(pieces, pinned)
            except MaruError as error:
                self._failed("load a prefix", error)
                self._spoil_all()
        self.counters.load_s += time.monotonic() - begun

    def before_layer(self, name: str, saves: list[Save]) -> None:
        """vLLM is about to compute a layer: return when its blocks are filled. `saves`: what this step will store."""
        layer = self._numbers.get(name)
        if layer is None or self._copies is None:
            return
        self._reserve(saves)
        begun = time.monotonic()
        self._copies.before_layer(layer)
        if self._step.loads:
            self.counters.load_s += time.monotonic() - begun

    def after_layer(self, name: str, saves: list[Save]) -> None:
        """A layer's KV is computed: start storing it."""
        layer = self._numbers.get(name)
        self._reserve(saves)
        if layer is not None and self._copies is not None:
            self._copies.after_layer(layer, self._step.storing)

    def end(self, saves: list[Save]) -> None:
        """The step is computed: store what is not stored yet, and let go of what was loaded."""
        if self._step.loads:
            begun = time.monotonic()
            if self._copies and not self._copies.loads_done():
                self._failed("load a prefix", CopyLate("a copy did not end in time"))
                self._spoil_all()
            for load in self._step.loads:
                self._done.loaded[load.request_id] = 1
            self.counters.load_s += time.monotonic() - begun
        if saves or self._step.reserved:
            begun = time.monotonic()
            self._reserve(saves)
            self._store()
            self.counters.store_s += time.monotonic() - begun
        if self._copies:
            self._copies.end_step()
        self._step = _Step()

    def take_invalid(self) -> set[int]:
        """Blocks that vLLM has to compute, told once."""
        invalid, self._invalid = self._invalid, set()
        return invalid

    def take_done(self) -> Done | None:
        """Requests loaded since the last call, and the step that was timed."""
        done, self._done = self._done, Done()
        return done if done.loaded or done.timed_step else None

    def take_stats(self) -> MaruStats:
        """What this worker did since the last call."""
        if self._copies:
            self.counters.bytes_loaded_remote, self.counters.bytes_stored_remote = self._copies.remote_bytes()
        now, before = self.counters, self._told
        self._told = replace(now)
        stats = MaruStats()
        stats.add("loaded_tokens", now.tokens_loaded - before.tokens_loaded)
        stats.add("loaded_bytes", now.bytes_loaded - before.bytes_loaded)
        stats.add("loaded_remote_bytes", now.bytes_loaded_remote - before.bytes_loaded_remote)
        stats.add("load_seconds", now.load_s - before.load_s)
        stats.add("stored_tokens", now.tokens_stored - before.tokens_stored)
        stats.add("stored_bytes", now.bytes_stored - before.bytes_stored)
        stats.add("stored_remote_bytes", now.bytes_stored_remote - before.bytes_stored_remote)
        stats.add("store_seconds", now.store_s - before.store_s)
        stats.add("failed_blocks", now.blocks_failed - before.blocks_failed)
        return stats

    def close(self) -> None:
        """Finish what was begun."""
        if self._copies:
            try:
                self._copies.close()
            except MaruError as error:
                self._failed("end copying", error)

    # Loading

    def _pieces_of(self, load: Load, pinned: list[PinnedPrefix]) -> list[Pieces]:
        """Where the leading chunks lie that are there; the rest's blocks are reported."""
        found: list[Pieces] = []
        filled = 0
        per_chunk = self._shape.blocks_per_chunk
        blocks = self._copies.blocks if self._copies else None
        try:
            prefix = self._pool.pin(load.keys)
            pinned.append(prefix)
            extents = memoryview(prefix.extents()).cast("Q")
            for number in range(len(prefix)):
                offset, size = extents[2 * number], extents[2 * number + 1]
                if blocks is None or size != blocks.part_bytes * self._ranks:
                    break
                skip = load.skip_blocks if number == 0 else 0
                some = load.blocks[filled : filled + per_chunk - skip]
                found.append(blocks.pieces(offset + self._rank * blocks.part_bytes, skip, some))
                filled += len(some)
        except MaruError as error:
            self._failed("load a prefix", error)
        if filled < len(load.blocks):
            self._spoil(load, filled)
        self.counters.tokens_loaded += filled * self._shape.block_tokens
        if blocks is not None:
            self.counters.bytes_loaded += filled * blocks.part_bytes // per_chunk
        return found

    def _spoil(self, load: Load, filled: int) -> None:
        missing = set(load.blocks[filled:]) - self._invalid
        self._invalid |= missing
        self._step.spoilt.add(load.request_id)
        self.counters.blocks_failed += len(missing)

    def _spoil_all(self) -> None:
        for load in self._step.loads:
            self._spoil(load, 0)

    # Storing

    def _reserve(self, saves: list[Save]) -> None:
        """Once a step: memory for what it will store."""
        if self._step.reserved is not None or self._copies is None:
            return
        self._step.reserved = []
        pieces: list[Pieces] = []
        for save in saves:
            if save.request_id not in self._step.spoilt:
                try:
                    pieces += self._reserve_one(save, self._copies, self._step.reserved)
                except MaruError as error:
                    self._failed("store a prompt", error)
        self._step.storing = joined(pieces)

    def _reserve_one(self, save: Save, copies: Copies, reserved: list[tuple[str, ReservationBatch]]) -> list[Pieces]:
        per_chunk, part_bytes = self._shape.blocks_per_chunk, copies.blocks.part_bytes
        batch = self._pool.reserve_many(
            save.keys, part_bytes * self._ranks, namespace=self._namespace, parent=save.parent,
            deadline=STORE_DEADLINE_S, device=copies.to_device, part=self._rank, parts=self._ranks,
        )  # fmt: skip
        reserved.append((save.request_id, batch))
        return [
            copies.blocks.pieces(offset, 0, save.blocks[number * per_chunk : (number + 1) * per_chunk])
            for number, offset in enumerate(batch.offsets)
            if offset is not None
        ]

    def _store(self) -> None:
        reserved, spoilt = self._step.reserved, self._step.spoilt
        if not reserved or self._copies is None or not self._step.storing.count:
            return

        def arrived(whole: bool) -> None:
            for request_id, batch in reserved:
                self._seal(batch, whole and request_id not in spoilt)

        try:
            self._copies.store(self._step.storing, arrived)
        except MaruError as error:
            self._failed("store a prompt", error)

    def _seal(self, batch: ReservationBatch, is_whole: bool) -> None:
        """From any thread."""
        try:
            if not is_whole:
                batch.discard()
                return
            stored = sum(outcome == Outcome.STORED for outcome in batch.seal())
        except MaruError as error:
            self._failed("store a prompt", error)
            return
        with self._sealing:
            self.counters.tokens_stored += stored * self._shape.chunk_tokens
            self.counters.bytes_stored += stored * (self._copies.blocks.part_bytes if self._copies else 0)
