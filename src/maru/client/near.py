"""A pool of this host in front of a pool of another: what engines need memory of their own host for.

Holds:      the near pool, attached as any, and the far one behind its daemon.
Promises:   a chunk that is in either is found; before it is read it is here. Whatever fails with the far pool leaves
            the near one as it is.
            What is removed there, or of a bumped namespace, goes here too, and what was not heard of for long is not
            read here (`listener`).
Leaves:     bytes and leases to `remote`, what goes the other way to `sender`, eviction to both pools. What the far pool
            evicts, or what runs out there, the near one keeps until it does so by itself.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from maru.client.holds import RemotePrefix
from maru.client.listener import START_S, Listener
from maru.client.remote import RemotePool
from maru.client.sender import Sender
from maru.config import PoolConfig
from maru.errors import MaruError
from maru.key import Identity
from maru.native import core
from maru.pool import IS_THERE, POLICIES, Namespace, Outcome, Policy, Pool

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEY_BYTES = 16
BRING_BYTES_MAX = 1 << 30
"""What one reading brings at once."""
CLOSE_DEADLINE_S = 2.0


class NearPool(Pool):
    """Use it as any pool of this host."""

    def __init__(self, config: PoolConfig, far: RemotePool) -> None:
        """Attach to the near pool, which exists. Raises as Pool.attach."""
        super().__init__(config)
        self.far = far
        self.brought = 0
        """Chunks that came from the far pool."""
        self._near_namespace: Namespace | None = None
        self._sender = Sender(self, far)
        self._listener = Listener(self, far, self._sender)
        self._listener.wait(min(START_S, far.channel.deadline_s))

    def namespace(self, identity: Identity, ttl: float | None = None, policy: Iterable[Policy] = ()) -> Namespace:
        namespace = super().namespace(identity, ttl, policy)
        self._near_namespace = namespace
        return namespace

    def lookup(self, keys: Buffer, *, namespaces: bytes | None = None) -> int:
        if namespaces is not None:  # Numbers of this host's table: the far pool has others.
            return super().lookup(keys, namespaces=namespaces)
        packed = bytes(memoryview(keys).cast("B"))
        if not self._listener.may_read():
            return 0
        near = super().lookup(packed)
        if near * KEY_BYTES == len(packed) or not self._may_bring():
            return near
        return near + self.far.lookup(packed[near * KEY_BYTES :])

    def exists(self, key: Buffer, *, namespaces: bytes | None = None) -> bool:
        if namespaces is not None:
            return super().exists(key, namespaces=namespaces)
        if not self._listener.may_read():
            return False
        return super().exists(key) or (self._may_bring() and self.far.exists(bytes(memoryview(key).cast("B"))))

    def find(self, keys: Buffer) -> list[bool]:
        packed = bytes(memoryview(keys).cast("B"))
        if not self._listener.may_read():
            return [False] * (len(packed) // KEY_BYTES)
        found = [super(NearPool, self).exists(packed[at : at + KEY_BYTES]) for at in range(0, len(packed), KEY_BYTES)]
        missing = [at for at, is_here in enumerate(found) if not is_here]
        if missing and self._may_bring():
            far = self.far.find(b"".join(packed[at * KEY_BYTES : (at + 1) * KEY_BYTES] for at in missing))
            for at, is_there in zip(missing, far, strict=True):
                found[at] = is_there
        return found

    def pin(self, keys: Buffer, *, namespaces: bytes | None = None) -> core.PinnedPrefix:
        if namespaces is None:
            self.bring(bytes(memoryview(keys).cast("B")))
        if not self._listener.may_read():
            keys = b""
        return super().pin(keys, namespaces=namespaces)

    def get(self, key: Buffer) -> memoryview | None:
        if not self._listener.may_read():
            return None
        view = super().get(key)
        if view is None and self.bring(bytes(memoryview(key).cast("B"))):
            view = super().get(key)
        return view

    def read_into(self, keys: Buffer, buffers: Sequence[Buffer]) -> int:
        self.bring(bytes(memoryview(keys).cast("B")))
        return super().read_into(keys, buffers) if self._listener.may_read() else 0

    def remove(self, key: Buffer, *, namespaces: bytes | None = None) -> bool:
        if namespaces is not None:
            return super().remove(key, namespaces=namespaces)
        near = super().remove(key)
        return self.far.remove(bytes(memoryview(key).cast("B"))) or near

    def bring(self, keys: bytes) -> int:
        """Have the leading chunks of `keys` here, as far as the far pool has them and there is room. How many came."""
        came = 0
        while self._listener.may_read():
            near = super().lookup(keys)
            missing = keys[near * KEY_BYTES :]
            if not missing:
                return came
            parent = keys[(near - 1) * KEY_BYTES : near * KEY_BYTES] if near else None
            epoch = self._epoch()
            if not self._may_bring():
                return came
            with contextlib.suppress(MaruError), self.far.pin(missing) as prefix:
                now = self._bring_some(missing, prefix, parent, epoch)
                came += now
                self.brought += now
                if 0 < now == len(prefix) and now * KEY_BYTES < len(missing):
                    continue  # More than one lease takes.
            return came
        return came

    def _may_bring(self) -> bool:
        """What the far pool has is of after the last bump here too, and it may be asked at all."""
        namespace = self._near_namespace
        if namespace is not None and self._policy_of(namespace.digest) & POLICIES["no-share"]:
            return False
        return self._listener.agrees(namespace)

    def _epoch(self) -> int:
        return self._near_namespace.epoch if self._near_namespace is not None else 0

    def _bring_some(self, keys: bytes, prefix: RemotePrefix, parent: bytes | None, epoch: int) -> int:
        """Reserve, fetch into the near pool's memory, seal; somebody else may be bringing some of them already.

        `epoch`: the namespace's here, from before `prefix` was held there.
        """
        held: list[tuple[int, core.Reservation]] = []
        others: list[bytes] = []
        size_sum = 0
        for index, size in enumerate(prefix.sizes):
            size_sum += size
            if size_sum > BRING_BYTES_MAX:
                break
            key = keys[index * KEY_BYTES : (index + 1) * KEY_BYTES]
            reservation = self._reserve_brought(key, size, self._near_namespace, parent)
            if reservation.outcome is Outcome.RESERVED:
                held.append((index, reservation))
            elif reservation.outcome is Outcome.IN_FLIGHT:
                others.append(key)
            elif reservation.outcome not in IS_THERE:
                break
            parent = key
        sealed = 0
        if self._epoch() != epoch:  # What is held is of before the bump, and was reserved after it.
            for _, one in held:
                one.discard()
            return 0
        try:
            prefix.read_many([(index, memoryview(one.buffer)) for index, one in held])  # type: ignore[arg-type]
            for _, one in held:
                sealed += one.seal(allow_exports=True) is Outcome.STORED
        finally:
            for _, one in held:
                one.discard()
        ends = time.monotonic() + self.far.channel.deadline_s  # For all of them together.
        for key in others:
            super().wait(key, max(0.0, ends - time.monotonic()))
        return sealed

    def flush(self, timeout_s: float) -> bool:
        """Wait until what was stored on this host so far is in the far pool. False when the time was too short."""
        return self._sender.flush(timeout_s)

    def close(self) -> None:
        """As Pool.close. What is still to be sent is sent for two seconds at most; the next process goes on with it."""
        if not self.closed:
            self._sender.stop(CLOSE_DEADLINE_S)
            self._listener.stop(CLOSE_DEADLINE_S)
            self.far.close()
        super().close()
