"""What lies in a folder, how much it is, and what of it goes first: kept by the one process that may write there.

Holds:      the index (name, size; the one that was used longest ago first), room for what is about to be stored, and
            each change of the folder together with its line in the journal.
Promises:   what is counted, stored and written down are one: a change is told before and after, so that a writer that
            is killed in between leaves names to look at, not a folder to read. A journal that is missing, damaged or
            from before a loss of power is replaced by a listing of names and sizes. Files that lie there with no hand
            of ours are only found by such a listing; files that went with no hand of ours are forgotten when somebody
            asks for them.
Leaves:     bytes to `disk_files`, threads to `disk`, who may write to `disk_lock`.

Last use is what this process saw: what others load from the same folder does not keep it here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from maru.errors import TierFull
from maru.tier.contract import is_overwritten
from maru.tier.disk_files import ObjectFiles, Part, Stopped
from maru.tier.disk_journal import Journal, Kind, Told

SPARE_RECORDS = 4096
"""The journal is rewritten when it has this many records more than twice what is in the index."""


class Index:
    """All that is in the folder. For any number of threads; every method blocks and may raise OSError."""

    def __init__(self, files: ObjectFiles, capacity_bytes: int | None, spare_records: int = SPARE_RECORDS) -> None:
        """Find out what is there. The caller has the right to write, and nobody else does."""
        self._files, self._capacity, self._spare_records = files, capacity_bytes, spare_records
        self._lock = threading.Lock()
        self._journal = Journal(files.place, files.calls)
        self._sizes: OrderedDict[str, int] = OrderedDict()
        self._bytes_coming = 0
        files.remove_leftovers()
        told = self._journal.read()
        self._take_over(told if told.is_sure else self._look_at_all(told))
        self.bytes_used = sum(self._sizes.values())
        self.was_listed = not told.is_sure
        self._rewrite()

    @property
    def names(self) -> list[str]:
        """What is there, the one that was used longest ago first."""
        with self._lock:
            return list(self._sizes)

    @contextmanager
    def room(self, wanted_bytes: int) -> Iterator[None]:
        """Keep room for an object while it is written. Raises TierFull."""
        with self._lock:
            if self._capacity is not None:
                if wanted_bytes > self._capacity:
                    raise TierFull(
                        f"an object of {wanted_bytes} bytes does not fit a place of size={self._capacity}",
                        wanted_bytes=wanted_bytes,
                    )
                while self._sizes and self.bytes_used + self._bytes_coming + wanted_bytes > self._capacity:
                    self._remove(next(iter(self._sizes)))
                if self._bytes_coming + self.bytes_used + wanted_bytes > self._capacity:
                    raise TierFull(
                        f"{self._bytes_coming} bytes are being stored just now, and size={self._capacity}",
                        wanted_bytes=wanted_bytes,
                    )
            self._bytes_coming += wanted_bytes
        try:
            yield
        finally:
            with self._lock:
                self._bytes_coming -= wanted_bytes

    def evict(self, wanted_bytes: int) -> bool:
        """The medium is full: let go of at least this much that was not used for longest. False: there is nothing."""
        freed = 0
        with self._lock:
            while self._sizes and freed < wanted_bytes:
                name = next(iter(self._sizes))
                freed += self._sizes[name]
                self._remove(name)
        return freed > 0

    def put(self, part: Part, name: str, is_stopped: Callable[[], bool]) -> None:
        """Give a part its name. Raises Stopped, while that can still be."""
        files = self._files
        files.make_folder(name)
        with self._lock:
            if is_stopped():
                raise Stopped
            self._tell(Kind.STORING, name, part.size_bytes)
            files.at("journalled")
            if is_overwritten(name):
                files.unlink(name)  # Else the rename would let go of one that lies there as it is.
            try:
                files.rename(part, name)
            except FileNotFoundError:
                files.forget_folders()
                files.make_folder(name)
                files.rename(part, name)
            files.at("renamed")
            self.bytes_used += part.size_bytes - self._sizes.pop(name, 0)
            self._sizes[name] = part.size_bytes
            self._tell(Kind.STORED, name, part.size_bytes)
            files.at("recorded")
            self._shorten()
        files.sync_folder(name)
        files.at("folder_synced")

    def remove(self, name: str) -> None:
        """Take an object away, if it is there."""
        with self._lock:
            self._remove(name)
            self._shorten()

    def used(self, name: str) -> None:
        """It was read: it goes last now."""
        with self._lock:
            if name in self._sizes:
                self._sizes.move_to_end(name)
                self._tell(Kind.USED, name)
                self._shorten()

    def missed(self, name: str) -> None:
        """Somebody asked for it, and it was not there."""
        with self._lock:
            if name in self._sizes and self._files.size_of(name) is None:
                self._remove(name)

    def close(self) -> None:
        """End in order: the next opening believes the journal."""
        with self._lock:
            if self._journal.is_open:
                self._journal.close()

    def abandon(self) -> None:
        """The right to write was lost: another one counts now, and this journal is not ours any more."""
        with self._lock:
            self._journal.stop()

    def _remove(self, name: str) -> None:
        self._tell(Kind.REMOVING, name)
        self._files.at("removing")
        self._files.unlink(name)
        self._files.at("unlinked")
        self.bytes_used -= self._sizes.pop(name, 0)
        self._tell(Kind.REMOVED, name)
        self._files.at("removed")

    def _take_over(self, told: Told) -> None:
        self._sizes = told.sizes
        for name in told.unsure:
            size = self._files.size_of(name)
            if size is None:
                self._sizes.pop(name, None)
            else:
                self._sizes[name] = size

    def _look_at_all(self, told: Told) -> Told:
        """Names and sizes from the file system: first, in their order, those that the journal knew; then the others,
        which came after them, in the order they were stored in."""
        found = {one.name: one for group in self._files.groups() for one in self._files.listed(group)}
        known = [found.pop(name) for name in told.sizes if name in found]
        new = sorted(found.values(), key=lambda one: one.stored_at)
        return Told(OrderedDict((one.name, one.size_bytes) for one in [*known, *new]), set(), True)

    def _tell(self, kind: Kind, name: str, size_bytes: int = 0) -> None:
        """A journal that cannot be written costs a listing at the next opening, and no object."""
        if not self._journal.is_open:
            return
        try:
            self._journal.append(kind, name, size_bytes)
        except OSError:
            self._journal.discard()

    def _shorten(self) -> None:
        if self._journal.record_count > 2 * len(self._sizes) + self._spare_records:
            self._rewrite()

    def _rewrite(self) -> None:
        self._files.at("compacting")
        try:
            self._journal.rewrite(self._sizes.items())
        except OSError:
            self._journal.discard()
        self._files.at("compacted")
