"""A daemon for tests: in this process or in one of its own, and a clock that a test moves."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import maru
from maru import wire
from maru.client.remote import RemotePool
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.daemon.sessions import Limits, Session
from pools import with_force_gone

CHUNK_TOKENS = 16
LIMITS = Limits(lease_s=4.0, guard_s=0.5)
IDENTITY = maru.Identity(model="m", kv_layout="l")


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s

    def go(self, seconds: float) -> None:
        self.now_s += seconds


def keys_of(namespace: object, chunks: int, first: int = 0) -> bytes:
    tokens = array("i", range(first, first + chunks * CHUNK_TOKENS))
    keys: bytes = namespace.chunk_keys(tokens, CHUNK_TOKENS)  # type: ignore[attr-defined]
    return keys


def bytes_for(number: int, size: int = 20_000) -> bytes:
    return bytes((number * 31 + at * 7) % 251 for at in range(256)) * (size // 256) + bytes(size % 256)


class Talker:
    """A client without a socket: what it asks goes to a Control, as frames would."""

    def __init__(
        self, control: Control, mapped: bool = False, user: str = "", rows: list[tuple[int, int]] = ()
    ) -> None:  # type: ignore[assignment]
        self.control = control
        self.number = 0
        hello = wire.Hello(0, (1, 1), "test", os.urandom(16), "talker", "some-boot", mapped, list(rows))
        self.session: Session
        self.session, self.welcome = control.greet(user, hello)

    def ask(self, request: wire.Request, body: bytes = b"") -> tuple[wire.Answer, bytes]:
        self.number += 1
        request.number = self.number
        decoded = wire.decode_request(wire.encode(request))
        answer, out = self.control.answer(self.session, decoded, body)
        return wire.decode_answer(wire.encode(answer)), bytes(out)


@contextmanager
def served(pool: maru.Pool, limits: Limits = LIMITS, url: str = "tcp://127.0.0.1:0") -> Iterator[RpcServer]:
    """A daemon's RPC socket in a thread of this process."""
    server = RpcServer(Control(pool, limits, os.urandom(16), "maru test"), url)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def remote(server: RpcServer, way: str, **more: object) -> RemotePool:
    found = maru.connect(address_of(server), mode=way, **more)  # type: ignore[arg-type]
    assert isinstance(found, RemotePool)
    assert found.kind == way
    return found


@contextmanager
def roomy(pool_url: str) -> Iterator[maru.Pool]:
    """A pool whose slabs hold chunks of several pieces."""
    url = pool_url.partition("?")[0] + "?size=64MiB&slots=2048&processes=32"
    with maru.Pool.create(url) as fresh:
        assert fresh.wait_ready(20)
        yield fresh
    with_force_gone(url)


def address_of(server: RpcServer) -> str:
    return server.url.replace("tcp://", "maru://")


def until(condition: Callable[[], object], deadline_s: float = 20.0) -> bool:
    """Ask again until it is so."""
    ends, pause = time.monotonic() + deadline_s, threading.Event()
    while not (answer := condition()) and time.monotonic() < ends:
        pause.wait(0.02)
    return bool(answer)


@dataclass
class Served:
    """`maru serve` in a process of its own."""

    process: subprocess.Popen[str]
    rpc: str
    http: str = ""

    @property
    def address(self) -> str:
        return self.rpc.replace("tcp://", "maru://")

    def kill(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(20)


@contextmanager
def serve_process(
    pool_url: str, *more: str, listen: str = "tcp://127.0.0.1:0", inside: tuple[str, ...] = ()
) -> Iterator[Served]:
    """Run `maru serve`; `inside`: words before the command, such as `ip netns exec NAME`."""
    command = [
        *inside,
        sys.executable,
        "-m",
        "maru",
        "serve",
        pool_url,
        "--listen",
        listen,
        "--json",
        "--lease",
        "4",
        *more,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        text = ""
        while line := process.stdout.readline():
            text += line
            if line.rstrip() == "}":
                break
        told = json.loads(text)
        yield Served(process, told["rpc"], told.get("http", ""))
    finally:
        process.kill()
        process.wait(20)
        if process.stdout is not None:
            process.stdout.close()
