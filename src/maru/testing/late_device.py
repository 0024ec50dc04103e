"""A device in a process of its own: it maps a pool's memory, takes copy requests, and performs them when it is told to.

    with LateDevice(pool) as device, spawn(owner, url, device.address) as writer:
        ...                              # the writer calls request_copy(address, offset, content)
        writer.kill()
        device.land(reversed(device.pending()))

Like the DMA of a GPU its copies outlive the process that asked for them, come in any order, and do not stop when that
process is stopped. It is no process of the pool: it holds no lock and takes no pins. There is no GPU in this: not run
on hardware.
"""

from __future__ import annotations

import json
import mmap
import os
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from maru.pool import Pool

_FORMAT = Path(__file__).parents[1] / "pool_format.json"
_DATA_OFFSET = struct.Struct("<Q")


def offset_of(pool: Pool, buffer: object) -> int:
    """Where a reservation's or draft's memory begins, in bytes from the start of the pool's data."""
    import ctypes

    with memoryview(buffer) as view:  # type: ignore[arg-type]
        address = ctypes.addressof(ctypes.c_char.from_buffer(view))
    return address - int(pool._data_range()[0])


def request_copy(address: str, offset: int, content: bytes) -> int:
    """Ask the device at `address` to write `content` at `offset`, some time. Returns the request's number.

    Returns when the device has it: whatever becomes of the caller then, the copy can still land.
    """
    return int(_ask(address, {"do": "queue", "offset": offset}, content)["number"])


def _ask(address: str, order: dict[str, Any], content: bytes = b"") -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
        line.settimeout(30)
        line.connect(address)
        head = json.dumps({**order, "bytes": len(content)}).encode()
        line.sendall(len(head).to_bytes(4, "little") + head + content)
        line.shutdown(socket.SHUT_WR)
        reply: dict[str, Any] = json.loads(_whole(line))
        return reply


def _whole(line: socket.socket) -> bytes:
    parts = []
    while part := line.recv(1 << 20):
        parts.append(part)
    return b"".join(parts)


class LateDevice:
    """The device, seen by whoever runs the test. A context manager; `address` is what writers get."""

    def __init__(self, pool: Pool) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="maru-device-")
        self.address = str(Path(self._folder.name) / "line")
        segment = pool.stats()["segments"][0]["path"]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "maru.testing.late_device", str(segment), self.address],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        if self._process.stdout.readline().strip() != "ready":
            raise RuntimeError("the device did not start")

    def pending(self) -> list[int]:
        """Numbers of the copies that have not landed, in the order of asking."""
        numbers: list[int] = _ask(self.address, {"do": "list"})["numbers"]
        return numbers

    def land(self, numbers: Iterable[int]) -> None:
        """Perform these copies now, in this order."""
        _ask(self.address, {"do": "land", "numbers": list(numbers)})

    def __enter__(self) -> LateDevice:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._folder.cleanup()


def _serve(segment: str, address: str) -> None:
    layout = json.loads(_FORMAT.read_text())
    header = next(one for one in layout["structs"] if one["name"] == "SegmentHeader")
    at = next(field["offset"] for field in header["fields"] if field["name"] == "data_offset")
    with Path(segment).open("r+b") as file, socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        data_offset = _DATA_OFFSET.unpack(os.pread(file.fileno(), _DATA_OFFSET.size, at))[0]
        memory = mmap.mmap(file.fileno(), 0)
        door.bind(address)
        door.listen()
        print("ready", flush=True)
        queue: dict[int, tuple[int, bytes]] = {}
        asked = 0
        while True:
            line, _ = door.accept()
            with line:
                message = _whole(line)
                head_bytes = int.from_bytes(message[:4], "little")
                order, content = json.loads(message[4 : 4 + head_bytes]), message[4 + head_bytes :]
                reply: dict[str, Any] = {}
                if order["do"] == "queue":
                    asked += 1
                    queue[asked] = (data_offset + order["offset"], content)
                    reply["number"] = asked
                elif order["do"] == "land":
                    for number in order["numbers"]:
                        place, late = queue.pop(number)
                        memory[place : place + len(late)] = late
                reply["numbers"] = list(queue)
                line.sendall(json.dumps(reply).encode())


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2])
