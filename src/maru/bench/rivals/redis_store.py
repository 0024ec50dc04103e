"""Redis: a server with the store's memory, reached by redis-py over a Unix socket, or by other hosts over TCP.

Nothing is ever written to a disk, and what was used longest ago goes when the memory is full (`allkeys-lru`). What the
client sends is packed by redis-py itself, which does not copy large values, and what it receives is parsed by hiredis:
each is two to three times as fast as the other one at that.
"""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import redis
from redis.connection import Connection, ConnectionPool, Encoder, PythonRespSerializer, UnixDomainSocketConnection
from redis.utils import HIREDIS_AVAILABLE

from maru.bench.rivals.contract import Array, Rival, RivalFailed, copy_out, dying_with_me, insist_on, split

PROGRAM = "redis-server"
START_TIMEOUT_S = 30.0
ANSWER_TIMEOUT_S = 60.0
# Asked for at once. Answers on their way are the server's memory too: a whole prefix would push chunks out.
BATCH_BYTES = 32 << 20
READ_BYTES = 16 << 20
"""What the client takes from the socket at once; its own 64 KiB are for short values."""
COPIED_BYTES = 6000
"""Values below that are joined into one message, as by redis-py's own choice."""


class RedisStore(Rival):
    """A client; the host runs the server."""

    transport = "a Unix socket"

    def __init__(self) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        self._files: list[Path] = []
        self._client: Any = None

    def version(self) -> str:
        server = self._client.info("server")["redis_version"]
        parser = "hiredis" if HIREDIS_AVAILABLE else "its own parser"
        return f"Redis {server} over {self.transport}, redis-py {redis.__version__} with {parser}, allkeys-lru"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        program = shutil.which(PROGRAM)
        if program is None:
            raise RivalFailed(f"there is no {PROGRAM}")
        words = place / "log"
        self._files = [place / "socket", words]
        address, door = self._door(place / "socket")
        settings = door | {
            "dir": str(place), "daemonize": "no",
            "save": "", "appendonly": "no", "maxmemory": str(capacity_bytes), "maxmemory-policy": "allkeys-lru",
            # Large values are given back by a thread of the server's, not between two answers.
            "lazyfree-lazy-eviction": "yes", "lazyfree-lazy-user-del": "yes",
        }  # fmt: skip
        command = [program, *(word for name, value in settings.items() for word in (f"--{name}", value))]
        with words.open("wb") as log:
            self._server = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=dying_with_me()
            )
        self._await(address, words)
        return address

    def _door(self, path: Path) -> tuple[str, dict[str, str]]:
        """The server's address, and the settings that have it listen there."""
        return str(path), {"port": "0", "unixsocket": str(path), "unixsocketperm": "600"}

    def _way(self, address: str) -> dict[str, Any]:
        """How redis-py goes there."""
        return {"connection_class": UnixDomainSocketConnection, "path": address}

    def _await(self, address: str, log: Path) -> None:
        assert self._server is not None
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            try:
                self.attach(address)
                return
            except RivalFailed:
                if self._server.poll() is not None or time.monotonic() > deadline:
                    raise RivalFailed(f"{PROGRAM} did not start: {log.read_text(errors='replace')[-300:]}") from None
                time.sleep(0.01)

    def attach(self, address: str) -> None:
        pool = ConnectionPool(
            **self._way(address), socket_timeout=ANSWER_TIMEOUT_S, socket_read_size=READ_BYTES,
            command_packer=PythonRespSerializer(COPIED_BYTES, Encoder("utf-8", "strict", False).encode),
        )  # fmt: skip
        self._client = redis.Redis(connection_pool=pool)
        try:
            self._client.ping()
        except redis.RedisError as error:
            raise RivalFailed(f"Redis does not answer: {error}") from error

    def keys_of(self, packed: bytes) -> list[bytes]:
        return split(packed)

    def put(self, key: bytes, data: Array) -> None:
        try:
            self._client.set(key, memoryview(data))
        except redis.RedisError as error:
            raise RivalFailed(f"a chunk was not stored: {error}") from error

    def get_view(self, key: bytes) -> Any:
        """A copy: Redis has no other."""
        found = self._client.get(key)
        if found is None:
            raise RivalFailed("a chunk is missing")
        return found

    def release(self, _key: bytes, _view: Any) -> None:
        """Nothing to do: the bytes are the reader's own."""

    def lookup(self, keys: list[bytes]) -> int:
        """One question when all are there; else halving, since of the first n keys n exist or fewer."""
        if not keys or self._client.exists(*keys) == len(keys):
            return len(keys)
        there, absent = 0, len(keys)  # The first `there` are all there; the first `absent` are not.
        while absent - there > 1:
            middle = (there + absent) // 2
            if self._client.exists(*keys[:middle]) == middle:
                there = middle
            else:
                absent = middle
        return there

    def read_into(self, keys: list[bytes], landing: Array) -> None:
        size = landing.nbytes // len(keys)
        step = max(1, BATCH_BYTES // size)
        for first in range(0, len(keys), step):
            wanted = keys[first : first + step]
            try:
                found = [value for value in self._client.mget(wanted) if value is not None]
            except redis.RedisError as error:
                raise RivalFailed(f"Redis: {error}") from error
            insist_on(len(found), len(wanted))
            copy_out(found, landing[first * size : (first + len(wanted)) * size])

    def teardown(self) -> None:
        if self._client is not None:
            self._client.close()
        if self._server is not None:
            self._server.terminate()
            self._server.wait()
        for file in self._files:
            file.unlink(missing_ok=True)


class RedisOverTcp(RedisStore):
    """The same for other hosts. `options`: the address that the server listens at; without one, the loopback."""

    transport = "TCP"

    def _door(self, _path: Path) -> tuple[str, dict[str, str]]:
        listen = self.options or "127.0.0.1"
        with socket.create_server((listen, 0)) as probe:
            port = str(probe.getsockname()[1])
        # It has no password and speaks with other hosts only if told to; nobody but the run is on their network.
        return f"{listen}:{port}", {"port": port, "bind": listen, "protected-mode": "no"}

    def _way(self, address: str) -> dict[str, Any]:
        host, _, port = address.rpartition(":")
        return {"connection_class": Connection, "host": host, "port": int(port)}
