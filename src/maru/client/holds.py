"""What a remote client holds: pinned prefixes and reservations, of chunks that lie in place or come over the wire.

Holds:      one batch each, with its lease or its holds at the daemon.
Promises:   bytes are given out only after they were compared with their checksum. Reading after the lease has ended is
            LeaseEnded, never other bytes: `read_into` looks at the clock after it has copied.
Leaves:     messages to `remote`, caches to `coherence`.
"""

from __future__ import annotations

import contextlib
import mmap
from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from maru import wire
from maru.coherence import copy_of_others, read_of_others
from maru.errors import BadMessage, LeaseEnded, MaruError, NotReserved
from maru.pool import Outcome

if TYPE_CHECKING:
    from maru.client.remote import RemoteNamespace, RemotePool


class Extents(Sequence[tuple[int, int, int]]):
    """(offset, bytes, XXH3-64) of each chunk of a lease."""

    def __init__(self, body: bytes | memoryview = b"") -> None:
        """Raises BadMessage when the body is not whole extents."""
        if len(body) % wire.EXTENT_BYTES:
            raise BadMessage(f"extents are n x {wire.EXTENT_BYTES} bytes, not {len(body)}")
        self._words = array("Q", bytes(body))

    def __len__(self) -> int:
        return len(self._words) // 3

    def __getitem__(self, index: Any) -> Any:
        first = range(0, len(self._words), 3)[index]
        return self._words[first], self._words[first + 1], self._words[first + 2]

    @property
    def sizes(self) -> array[int]:
        """Bytes of each chunk."""
        return self._words[1::3]


class RemotePrefix:
    """The leading chunks of a prefix, held for this client by the daemon. Use it as a context manager.

    Where the pool's memory is mapped here, views are that memory itself; else their bytes are fetched at the first
    access, verified piece by piece, into memory of this process that lives as long as they do.
    """

    def __init__(
        self, pool: RemotePool, daemon: bytes, lease: int, extents: Extents, valid: Callable[[], bool]
    ) -> None:
        self._pool = pool
        self._daemon = daemon
        self._lease = lease
        self._extents = extents
        self._valid = valid
        self._fetched: list[memoryview] | None = None
        self._released = False

    def __len__(self) -> int:
        return len(self._extents)

    def __enter__(self) -> RemotePrefix:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @property
    def nbytes(self) -> int:
        """Bytes of all pinned chunks."""
        return sum(self._extents.sizes)

    @property
    def sizes(self) -> list[int]:
        """Bytes of each chunk."""
        return list(self._extents.sizes)

    @property
    def held(self) -> bool:
        """Do the daemon and its pool still keep all of this for us? Ask after having read views in place."""
        return not self._released and self._valid()

    @property
    def views(self) -> list[memoryview]:
        """One read-only memoryview a chunk, in order, verified. Shorter than the prefix when something was amiss.

        Raises LeaseEnded, NoDaemon.
        """
        self._need_held()
        if self._fetched is None:
            self._fetched = list(self._views())
            self._need_held()
        return list(self._fetched)

    def read_into(self, index: int, buffer: memoryview) -> None:
        """Copy one chunk into `buffer`, a writable view of its size, verified, while it is certainly held.

        Raises LeaseEnded when it is not (`buffer` is then not to be used), IndexError, ValueError, NoDaemon.
        """
        offset, size, checksum = self._extents[index]
        if len(buffer) != size:
            raise ValueError(f"the chunk has {size} bytes, the buffer {len(buffer)}")
        self._need_held()
        memory = self._pool.memory_at(offset, size)
        if memory is None:
            self._pool.fetch(self._lease, [(index, buffer)])
        else:
            if not copy_of_others(memory, offset, buffer, checksum):
                self._pool.count("bytes_refused")
                raise LeaseEnded("the chunk's bytes in place are not those that were told of")
        self._need_held()

    def read_many(self, wanted: Sequence[tuple[int, memoryview]]) -> None:
        """As read_into, for several chunks: (index, buffer) each. Over the wire they come one behind the other."""
        self._need_held()
        far = []
        for index, buffer in wanted:
            offset, size, _ = self._extents[index]
            if self._pool.memory_at(offset, size) is None:
                far.append((index, buffer))
            else:
                self.read_into(index, buffer)
        if far:
            self._pool.fetch(self._lease, far)
            self._need_held()

    def release(self) -> None:
        """Let go. Views in place are not to be read any more; fetched ones stay good."""
        lease, self._lease, self._released = self._lease, 0, True
        if lease:
            self._pool.release(self._daemon, lease)

    def _need_held(self) -> None:
        if not self.held:
            raise LeaseEnded("this prefix was released, or its lease has ended")

    def _views(self) -> Iterator[memoryview]:
        """What lies in a segment that is not here comes over the wire, as much as this client fetches at once."""
        places = [self._pool.memory_at(offset, size) for offset, size, _ in self._extents]
        far = [0 if place else size for place, size in zip(places, self._extents.sizes, strict=True)]
        room = self._pool.memory_bytes
        count = next((at for at, end in enumerate(accumulate(far)) if end > room), len(far))
        fetched = self._over_the_wire([(at, far[at]) for at in range(count) if far[at]])
        for place, (offset, size, checksum) in zip(places[:count], self._extents, strict=False):
            view = next(fetched) if place is None else read_of_others(place, offset, size, checksum)
            if view is None:
                self._pool.count("bytes_refused")
                return
            yield view.toreadonly()

    def _over_the_wire(self, wanted: Sequence[tuple[int, int]]) -> Iterator[memoryview]:
        """(index, size) each."""
        if not wanted:
            return
        room = _fresh_memory(sum(size for _, size in wanted))
        ends = accumulate(size for _, size in wanted)
        buffers = [(at, room[end - size : end]) for (at, size), end in zip(wanted, ends, strict=True)]
        self._pool.fetch(self._lease, buffers)
        for _, buffer in buffers:
            yield buffer.toreadonly()


