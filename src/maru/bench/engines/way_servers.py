"""The servers that a way needs beside its engines: started in order, watched, killed when a figure asks for it, ended.

Holds:      starting, waiting until one answers, killing and starting again, ending; and the command lines of LMCache's
            servers, of Redis and of our own daemon.
Promises:   a server that does not come up in time is a ServerFailed with its log's name. None outlives the process that
            started it: the kernel kills it then.
Leaves:     which servers a way needs, and their settings, to the way.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from maru.bench.rivals.contract import HOST, dying_with_me
from maru.errors import MaruError

CHUNK_TOKENS = 256
SERVER_DEADLINE_S = 120.0
END_DEADLINE_S = 15.0
LMCACHE = str(Path(sys.executable).with_name("lmcache"))
_POLL_S = 0.2


class ServerFailed(MaruError):
    """A server that a way needs did not come up."""

    hint = "its own words are in the log file named above"


@dataclass(frozen=True)
class Server:
    """One server, as it is started."""

    command: tuple[str, ...]
    ready_url: str
    """Answers when it serves: http://..., or tcp://HOST:PORT that only has to accept."""
    keeps_kv: bool = True


class Servers:
    """All servers of one way. A context manager: they run until the block ends."""

    def __init__(self, servers: Sequence[Server], log: Path) -> None:
        self._servers, self._log = list(servers), log
        self._running: dict[Server, subprocess.Popen[bytes]] = {}
        # The kernel ends a server with the thread that started it: that has to be one that stays.
        self._starter = ThreadPoolExecutor(1)

    def pids(self) -> list[int]:
        return [process.pid for process in self._running.values()]

    def kill_one(self) -> bool:
        """SIGKILL to the first one that keeps KV, and a new one in its place. False when there is none.

        Raises ServerFailed.
        """
        victim = next((server for server in self._servers if server.keeps_kv), None)
        if victim is None:
            return False
        self._end(self._running.pop(victim), signal.SIGKILL)
        self._start(victim)
        return True

    def __enter__(self) -> Servers:
        """Raises ServerFailed."""
        try:
            for server in self._servers:
                self._start(server)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        for process in reversed(self._running.values()):
            self._end(process, signal.SIGTERM)
        self._running.clear()
        self._starter.shutdown()

    def _start(self, server: Server) -> None:
        process = self._starter.submit(self._spawn, server.command).result()
        self._running[server] = process
        deadline = time.monotonic() + SERVER_DEADLINE_S
        while not answers(server.ready_url):
            if process.poll() is not None:
                raise ServerFailed(f"{_name_of(server)} ended with {process.returncode}; log: {self._log}")
            if time.monotonic() > deadline:
                raise ServerFailed(f"{_name_of(server)} did not answer in {SERVER_DEADLINE_S:.0f} s; log: {self._log}")
            time.sleep(_POLL_S)

    def _spawn(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        environment = os.environ | {"LMCACHE_TRACK_USAGE": "false", "PYTHONHASHSEED": "0"}
        with self._log.open("ab") as out:
            return subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment, start_new_session=True,
                preexec_fn=dying_with_me(),
            )  # fmt: skip

    def _end(self, process: subprocess.Popen[bytes], with_signal: signal.Signals) -> None:
        """It and whatever it started: they are a group of their own."""
        with suppress(ProcessLookupError):
            os.killpg(process.pid, with_signal)
        try:
            process.wait(END_DEADLINE_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(END_DEADLINE_S)


def _name_of(server: Server) -> str:
    return " ".join((Path(server.command[0]).name, *server.command[1:2]))


def answers(url: str) -> bool:
    """Does somebody serve there?"""
    if url.startswith("tcp://"):
        host, port = url.removeprefix("tcp://").split(":")
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            return False
        return True
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def lmcache_server(port: int, http_port: int, size_bytes: int, *more: str) -> Server:
    """LMCache's MP server with so much memory, which is there before it serves."""
    command = (
        LMCACHE, "server", "--host", HOST, "--port", str(port), "--chunk-size", str(CHUNK_TOKENS),
        "--l1-size-gb", f"{size_bytes / (1 << 30):g}", "--no-l1-use-lazy", "--http-port", str(http_port),
        "--disable-observability", "--eviction-policy", "LRU", *more,
    )  # fmt: skip
    return Server(command, f"http://{HOST}:{http_port}/healthcheck")


def lmcache_coordinator(port: int) -> Server:
    """Tells LMCache's servers of each other; has no KV."""
    command = (LMCACHE, "coordinator", "--host", HOST, "--port", str(port), "--disable-metrics")
    return Server(command, f"tcp://{HOST}:{port}", keeps_kv=False)


def maru_daemon(port: int, pool_url: str) -> Server:
    """`maru serve` on a pool, for clients that are to get its bytes over the wire: plain, on the loopback."""
    listen = f"tcp://{HOST}:{port}"
    return Server((sys.executable, "-m", "maru", "serve", pool_url, "--listen", listen, "--http", "off"), listen)


def redis_server(port: int, size_bytes: int, folder: Path) -> Server:
    """The system's Redis, as a cache: bounded, and nothing on a disk."""
    settings = {
        "bind": HOST, "port": str(port), "dir": str(folder), "save": "", "appendonly": "no",
        "maxmemory": str(size_bytes), "maxmemory-policy": "allkeys-lru", "lazyfree-lazy-eviction": "yes",
    }  # fmt: skip
    words = [word for name, value in settings.items() for word in (f"--{name}", value)]
    return Server(("redis-server", *words), f"tcp://{HOST}:{port}")
