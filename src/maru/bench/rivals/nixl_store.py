"""NIXL over UCX, memory to memory: chunks lie in the registered region of one process, and the agents of all others
read and write them there, from and into memory that is registered too.

The smallest store that can be built of it: which chunk lies where is asked of a directory, as from the metadata server.
"""

from __future__ import annotations

import json
import os
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import zmq
from nixl import nixl_agent, nixl_agent_config

from maru.bench.rivals import metadata_server as wire
from maru.bench.rivals.contract import KEY_BYTES, Array, RivalFailed, insist_on
from maru.bench.rivals.crew import Member, command_of
from maru.bench.rivals.nixl_server import AGENT
from maru.bench.rivals.server_store import ServerStore

SERVER = "maru.bench.rivals.nixl_server:NixlServer"
TRANSFER_TIMEOUT_S = 60.0
_GREETING_BYTES = 4096


class NixlStore(ServerStore):
    """One agent; the host runs the process that owns the memory."""

    def __init__(self) -> None:
        super().__init__()
        self._owner: Member | None = None
        self._agent: Any = None
        self._registered: list[Array] = []
        self._staging: Array = np.empty(0, dtype=np.uint8)

    def version(self) -> str:
        return f"NIXL {version('nixl')}, UCX, DRAM to DRAM; directory over pyzmq {zmq.__version__}"

    def setup(self, place: Path, capacity_bytes: int) -> str:
        socket, told = place / "socket", place / "told"
        self._files = [socket, told, place / "log"]
        self._owner = Member(command_of(sys.executable, SERVER, apart=True), place / "log")
        answer = self._owner.ask("serve", endpoint=f"ipc://{socket}", capacity_bytes=capacity_bytes)
        told.write_text(json.dumps(answer))
        self.attach(str(place))
        return str(place)

    def attach(self, address: str) -> None:
        told = json.loads((Path(address) / "told").read_text())
        self._at = int(told["at"])
        # Whoever asks for a transfer looks after it itself, so a thread that does would only take a core.
        self._agent = nixl_agent(f"at-{os.getpid()}", nixl_agent_config(enable_prog_thread=False, backends=["UCX"]))
        self._agent.add_remote_agent(bytes.fromhex(told["agent"]))
        self._agent.make_connection(AGENT)
        self._socket.connect(f"ipc://{address}/socket")
        # The first transfer makes the connection: that belongs to attaching, and not to what is measured.
        self.put(os.urandom(KEY_BYTES), np.zeros(_GREETING_BYTES, dtype=np.uint8))

    def make_landing(self, size_bytes: int) -> Array:
        """Registered: NIXL reads and writes no other memory."""
        landing: Array = np.ones(size_bytes, dtype=np.uint8)
        self._agent.register_memory([(landing.ctypes.data, size_bytes, 0, "")], "DRAM")
        self._registered.append(landing)
        return landing

    def _is_registered(self, data: Array) -> bool:
        first = data.ctypes.data
        return any(
            landing.ctypes.data <= first and first + data.nbytes <= landing.ctypes.data + landing.nbytes
            for landing in self._registered
        )

    def _staged(self, size: int) -> Array:
        """Registered memory of our own, for callers that have none."""
        if self._staging.nbytes < size:
            self._staging = self.make_landing(size)
        return self._staging[:size]

    def _transfer(self, operation: str, ours: Array, places: list[tuple[int, int]]) -> None:
        """All of these places of the region to or from consecutive parts of `ours`. Raises RivalFailed."""
        laid: Any = np.array(places, dtype=np.uint64)
        here: Any = np.zeros((len(places), 3), dtype=np.uint64)  # Address, size, device.
        there: Any = np.zeros_like(here)
        here[:, 1] = there[:, 1] = laid[:, 1]
        here[:, 0] = np.cumsum(laid[:, 1]) - laid[:, 1] + np.uint64(ours.ctypes.data)
        there[:, 0] = laid[:, 0] + np.uint64(self._at)
        agent = self._agent
        handle = agent.initialize_xfer(
            operation, agent.get_xfer_descs(here, "DRAM"), agent.get_xfer_descs(there, "DRAM"), AGENT
        )
        try:
            state = agent.transfer(handle)
            deadline = time.monotonic() + TRANSFER_TIMEOUT_S
            while state == "PROC" and time.monotonic() < deadline:
                state = agent.check_xfer_state(handle)
            if state != "DONE":
                raise RivalFailed(f"a transfer ended as {state}")
        finally:
            agent.release_xfer_handle(handle)

    def put(self, key: bytes, data: Array) -> None:
        places = self.ask(wire.Reserve(key, data.nbytes)).places
        source = data
        if not self._is_registered(data):
            source = self._staged(data.nbytes)
            np.copyto(source, data)
        self._transfer("WRITE", source, places)
        if self.ask(wire.Commit(key)).count != 1:
            raise RivalFailed("a chunk was not stored")

    def get_view(self, key: bytes) -> Any:
        """Of a copy: the memory that the chunk lies in is another process's."""
        places = self.ask(wire.Find(key)).places
        insist_on(len(places), 1)
        view = self._staged(places[0][1])
        try:
            self._transfer("READ", view, places)
        finally:
            self._socket.send(self._encode(wire.Release(key)))
        return view

    def release(self, _key: bytes, _view: Any) -> None:
        """Nothing to do: the chunk was let go when it had been copied."""

    def read_into(self, keys: bytes, landing: Array) -> None:
        places = self.ask(wire.Find(keys)).places
        try:
            insist_on(len(places), len(keys) // KEY_BYTES)
            self._transfer("READ", landing, places)
        finally:
            self._socket.send(self._encode(wire.Release(keys[: len(places) * KEY_BYTES])))

    def teardown(self) -> None:
        self._agent = None
        if self._owner is not None:
            self._owner.let_go()
            self._owner.await_end()
        super().teardown()