def _fresh_memory(size_bytes: int) -> memoryview:
    """With huge pages where the system has them: else the page faults of a prefix take longer than its bytes do."""
    mapping = mmap.mmap(-1, size_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # A kernel without huge pages refuses.
        mapping.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(mapping)


class RemoteBatch:
    """A whole prefix being written, from RemotePool.reserve_many(). Leaving its with block unsealed discards it."""

    def __init__(
        self,
        pool: RemotePool,
        outcomes: list[Outcome],
        holds: list[int],
        offsets: list[int],
        size: int,
        keys: bytes,
    ) -> None:
        self._pool = pool
        self._outcomes = outcomes
        self._size = size
        self._keys = keys
        self._holds: dict[int, tuple[int, int]] = {}
        """Index in the batch -> (hold, offset)."""
        reserved = [at for at, outcome in enumerate(outcomes) if outcome is Outcome.RESERVED]
        for at, hold, offset in zip(reserved, holds, offsets, strict=True):
            self._holds[at] = (hold, offset)
        self._buffers: dict[int, memoryview] = {}
        self._open = True

    def __len__(self) -> int:
        return len(self._outcomes)

    def __enter__(self) -> RemoteBatch:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    @property
    def outcomes(self) -> list[Outcome]:
        """One outcome a key, in order."""
        return list(self._outcomes)

    @property
    def buffers(self) -> list[memoryview | None]:
        """Memory of this process for each reserved chunk, None for the others. seal() takes its bytes to the pool.

        Not the pool's own memory, also where that is mapped: what a program writes there stays in this host's caches,
        and may leave them when the memory is somebody else's.
        """
        if not self._open:
            raise NotReserved("this batch was sealed or discarded")
        for at in self._holds:
            if at not in self._buffers:
                self._buffers[at] = memoryview(bytearray(self._size))
        return [self._buffers.get(at) for at in range(len(self._outcomes))]

    def seal(self) -> list[Outcome]:
        """Publish all that was reserved; returns one outcome a key. Whatever fails is LOST."""
        if not self._open:
            raise NotReserved("this batch was sealed or discarded")
        self._open = False
        written = {at: hold for at, hold in self._holds.items() if at in self._buffers}
        unwritten = [hold for at, (hold, _) in self._holds.items() if at not in written]
        for at in self._holds:
            self._outcomes[at] = Outcome.LOST  # Nobody even looked at its memory: nothing to publish.
        if unwritten:
            with contextlib.suppress(MaruError):
                self._pool.discard(unwritten)
        if written:
            sealed = self._pool.seal(written, self._buffers, self._keys)
            for at, outcome in sealed.items():
                self._outcomes[at] = outcome
        self._buffers.clear()
        return list(self._outcomes)

    def seal_with(self, data: Sequence[memoryview]) -> list[Outcome]:
        """Publish these bytes, one buffer a key, as seal() does; those of keys not reserved are passed over."""
        self._buffers = {at: data[at] for at in self._holds}
        return self.seal()

    def discard(self) -> None:
        """Give all of it up."""
        if self._open:
            self._open = False
            self._buffers.clear()
            with contextlib.suppress(MaruError):
                self._pool.discard([hold for hold, _ in self._holds.values()])


class RemoteReservation:
    """A chunk being written, from RemotePool.reserve(): a batch of one."""

    def __init__(self, batch: RemoteBatch) -> None:
        self._batch = batch

    def __enter__(self) -> RemoteReservation:
        return self

    def __exit__(self, *_: object) -> None:
        self._batch.discard()

    @property
    def outcome(self) -> Outcome:
        """RESERVED, or why not: EXISTS, IN_FLIGHT, FULL, BUSY."""
        return self._batch.outcomes[0]

    @property
    def buffer(self) -> memoryview:
        """The chunk's memory. Raises NotReserved."""
        buffer = self._batch.buffers[0]
        if buffer is None:
            raise NotReserved("nothing was reserved: look at .outcome before writing")
        return buffer

    def seal(self) -> Outcome:
        """Publish: STORED, or LOST. Raises NotReserved."""
        return self._batch.seal()[0]

    def discard(self) -> None:
        """Give it up; nobody sees it."""
        self._batch.discard()


class RemoteDrafts:
    """Memory before it has names, from RemotePool.allocate(): credits, so that each store is one message. Use it as a
    context manager; what was not used is given back at its end.
    """

    def __init__(self, pool: RemotePool, holds: list[int], offsets: list[int], size: int) -> None:
        self._pool = pool
        self._left = list(zip(holds, offsets, strict=True))
        self._size = size

    def __len__(self) -> int:
        """How many are left."""
        return len(self._left)

    def __enter__(self) -> RemoteDrafts:
        return self

    def __exit__(self, *_: object) -> None:
        self.discard()

    def put_many(
        self,
        keys: bytes,
        buffers: Sequence[memoryview | bytes],
        namespace: RemoteNamespace | None = None,
        parent: bytes | None = None,
        ttl: float | None = None,
    ) -> list[Outcome]:
        """Store a prefix into drafts: packed keys in chain order, one buffer of the drafts' size each.

        FULL for those that no draft was left for. A draft whose key was taken meanwhile goes back. Raises ValueError
        for other sizes, and for buffers that are not as many as the keys.
        """
        data = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(data) * 16 != len(keys) or any(len(one) != self._size for one in data):
            raise ValueError(f"one key of 16 bytes and one buffer of {self._size} bytes each")
        used, self._left = self._left[: len(data)], self._left[len(data) :]
        outcomes = self._pool.publish(used, data[: len(used)], keys[: 16 * len(used)], namespace, parent, ttl)
        return outcomes + [Outcome.FULL] * (len(data) - len(used))

    def discard(self) -> None:
        """Give back what is left."""
        left, self._left = self._left, []
        with contextlib.suppress(MaruError):
            self._pool.discard([hold for hold, _ in left])
