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
from pathlib import Path

import maru
from maru import wire
from maru.client.remote import RemotePool
from maru.credentials import Authorised, Client, load_server_keys, read_grants
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.daemon.sessions import Limits, Session
from maru.native import core
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
        self,
        control: Control,
        mapped: bool = False,
        client: Client | None = None,
        rows: list[tuple[int, int]] = (),  # type: ignore[assignment]
    ) -> None:
        self.control = control
        self.number = 0
        hello = wire.Hello(0, (1, 1), "test", os.urandom(16), "talker", "some-boot", mapped, list(rows))
        self.session: Session
        self.session, self.welcome = control.greet(client, hello)

    def ask(self, request: wire.Request, body: bytes = b"") -> tuple[wire.Answer, bytes]:
        self.number += 1
        request.number = self.number
        decoded = wire.decode_request(wire.encode(request))
        answer, out = self.control.answer(self.session, decoded, body)
        return wire.decode_answer(wire.encode(answer)), bytes(out)

    def write(self, hold: int, data: bytes, offset: int = 0) -> None:
        """Bytes of a hold, in one piece."""
        self.ask(wire.Write(0, hold, offset, core.xxh3_64(data)), data)


def client_named(name: str, tenant: str = "default", *grants: str, may_map: bool = True) -> Client:
    """As a daemon knows it by its key. `grants`: as `maru keys` takes them; none: all."""
    return Client(name, "x" * 40, tenant, 0, may_map, read_grants(grants))


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
def guarded(pool: maru.Pool, keys: Path, control: Control | None = None) -> Iterator[RpcServer]:
    """A daemon that knows its clients by their keys."""
    control = control or Control(pool, LIMITS, os.urandom(16), "test")
    server = RpcServer(control, "tcp://127.0.0.1:0", load_server_keys(keys), Authorised(keys))
    server.start()
    try:
        yield server
    finally:
        server.stop()


def client_of(server: RpcServer, key: Path | None, deadline: float = 5.0) -> RemotePool:
    """A client over the wire, with this key file or none."""
    found = maru.connect(address_of(server), mode="wire", key=str(key) if key else None, deadline=deadline)
    assert isinstance(found, RemotePool)
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
