"""Takes what comes into a near pool to the far one, in the background: one process a host does it for all.

Holds:      the right to send (a byte of the near pool's `lock` file), what came in and was not sent yet.
Promises:   nobody waits for it; when the process ends another one goes on, and sends what the far pool lacks. What the
            far pool has is not sent again. A far pool that does not answer is tried again, as long as room for what
            waits lasts.
Leaves:     seeing what came in to the core's ChangeScan.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import deque
from pathlib import Path

from maru.client.remote import RemoteNamespace, RemotePool
from maru.errors import MaruError, NotAttached, PoolBusy
from maru.inherited import give_back, take_byte
from maru.native import core
from maru.pool import STAYS_HERE, Outcome, Pool
from maru.tiering.noted import Notes

_log = logging.getLogger("maru")

KEY_BYTES = 16
LOCK_BYTE = 4
"""kLockByteSender of pool/layout.h."""
LOOK_S = 0.05
ELECTION_S = 1.0
CHANGES_A_LOOK = 4096
PENDING_MAX = 1 << 17
"""Chunks that wait to be sent. Beyond that the oldest stay on this host only."""
RUN_BYTES = 32 << 20
LOOKED_S_MAX = HEARD_S_MAX = 2.0
_CHANGE = struct.Struct("<16s16s16sQBB?5x")
_CAME = 1

Waiting = tuple[bytes, bytes | None, bytes, int]
"""(key, parent, namespace's digest, bytes) of a chunk."""


class Sender:
    """One a near pool and process; start it with the pool, stop it before the pool closes."""

    def __init__(self, near: Pool, far: RemotePool) -> None:
        self._near, self._far = near, far
        self._notes = Notes(near._audit, near.config.name, "rpc")
        self._pending: deque[Waiting] = deque(maxlen=PENDING_MAX)
        self._namespaces: dict[bytes, RemoteNamespace] = {}
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        self._rounds = 0
        self._idle = False
        self.has_right = False
        """This process sends for all of its host."""
        self.looked = threading.Event()
        """It is known whether this process is the one that sends."""
        self.is_caught_up = False
        """What ended in the far pool before this process came to send is gone here; until then nothing is sent: it
        would be there again."""
        self.heard_s = 0.0
        """When it was heard last what ended there, by the monotonic clock: without, nothing is sent either."""
        self._of_before: list[bytes] | None = None
        self._unsent = threading.Lock()
        self._run_under_way: list[Waiting] = []
        self.sent = 0
        """Chunks that the far pool got from here."""
        self._thread = threading.Thread(target=self._run, name="maru-sender", daemon=True)
        self._thread.start()

    def flush(self, timeout_s: float) -> bool:
        """Until a look that began after this call found nothing more to send."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            wanted = self._rounds + 2
            self._changed.wait_for(
                lambda: (self._rounds >= wanted and self._idle) or not self._thread.is_alive(),
                max(0.0, deadline - time.monotonic()),
            )
            return self._rounds >= wanted and self._idle

    def of_before(self) -> list[bytes]:
        """Keys of what lay in the near pool when this process came to send for its host. Raises PoolBusy: not yet
        known.
        """
        if self._of_before is None:
            raise PoolBusy("the near pool is still being looked at")
        return self._of_before

    def has_caught_up(self) -> None:
        """Send from now on."""
        self._of_before, self.is_caught_up = [], True

    def need_not_send(self, keys: set[bytes]) -> None:
        """The far pool has these."""
        with self._unsent:
            self._pending = deque((one for one in self._pending if one[0] not in keys), maxlen=PENDING_MAX)

    def sent_or_brought(self) -> list[bytes]:
        """Keys of what lies in the near pool, but for what is still to be sent. Raises PoolBusy."""
        here, is_whole = core.ChangeScan(self._near), False
        while not is_whole:
            _, is_whole = here.look(CHANGES_A_LOOK)
        keys = [key for key, _, digest, *_ in _CHANGE.iter_unpack(here.told()) if self._may_send(digest)]
        self.let_pass()  # Until what came before that look has been seen here too.
        with self._unsent:
            unsent = {key for key, *_ in (*self._pending, *self._run_under_way)}
        return [key for key in keys if key not in unsent]

    def let_pass(self) -> None:
        """Wait until what was under way when this was called is sent. Raises PoolBusy."""
        rounds = self._rounds
        with self._changed:
            if not self._changed.wait_for(lambda: self._rounds >= rounds + 2, LOOKED_S_MAX):
                raise PoolBusy("what is here is still being sent")

    def _may_send(self, digest: bytes) -> bool:
        return not self._near._policy_of(digest) & STAYS_HERE

    def stop(self, timeout_s: float) -> None:
        if self._thread.is_alive() and self.has_right:
            self.flush(timeout_s)
        self._stopping.set()
        self._thread.join(timeout_s + 1)

    def _run(self) -> None:
        lock = -1
        try:
            while not self._stopping.is_set():
                if lock < 0:
                    lock = take_byte(Path(self._near.folder), LOCK_BYTE)
                    self.has_right = lock >= 0
                    self.looked.set()
                    if lock < 0:
                        self._stopping.wait(ELECTION_S)
                        continue
                    scan = core.ChangeScan(self._near)
                done = self._round(scan)
                with self._changed:
                    self._rounds += 1
                    self._idle = done
                    self._changed.notify_all()
                self._stopping.wait(LOOK_S if done or self._far.channel.is_down else 0)
        except NotAttached:
            pass  # Closed meanwhile.
        except (MaruError, OSError) as error:
            _log.warning("nothing more is sent to %s: %s", self._far.channel.endpoint, error)
        finally:
            self.has_right = False
            if lock >= 0:
                give_back(lock)

    def _round(self, scan: core.ChangeScan) -> bool:
        """Look, and send some. True when nothing is left to do for now."""
        changes, whole = scan.look(CHANGES_A_LOOK)
        for key, parent, digest, size, kind, has_parent, is_brought in _CHANGE.iter_unpack(changes):
            if is_brought and self._of_before is not None:
                continue  # Though it were gone there by now: somebody may have removed it.
            if kind == _CAME and self._may_send(digest):
                with self._unsent:
                    self._pending.append((key, parent if has_parent else None, digest, size))
        if whole and self._of_before is None:
            self._of_before = [key for key, *_ in self._pending]
        may_send = self.is_caught_up and time.monotonic() - self.heard_s < HEARD_S_MAX
        run = self._next_run() if may_send and not self._far.channel.is_down else []
        try:
            unsent = self._send(run) if run else []
        except NotAttached:
            raise
        except MaruError as error:  # Of the far pool: it is tried again.
            self._far.count(type(error).__name__)
            unsent = run
        with self._unsent:
            self._run_under_way = []
            self._pending.extendleft(reversed(unsent))
        return whole and not self._pending

    def _next_run(self) -> list[Waiting]:
        """Chunks that continue each other, up to some megabytes."""
        run: list[Waiting] = []
        total = 0
        with self._unsent:
            while self._pending and total < RUN_BYTES:
                _, parent, digest, size = self._pending[0]
                if run and (parent != run[-1][0] or digest != run[-1][2]):
                    break
                run.append(self._pending.popleft())
                total += size
            self._run_under_way = run
        return run

    def _send(self, run: list[Waiting]) -> list[Waiting]:
        """What could not be sent, since nobody answered."""
        there = self._far.find(b"".join(key for key, *_ in run))
        if self._far.channel.is_down:
            return run
        first = there.index(False) if False in there else len(run)
        views = []
        for key, *_ in run[first:]:
            view = core.PoolCore.get(self._near, key)
            if view is None:  # Evicted before its turn came: what continues it is of no use either.
                break
            views.append(view)
        if not views:
            return []
        rest = run[first : first + len(views)]
        keys = b"".join(key for key, *_ in rest)
        outcomes = self._far.put_many(keys, views, self._namespace(rest[0][2]), rest[0][1])
        self.sent += outcomes.count(Outcome.STORED)
        size = sum(one[3] for one, outcome in zip(rest, outcomes, strict=True) if outcome is Outcome.STORED)
        self._notes.note("exported", "to the far pool", rest[0][2], "", outcomes.count(Outcome.STORED), size)
        return rest[outcomes.index(Outcome.BUSY) :] if self._far.channel.is_down and Outcome.BUSY in outcomes else []

    def _namespace(self, digest: bytes) -> RemoteNamespace | None:
        if digest not in self._namespaces:
            row = next(row for row in self._near.stats()["namespaces"] if row["digest"] == digest.hex())
            if row["id"] == 0:
                return None
            ttl = row["ttl_ns"] / 1e9 or None
            number, _ = self._far.channel.register(digest, row["tenant"], ttl, self._near._policy_of(digest))
            self._namespaces[digest] = RemoteNamespace(self._far, number, digest, ttl)
        return self._namespaces[digest]
