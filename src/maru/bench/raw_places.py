"""The same bytes in the same places with nothing of ours between: what a place below the pool is measured beside.

Holds:      files, values of a Redis server, and objects of an object store, each as a person would write it who needs
            only that: four threads, one chunk each at a time, no header, no hash.
Promises:   a file is on the medium and has its name when store() returns, as a place promises it for an object. Files
            go past the page cache exactly where the place's do (`direct`), and where they do not, it is told to let go
            of each file on both sides.
Leaves:     what a place does beyond it (hashes, a journal, its folder on the medium) to be seen in the difference.
"""

from __future__ import annotations

import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from maru.tier.opening import TierConfig

AT_ONCE = 4
"""As a ladder stores and loads."""
_ANSWER_S = 60.0


class Raw(ABC):
    """One place. Everything here is called from several threads."""

    @abstractmethod
    def store(self, name: str, chunk: Any) -> None:
        """Keep an array of bytes whose memory begins with a page."""

    @abstractmethod
    def load(self, name: str, landing: Any) -> Any:
        """The bytes: `landing` filled with them, or an array that the place's client made."""

    @abstractmethod
    def remove(self, name: str) -> None: ...

    @abstractmethod
    def end(self) -> None:
        """Give everything back."""


class RawMover:
    """A raw place, with several threads at it."""

    def __init__(self, raw: Raw) -> None:
        self._raw = raw
        self._threads = ThreadPoolExecutor(AT_ONCE)

    def store(self, keys: Sequence[bytes], chunks: Sequence[Any]) -> None:
        list(self._threads.map(self._raw.store, [key.hex() for key in keys], chunks))

    def load(self, keys: Sequence[bytes], landings: Sequence[Any]) -> list[Any]:
        return list(self._threads.map(self._raw.load, [key.hex() for key in keys], landings))

    def remove(self, keys: Sequence[bytes]) -> None:
        list(self._threads.map(self._raw.remove, [key.hex() for key in keys]))

    def end(self) -> None:
        self._threads.shutdown()
        self._raw.end()


class RawFiles(Raw):
    """write, fsync, rename; and preadv into the memory that the bytes are wanted in."""

    def __init__(self, folder: Path, is_direct: bool) -> None:
        self._folder, self._flags, self._is_direct = folder, os.O_DIRECT if is_direct else 0, is_direct
        folder.mkdir(parents=True, exist_ok=True)

    def store(self, name: str, chunk: Any) -> None:
        part, view = self._folder / f"{name}.part", memoryview(chunk)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | self._flags, 0o600)
        try:
            done = 0
            while done < len(view):
                done += os.write(fd, view[done:])
            os.fsync(fd)
            self._let_go(fd)
        finally:
            os.close(fd)
        part.rename(self._folder / name)

    def load(self, name: str, landing: Any) -> Any:
        view, got = memoryview(landing), 0
        fd = os.open(self._folder / name, os.O_RDONLY | os.O_CLOEXEC | self._flags)
        try:
            while got < len(view):
                count = os.preadv(fd, [view[got:]], got)
                if not count:
                    raise OSError(f"{name} has {got} bytes in place of {len(view)}")
                got += count
            self._let_go(fd)
        finally:
            os.close(fd)
        return landing

    def remove(self, name: str) -> None:
        (self._folder / name).unlink(missing_ok=True)

    def end(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def _let_go(self, fd: int) -> None:
        if not self._is_direct:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


class RawRedis(Raw):
    """SET and GET of redis-py, told to copy large values as seldom as it can."""

    def __init__(self, host: str, port: int) -> None:
        from redis import Redis
        from redis.connection import ConnectionPool, Encoder, PythonRespSerializer

        from maru.bench.rivals.redis_store import COPIED_BYTES, READ_BYTES

        pool = ConnectionPool(
            host=host, port=port, socket_timeout=_ANSWER_S, socket_read_size=READ_BYTES,
            command_packer=PythonRespSerializer(COPIED_BYTES, Encoder("utf-8", "strict", False).encode),
        )  # fmt: skip
        self._client: Any = Redis(connection_pool=pool)

    def store(self, name: str, chunk: Any) -> None:
        self._client.set(f"raw:{name}", memoryview(chunk))

    def load(self, name: str, landing: Any) -> Any:  # noqa: ARG002
        found = self._client.get(f"raw:{name}")
        if found is None:
            raise OSError(f"the server lost {name}")
        return np.frombuffer(found, dtype=np.uint8)

    def remove(self, name: str) -> None:
        self._client.unlink(f"raw:{name}")

    def end(self) -> None:
        self._client.close()


class RawObjects(Raw):
    """put and get of obstore, each in one request."""

    def __init__(self, config: TierConfig) -> None:
        import obstore
        from obstore.store import S3Store

        bucket, _, prefix = config.place.partition("/")
        named = {name: config.options[name] for name in ("endpoint", "region") if name in config.options}
        settings: dict[str, Any] = {
            **named, "prefix": prefix or None, "client_options": {"allow_http": config.flag("allow_http")},
        }  # fmt: skip
        self._api: Any = obstore
        self._store: Any = S3Store(bucket, **settings)

    def store(self, name: str, chunk: Any) -> None:
        self._api.put(self._store, f"raw-{name}", memoryview(chunk), use_multipart=False)

    def load(self, name: str, landing: Any) -> Any:  # noqa: ARG002
        return np.frombuffer(self._api.get(self._store, f"raw-{name}").bytes(), dtype=np.uint8)

    def remove(self, name: str) -> None:
        self._api.delete(self._store, f"raw-{name}")

    def end(self) -> None:
        """Connections end with the store."""


def raw_of(config: TierConfig) -> Raw:
    """What is measured beside the place that `config` names: for a folder, another one beside it."""
    if config.kind == "file":
        place = Path(config.place)
        return RawFiles(place.with_name(f"{place.name}-raw"), config.flag("direct", True))
    if config.kind == "redis":
        host, _, port = config.place.partition("/")[0].rpartition(":")
        return RawRedis(host, int(port))
    return RawObjects(config)


def takes_direct(folder: Path) -> bool:
    """Can files of this folder be written past the page cache? Raises OSError when they cannot be written at all."""
    probe = folder / f"probe-{os.getpid()}"
    probe.touch()
    try:
        with suppress(OSError):
            os.close(os.open(probe, os.O_WRONLY | os.O_DIRECT))
            return True
        return False
    finally:
        probe.unlink()
