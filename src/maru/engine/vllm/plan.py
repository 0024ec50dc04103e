"""What the scheduler's side tells the worker's side for one step, and what comes back.

Plain values: vLLM pickles them when the two are different processes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorMetadata, KVConnectorWorkerMetadata


@dataclass(frozen=True)
class Load:
    """Chunks to copy from the pool into vLLM's blocks before this step computes."""

    request_id: str
    keys: bytes
    """Packed, n x 16 bytes, in the prompt's order."""
    blocks: tuple[int, ...]
    """Where to: one id a block, the first `skip_blocks` blocks of the first chunk left out."""
    skip_blocks: int = 0


@dataclass(frozen=True)
class Save:
    """Chunks to copy from vLLM's blocks into the pool after this step has computed."""

    request_id: str
    keys: bytes
    parent: bytes | None
    """Key of the chunk before the first one, None at a prompt's start."""
    blocks: tuple[int, ...]


@dataclass
class Plan(KVConnectorMetadata):
    """One step."""

    loads: list[Load] = field(default_factory=list)
    saves: list[Save] = field(default_factory=list)
    timed_step: int = 0
    """Number of a step whose end the scheduler wants to hear of; 0: none."""


@dataclass
class Done(KVConnectorWorkerMetadata):
    """How many workers have loaded what a request was promised. Pins may end when all of them have."""

    loaded: dict[str, int] = field(default_factory=dict)
    timed_step: int = 0
    """As the plan had it."""

    def aggregate(self, other: KVConnectorWorkerMetadata) -> KVConnectorWorkerMetadata:
        """The two workers' counts in one."""
        assert isinstance(other, Done)
        sums = dict(self.loaded)
        for request_id, count in other.loaded.items():
            sums[request_id] = sums.get(request_id, 0) + count
        return Done(sums, max(self.timed_step, other.timed_step))
