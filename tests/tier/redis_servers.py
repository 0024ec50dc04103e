"""Redis or Valkey servers of a test's own."""

from __future__ import annotations

import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

TRIES = 5


def free_port() -> int:
    """Low enough that a cluster's second port, 10,000 higher, is one too."""
    for port in range(21_000, 31_000):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


@contextmanager
def redis_server(folder: Path, *words: str) -> Iterator[int]:
    """A server of its own, ready; its port."""
    program = shutil.which("redis-server") or shutil.which("valkey-server")
    if program is None:
        pytest.skip("there is no redis-server")
    for _ in range(TRIES):
        port = free_port()
        command = [program, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder), *words]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout is not None
                if any("Ready to accept connections" in line for line in server.stdout):
                    yield port
                    return
            finally:
                server.terminate()
    raise AssertionError("each port was taken by somebody else between our look and the server's")
