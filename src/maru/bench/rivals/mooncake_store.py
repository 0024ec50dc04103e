"""Mooncake Store on one host, in the two deployments that its guide describes, both over TCP on the loopback.

*Standalone*: one `mooncake_client` process owns the memory, and all processes that store and read are its dummy
clients, which share a mapping with it. *Embedded*: each process owns a segment (here only the host gives memory), and
what lies in the own segment is reached by memcpy, what lies in another one's through the loopback. `mooncake_master`
knows in both which chunk lies where, and evicts. Metadata is exchanged by P2PHANDSHAKE.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
from mooncake.store import MooncakeDistributedStore

from maru.bench.rivals.contract import HOST, Array, Rival, RivalFailed, insist_on, split
from maru.bench.rivals.mooncake_servers import start_lender, start_master

# The master evicts in the background; a put that it refuses for want of room is tried again so long.
ROOM_TIMEOUT_S = 15.0
ROOM_PAUSE_S = 0.001
# What was read is not evicted for so long. The default of some seconds is for stores in which what is read within
# that time is a small part; here it would be all of it.
LEASE_MS = 500
BUFFER_BYTES = 256 << 20  # Mooncake's own buffer for what is not registered.


class MooncakeStore(Rival):
    """Dummy clients of one standalone client."""

    def __init__(self) -> None:
        self._servers: list[subprocess.Popen[bytes]] = []
        self._store: Any = None
        self._landing_at = 0

    def version(self) -> str:
        names = ("mooncake-transfer-engine-non-cuda", "mooncake-transfer-engine")
        for name in names:
            try:
                return f"{name} {importlib.metadata.version(name)}, {self._deployment()}"
            except importlib.metadata.PackageNotFoundError:
                continue
        return f"mooncake, version unknown, {self._deployment()}"

    def _deployment(self) -> str:
        return "mooncake_master + mooncake_client, protocol tcp, dummy clients"

    def _run_master(self, place: Path) -> str:
        port = start_master(self._servers, place, f"--default_kv_lease_ttl={LEASE_MS}").port
        return f"{HOST}:{port}"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        master = self._run_master(place)
        port = start_lender(self._servers, place, master, capacity_bytes)
        self.attach(f"{HOST}:{port}")
        return f"{HOST}:{port}"

    def attach(self, address: str) -> None:
        self._store = MooncakeDistributedStore()
        refused = self._store.setup_dummy(BUFFER_BYTES, BUFFER_BYTES, address)
        if refused:
            raise RivalFailed(f"setup_dummy: {refused}")

    def key_of(self, key: bytes) -> str:
        return key.hex()

    def keys_of(self, packed: bytes) -> list[str]:
        return [key.hex() for key in split(packed)]

    def make_landing(self, size_bytes: int) -> Array:
        """Memory of the mapping that is shared with the standalone client: it copies there by itself."""
        address = self._store.alloc_from_mem_pool(size_bytes)
        if not address:
            raise RivalFailed(f"no room for {size_bytes} bytes to read into")
        self._landing_at = address
        landing = np.frombuffer((ctypes.c_uint8 * size_bytes).from_address(address), dtype=np.uint8)
        landing.fill(1)
        refused = self._store.register_buffer(address, size_bytes)
        if refused:
            raise RivalFailed(f"register_buffer: {refused}")
        return landing

    def put(self, key: str, data: Array) -> None:
        code = self._store.put(key, data)
        deadline = time.monotonic() + ROOM_TIMEOUT_S
        while code and time.monotonic() < deadline:
            time.sleep(ROOM_PAUSE_S)
            code = self._store.put(key, data)
        if code:
            raise RivalFailed(f"put: {code} for {ROOM_TIMEOUT_S:.0f} s")

    def get_view(self, key: str) -> Any:
        handle = self._store.get_buffer(key)
        if handle is None:
            raise RivalFailed("a chunk is missing")
        return memoryview(handle)

    def release(self, _key: str, view: Any) -> None:
        view.release()

    def lookup(self, keys: list[str]) -> int:
        found = self._store.batch_is_exist(keys)
        return next((number for number, one in enumerate(found) if one != 1), len(found))

    def read_into(self, keys: list[str], landing: Array) -> None:
        size, start = landing.nbytes // len(keys), landing.ctypes.data
        places = [start + number * size for number in range(len(keys))]
        found = self._store.batch_get_into(keys, places, [size] * len(keys))
        insist_on(sum(one == size for one in found), len(keys))

    def teardown(self) -> None:
        if self._store is not None:
            self._store.close()
        for server in reversed(self._servers):
            server.terminate()
            server.wait()


class EmbeddedMooncakeStore(MooncakeStore):
    """Every process is a client with everything in it; the host's segment is the memory."""

    def _deployment(self) -> str:
        return "mooncake_master, protocol tcp, a client in each process"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        master = self._run_master(place)
        self._join(master, capacity_bytes)
        return master

    def attach(self, address: str) -> None:
        self._join(address, 0)

    def _join(self, master: str, segment_bytes: int) -> None:
        self._store = MooncakeDistributedStore()
        refused = self._store.setup(HOST, "P2PHANDSHAKE", segment_bytes, BUFFER_BYTES, "tcp", "", master)
        if refused:
            raise RivalFailed(f"setup: {refused}")

    def make_landing(self, size_bytes: int) -> Array:
        landing: Array = np.ones(size_bytes, dtype=np.uint8)
        refused = self._store.register_buffer(landing.ctypes.data, size_bytes)
        if refused:
            raise RivalFailed(f"register_buffer: {refused}")
        return landing
