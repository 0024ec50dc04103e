"""What is noted becomes lines: what happens often is summed and written once a second, what is rare comes at once.

Promises:   note() costs a few updates of a dictionary that no other thread writes: no lock, no disk, no line. The rows
            of one second are ROWS_MAX at most, the rest is summed as "others"; of rare entries RARE_MAX are taken a
            second, and a line says how many were left out. A disk that fails stops nothing: it is logged once, counted,
            and a line `gap` says what is missing as soon as one can be written.
Leaves:     files to `log`.

A process that is killed loses what it noted in its last second.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from maru.audit.log import AuditLog
from maru.audit.record import OTHERS, Door, Entry, What, Who
from maru.errors import AuditError

PERIOD_S = 1.0
ROWS_MAX = 64
RARE_MAX = 32
STOP_DEADLINE_S = 5.0
_log = logging.getLogger("maru.audit")

Key = tuple[What, Door, Who, str, str, str, str]
"""what, door, who, pool, namespace, outcome, reason: what is equal is summed."""


class _Table:
    """Rows of one thread, which alone adds to them: [calls, chunks, bytes], ever growing until it takes a new table."""

    def __init__(self, period: int) -> None:
        self.thread = threading.current_thread()
        self.period = period
        self.rows: dict[Key, list[int]] = {}
        self.told: dict[Key, tuple[int, int, int]] = {}
        """What of each row was written. The writing thread's own."""
        self.is_over = False
        """Its thread has another one now. That thread writes this, after its last row."""


@dataclass
class AuditCounts:
    """What became of it all."""

    lines: int = 0
    failures: int = 0
    """Times that the disk did not take what there was."""
    lost_calls: int = 0
    """Calls that no line tells of, but for the one that says there was a gap."""
    left_out: int = 0


