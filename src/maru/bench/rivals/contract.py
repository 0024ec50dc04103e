"""What a store has to do to take part: the same few operations, each in the way that is best for it.

Imports nothing of the pool: stores run in interpreters that do not have it.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

HOST = "127.0.0.1"
KEY_BYTES = 16
Array = Any
"""A numpy array of uint8."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


class RivalFailed(RuntimeError):
    """A store did not do what it was asked; its own words are the message."""


def split(packed: bytes) -> list[bytes]:
    """Packed keys one by one."""
    return [packed[at : at + KEY_BYTES] for at in range(0, len(packed), KEY_BYTES)]


def free_ports(count: int) -> tuple[int, ...]:
    """Ports that nobody listened on a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind((HOST, 0))
        return tuple(one.getsockname()[1] for one in sockets)
    finally:
        for one in sockets:
            one.close()


def dying_with_me() -> Callable[[], None]:
    """For `preexec_fn`: the kernel kills the new process when the thread that starts it ends."""
    parent = os.getpid()

    def before_exec() -> None:
        _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:  # It ended before the call above.
            os._exit(1)

    return before_exec


class Answering(ABC):
    """What a child process can be instead of a store: it takes requests as they come."""

    @abstractmethod
    def answer(self, request: dict[str, Any]) -> Any:
        """Do what is asked (`do`, and what that needs), and return what JSON can say. Raises whatever goes wrong."""

    @abstractmethod
    def end(self) -> None:
        """Give everything back; the input has ended."""


class Rival(ABC):
    """One store, seen by one process. The process that calls setup() is its host; others attach()."""

    options: str = ""
    """Beyond what it has by default; for our own pool, of its URL."""

    @abstractmethod
    def version(self) -> str:
        """What was measured, with everything that was chosen about it."""

    @abstractmethod
    def setup(self, place: Path, capacity_bytes: int) -> str:
        """Make the store and attach to it. Returns the address for attach(). Files go into the folder `place`."""

    @abstractmethod
    def attach(self, address: str) -> None:
        """See the store that another process made."""

    def key_of(self, key: bytes) -> Any:
        """A key as this store takes it. Not timed."""
        return key

    def keys_of(self, packed: bytes) -> Any:
        """Keys as lookup() and read_into() take them. Not timed."""
        return packed

    def make_landing(self, size_bytes: int) -> Array:
        """Touched memory that read_into() may copy into."""
        return np.ones(size_bytes, dtype=np.uint8)

    @abstractmethod
    def put(self, key: Any, data: Array) -> None:
        """Store `data` under a new key, and return when every process can read it. The oldest chunks may go for it.

        Raises RivalFailed.
        """

    @abstractmethod
    def get_view(self, key: Any) -> Any:
        """The bytes of a chunk where they lie, as anything with a buffer. Raises RivalFailed for a miss."""

    @abstractmethod
    def release(self, key: Any, view: Any) -> None:
        """Give back what get_view() gave; it is not touched any more."""

    @abstractmethod
    def lookup(self, keys: Any) -> int:
        """How many leading keys are there."""

    @abstractmethod
    def read_into(self, keys: Any, landing: Array) -> None:
        """Copy the chunks of a prefix into `landing`, one after the other. Raises RivalFailed unless all are there."""

    @abstractmethod
    def teardown(self) -> None:
        """Detach; the host ends every process and removes every file of the store. Works after a failed setup()."""


def copy_out(views: list[Any], landing: Array) -> None:
    """Copy chunks of one size into consecutive parts of `landing`."""
    size = landing.nbytes // len(views)
    for number, view in enumerate(views):
        np.copyto(landing[number * size : (number + 1) * size], np.frombuffer(view, dtype=np.uint8))


def insist_on(found: int, wanted: int) -> None:
    """Raise RivalFailed unless a prefix is whole."""
    if found != wanted:
        raise RivalFailed(f"the prefix is not whole: {found} of {wanted} chunks")
