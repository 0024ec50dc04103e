"""A pool of another host, by its daemon, with the calls of maru.Pool.

Holds:      the session's channel, the memory as far as it is mapped, and the clock of its leases.
Promises:   to the caller every failure of network or daemon is a miss (0, None, BUSY, LOST), counted, and logged once
            until it is over; no answer is waited for beyond the deadline. Bytes are verified before anybody sees them.
Leaves:     connections to `channel`, what is held to `holds`, what is mapped to `reach`, caches to `coherence`.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from maru import wire
from maru.client import pieces
from maru.client.channel import Body, Channel
from maru.client.holds import Extents, RemoteBatch, RemoteDrafts, RemotePrefix, RemoteReservation
from maru.client.reach import Mapped, Reach
from maru.coherence import write_for_others
from maru.errors import BadKey, BadSize, ChunkTooLarge, MaruError, NotAttached
from maru.key import Identity
from maru.native import core
from maru.pool import Outcome, Policy, policy_flags

_log = logging.getLogger("maru")

KEY_BYTES = 16
MEMORY_BYTES = 1 << 30
"""What a client without mapping fetches at once, unless told otherwise."""
DOWN_PAUSE_S = 0.25
"""How often a daemon that did not answer is asked again. Meanwhile everything is a miss at once."""
PIN_TRIES = 2
"""Another daemon may answer than the one that was there when it was asked."""
WATCH_S = 0.5
"""How long the daemon is asked to wait at a time."""
_ENDED = (Outcome.STORED, Outcome.LOST)
_WORLD_FAILED = (MaruError, OSError)
_CALLER_ERRORS = (BadKey, BadSize, ChunkTooLarge)


class RemoteNamespace:
    """A namespace of the daemon's pool; keys are computed here."""

    def __init__(self, pool: RemotePool, number: int, digest: bytes, ttl: float | None) -> None:
        self.id = number
        self.digest = digest
        self.ttl = ttl
        self._pool = pool

    def chunk_keys(self, token_ids: Any, chunk_tokens: int = 256) -> bytes:
        """Packed keys, n x 16 bytes, of the complete chunks of a prompt; as maru.Namespace.chunk_keys."""
        return core.chunk_keys(token_ids, chunk_tokens, self.digest)


