"""Keeps: prefixes that the daemon holds pinned for a while because somebody asked it to.

Promises:   never more of them, and never more of a pool, than the limits say; each ends by itself. A keep is a hint: it
            ends with this process.
Leaves:     calling end_late() now and then to `web`.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from maru.config import format_size
from maru.daemon.admin_bodies import Keep
from maru.daemon.answers import Refused
from maru.pool import PinnedPrefix, Pool


@dataclass
class _Held:
    pool: str
    prefix: PinnedPrefix
    bytes: int
    ends_s: float


class KeptPrefixes:
    """All keeps of one daemon; safe from many threads. `clock` counts seconds."""

    def __init__(self, count_max: int, share_max: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._count_max, self._share_max, self._clock = count_max, share_max, clock
        self._lock = threading.Lock()
        self._held: dict[str, _Held] = {}

    def keep(self, name: str, pool: Pool, keys: bytes, seconds: float) -> Keep:
        """Pin what is there of the prefix. Raises Refused at a limit, and when nothing of it is there."""
        self.end_late()
        size_bytes = pool.stats()["size_bytes"]
        bytes_max = int(size_bytes * self._share_max)
        with self._lock:
            if len(self._held) >= self._count_max:
                raise Refused(
                    429, "TooManyKeeps", f"this daemon holds {self._count_max} keeps already", "end one first"
                )
            prefix = pool.pin(keys)
            if len(prefix) == 0:
                prefix.release()
                raise Refused(404, "NothingThere", "the first chunk of this prefix is not in the pool")
            kept_bytes = sum(held.bytes for held in self._held.values() if held.pool == name)
            if kept_bytes + prefix.nbytes > bytes_max:
                wanted = format_size(prefix.nbytes)
                prefix.release()
                raise Refused(
                    409,
                    "KeepTooLarge",
                    f"{wanted} more would pass the {format_size(bytes_max)} of pool {name} that keeps may hold "
                    f"({format_size(kept_bytes)} are held)",
                    "end a keep, or keep a shorter prefix",
                )
            number = secrets.token_hex(4)
            held = _Held(name, prefix, prefix.nbytes, self._clock() + seconds)
            self._held[number] = held
            return self._line(number, held)

    def all(self, pool: str | None = None) -> list[Keep]:
        """The keeps that run, of one pool or of all; the one that ends first comes first."""
        with self._lock:
            rows = sorted(self._held.items(), key=lambda item: item[1].ends_s)
            return [self._line(number, held) for number, held in rows if pool in (None, held.pool)]

    def end(self, pool: str, number: str) -> bool:
        """Let go of one. False: this pool has no such keep."""
        with self._lock:
            if number not in self._held or self._held[number].pool != pool:
                return False
            self._held.pop(number).prefix.release()
            return True

    def end_late(self) -> None:
        """Let go of those whose time is over."""
        with self._lock:
            now_s = self._clock()
            for number in [number for number, held in self._held.items() if held.ends_s <= now_s]:
                self._held.pop(number).prefix.release()

    def end_all(self) -> None:
        with self._lock:
            for held in self._held.values():
                held.prefix.release()
            self._held.clear()

    def _line(self, number: str, held: _Held) -> Keep:
        left_s = max(0.0, held.ends_s - self._clock())
        return Keep(id=number, pool=held.pool, chunks=len(held.prefix), bytes=held.bytes, seconds_left=left_s)
