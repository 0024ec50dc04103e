"""The processes of a Mooncake store on one host: its master, and clients that lend memory. All on the loopback.

They come with Mooncake's wheel. Each dies with the thread that started it.
"""

from __future__ import annotations

import socket
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import mooncake

from maru.bench.rivals.contract import HOST, RivalFailed, dying_with_me, free_ports

START_TIMEOUT_S = 30.0


@dataclass(frozen=True)
class Master:
    """One that runs."""

    port: int
    admin_port: int
    """Where it tells figures, and all its keys."""


def start_master(servers: list[subprocess.Popen[bytes]], place: Path, *flags: str, at: Master | None = None) -> Master:
    """A `mooncake_master` that listens, as the last one of `servers`; `at`: on the ports that another one had.

    Raises RivalFailed.
    """
    at = at or Master(*free_ports(2))
    _start(
        servers, place, "mooncake_master", at.port, f"--rpc_port={at.port}", f"--rpc_address={HOST}",
        f"--metrics_port={at.admin_port}", f"--metrics_host={HOST}", *flags,
    )  # fmt: skip
    return at


def start_lender(servers: list[subprocess.Popen[bytes]], place: Path, master: str, lent_bytes: int) -> int:
    """A `mooncake_client` that lends memory, as the last one of `servers`; the port where it takes dummy clients.

    Raises RivalFailed.
    """
    [port] = free_ports(1)
    _start(
        servers, place, "mooncake_client", port, f"--host={HOST}", f"--port={port}", "--metadata_server=P2PHANDSHAKE",
        f"--global_segment_size={lent_bytes}", f"--master_server_address={master}",
    )  # fmt: skip
    return port


def _start(servers: list[subprocess.Popen[bytes]], place: Path, program: str, port: int, *flags: str) -> None:
    command = [str(Path(mooncake.__file__).parent / program), *flags]
    with (place / f"{program}.log").open("ab") as log:
        server = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=place, preexec_fn=dying_with_me()
        )
    servers.append(server)
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if server.poll() is not None:
            raise RivalFailed(f"{server.args!r} ended with {server.returncode}")
        with socket.socket() as probe:
            if probe.connect_ex((HOST, port)) == 0:
                return
        time.sleep(0.05)
    raise RivalFailed(f"nothing listens on port {port} after {START_TIMEOUT_S:.0f} s")
