"""A folder below the pool: on a disk of this host (file://), or on one that other hosts have mounted too (nfs://).

Holds:      the coroutines of a FileTier, and the few threads of its own in which everything that blocks is done.
Promises:   an object is there whole or not at all, also after a kill or a loss of power (`disk_files`); what is stored
            never takes more than size=, and what was used longest ago goes first (`disk_index`); the folder belongs to
            one writer at a time, which is whoever stores first while nobody else does (`disk_lock`); any number of
            processes load and list beside it.
Leaves:     what is in an object to whoever opens it. A time to live is not counted here.

Nothing touches the folder until the first call: a dead mount must not keep a daemon from starting. A thread that
hangs in the system cannot be called back: the coroutine that waits for it ends at its deadline, and the thread when the
system lets it; meanwhile one of a bounded number is gone, and when all are, every call ends at its deadline.

*nfs:// was not run on NFS*: tests put calls under it that answer as NFS may. What is different there: the right to
write is a lease, the page cache is used, the folder must be there. On both kinds, handles that went stale are opened
again, and an error of rename or close is taken for what it is.
"""

from __future__ import annotations

import asyncio
import builtins
import errno
import mmap
import os
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from maru.config import format_size
from maru.errors import NoSuchObject, TierFailed, TierFull
from maru.tier.contract import PIECE_BYTES, Capabilities, Listed, Tier, check_folder, split_name
from maru.tier.disk_files import ALIGNED_BYTES, ObjectFiles, Reading, Stopped
from maru.tier.disk_index import Index
from maru.tier.disk_lock import FlockRight, LeaseRight, Right

if TYPE_CHECKING:
    from typing_extensions import Buffer

    from maru.tier.opening import TierConfig

THREADS = 4
THREADS_MAX = 64
OBJECT_BYTES_MAX = 1 << 40
STEPS = (
    "before_write", "written", "synced", "journalled", "renamed", "recorded", "folder_synced", "removing", "unlinked",
    "removed", "compacting", "compacted",
)  # fmt: skip
"""The places between two changes of the folder, where a test may stop a writer."""
ADVICE = {
    errno.EACCES: "give the user that runs Maru this folder",
    errno.EPERM: "give the user that runs Maru this folder",
    errno.EROFS: "the file system is mounted read-only; after errors of the disk the system does that by itself",
    errno.EIO: "the disk or its server reports errors: see dmesg",
    errno.ENOENT: "make or mount it first",
    errno.ENOTDIR: "make or mount it first",
    errno.ESTALE: "the server lost what was open: mount it again if this goes on",
    errno.ENOSPC: "give size= less than the file system has",
    errno.EDQUOT: "give size= less than the quota",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
}
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_T = TypeVar("_T")


