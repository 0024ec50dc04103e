"""A Mooncake store of a test's own: a master, and a client that lends memory, on the loopback."""

from __future__ import annotations

import importlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from maru.errors import MissingPackage
from maru.tier.mooncake_client import api

MIB = 1 << 20


class MooncakeServers:
    """What runs, and what a test does to it."""

    def __init__(self, folder: Path, lent_bytes: int, flags: tuple[str, ...] = ()) -> None:
        self._servers: Any = importlib.import_module("maru.bench.rivals.mooncake_servers")  # It needs the wheel.
        self._folder, self._flags = folder, flags
        self.running: list[subprocess.Popen[bytes]] = []
        self._at = self._servers.start_master(self.running, folder, *flags)
        self.master = self.running[-1]
        self.lend(lent_bytes)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._at.port}"

    def url(self, prefix: str = "below", query: str = "") -> str:
        return f"mooncake://{self.address}/{prefix}?admin={self._at.admin_port}{query}"

    def lend(self, lent_bytes: int) -> None:
        self._servers.start_lender(self.running, self._folder, self.address, lent_bytes)
        self.lender = self.running[-1]

    def kill_master(self) -> None:
        self.master.kill()
        self.master.wait()

    def start_master_again(self) -> None:
        self._servers.start_master(self.running, self._folder, *self._flags, at=self._at)
        self.master = self.running[-1]

    def end(self) -> None:
        for server in reversed(self.running):
            server.kill()
            server.wait()


@contextmanager
def mooncake_servers(folder: Path, lent_bytes: int = 256 * MIB, *flags: str) -> Iterator[MooncakeServers]:
    """A store that takes objects; skips the test, with the reason, where Mooncake does not run."""
    try:
        api()
    except MissingPackage as error:
        pytest.skip(error.message)
    servers = MooncakeServers(folder, lent_bytes, flags)
    try:
        yield servers
    finally:
        servers.end()
