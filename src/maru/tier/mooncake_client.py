"""Mooncake's own client: loaded, opened, ended, and what its numbers mean.

Promises:   a master that is not there, or does not answer, stops no other thread of the process, and does not keep the
            process from ending; a forked child neither ends its parent's clients nor falls over them.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import socket
import struct
from collections.abc import Mapping
from typing import Any

from maru.errors import MissingPackage
from maru.tier.mooncake_memory import Memory

CONNECT_S_MAX = 5.0
ANSWER_S_MAX = 1.0
_MAGIC = b"\x15"
_QUESTION = struct.pack("<cBBBIIII", _MAGIC, 0, 0, 0, 0, 0, 0, 0)
"""A call of no function in the master's protocol (coro_rpc, version 0); the answer is that there is none."""
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

_open: list[tuple[Any, tuple[str, int]]] = []
"""Clients of this process, with their masters."""


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
    host = ask_master(master, min(CONNECT_S_MAX, deadline_s / 2))
    # With a port in its name it tries once to reach the master; without, twenty times.
    with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET) as taken:
        port = taken.getsockname()[1]
    client = module.MooncakeDistributedStore()
    code = client.setup({"local_hostname": f"[{host}]:{port}" if ":" in host else f"{host}:{port}", **setup})
    code = code or client.register_buffer(memory.address, memory.size_bytes)
    if code:
        client.close()
        raise ClientRefused(code)
    _open.append((client, master))
    return client


def end_client(client: Any, memory: Memory, master: tuple[str, int]) -> None:
    """Give it back. Blocks for ANSWER_S_MAX and what ending takes."""
    _open.remove((client, master))
    client.unregister_buffer(memory.address)
    _end(client, master)


def ask_master(master: tuple[str, int], timeout_s: float) -> str:
    """The address by which a master that lives sees this host. Raises OSError.

    The client's own setup() and close() hold the interpreter's lock, for half a minute where nobody answers: no other
    thread of the process would get on. So they are only called when somebody did.
    """
    with socket.create_connection(master, timeout=timeout_s) as connection:
        connection.sendall(_QUESTION)
        if not connection.recv(1).startswith(_MAGIC):
            raise ConnectionError("something else listens there")
        return str(connection.getsockname()[0])


def _end(client: Any, master: tuple[str, int]) -> None:
    try:
        ask_master(master, ANSWER_S_MAX)
    except TimeoutError:
        _leave(client)
        return
    except OSError:
        pass  # That it is dead is told at once, to the client too.
    client.close()


def _leave(client: Any) -> None:
    """Never end this one: neither when it is dropped nor by the library's own handlers when the process exits.

    Those are passed over: the handler that was registered last is called first, with the exit status, which is just
    what `_exit` takes.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(client))
    libc = ctypes.CDLL(None)
    libc.on_exit(libc._exit, None)


def _end_all() -> None:
    while _open:
        _end(*_open.pop())


def _leave_to_parent() -> None:
    """In a forked child the clients' threads are gone, and ending one is a segmentation fault."""
    while _open:
        _leave(_open.pop()[0])


atexit.register(_end_all)
os.register_at_fork(after_in_child=_leave_to_parent)
