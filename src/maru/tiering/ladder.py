"""A pool with places below it: one event loop in a thread of its own, on which everything about them happens.

    ladder = Ladder(pool, ["file:///var/lib/maru?size=500GiB&codec=zstd", "s3://bucket/prefix?codec=blosc2"])
    ladder.promote(keys, namespace)   # What the pool lacks and a place has is in the pool afterwards.
    ladder.close()

What leaves the pool goes down by itself (demoter); what is asked for comes up (promoter). Every call here has a
deadline, and none raises for what a place does: that is a miss.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maru.errors import MaruError
from maru.pool import Namespace, Pool
from maru.tier.opening import TierConfig, parse_tier_url
from maru.tiering.decision import Decision
from maru.tiering.demoter import Demoter
from maru.tiering.noted import Notes
from maru.tiering.place import Place, Which
from maru.tiering.prefill import Prefill, PrefillClock
from maru.tiering.promoter import Promoter
from maru.tiering.remover import Remover
from maru.tiering.sources import Sources
from maru.tiering.sweeper import Sweeper
from maru.tiering.tenants import Tenants
from maru.tiering.told import TELL_EVERY_S, Teller

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from maru.audit import Audit

_log = logging.getLogger("maru")
_Answer = TypeVar("_Answer")

START_DEADLINE_S = 10.0
CLOSE_DEADLINE_S = 5.0
_LATE_S = 0.5
"""Beyond its own deadline, a call on the loop is waited for so long: the loop itself may be stopped."""


@dataclass(frozen=True)
class LadderSettings:
    """How a ladder behaves."""

    promote_deadline_s: float = 10.0
    """What has not come up by then is computed."""
    lookup_deadline_s: float = 1.0
    prefill: Prefill | PrefillClock | None = None
    """What computing costs, told or measured; None: whatever is below is loaded."""
    demotes: bool = True
    """Take part in copying down, when no other process does it."""
    at: Callable[[str], None] = lambda _step: None
    """Told each step of promoter and demoter, for tests that kill there."""


class Ladder:
    """Thread-safe. After fork the child's first call starts a loop of its own."""

    def __init__(
        self,
        pool: Pool,
        tiers: Sequence[str | TierConfig],
        settings: LadderSettings | None = None,
        audit: Audit | None = None,
    ) -> None:
        """`tiers`: URLs, the nearest first. A place that does not answer is no error. `audit`: where it is noted what
        they do; else in the pool's own log, if its URL names one.

        Raises BadUrl, MissingPackage, CredentialError.
        """
        self._pool, self._audit = pool, audit or pool._audit
        self._tenants = Tenants(pool)
        self._configs = [parse_tier_url(tier) if isinstance(tier, str) else tier for tier in tiers]
        self._settings = settings or LadderSettings()
        self._guard = threading.Lock()
        self._pid = 0
        self._is_closed = False
        self._begun: dict[bytes, concurrent.futures.Future[int]] = {}
        self.sources = Sources()
        self._start()

    @property
    def tiers(self) -> list[TierConfig]:
        return list(self._configs)

    def leading(self, keys: Buffer, namespace: Namespace, before: int = 0) -> int:
        """How many leading chunks of `keys` lie below and are worth loading. A hint, within lookup_deadline_s.

        `before`: how many chunks of the prefix come before these.
        """
        if not self._is_up():
            return 0
        asking = self._promoter.leading(_packed(keys), namespace, before, self._settings.promote_deadline_s)
        return self._call(asking, self._settings.lookup_deadline_s, 0)

    def promote(
        self,
        keys: Buffer,
        namespace: Namespace,
        parent: bytes | None = None,
        deadline_s: float | None = None,
        before: int = 0,
    ) -> int:
        """Have the leading chunks of `keys`, which the pool lacks, in the pool as far as a place has them.

        `parent`: the key before the first. `before`: how many come before it. Returns how many of `keys` lead in the
        pool then.
        """
        future = self.begin(keys, namespace, parent, deadline_s, before)
        if future is None:
            return 0
        wait_s = self._settings.promote_deadline_s if deadline_s is None else deadline_s
        try:
            return future.result(wait_s + _LATE_S)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, MaruError, RuntimeError):
            return 0

    def begin(
        self,
        keys: Buffer,
        namespace: Namespace,
        parent: bytes | None = None,
        deadline_s: float | None = None,
        before: int = 0,
    ) -> concurrent.futures.Future[int] | None:
        """As promote, in the background. Asked again for a prefix that begins alike, it is the same promotion."""
        packed = _packed(keys)
        if not packed or not self._is_up():
            return None
        wait_s = self._settings.promote_deadline_s if deadline_s is None else deadline_s
        first = packed[:16]
        with self._guard:
            under_way = self._begun.get(first)
            if under_way is not None and not under_way.done():
                return under_way
            promotion = self._promoter.promote(packed, namespace, parent, wait_s, before)
            try:
                future = self._submit(promotion)
            except RuntimeError:  # The loop has just ended.
                promotion.close()
                return None
            self._begun[first] = future
        future.add_done_callback(lambda done: self._ended(first, done))
        return future

    def _ended(self, first: bytes, done: concurrent.futures.Future[int]) -> None:
        with self._guard:
            if self._begun.get(first) is done:
                del self._begun[first]

    def remove(self, keys: Buffer, namespace: Namespace) -> None:
        """Take these chunks away below, in the background; stats()["remover"] counts what became of it."""
        if not self._is_up():
            return
        packed, epoch, policy = _packed(keys), namespace.epoch, self._pool._policy_of(namespace.digest)
        tenant = self._tenants.of(namespace.id)
        chunks = [
            Which(packed[at : at + 16], namespace.digest, epoch, tenant, policy) for at in range(0, len(packed), 16)
        ]
        with contextlib.suppress(RuntimeError):  # The loop has just ended.
            self._loop.call_soon_threadsafe(self._remover.add, chunks)

    def flush(self, timeout_s: float) -> bool:
        """Wait until a look that began after this call found nothing to copy down. False: too short, or another process
        does it."""
        ends = time.monotonic() + timeout_s
        looks = self._demoter.looks
        while time.monotonic() < ends and self._is_up():
            if self._demoter.looks >= looks + 2 and self._demoter.is_idle:
                return True
            with contextlib.suppress(TimeoutError):  # Until the loop has had its turn.
                self._call(asyncio.sleep(0.01), 1.0, None)
        return False

    def stats(self) -> dict[str, Any]:
        """Figures of this process: "places", "demoter", "promoter", "remover", "decision", "sources"; bytes,
        seconds, counts."""
        resident, copied, dropped = self._demoter.residents()
        figures = self._promoter.figures
        return {
            "places": [place.stats() for place in self._places],
            "demoter": {
                "is_ours": self._demoter.has_right,
                "resident_bytes": resident,
                "copied_bytes": copied,
                "dropped": dropped,
            },
            "promoter": {
                name: figures[name]
                for name in ("promoted_prefixes", "promoted", "computed_instead", "late", "no_room", "failed")
            },
            "remover": self._remover.stats(),
            "decision": self._decision.stats(),
            "sources": self.sources.stats(),
        }

    def measure_prefill(self, clock: PrefillClock) -> None:
        """Decide by what `clock` measures, from now on; unless it was told what computing costs."""
        if self._settings.prefill is None:
            self._settings = replace(self._settings, prefill=clock)
            self._decision.prefill = clock

    def close(self) -> None:
        """End: what is being copied is there or not there. At most some seconds."""
        with self._guard:
            if self._is_closed:
                return
            self._is_closed = True
        if self._pid != os.getpid() or not self._thread.is_alive():
            return
        self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(CLOSE_DEADLINE_S)

    def __enter__(self) -> Ladder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _is_up(self) -> bool:
        if self._is_closed or self._pool.closed:
            return False
        if self._pid != os.getpid():
            try:
                self._start()
            except (MaruError, OSError, RuntimeError) as error:
                self._is_closed = True
                _log.warning("in this child of a fork nothing comes up from below: %s", error)
                return False
        return self._thread.is_alive()

    def _start(self) -> None:
        self._pid = os.getpid()
        self._guard = threading.Lock()
        self._begun = {}
        self._places: list[Place] = []
        self.sources = self.sources.anew()
        started = threading.Event()
        failed: list[BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(started, failed), name="maru-ladder", daemon=True)
        self._thread.start()
        if not started.wait(START_DEADLINE_S):
            failed.append(TimeoutError("the places below the pool were not opened in time"))
        if failed:
            raise failed[0]

    def _run(self, started: threading.Event, failed: list[BaseException]) -> None:
        try:
            asyncio.run(self._live(started))
        except BaseException as error:
            failed.append(error)
            if started.is_set() and not self._pool.closed:
                _log.warning("nothing is copied below the pool any more: %s: %s", type(error).__name__, error)
        finally:
            started.set()

    async def _live(self, started: threading.Event) -> None:
        self._loop, self._stopping = asyncio.get_running_loop(), asyncio.Event()
        settings = self._settings
        uuid = bytes.fromhex(self._pool.stats()["uuid"])
        notes = Notes(self._audit, self._pool.config.name)
        tasks: list[asyncio.Task[None]] = []
        try:
            for config in self._configs:
                self._places.append(Place.open(config, uuid, notes))
            self._decision = Decision(settings.prefill)
            self._promoter = Promoter(self._pool, self._places, self._decision, self.sources, settings.at)
            self._demoter = Demoter(self._pool, self._places, settings.at)
            self._remover = Remover(self._places, lambda: self._demoter.has_right)
            tasks.append(asyncio.create_task(self._tell()))
            tasks.append(asyncio.create_task(self._remover.run()))
            tasks.append(asyncio.create_task(Sweeper(self._places, lambda: self._demoter.has_right).run()))
            if settings.demotes:
                tasks.append(asyncio.create_task(self._demoter.run()))
            started.set()
            await self._stopping.wait()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for place in self._places:
                await place.close()

    async def _tell(self) -> None:
        """For `maru stat`, until it is cancelled."""
        with Teller(Path(self._pool.folder)) as teller:
            while not self._pool.closed and not self._pool.destroyed:
                teller.tell(self.stats())
                await asyncio.sleep(TELL_EVERY_S)

    def _submit(self, asking: Coroutine[Any, Any, _Answer]) -> concurrent.futures.Future[_Answer]:
        return asyncio.run_coroutine_threadsafe(asking, self._loop)

    def _call(self, asking: Coroutine[Any, Any, _Answer], deadline_s: float, otherwise: _Answer) -> _Answer:
        """Wait for the loop; `otherwise` for whatever goes wrong."""
        try:
            future = self._submit(asking)
        except RuntimeError:
            asking.close()
            return otherwise
        try:
            return future.result(deadline_s)
        except (concurrent.futures.TimeoutError, concurrent.futures.CancelledError, MaruError, RuntimeError):
            future.cancel()
            return otherwise


def _packed(keys: Buffer) -> bytes:
    return bytes(memoryview(keys).cast("B"))