class FileTier(Tier):
    """One folder. Made by open_tier()."""

    def __init__(
        self, config: TierConfig, calls: Any = os, at: Callable[[str], None] | None = None, right: Right | None = None
    ) -> None:
        """`calls`, `at` and `right` are for tests: the calls to the system; what is called at each of STEPS; who may
        write. Raises BadUrl."""
        self.url, self.kind = config.shown, config.kind
        self._is_network = config.kind == "nfs"
        self._capacity_bytes = config.size_bytes
        place = Path(config.place)
        self._files = ObjectFiles(place, config.flag("direct", not self._is_network), calls, at or _nothing)
        self._right: Right = right or (LeaseRight if self._is_network else FlockRight)(place, calls)
        self._threads = ThreadPoolExecutor(config.count("threads", THREADS, THREADS_MAX), f"maru-{config.kind}")
        self._opening = threading.Lock()
        self._index: Index | None = None
        self._jobs: set[Future[Any]] = set()
        self._is_closed = False

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            True, self._is_network, True, self._capacity_bytes or OBJECT_BYTES_MAX, has_one_writer=True,
            overwrites=True, may_be_swept=not self._is_network,
        )  # fmt: skip

    @property
    def bytes_used(self) -> int | None:
        """What lies there, if this process is the writer."""
        return self._index.bytes_used if self._index is not None else None

    async def store(self, name: str, frames: Sequence[Buffer], ttl_s: float | None = None) -> None:  # noqa: ARG002
        split_name(name)
        given_up = threading.Event()
        views = [memoryview(frame).cast("B") for frame in frames]
        try:
            await self._do(self._store, name, views, lambda: given_up.is_set() or self._is_closed)
        finally:
            given_up.set()  # The thread may still be at it, and sees this before it gives the file its name.

    async def load(self, name: str, start: int = 0, size: int | None = None) -> AsyncIterator[memoryview]:
        split_name(name)
        opening = self._submit(self._open, name)
        try:
            reading = await asyncio.wrap_future(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close_what_was_opened)
            raise
        last: Future[Any] = opening
        try:
            end = reading.size_bytes if size is None else min(start + size, reading.size_bytes)
            at = start - start % ALIGNED_BYTES
            if start >= end:
                return
            # Two buffers in turn: while one is looked at, the other is filled.
            length = min(PIECE_BYTES, -(-(end - at) // ALIGNED_BYTES) * ALIGNED_BYTES)
            buffers = [mmap.mmap(-1, length) for _ in range(2 if end - at > length else 1)]
            last = coming = self._submit(self._fill, reading, buffers[0], at)
            turn = 0
            while at < end:
                got = await asyncio.wrap_future(coming)
                piece = memoryview(buffers[turn])[max(start - at, 0) : min(got, end - at)]
                at, turn = at + got, (turn + 1) % len(buffers)
                if at < end:
                    last = coming = self._submit(self._fill, reading, buffers[turn], at)
                yield piece
        finally:
            last.add_done_callback(lambda _: reading.close())  # Not under a thread that is reading.

    async def contains(self, names: Sequence[str]) -> list[bool]:
        for name in names:
            split_name(name)
        return await self._do(self._contains, list(names))

    async def remove(self, names: Sequence[str]) -> None:
        for name in names:
            split_name(name)
        if names:
            await self._do(self._remove, list(names))

    async def list(self, folder: str = "") -> AsyncIterator[Listed]:
        check_folder(folder)
        for group in await self._do(self._files.groups, folder):
            for one in await self._do(self._files.listed, group):
                yield one

    async def health(self) -> None:
        await self._do(self._probe)

    async def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True  # What is being written sees it, and gives up.
        await asyncio.gather(*map(asyncio.wrap_future, list(self._jobs)), return_exceptions=True)
        try:
            await asyncio.wrap_future(self._threads.submit(self._end))
        finally:
            self._threads.shutdown(wait=False, cancel_futures=True)
        self._threads.shutdown(wait=True)  # They have nothing to do any more.

    async def _do(self, job: Callable[..., _T], *args: Any) -> _T:
        return await asyncio.wrap_future(self._submit(job, *args))

    def _submit(self, job: Callable[..., _T], *args: Any) -> Future[_T]:
        if self._is_closed:
            raise TierFailed(f"{self.url} was closed", place=self.url)
        future = self._threads.submit(self._told, job, *args)
        self._jobs.add(future)
        future.add_done_callback(self._jobs.discard)
        return future

    # What follows runs in threads.

    def _told(self, job: Callable[..., _T], *args: Any) -> _T:
        """Do it, and say what went wrong in our own words."""
        try:
            return job(*args)
        except TierFailed as error:
            error.place = self.url
            raise
        except Stopped:
            raise TierFailed(f"{self.url}: given up", place=self.url) from None
        except OSError as error:
            raise self._named(error) from error

    def _named(self, error: OSError) -> TierFailed:
        kind = TierFull if error.errno in _NO_ROOM else TierFailed
        what = error.strerror or type(error).__name__
        return kind(f"{self.url}: {what}", place=self.url, hint=ADVICE.get(error.errno or 0, ""))

    def _store(self, name: str, frames: Sequence[memoryview], is_stopped: Callable[[], bool]) -> None:
        size = sum(len(frame) for frame in frames)
        index = self._writer()
        if self._try_store(index, name, size, frames, is_stopped):
            return
        index.evict(size)
        if not self._try_store(index, name, size, frames, is_stopped):
            raise TierFull(
                f"{self.url}: no room for {format_size(size)}", place=self.url, wanted_bytes=size,
                hint=ADVICE[errno.ENOSPC],
            )  # fmt: skip

    def _try_store(
        self, index: Index, name: str, size: int, frames: Sequence[memoryview], is_stopped: Callable[[], bool]
    ) -> bool:
        """False: the medium is full."""
        part = None
        try:
            with index.room(size):
                part = self._files.write(frames, is_stopped, name)
                index.put(part, name, is_stopped)
        except BaseException as error:
            if part is not None:
                self._files.drop(part.path)
            if isinstance(error, OSError) and error.errno in _NO_ROOM:
                return False
            raise
        return True

    def _writer(self) -> Index:
        """The index, which only the one that may write has. Raises TierFailed when that is somebody else."""
        with self._opening:
            if self._index is not None:
                if self._right.holds():
                    return self._index
                self._index.abandon()
                self._index = None
            self._files.make_place(may_create=not self._is_network)
            if not self._right.take():
                raise TierFailed(
                    f"{self.url}: {self._right.holder()} stores there; one process at a time may, others load",
                    hint="let instances of one host share one pool, which has one writer to the places below it",
                )
            try:
                self._index = Index(self._files, self._capacity_bytes)
            except BaseException:
                self._right.give_back()
                raise
            return self._index

    def _open(self, name: str) -> Reading:
        try:
            reading = self._files.open(name)
        except (FileNotFoundError, NotADirectoryError):
            if self._index is not None:
                self._index.missed(name)
            self._look_for_place()
            raise NoSuchObject(f"{self.url} has no {name}", place=self.url) from None
        if self._index is not None:
            self._index.used(name)
        return reading

    def _fill(self, reading: Reading, buffer: mmap.mmap, start: int) -> int:
        got = reading.fill(buffer, start)
        if got < min(len(buffer), reading.size_bytes - start):
            raise TierFailed(f"{self.url}: {reading.path.name} is shorter than it was when it was opened")
        return got

    def _contains(self, names: Sequence[str]) -> builtins.list[bool]:
        found = [self._files.size_of(name) is not None for name in names]
        if not any(found):
            self._look_for_place()
        return found

    def _look_for_place(self) -> None:
        """A mount that is not there does not mean that its objects are not; a folder that nobody made yet does."""
        place = self._files.place
        self._files.calls.stat(place if self._is_network else place.parent)

    def _remove(self, names: Sequence[str]) -> None:
        index = self._writer()
        for name in names:
            index.remove(name)

    def _probe(self) -> None:
        self._files.make_place(may_create=not self._is_network)
        self._files.drop(self._files.write([memoryview(b"Maru asks whether this can be written")], _never).path)

    def _end(self) -> None:
        with self._opening:
            index, self._index = self._index, None
            try:
                if index is not None:
                    with suppress(OSError):  # A journal that is not closed is only not believed.
                        index.close()
            finally:
                self._right.give_back()


def _close_what_was_opened(opening: Future[Reading]) -> None:
    if not opening.cancelled() and opening.exception() is None:
        opening.result().close()


def _nothing(step: str) -> None:  # noqa: ARG001
    return


def _never() -> bool:
    return False
