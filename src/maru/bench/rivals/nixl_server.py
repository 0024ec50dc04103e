"""The process that owns a NIXL store's memory: one registered region, and the directory of what lies where in it.

NIXL moves bytes between memories and keeps no keys, so the directory is that of the metadata server, asked in the same
way. The region is reached by other processes' agents alone: nothing here touches a chunk.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from nixl import nixl_agent, nixl_agent_config

from maru.bench.rivals import metadata_server
from maru.bench.rivals.contract import Answering

AGENT = "store"


def _agent_that_yields() -> Any:
    """An agent with NIXL's own progress thread, as by default: writes into the region need this side too.

    That thread never rests. It inherits that it may only use what nobody else wants, so that a store that waits for its
    turn takes no core from the one that is measured.
    """
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    return nixl_agent(AGENT, nixl_agent_config(enable_prog_thread=True, backends=["UCX"]))


class NixlServer(Answering):
    """Asked once, to serve; its answer is what other agents need to reach the region."""

    def answer(self, request: dict[str, Any]) -> Any:
        capacity = int(request["capacity_bytes"])
        with ThreadPoolExecutor(1) as apart:  # Only what this thread starts is to yield.
            self._agent = apart.submit(_agent_that_yields).result()
        self._memory: Any = np.ones(capacity, dtype=np.uint8)
        at = self._memory.ctypes.data
        self._agent.register_memory([(at, capacity, 0, "")], "DRAM")
        answering = threading.Thread(
            target=metadata_server.serve, args=(str(request["endpoint"]), capacity), daemon=True
        )
        answering.start()
        return {"agent": self._agent.get_agent_metadata().hex(), "at": at}

    def end(self) -> None:
        """Without the interpreter's farewell, for which the thread that waits for messages would not be ready."""
        os._exit(0)
