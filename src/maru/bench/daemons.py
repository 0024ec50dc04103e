"""A daemon for figures: `maru serve` in a process of its own, with keys or without, which ends with this one.

Leaves what is measured through it to the figures.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from maru.bench.rivals.contract import dying_with_me

NEEDED = ("zmq", "msgspec", "cryptography", "prometheus_client", "starlette", "uvicorn")
END_TIMEOUT_S = 20.0


def why_no_daemon() -> str:
    """What is missing for `maru serve` here; "" when nothing is."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    return f"it needs {', '.join(missing)}: pip install 'maru-kvcache[serve]'" if missing else ""


@contextmanager
def serving(
    pool_url: str,
    *,
    listen: str = "tcp://127.0.0.1:0",
    keys: Path | None = None,
    is_plain: bool = False,
    inside: Sequence[str] = (),
    log: IO[bytes] | None = None,
) -> Iterator[str]:
    """Serve a pool while the context lasts; gives the daemon's address, maru://HOST:PORT.

    `keys`: of `maru keys`; without, plain (`is_plain` says so where other hosts are to reach it). `inside`: words
    before the command, for another network namespace. Raises RuntimeError when it does not start.
    """
    command = [*inside, sys.executable, "-m", "maru", "serve", pool_url, "--listen", listen, "--http", "off", "--json"]
    command += ["--keys", str(keys)] if keys else []
    command += ["--plain"] if is_plain else []
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, text=True, preexec_fn=dying_with_me()
    )
    assert process.stdout is not None
    try:
        told = ""
        while line := process.stdout.readline():
            told += line
            if line.rstrip() == "}":
                break
        if not told.rstrip().endswith("}"):
            raise RuntimeError(f"maru serve did not start: {told[-300:] or 'it said nothing'}")
        yield str(json.loads(told)["rpc"]).replace("tcp://", "maru://")
    finally:
        process.terminate()
        try:
            process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stdout.close()