class RemotePool:
    """Use it as a context manager, or close() it. Thread-safe. Not to be used in a forked child: connect there anew."""

    def __init__(
        self,
        channel: Channel,
        memory: Mapped | None = None,
        memory_bytes: int = MEMORY_BYTES,
        keeps_leases: bool = True,
    ) -> None:
        """Over a channel that was greeted. `memory`: the pool's, where it is mapped here. `keeps_leases`: renew them in
        a thread; whoever says no calls renew() in time.
        """
        self.channel = channel
        self.memory = memory
        self.memory_at = Reach(memory, channel.segments).at
        """The memory to reach (offset, size) by; None: over the wire."""
        self.failures: dict[str, int] = {}
        """What was answered as a miss, by the name of its error."""
        self.memory_bytes = memory_bytes
        self._lock = threading.Lock()
        self._failing = False
        self._closing = threading.Event()
        self._rows_held: dict[tuple[int, int], int] = {}
        """Leases that are held by each row of ours."""
        self._row_of_lease: dict[tuple[bytes, int], tuple[int, int]] = {}
        self._keeper = threading.Thread(target=self._keep_leases, name="maru-leases", daemon=True)
        if keeps_leases:
            channel.breaks = True
            self._keeper.start()

    @property
    def welcome(self) -> wire.Welcome:
        """What the daemon said of itself and its pool."""
        assert self.channel.welcome is not None
        return self.channel.welcome

    @property
    def kind(self) -> str:
        """ "mapped": bytes in place. "wire": bytes are fetched."""
        return "wire" if self.memory is None else "mapped"

    def __enter__(self) -> RemotePool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<maru.client.RemotePool {self.channel.endpoint} {self.kind}{' closed' if self.closed else ''}>"

    @property
    def closed(self) -> bool:
        """True after close()."""
        return self._closing.is_set()

    def close(self) -> None:
        """Give back everything that is held, and let go of the daemon. Idempotent."""
        if not self._closing.is_set():
            self._closing.set()
            if self._keeper.is_alive():
                self._keeper.join(1.0)
            self.channel.close()
            if self.memory is not None:
                self.memory.close()

    # ---- reading ----

    def namespace(self, identity: Identity, ttl: float | None = None, policy: Iterable[Policy] = ()) -> RemoteNamespace:
        """Register everything that must match for bytes to be reusable, with rules for its content, as Pool.namespace.

        Raises NoDaemon and what the daemon refuses: Forbidden for a tenant that is not this client's key's.
        """
        self._need_open()
        plain = core.blake3(identity.encode(), 16)
        number, digest = self.channel.register(plain, identity.tenant, ttl, policy_flags(policy))
        return RemoteNamespace(self, number, digest, ttl)

    def lookup(self, keys: Body) -> int:
        """Count the leading chunks of `keys` (n x 16 bytes) that are readable now. A hint. 0 when nobody answers."""
        packed = self._packed(keys)
        found = 0
        with self._failing_open():
            for piece in pieces.of_keys(packed):
                answer, _ = self.channel.call(wire.Lookup(0), piece)
                found += int(answer.value)
                if answer.value < len(piece) // KEY_BYTES:
                    break
        return found

    def find(self, keys: Body) -> list[bool]:
        """Which of these chunks are readable now, whatever stands between them? A hint."""
        packed = self._packed(keys)
        found = b""
        with self._failing_open():
            for piece in pieces.of_keys(packed):
                _, body = self.channel.call(wire.Find(0), piece)
                found += bytes(body)
        return [byte == 1 for byte in found] + [False] * (len(packed) // KEY_BYTES - len(found))

    def exists(self, key: Body) -> bool:
        """Is this one chunk readable now? A hint."""
        return self.lookup(self._one(key)) == 1

    def pin(self, keys: Body) -> RemotePrefix:
        """Hold the leading run of `keys` that is there, and fits `memory_bytes` where its bytes must be fetched."""
        packed = self._packed(keys)
        with self._failing_open():
            room = self.memory_bytes if self.memory is None else 1 << 62
            for _ in range(PIN_TRIES):
                daemon = self.channel.daemon
                answer, body = self.channel.call(wire.Pin(0, room), packed[: wire.KEYS_MAX * KEY_BYTES])
                if not answer.count:
                    break
                if self.channel.daemon == daemon:
                    return self._prefix(answer.lease, Extents(body), daemon)
                # Whose it is, nobody can tell: the next one's, likely.
                self.channel.call(wire.Release(0, [answer.lease]))
        return RemotePrefix(self, b"", 0, Extents(), lambda: True)

    def get(self, key: Body) -> memoryview | None:
        """A read-only view of one chunk, verified, or None. In place only as long as this client lives and is heard."""
        with self._failing_open(), self.pin(self._one(key)) as prefix:
            if len(prefix) == 1:
                buffer = memoryview(bytearray(prefix.nbytes))
                prefix.read_into(0, buffer)
                return buffer.toreadonly()
        return None

    def read_into(self, keys: Body, buffers: Sequence[Body]) -> int:
        """Copy the leading run of `keys` into `buffers`, verified; as Pool.read_into. 0 when nobody answers."""
        packed, targets = self._packed(keys), [memoryview(buffer).cast("B") for buffer in buffers]
        if len(targets) * KEY_BYTES != len(packed):
            raise ValueError(f"read_into got {len(packed) // KEY_BYTES} keys and {len(targets)} buffers")
        count = 0
        with self._failing_open():
            while count < len(targets):
                with self.pin(packed[count * KEY_BYTES :]) as prefix:
                    for at, (size, target) in enumerate(zip(prefix.sizes, targets[count:], strict=False), count):
                        if size != target.nbytes:
                            raise BadSize(f"chunk {at} has {size} bytes, its buffer {target.nbytes}")
                    if len(prefix) == 0:
                        break
                    prefix.read_many([(at, targets[count + at]) for at in range(len(prefix))])
                    count += len(prefix)
        return count

    def wait(self, key: Body, timeout: float) -> bool:
        """Wait until somebody seals `key` (True) or gives it up (False), at most `timeout` seconds."""
        packed, ends = self._one(key), time.monotonic() + timeout
        with self._failing_open():
            while True:  # In turns: a daemon that does not answer for as long as one of them is taken for gone.
                turn_s = min(WATCH_S, max(0.0, ends - time.monotonic()))
                answer, _ = self.channel.call(wire.Watch(0, turn_s), packed)
                if answer.value != wire.STILL_WRITTEN or time.monotonic() >= ends:
                    return bool(answer.value == 1)
        return False

    def stats(self) -> dict[str, Any]:
        """The pool's figures, as Pool.stats(). Raises NoDaemon."""
        self._need_open()
        _, body = self.channel.call(wire.Stats(0))
        figures: dict[str, Any] = json.loads(bytes(body))
        return figures

    # ---- writing ----

    def put(
        self,
        key: Body,
        data: Body,
        namespace: RemoteNamespace | None = None,
        parent: bytes | None = None,
        ttl: float | None = None,
    ) -> Outcome:
        """Store one chunk; as Pool.put. BUSY when nobody answers."""
        return self.put_many(self._one(key), [data], namespace, parent, ttl)[0]

    def put_many(
        self,
        keys: Body,
        buffers: Sequence[Body],
        namespace: RemoteNamespace | None = None,
        parent: bytes | None = None,
        ttl: float | None = None,
    ) -> list[Outcome]:
        """Store a whole prefix: packed keys in chain order, one buffer each; as Pool.put_many."""
        packed = self._packed(keys)
        data = [memoryview(buffer).cast("B") for buffer in buffers]
        if len(data) * KEY_BYTES != len(packed):
            raise ValueError(f"put_many got {len(packed) // KEY_BYTES} keys and {len(data)} buffers")
        outcomes: list[Outcome] = []
        for first, end in _runs([view.nbytes for view in data]):
            if outcomes and outcomes[-1] in (Outcome.FULL, Outcome.BUSY):
                outcomes += [outcomes[-1]] * (end - first)
                continue
            before = packed[(first - 1) * KEY_BYTES : first * KEY_BYTES] if first else parent
            run = packed[first * KEY_BYTES : end * KEY_BYTES]
            with self.reserve_many(run, data[first].nbytes, namespace, before, ttl) as batch:
                outcomes += batch.seal_with(data[first:end])
        return outcomes

    def reserve(
        self,
        key: Body,
        size: int,
        namespace: RemoteNamespace | None = None,
        parent: bytes | None = None,
        ttl: float | None = None,
        deadline: float = 30.0,
    ) -> RemoteReservation:
        """Reserve memory for one chunk of `size` bytes; as Pool.reserve."""
        return RemoteReservation(self.reserve_many(self._one(key), size, namespace, parent, ttl, deadline))

    def reserve_many(
        self,
        keys: Body,
        size: int,
        namespace: RemoteNamespace | None = None,
        parent: bytes | None = None,
        ttl: float | None = None,
        deadline: float = 30.0,
    ) -> RemoteBatch:
        """Reserve a whole prefix in one message: `size` bytes each, every key the next one's parent."""
        packed = self._packed(keys)
        self._refuse_size(size)
        count = len(packed) // KEY_BYTES
        with self._failing_open():
            request = wire.Reserve(0, size, namespace.id if namespace else 0, parent or b"", ttl, deadline)
            answer, body = self.channel.call(request, packed)
            outcomes = [Outcome(value) for value in answer.outcomes]
            offsets = list(memoryview(bytes(body)).cast("Q"))
            return RemoteBatch(self, outcomes, answer.holds, offsets, size, packed)
        return RemoteBatch(self, [Outcome.BUSY] * count, [], [], size, packed)

    def allocate(self, size: int, count: int) -> RemoteDrafts:
        """Memory for `count` chunks of `size` bytes that get their names later; fewer when there is no room for all.

        Held as long as this client is heard of. Raises BadSize, ChunkTooLarge.
        """
        self._refuse_size(size)
        with self._failing_open():
            answer, body = self.channel.call(wire.Allocate(0, size, count))
            return RemoteDrafts(self, answer.holds, list(memoryview(bytes(body)).cast("Q")), size)
        return RemoteDrafts(self, [], [], size)

    def remove(self, key: Body) -> bool:
        """Remove one chunk. False when it is absent, pinned by somebody, or nobody answers."""
        with self._failing_open():
            answer, _ = self.channel.call(wire.Remove(0), self._one(key))
            return bool(answer.value)
        return False

    def wait_ready(self, timeout: float) -> bool:
        """There is nothing to wait for: the daemon's host makes its memory ready."""
        return timeout >= 0 and not self.closed

    # ---- what holds.py needs ----

    def fetch(self, lease: int, wanted: Iterable[tuple[int, memoryview]]) -> None:
        """Bytes of leased chunks over the wire, (index, buffer) each, verified piece by piece. Raises MaruError."""
        if not pieces.fetch(self.channel, lease, wanted):
            self.count("bytes_refused")
            raise MaruError("a piece came over the wire that is not what its checksum is of")

    def seal(
        self, holds: dict[int, tuple[int, int]], buffers: dict[int, memoryview], keys: bytes
    ) -> dict[int, Outcome]:
        """Send what was written, and publish it: one outcome an index of `holds`. What is LOST is not there."""
        outcomes = [Outcome.LOST] * len(holds)
        with self._failing_open():
            checksums = self._written(holds, buffers)
            if checksums is not None:
                answer, _ = self.channel.call(wire.Seal(0, [hold for hold, _ in holds.values()], checksums))
                outcomes = [Outcome(value) for value in answer.outcomes]
        theirs = b"".join(keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at in holds)
        return dict(zip(holds, self._looked_up(outcomes, theirs), strict=True))

    def _written(self, holds: dict[int, tuple[int, int]], buffers: dict[int, memoryview]) -> list[int] | None:
        """Bytes brought to where they were reserved; their checksums, if it was done in place. None: held no more."""
        places = {at: self.memory_at(offset, len(buffers[at])) for at, (_, offset) in holds.items()}
        pieces.store(self.channel, [(hold, buffers[at]) for at, (hold, _) in holds.items() if places[at] is None])
        if self.memory is None:
            return []
        if not self._is_held():
            return None
        return [
            write_for_others(place, offset, buffers[at]) if (place := places[at]) else core.xxh3_64(buffers[at])
            for at, (_, offset) in holds.items()
        ]

    def _looked_up(self, outcomes: list[Outcome], keys: bytes) -> list[Outcome]:
        """What seems lost may be there all the same: done by a daemon that died, or forgot us, before it said so."""
        lost = [at for at, outcome in enumerate(outcomes) if outcome is Outcome.LOST]
        if lost:
            there = self.find(b"".join(keys[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at in lost))
            for at, is_there in zip(lost, there, strict=True):
                outcomes[at] = Outcome.EXISTS if is_there else Outcome.LOST
        return outcomes

    def publish(
        self,
        drafts: list[tuple[int, int]],
        data: list[memoryview],
        keys: bytes,
        namespace: RemoteNamespace | None,
        parent: bytes | None,
        ttl: float | None,
    ) -> list[Outcome]:
        """Write (hold, offset) each, and name them: one outcome a draft. Those not stored are given back."""
        outcomes = [Outcome.LOST] * len(drafts)
        if not drafts:
            return outcomes
        holds = dict(enumerate(drafts))
        with self._failing_open():
            checksums = self._written(holds, dict(enumerate(data)))
            if checksums is not None:
                request = wire.Publish(
                    0, [hold for hold, _ in drafts], checksums, namespace.id if namespace else 0, parent or b"", ttl
                )
                answer, _ = self.channel.call(request, keys)
                outcomes = [Outcome(value) for value in answer.outcomes]
                kept = [hold for (hold, _), outcome in zip(drafts, outcomes, strict=True) if outcome not in _ENDED]
                self.discard(kept)
        return self._looked_up(outcomes, keys)

    def discard(self, holds: list[int]) -> None:
        """Give reservations back."""
        if holds and not self.closed:
            self.channel.call(wire.Discard(0, holds))

    def release(self, daemon: bytes, lease: int) -> None:
        """Let go of a lease that `daemon` gave. One of an earlier daemon's goes with its row, when that is the last."""
        with self._lock:
            row = self._row_of_lease.pop((daemon, lease), None)
            if row is not None:
                self._rows_held[row] -= 1
        if not self.closed and daemon == self.channel.daemon:
            with self._failing_open():
                self.channel.call(wire.Release(0, [lease]))

    def count(self, name: str) -> None:
        """One more of a failure that was answered as a miss."""
        with self._lock:
            self.failures[name] = self.failures.get(name, 0) + 1

    # ---- leases ----

    def _is_held(self) -> bool:
        return time.monotonic() < self.channel.held_until_s

    def _prefix(self, lease: int, extents: Extents, daemon: bytes) -> RemotePrefix:
        """What is held by the daemon itself ends with it; what is held by our row goes on under the next one."""
        row = self.welcome.row
        if self.memory is None or row is None:
            lapses = self.channel.lapses

            def is_leased() -> bool:
                return self._is_held() and self.channel.lapses == lapses and self.channel.daemon == daemon

            return RemotePrefix(self, daemon, lease, extents, is_leased)
        with self._lock:
            self._rows_held[row] = self._rows_held.get(row, 0) + 1
            self._row_of_lease[daemon, lease] = row

        def is_valid() -> bool:
            known = self.welcome.row == row or row in self.channel.old_rows
            return known and self._is_held()

        return RemotePrefix(self, daemon, lease, extents, is_valid)

    def renew(self) -> None:
        """Tell the daemon that we live, and which rows of an earlier one we still read by."""
        with self._lock:
            wanted = [row for row in self.channel.old_rows if self._rows_held.get(row, 0) > 0]
        with self._failing_open():
            self.channel.renew(wanted, self.welcome.lease_s / 2)

    def _keep_leases(self) -> None:
        while not self._closing.wait(DOWN_PAUSE_S if self.channel.is_down else self.welcome.lease_s / 4):
            if self.memory is None and self.channel.held_until_s - time.monotonic() > self.welcome.lease_s / 2:
                continue  # Somebody asked for something just now, which renews what the daemon itself holds.
            with contextlib.suppress(NotAttached):  # Closed meanwhile.
                self.renew()

    # ---- failing open ----

    @contextlib.contextmanager
    def _failing_open(self) -> Iterator[None]:
        """What fails inside is counted and passed over; mistakes of the caller are not."""
        self._need_open()
        answered = self.channel.answered
        try:
            yield
            if self.channel.answered != answered:
                self._failing = False
        except _CALLER_ERRORS:
            raise
        except _WORLD_FAILED as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        self.count(type(error).__name__)
        if not self._failing:
            self._failing = True
            _log.warning("the daemon at %s is no help now, so all of it is a miss: %s", self.channel.endpoint, error)

    def _need_open(self) -> None:
        if self.closed:
            raise NotAttached("this client is closed; connect again")

    def _refuse_size(self, size: int) -> None:
        if size <= 0:
            raise BadSize(f"a chunk has at least one byte; got {size}", wanted_bytes=size)
        if size > self.welcome.slab_bytes:
            raise ChunkTooLarge(
                f"a chunk of {size:,} bytes does not fit the pool's slabs", wanted_bytes=size,
                slab_bytes=self.welcome.slab_bytes,
            )  # fmt: skip

    def _packed(self, keys: Body) -> bytes:
        packed = bytes(memoryview(keys).cast("B"))
        if len(packed) % KEY_BYTES:
            raise BadKey(f"packed keys are n x 16 bytes; got {len(packed)} bytes", got_bytes=len(packed))
        return packed

    def _one(self, key: Body) -> bytes:
        packed = self._packed(key)
        if len(packed) != KEY_BYTES:
            raise BadKey(f"one key is 16 bytes; got {len(packed)} bytes", got_bytes=len(packed))
        return packed


def _runs(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """(first, end) of each stretch of equal sizes."""
    first = 0
    for at in range(1, len(sizes) + 1):
        if at == len(sizes) or sizes[at] != sizes[first]:
            yield first, at
            first = at
