"""Plain files: a folder in shared memory, a file for each chunk, named by its key.

A chunk is written to a file of another name and renamed, so that nobody sees half of one. Every process may store; each
writes at most half of the room it last saw, then looks at the folder again and removes the oldest files, so that all of
them together stay within the capacity without telling each other anything.
"""

from __future__ import annotations

import itertools
import mmap
import os
import platform
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any

from maru.bench.rivals.contract import Array, Rival, RivalFailed, split

PARTIAL = ".partial"
# What is free after files were removed: a folder that is looked at for every chunk would be slow for nothing.
FREE_SHARE = 1 / 8
_CAPACITY = "capacity"


class FilesStore(Rival):
    """One folder. Attaching is knowing its name."""

    def __init__(self) -> None:
        self._folder = ""
        self._capacity = 0
        self._allowance = 0
        self._numbers = itertools.count()
        self._made: Path | None = None

    def version(self) -> str:
        return f"a file for each chunk on tmpfs, write and rename, read into place; Linux {platform.release()}"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        folder = place / "chunks"
        folder.mkdir(exist_ok=True)  # Files survive a host that was killed.
        self._made = folder
        (place / _CAPACITY).write_text(str(capacity_bytes))
        self.attach(str(folder))
        return str(folder)

    def attach(self, address: str) -> None:
        self._folder = address
        self._capacity = int(Path(address).with_name(_CAPACITY).read_text())

    def key_of(self, key: bytes) -> str:
        return f"{self._folder}/{key.hex()}"

    def keys_of(self, packed: bytes) -> list[str]:
        return [self.key_of(key) for key in split(packed)]

    def put(self, key: str, data: Array) -> None:
        self._make_room(data.nbytes)
        partial = f"{self._folder}/{os.getpid()}-{next(self._numbers)}{PARTIAL}"
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(file, left) :]
        except OSError as error:
            Path(partial).unlink(missing_ok=True)
            raise RivalFailed(f"a chunk was not stored: {error}") from error
        finally:
            os.close(file)
        os.rename(partial, key)  # noqa: PTH104 - a string stays one: this is timed.

    def _make_room(self, size: int) -> None:
        """Remove the oldest files when what this process may write without looking is used up."""
        self._allowance -= size
        if self._allowance >= 0:
            return
        if size > self._capacity:
            raise RivalFailed(f"a chunk of {size} bytes in a store of {self._capacity}")
        found = []
        with os.scandir(self._folder) as entries:
            for entry in entries:
                with suppress(FileNotFoundError):  # Another process removed it.
                    state = entry.stat()
                    found.append((state.st_mtime_ns, state.st_size, entry.path))
        used = sum(bytes_ for _, bytes_, _ in found)
        if used + 2 * size > self._capacity:
            wanted = max(2 * size, int(FREE_SHARE * self._capacity))
            for _, freed, path in sorted(found):
                if used + wanted <= self._capacity:
                    break
                if not path.endswith(PARTIAL):
                    Path(path).unlink(missing_ok=True)
                    used -= freed
        self._allowance = max(0, (self._capacity - used) // 2 - size)

    def get_view(self, key: str) -> Any:
        try:
            file = os.open(key, os.O_RDONLY)
        except FileNotFoundError:
            raise RivalFailed("a chunk is missing") from None
        try:
            return mmap.mmap(file, 0, prot=mmap.PROT_READ)
        finally:
            os.close(file)

    def release(self, _key: str, view: Any) -> None:
        with suppress(BufferError):  # Somebody still looks; the last of them unmaps it.
            view.close()

    def lookup(self, keys: list[str]) -> int:
        exists = os.path.exists
        return next((number for number, key in enumerate(keys) if not exists(key)), len(keys))

    def read_into(self, keys: list[str], landing: Array) -> None:
        size, room = landing.nbytes // len(keys), memoryview(landing)
        for number, key in enumerate(keys):
            try:
                file = os.open(key, os.O_RDONLY)
            except FileNotFoundError:
                raise RivalFailed(f"the prefix is not whole: {number} of {len(keys)} chunks") from None
            try:
                if os.readv(file, [room[number * size : (number + 1) * size]]) != size:
                    raise RivalFailed("a chunk is shorter than it was")
            finally:
                os.close(file)

    def teardown(self) -> None:
        if self._made is not None:
            shutil.rmtree(self._made, ignore_errors=True)
            self._made.with_name(_CAPACITY).unlink(missing_ok=True)
