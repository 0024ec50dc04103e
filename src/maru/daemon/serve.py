"""The daemon as a whole: one pool, its RPC socket, and what people see of it.

Holds:      the parts, in the order in which they start and stop.
Promises:   a part that cannot start is an error that names it, with everything before it stopped again. stop() ends
            within seconds and loses nothing: what is sealed stays, leases run on.
Leaves:     each part to its room.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import zmq

import maru
from maru.daemon.control import Control
from maru.daemon.server import Authenticator, RpcServer, ServerKeys
from maru.daemon.sessions import Limits
from maru.pool import Pool

DEFAULT_RPC_URL = "tcp://127.0.0.1:6555"


@dataclass(frozen=True)
class ServeConfig:
    """What `maru serve` was told."""

    pool_url: str
    rpc_url: str = DEFAULT_RPC_URL
    plain: bool = False
    keys: ServerKeys | None = None
    authenticator: Callable[[zmq.Context[Any]], Authenticator] | None = field(default=None, repr=False)
    limits: Limits = field(default_factory=Limits)


class Daemon:
    """One daemon. start(), then wait() or stop()."""

    def __init__(self, config: ServeConfig) -> None:
        """Open the pool, or make it. Raises what Pool.open raises, and PlainRefused, BadUrl."""
        self.config = config
        self.started_s = time.time()
        self.name = f"{platform.node()}:{os.getpid()}"
        self.pool = Pool.open(config.pool_url)
        try:
            self.control = Control(self.pool, config.limits, os.urandom(16), f"maru {maru.__version__}")
            self.rpc = RpcServer(self.control, config.rpc_url, config.keys, config.plain, config.authenticator)
        except BaseException:
            self.pool.close()
            raise
        self._over = threading.Event()

    def start(self) -> None:
        """Listen. Raises BadUrl when an address is taken."""
        try:
            self.rpc.start()
        except BaseException:
            self.stop()
            raise

    def wait(self, seconds: float | None = None) -> bool:
        """Until stop(), or the RPC thread ends by itself. False when `seconds` were not enough."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not self._over.wait(0.25):
            if not self.rpc.is_alive:
                return True
            if deadline is not None and time.monotonic() >= deadline:
                return False
        return True

    def stop(self) -> None:
        """End all parts. Idempotent."""
        self.rpc.stop()
        self.pool.close()
        self._over.set()

    def __enter__(self) -> Daemon:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