class Audit:
    """One process's side of a log: notes from any thread, written by a thread of its own until close()."""

    def __init__(self, log: AuditLog, clock_ns: Callable[[], int] = time.time_ns, starts: bool = True) -> None:
        """`starts`: write by itself, once a second. Without, flush() is called by whoever made it."""
        self._file, self._clock_ns, self._starts = log, clock_ns, starts
        self._sources: list[Callable[[], Iterable[Entry]]] = []
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._begin()
        if starts:
            os.register_at_fork(after_in_child=_reviver(self))
            atexit.register(self.close)
            self._thread = _started(self)

    def _begin(self) -> None:
        """Nothing is noted yet, and nobody writes."""
        self.counts = AuditCounts()
        self._mine = threading.local()
        self._tables: list[_Table] = []
        self._period = 0
        self._rare: deque[Entry] = deque()
        self._rare_count = self._left_out = 0
        self._flushing = threading.Lock()
        self._bell = threading.Event()
        self._since_ns = self._clock_ns()
        self._gap_since_ns = self._gap_calls = 0
        self._gap_why = ""
        self._thread = None

    # ---- noting ----------------------------------------------------------------------------------------------------

    def note(self, key: Key, chunks: int = 0, size_bytes: int = 0) -> None:
        """One more of what is often. Any thread; never raises for what a disk does."""
        table: _Table | None = getattr(self._mine, "table", None)
        if table is None:
            table = self._new_table()
        row = table.rows.get(key)
        if row is None:
            if len(table.rows) >= ROWS_MAX and table.period != self._period:
                table.is_over = True
                table = self._new_table()
            elif len(table.rows) >= ROWS_MAX:
                key = (key[0], key[1], OTHERS, "", "", "", "")
            row = table.rows.setdefault(key, [0, 0, 0])
        row[1] += chunks
        row[2] += size_bytes
        row[0] += 1  # Last: the writing thread goes by it.

    def tell(self, entry: Entry) -> None:
        """Something rare: it is written as soon as the thread comes to it. Any thread; waits for no disk."""
        if self._rare_count >= RARE_MAX:
            self._left_out += 1  # Racy, as the line before: threads that tell at once may be one too many or too few.
            return
        self._rare_count += 1
        self._rare.append(entry)
        self._bell.set()

    def add_source(self, entries: Callable[[], Iterable[Entry]]) -> None:
        """Ask this too, once a period and at the end: what somebody counted by himself since he was last asked."""
        self._sources.append(entries)

    def _new_table(self) -> _Table:
        table = self._mine.table = _Table(self._period)
        self._tables.append(table)
        return table

    # ---- writing ---------------------------------------------------------------------------------------------------

    def flush(self) -> None:
        """Write all that was noted. Never raises: what the disk does not take is counted and told of later."""
        with self._flushing:
            entries = self._told()
            self._period += 1
            self._rare_count, left_out, self._left_out = 0, self._left_out, 0
            if left_out:
                self.counts.left_out += left_out
                entries.append(Entry("left_out", "audit", calls=left_out, at_unix_ns=self._clock_ns()))
            self._write([*entries, *self._summed()])

    def close(self) -> None:
        """Write what is there, and no more by itself after this. Idempotent."""
        if self._over.is_set():
            return
        self._over.set()
        self._bell.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_DEADLINE_S)
        self.flush()
        if self._starts:
            atexit.unregister(self.close)

    def _write(self, entries: list[Entry]) -> None:
        if not entries:
            return
        gap = [self._gap()] if self._gap_calls else []
        try:
            self.counts.lines += self._file.write([*gap, *entries])
        except (OSError, AuditError) as error:
            self._failed(error, entries)
            return
        if gap:
            _log.warning("%s takes audit lines again; %d calls are missing", self._file.folder, self._gap_calls)
            self._gap_calls = 0

    def _gap(self) -> Entry:
        return Entry("gap", "audit", calls=self._gap_calls, reason=self._gap_why, at_unix_ns=self._gap_since_ns)

    def _failed(self, error: Exception, entries: list[Entry]) -> None:
        lost = sum(entry.calls for entry in entries)
        self.counts.failures += 1
        self.counts.lost_calls += lost
        if not self._gap_calls:
            self._gap_since_ns = min(entry.at_unix_ns for entry in entries)
            self._gap_why = (error.strerror if isinstance(error, OSError) else "") or type(error).__name__
            _log.error("%s takes no audit lines, which stops nothing else (told once): %s", self._file.folder, error)
        self._gap_calls += lost

    def _told(self) -> list[Entry]:
        taken = []
        while self._rare:
            taken.append(self._rare.popleft())
        return taken

    def _summed(self) -> list[Entry]:
        """What all threads and sources counted since the last time, bounded over all of them."""
        since_ns, self._since_ns = self._since_ns, self._clock_ns()
        found: list[Entry] = []
        for table in list(self._tables):
            is_last = table.is_over or not table.thread.is_alive()  # Before its rows are read.
            for key, row in list(table.rows.items()):
                calls, chunks, size = row
                told = table.told.get(key, (0, 0, 0))
                if calls == told[0]:
                    continue
                table.told[key] = (calls, chunks, size)
                what, door, who, pool, namespace, outcome, reason = key
                new = {"chunks": chunks - told[1], "bytes": size - told[2], "calls": calls - told[0]}
                found.append(
                    Entry(what, door, who, pool, namespace, outcome=outcome, reason=reason, at_unix_ns=since_ns, **new)
                )
            if is_last:
                self._tables.remove(table)
        for source in self._sources:
            found += source()
        return _bounded(found)

    def _run(self) -> None:
        due_s = time.monotonic() + PERIOD_S
        while not self._over.is_set():
            rang = self._bell.wait(max(0.0, due_s - time.monotonic()))
            try:
                if rang:
                    self._bell.clear()
                    with self._flushing:
                        self._write(self._told())
                if time.monotonic() >= due_s:
                    due_s = time.monotonic() + PERIOD_S
                    self.flush()
            except Exception:  # A mistake of ours must not end the log, nor anything else.
                _log.exception("writing the audit log failed")
                due_s = time.monotonic() + PERIOD_S

    def _revive(self) -> None:
        """In a forked child, which has neither the thread nor what the parent noted."""
        was_over, self._over = self._over.is_set(), threading.Event()
        self._begin()
        if was_over:
            self._over.set()
        else:
            self._thread = _started(self)


def _started(audit: Audit) -> threading.Thread:
    thread = threading.Thread(target=audit._run, name="maru-audit", daemon=True)
    thread.start()
    return thread


def _reviver(audit: Audit) -> Callable[[], None]:
    """For a forked child, without keeping an Audit that nobody has any more."""
    weak = weakref.ref(audit)

    def revive() -> None:
        found = weak()
        if found is not None:
            found._revive()

    return revive


def _bounded(entries: list[Entry]) -> list[Entry]:
    """The ROWS_MAX with the most calls, and one line of each kind for the rest."""
    if len(entries) <= ROWS_MAX:
        return entries
    entries.sort(key=lambda one: -one.calls)
    rest: dict[tuple[What, Door], Entry] = {}
    for one in entries[ROWS_MAX:]:
        so_far = rest.get((one.what, one.door)) or replace(one, who=OTHERS, pool="", namespace="", outcome="",
            reason="", chunks=0, bytes=0, calls=0)  # fmt: skip
        rest[one.what, one.door] = replace(
            so_far, chunks=so_far.chunks + one.chunks, bytes=so_far.bytes + one.bytes, calls=so_far.calls + one.calls
        )
    return entries[:ROWS_MAX] + list(rest.values())
