"""Our pool as other hosts have it: the host makes the pool and serves it, the others come by one of the four ways.

`options` is the address that the daemon listens at; without one, the loopback. Its port is any that is free.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

from maru.bench.daemons import serving
from maru.bench.rivals.contract import KEY_BYTES, Array, RivalFailed, insist_on
from maru.bench.rivals.pool_store import PoolStore
from maru.client import Mode, connect
from maru.credentials import generate_client, generate_server
from maru.errors import MaruError

LOOPBACK = "127.0.0.1"


class LocalStore(PoolStore):
    """Processes of the daemon's own host: it hands them the pool."""

    mode: Mode = "local"
    is_encrypted = False

    def __init__(self) -> None:
        super().__init__()
        self._served = ExitStack()

    def version(self) -> str:
        return f"{super().version()}, mode={self.mode}{', CURVE' if self.is_encrypted else ''}"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        listen, self.options = self.options or LOOPBACK, ""
        super().setup(place, capacity_bytes)
        keys, words = None, f"mode={self.mode}"
        if self.is_encrypted:
            keys = place / "keys"
            generate_server(keys)
            _, key = generate_client(keys, "others")
            words += f"&key={key}"
        is_plain = not self.is_encrypted and listen != LOOPBACK
        daemon = serving(self._url, listen=f"tcp://{listen}:0", keys=keys, is_plain=is_plain)
        return f"{self._served.enter_context(daemon)}?{words}"

    def attach(self, address: str) -> None:
        try:
            self._come(connect(address))
        except MaruError as error:
            raise RivalFailed(f"no daemon: {error}") from error

    def _come(self, pool: Any) -> None:
        """A pool of another host has the same calls."""
        self._use(pool)

    def teardown(self) -> None:
        self._served.close()
        super().teardown()


class MappedStore(LocalStore):
    """Hosts that map the same memory: they ask where bytes are, and read them in place, verified."""

    mode: Mode = "mapped"

    def read_into(self, keys: bytes, landing: Array) -> None:
        if self._is_host:
            super().read_into(keys, landing)
            return
        count = len(keys) // KEY_BYTES
        size, room, pin = landing.nbytes // count, memoryview(landing), cast(Any, self._pin)
        try:
            with pin(keys) as prefix:
                insist_on(len(prefix), count)
                prefix.read_many([(at, room[at * size : (at + 1) * size]) for at in range(count)])
        except MaruError as error:
            raise RivalFailed(str(error)) from error


class WireStore(MappedStore):
    """Hosts that cannot map it: bytes come over the wire, in verified pieces, into the engine's memory."""

    mode: Mode = "wire"


class EncryptedStore(WireStore):
    """The same, by CURVE."""

    is_encrypted = True
