"""Mooncake's own client: loaded, opened, ended, and what its numbers mean.

Promises:   nobody tries for a minute and a half to reach a master that is not there; a forked child neither ends its
            parent's clients nor falls over them.
"""

from __future__ import annotations

import ctypes
import os
import socket
from collections.abc import Mapping
from typing import Any

from maru.errors import MissingPackage
from maru.tier.mooncake_memory import Memory

CONNECT_S_MAX = 5.0
OK, NO_ROOM, BEING_STORED, MISSING, EXISTS, LEASED, QUOTA = 0, -200, -703, -704, -705, -706, -1700
SAID = {
    -1: "an internal error",
    NO_ROOM: "no client that lends memory has room",
    -600: "it does not take these parameters",
    -601: "another client stored the same object meanwhile",
    BEING_STORED: "the object is being stored",
    MISSING: "there is no such object",
    EXISTS: "the object is there already",
    LEASED: "the object was read a moment ago",
    -707: "the object's lease ran out while it was read",
    -712: "whoever lent the object's memory is gone",
    -714: "the object is being read",
    -800: "a transfer with a client that lends memory failed",
    -900: "mooncake_master does not answer",
    -901: "mooncake_master does not answer in time",
    QUOTA: "the tenant's quota is used up",
}
"""What the client's numbers mean, as far as this has met them; the rest are in Mooncake's types.h."""
HINTS = {
    NO_ROOM: "lend more: another mooncake_client with --global_segment_size",
    -800: "look whether each mooncake_client that lends memory runs and can be reached",
    -900: "start mooncake_master, or name the port it has (--rpc_port)",
    -901: "start mooncake_master, or name the port it has (--rpc_port)",
}

_open: list[Any] = []
"""Clients of this process. A client that is dropped ends itself, and so may not be dropped in a child."""


class ClientRefused(Exception):
    """The client did not come to be; `code` says why."""

    def __init__(self, code: int) -> None:
        self.code = code
        super().__init__(SAID.get(code, str(code)))


def api() -> Any:
    """Mooncake's module. Raises MissingPackage."""
    # Read when the library is loaded. At its own default it tells the standard error about each connection.
    os.environ.setdefault("MC_LOG_LEVEL", "ERROR")
    try:
        import mooncake.store
    except ModuleNotFoundError as error:
        raise MissingPackage(
            "mooncake:// needs Mooncake's client: pip install 'maru-kvcache[mooncake]'", package="mooncake"
        ) from error
    except ImportError as error:
        raise MissingPackage(
            f"Mooncake's client does not load: {error}; its wheels expect the system's RDMA library also where there "
            "is no such device: apt install libibverbs1",
            package="mooncake",
        ) from error
    return mooncake.store


def open_client(
    module: Any, setup: Mapping[str, str], master: tuple[str, int], memory: Memory, deadline_s: float
) -> Any:
    """A client of this master that reads into `memory` and writes from it. Blocks. Raises OSError, ClientRefused."""
    # The client itself would try for a minute and a half. This also tells by which address the master sees this host.
    with socket.create_connection(master, timeout=min(CONNECT_S_MAX, deadline_s)) as connection:
        host = str(connection.getsockname()[0])
    client = module.MooncakeDistributedStore()
    code = client.setup({"local_hostname": f"[{host}]" if ":" in host else host, **setup})
    code = code or client.register_buffer(memory.address, memory.size_bytes)
    if code:
        client.close()
        raise ClientRefused(code)
    _open.append(client)
    return client


def end_client(client: Any, memory: Memory) -> None:
    """Give it back. Blocks."""
    client.unregister_buffer(memory.address)
    client.close()
    _open.remove(client)


def _leave_to_parent() -> None:
    """In a forked child the clients' threads are gone: ending one, by dropping it or at exit, is a segmentation fault.

    So they are never dropped, and when the child exits the library's own handlers are passed over: the handler that
    was registered last is called first, with the exit status, which is just what `_exit` takes.
    """
    if _open:
        for client in _open:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
        _open.clear()
        libc = ctypes.CDLL(None)
        libc.on_exit(libc._exit, None)


os.register_at_fork(after_in_child=_leave_to_parent)
