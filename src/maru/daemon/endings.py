"""What ended in a pool, for pools of other hosts in front of it: chunks that were removed, namespaces that were bumped.

Holds:      a thread that looks at the pool while somebody asks, and the last of what it saw, numbered.
Promises:   what any process of this host ended is told some tenths of a second later, whatever door it came through;
            who asks for what is not known any more is told so, and never less than there was. What was evicted or has
            run out is no ending: a pool in front keeps its copy of that.
Leaves:     whose namespaces a client may hear of to `tenancy`, and what becomes of it to `maru.client.listener`.

The index says that a chunk left and not why, so a look in which the pool's count of removals grew tells everything that
left about then: a pool in front may lose a copy of what was only evicted, which is a miss. A removal that no look can
account for (of a chunk that came and went between two) makes what was before unknown, and so does a process that died:
it may have removed a chunk and not have counted it. What is not seen: a removal whose process stood still within it for
longer than the looks that are remembered, if other chunks leave in the very look in which it goes on.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
from collections import deque

from maru.daemon.kv_events import CHANGE
from maru.errors import MaruError, PoolBusy
from maru.native import core
from maru.pool import Pool

LOOK_S, LOOK_COST = 0.1, 20
"""Between two looks: so long, or so many times what the last look took."""
UNASKED_S = 60.0
"""When nobody has asked for so long nobody looks any more, and what ended since then is not known."""
KEPT_MAX = 1 << 16
RECORDS_MAX = 1 << 14
"""In one answer."""
RECORD = struct.Struct("<16s16s")
"""A namespace's digest, and the key of a chunk of it; zeros: all of them."""
WHOLE_NAMESPACE = bytes(16)
STOP_DEADLINE_S = 2.0
CHANGES_A_LOOK = 1 << 14
_LEFT = 2
_ARMED_LOOKS = 2
"""A removal may be counted a look after the chunk was seen to be gone, or one before."""

_log = logging.getLogger("maru.daemon")


class Endings:
    """Of one pool. Thread-safe."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._kept: deque[tuple[int, bytes]] = deque()
        self._first = self._last = 0
        """Known is what ended after the first number, up to the last one."""
        self._is_ready = False
        self._asked_s = 0.0
        self._looks = 0

    def since(self, number: int) -> tuple[int, bool, int, list[bytes]]:
        """(number to ask from the next time, is it known what ended since `number`, looks so far, RECORDs of that).

        Raises PoolBusy while the pool is looked at for the first time.
        """
        with self._lock:
            self._asked_s = time.monotonic()
            if self._thread is None and not self._stopping.is_set():
                self._is_ready = False
                self._thread = threading.Thread(target=self._run, name="maru-endings", daemon=True)
                self._thread.start()
            if not self._is_ready:
                raise PoolBusy("what ends in this pool is being looked at for the first time: ask again")
            if not self._first <= number <= self._last:
                return self._last, False, self._looks, []
            found = [one for one in self._kept if one[0] > number][:RECORDS_MAX]
            return (found[-1][0] if found else self._last), True, self._looks, [record for _, record in found]

    def stop(self) -> None:
        """Look no more. Idempotent."""
        self._stopping.set()
        thread = self._thread
        if thread is not None:
            thread.join(STOP_DEADLINE_S)

    def _run(self) -> None:
        try:
            look = _Look(self._pool)
            with self._lock:
                # Microseconds since 1970: above what an earlier thread, or daemon, came to.
                self._first = self._last = max(time.time_ns() // 1000, self._last + 1)
                self._kept.clear()
                self._is_ready = True
            took_s = 0.0
            while not self._stopping.wait(max(LOOK_S, LOOK_COST * took_s)):
                begun_s = time.monotonic()
                if begun_s - self._asked_s > UNASKED_S:
                    return
                ended, is_known = look.again()
                self._tell(ended, is_known)
                took_s = time.monotonic() - begun_s
        except (MaruError, OSError) as error:
            _log.info("what ends in the pool is not told any more: %s", error)
        finally:
            with self._lock:
                self._thread, self._is_ready = None, False

    def _tell(self, ended: list[bytes], is_known: bool) -> None:
        with self._lock:
            self._looks += 1
            for record in ended:
                self._last += 1
                self._kept.append((self._last, record))
            while len(self._kept) > KEPT_MAX:
                self._first = self._kept.popleft()[0]
            if not is_known:
                self._last += 1
                self._first = self._last
                self._kept.clear()


class _Look:
    """What changed from one look to the next. For one thread."""

    def __init__(self, pool: Pool) -> None:
        """Looks for the first time, which takes longest."""
        self._pool, self._scan = pool, core.ChangeScan(pool)
        self._removed, self._reaped, self._epochs = self._figures()
        self._left_now()
        self._before: list[dict[bytes, bytes]] = []
        """What left in the last looks, and was not told."""
        self._armed = 0
        self._owed = 0
        """Removals of which no chunk was told yet."""

    def again(self) -> tuple[list[bytes], bool]:
        """RECORDs of what ended since the last look, and whether those are all."""
        removed, reaped, epochs = self._figures()  # Before the look: what is counted then has left by then.
        left = self._left_now()
        ended = [
            RECORD.pack(digest, WHOLE_NAMESPACE)
            for digest, epoch in epochs.items()
            if epoch != self._epochs.get(digest, 0)
        ]
        if removed != self._removed:
            self._armed, self._owed = _ARMED_LOOKS, self._owed + removed - self._removed
        nobody_died = reaped == self._reaped
        self._removed, self._reaped, self._epochs = removed, reaped, epochs
        self._before = [*self._before, left][-_ARMED_LOOKS - 1 :]
        if not self._armed:
            return ended, nobody_died
        told = {key: digest for one in self._before for key, digest in one.items()}
        self._before.clear()
        self._armed -= 1
        self._owed = max(0, self._owed - len(told))
        is_known = self._armed > 0 or self._owed == 0
        self._owed = 0 if not is_known else self._owed
        return ended + [RECORD.pack(digest, key) for key, digest in told.items()], is_known and nobody_died

    def _figures(self) -> tuple[int, int, dict[bytes, int]]:
        figures = self._pool.stats()
        counters = figures["counters"]
        epochs = {bytes.fromhex(row["digest"]): int(row["epoch"]) for row in figures["namespaces"]}
        return int(counters["removed"]), int(counters["reaped"]), epochs

    def _left_now(self) -> dict[bytes, bytes]:
        left: dict[bytes, bytes] = {}
        is_whole = False
        while not is_whole:
            changes, is_whole = self._scan.look(CHANGES_A_LOOK)
            for key, _, digest, _, kind, _ in CHANGE.iter_unpack(changes):
                if kind == _LEFT:
                    left[key] = digest
        return left
