"""A pool with places below it, used as any pool: what is in either is found, and before it is read it is here.

Holds:      the pool of this host, and its ladder.
Promises:   lookup, exists and find tell of both; pin and get bring what is below into the pool first, within a
            deadline. Whatever fails below leaves the pool as it is: a miss.
Leaves:     what goes down and comes up to the ladder. Keys belong to the namespace that this handle got last from
            namespace(), as an engine does it once at its start; without one nothing comes up.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from maru.config import PoolConfig
from maru.key import Identity
from maru.native import core
from maru.pool import Namespace, Policy, Pool
from maru.tiering.ladder import Ladder, LadderSettings

if TYPE_CHECKING:
    from typing_extensions import Buffer

KEY_BYTES = 16


class TieredPool(Pool):
    """Pool.open with tiers."""

    def __init__(
        self,
        config: PoolConfig,
        tiers: Sequence[str],
        settings: LadderSettings | None = None,
        *,
        is_explicit: bool = False,
    ) -> None:
        """Attach to a pool that exists. Raises as Pool.attach and Ladder.

        `is_explicit`: nothing comes up but by begin() and bring(), for whoever must not wait.
        """
        super().__init__(config)
        self._is_explicit = is_explicit
        self._namespace: Namespace | None = None
        try:
            self.ladder = Ladder(self, tiers, settings)
        except BaseException:
            super().close()
            raise
        self.ladder.sources.is_told_all = True

    def namespace(self, identity: Identity, ttl: float | None = None, policy: Iterable[Policy] = ()) -> Namespace:
        self._namespace = super().namespace(identity, ttl, policy)
        return self._namespace

    def lookup(self, keys: Buffer, *, namespaces: bytes | None = None) -> int:
        if namespaces is not None:  # What lies below has names, not numbers: whoever limits a call means the pool.
            return super().lookup(keys, namespaces=namespaces)
        packed = bytes(memoryview(keys).cast("B"))
        count, below = super().lookup(packed), 1
        while below and count * KEY_BYTES < len(packed):  # Parts of a prefix may be here and parts below.
            below = self._below(packed[count * KEY_BYTES :], count)
            count += below
            count += super().lookup(packed[count * KEY_BYTES :])
        return count

    def exists(self, key: Buffer, *, namespaces: bytes | None = None) -> bool:
        if namespaces is not None:
            return super().exists(key, namespaces=namespaces)
        return super().exists(key) or self._below(bytes(memoryview(key).cast("B"))) > 0

    def find(self, keys: Buffer) -> list[bool]:
        packed = bytes(memoryview(keys).cast("B"))
        leading = self.lookup(packed)
        rest = [packed[at : at + KEY_BYTES] for at in range(leading * KEY_BYTES, len(packed), KEY_BYTES)]
        return [True] * leading + [super(TieredPool, self).exists(key) for key in rest]

    def pin(self, keys: Buffer, *, namespaces: bytes | None = None) -> core.PinnedPrefix:
        if namespaces is None and not self._is_explicit:
            self.bring(bytes(memoryview(keys).cast("B")))
        return super().pin(keys, namespaces=namespaces)

    def get(self, key: Buffer) -> memoryview | None:
        view = super().get(key)
        if view is None and not self._is_explicit and self.bring(bytes(memoryview(key).cast("B"))):
            view = super().get(key)
        return view

    def read_into(self, keys: Buffer, buffers: Sequence[Buffer]) -> int:
        if not self._is_explicit:
            self.bring(bytes(memoryview(keys).cast("B")))
        return super().read_into(keys, buffers)

    def remove(self, key: Buffer, *, namespaces: bytes | None = None) -> bool:
        """As Pool.remove; what lies below goes too, in the background, unless somebody reads the chunk here."""
        if namespaces is not None:
            return super().remove(key, namespaces=namespaces)
        packed = bytes(memoryview(key).cast("B"))
        is_gone = super().remove(packed)
        if self._namespace is not None and (is_gone or not super().exists(packed)):
            self.ladder.remove(packed, self._namespace)
        return is_gone

    def bring(self, keys: bytes, deadline_s: float | None = None) -> bool:
        """Have the leading chunks of `keys` here, as far as a place has them and there is room. Did any come?"""
        here, came = super().lookup(keys), False
        self.ladder.sources.from_pool(here)
        while self._namespace is not None and here * KEY_BYTES < len(keys):
            missing = keys[here * KEY_BYTES :]
            if not self.ladder.promote(missing, self._namespace, _last_of(keys, here), deadline_s, here):
                break
            now = super().lookup(keys)  # What came may lead on to more that was here.
            if now <= here:
                break
            here, came = now, True
        self.ladder.sources.computed(len(keys) // KEY_BYTES - here)
        return came

    def begin(self, keys: bytes) -> Future[int] | None:
        """Bring them in the background. None when nothing is missing, or nothing can come."""
        here, sources = super().lookup(keys), self.ladder.sources
        missing = keys[here * KEY_BYTES :]
        count = len(missing) // KEY_BYTES
        sources.from_pool(here)
        rising = None
        if self._namespace is not None:
            rising = self.ladder.begin(missing, self._namespace, _last_of(keys, here), before=here)
        if rising is None:
            sources.computed(count)
        else:
            rising.add_done_callback(lambda done: sources.computed(count - _came(done)))
        return rising

    def _below(self, missing: bytes, before: int = 0) -> int:
        """How many leading chunks of these lie below; `before` come before them."""
        if not missing or self._namespace is None or self._is_explicit:
            return 0
        return self.ladder.leading(missing, self._namespace, before)

    def close(self) -> None:
        """As Pool.close. What is being copied below is there or not there."""
        if not self.closed:
            self.ladder.close()
        super().close()


def _came(done: Future[int]) -> int:
    """Chunks that a promotion brought; 0 for one that failed."""
    return 0 if done.cancelled() or done.exception() else done.result()


def _last_of(keys: bytes, count: int) -> bytes | None:
    """The key before the first that is missing."""
    return keys[(count - 1) * KEY_BYTES : count * KEY_BYTES] if count else None
