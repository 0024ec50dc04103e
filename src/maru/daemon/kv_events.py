"""What came into a pool and what left it, in the words that cache-aware routers read: vLLM's KV events.

Holds:      the form of the messages, and turning the core's changes (`ChangeScan`) into them. No sockets, no clock.
Promises:   whoever applies the events in their order knows, after each batch, exactly the keys that the scan counts as
            told; a parent is told before its children.
Leaves:     looking, numbering and sending to `kv_publisher`.

The form is that of vLLM 0.32 (vllm/distributed/kv_events.py): a batch is an array, an event a map with its type in it.
A pool knows no tokens, so `token_ids` is empty; a block's hash is our 16-byte key. `ownership` says "maru:" and the
digest of the namespace: keys of different models never meet, but a router may want to know whose they are.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

MEDIA = {"shm": "CPU", "hugetlb": "CPU", "devdax": "CPU", "file": "STORAGE"}
"""vLLM's word for what each medium of a pool is."""
BLOCKS_AN_EVENT = 1024
CLEARED_MIN = 1024
"""Fewer chunks are told as removed one by one, even if they were all there were: AllBlocksCleared names no medium, so a
router that knows more of this host than the pool would forget that too."""

CHANGE = struct.Struct("<16s16s16sQBB6x")
"""What core.ChangeScan says of one chunk: key, parent, its namespace's digest, size, kind (1 stored, 2 left),
whether it has a parent."""
_STORED = 1


class KVCacheEvent(msgspec.Struct, omit_defaults=True, gc=False, tag=True):
    """One of the three kinds of event."""


class BlockStored(KVCacheEvent):
    """Chunks that can be read from now on; each continues the one before it, the first one `parent_block_hash`."""

    block_hashes: list[bytes]
    parent_block_hash: bytes | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class BlockRemoved(KVCacheEvent):
    """Chunks that cannot be read any more."""

    block_hashes: list[bytes]
    medium: str | None
    group_idx: int | None = None
    locality: str | None = None
    ownership: str | None = None


class AllBlocksCleared(KVCacheEvent):
    """Nothing that was told counts any more."""


class KVEventBatch(msgspec.Struct, array_like=True, omit_defaults=True, gc=False):
    """Events in their order. `ts`: seconds since 1970."""

    ts: float
    events: list[BlockStored | BlockRemoved | AllBlocksCleared]
    data_parallel_rank: int | None = None  # None: a pool belongs to every rank of its host.


@dataclass
class _Group:
    """Changes of which those that left may be told before those that came."""

    left: dict[bytes, bytes] = field(default_factory=dict)
    came: list[tuple[bytes, bytes | None, bytes]] = field(default_factory=list)
    named: set[bytes] = field(default_factory=set)


class EventStream:
    """Turns the changes of one pool into events."""

    def __init__(self, medium: str, chunk_tokens: int = 0) -> None:
        """`medium`: the pool's. `chunk_tokens`: how many tokens a chunk is, if all engines agree; 0: not known."""
        self._medium = MEDIA[medium]
        self._chunk_tokens = chunk_tokens

    def batch(self, changes: bytes, told_count: int, ts: float) -> KVEventBatch | None:
        """What `ChangeScan.look` returned, as events; None when nothing changed.

        `told_count`: that of the scan, after the look. What left is told before what came, as far as nobody who reads
        along could tell the difference.
        """
        groups = [_Group()]
        for key, parent, digest, _, kind, has_parent in CHANGE.iter_unpack(changes):
            if kind == _STORED:
                groups[-1].came.append((key, parent if has_parent else None, digest))
                groups[-1].named.update((key, parent))
            else:
                if key in groups[-1].named:  # It came just now, or is the parent of one that did: not before that.
                    groups.append(_Group())
                groups[-1].left[key] = digest
        events: list[BlockStored | BlockRemoved | AllBlocksCleared] = []
        first = groups[0]
        if len(groups) == 1 and len(first.left) >= CLEARED_MIN and told_count == len(first.came):
            events.append(AllBlocksCleared())
            events.extend(self._stored(first.came))
        else:
            for group in groups:
                events.extend(self._removed(group.left))
                events.extend(self._stored(group.came))
        return KVEventBatch(ts, events) if events else None

    def snapshot(self, told: bytes, ts: float) -> KVEventBatch:
        """What `ChangeScan.told` returned, for somebody who knows nothing, or too little."""
        rows = [
            (key, parent if has_parent else None, digest)
            for key, parent, digest, _, _, has_parent in CHANGE.iter_unpack(told)
        ]
        return KVEventBatch(ts, [AllBlocksCleared(), *self._stored(rows)])

    def _removed(self, keys: dict[bytes, bytes]) -> Iterator[BlockRemoved]:
        by_namespace: dict[bytes, list[bytes]] = {}
        for key, digest in keys.items():
            by_namespace.setdefault(digest, []).append(key)
        for digest, hashes in by_namespace.items():
            for at in range(0, len(hashes), BLOCKS_AN_EVENT):
                yield BlockRemoved(
                    hashes[at : at + BLOCKS_AN_EVENT],
                    medium=self._medium,
                    group_idx=0,
                    locality="LOCAL",
                    ownership=_owner(digest),
                )

    def _stored(self, rows: list[tuple[bytes, bytes | None, bytes]]) -> Iterator[BlockStored]:
        line: BlockStored | None = None
        last: tuple[bytes, bytes] | None = None
        for key, parent, digest in rows:
            if line is not None and (parent, digest) == last and len(line.block_hashes) < BLOCKS_AN_EVENT:
                line.block_hashes.append(key)
            else:
                if line is not None:
                    yield line
                line = BlockStored(
                    block_hashes=[key],
                    parent_block_hash=parent,
                    token_ids=[],
                    block_size=self._chunk_tokens,
                    lora_id=None,
                    medium=self._medium,
                    lora_name=None,
                    group_idx=0,
                    locality="LOCAL",
                    ownership=_owner(digest),
                )
            last = (key, digest)
        if line is not None:
            yield line


def _owner(digest: bytes) -> str:
    return f"maru:{digest.hex()}"
