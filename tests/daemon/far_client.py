"""A client on another host: reads what to do from its input, a JSON line each, and says what came of it.

Content is known on both sides by its number, so that no bytes need to be told: what it reads is "right", "wrong" or
not there.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any

from serving import IDENTITY, bytes_for, keys_of

import maru
from maru.client.remote import RemotePool
from maru.pool import Pool

PAUSE = threading.Event()


def say(**said: Any) -> None:
    print(json.dumps(said), flush=True)


class FarClient:
    """One method a call."""

    def __init__(self) -> None:
        self.pool: Pool | RemotePool
        self.prefix: Any = None

    def connect(self, url: str, **more: Any) -> str:
        """The kind of client that came of it."""
        more["data"] = tuple(more.get("data", ()))
        self.pool = maru.connect(url, **more)
        return self.pool.kind if isinstance(self.pool, RemotePool) else "local"

    def put(self, first: int, sizes: list[int]) -> list[str]:
        namespace: Any = self.pool.namespace(IDENTITY)
        keys = keys_of(namespace, len(sizes), first)
        data = [bytes_for(first + n, size) for n, size in enumerate(sizes)]
        return [outcome.name for outcome in self.pool.put_many(keys, data, namespace)]

    def pin(self, first: int, chunks: int) -> int:
        """How many are held from now on."""
        self.prefix = self.pool.pin(self._keys(first, chunks))
        return len(self.prefix)

    def read(self, first: int, sizes: list[int]) -> list[str]:
        """What the held prefix is."""
        return self._judged(self.prefix.views, first, sizes)

    def get(self, first: int, sizes: list[int]) -> list[str]:
        """Pin, read, let go."""
        with self.pool.pin(self._keys(first, len(sizes))) as prefix:
            return self._judged(prefix.views, first, sizes)

    def lookup(self, first: int, chunks: int) -> int:
        return self.pool.lookup(self._keys(first, chunks))

    def held(self) -> bool:
        return bool(self.prefix.held)

    def last_held_s(self) -> float:
        """Look until the prefix is not held any more. When, by the machine's monotonic clock, it last was."""
        last_s = 0.0
        while self.prefix.held:
            last_s = time.monotonic()
            PAUSE.wait(0.005)
        return last_s

    def failures(self) -> dict[str, int]:
        assert isinstance(self.pool, RemotePool)
        return dict(self.pool.failures)

    def close(self) -> None:
        self.pool.close()

    def pause_at(self, request: str, answers: int) -> None:
        """From now on: when so many requests of this name were answered, say so, and wait for a line."""
        assert isinstance(self.pool, RemotePool)
        channel = self.pool.channel
        exchange, seen = channel.exchange, 0

        def pausing(*arguments: Any) -> Iterator[tuple[Any, Any, memoryview]]:
            nonlocal seen
            for asked, answer, body in exchange(*arguments):
                yield asked, answer, body
                seen += type(asked).__name__ == request
                if seen == answers and type(asked).__name__ == request:
                    say(reached=request)
                    sys.stdin.readline()

        channel.exchange = pausing  # type: ignore[method-assign]

    def _keys(self, first: int, chunks: int) -> bytes:
        # The same for every namespace of this identity, so that no daemon need be asked.
        return keys_of(_Keys(), chunks, first)

    @staticmethod
    def _judged(views: list[memoryview], first: int, sizes: list[int]) -> list[str]:
        found = ["right" if bytes(view) == bytes_for(first + n, sizes[n]) else "wrong" for n, view in enumerate(views)]
        return found + ["missing"] * (len(sizes) - len(found))


class _Keys:
    """Computes keys without a pool."""

    @staticmethod
    def chunk_keys(tokens: Any, chunk_tokens: int) -> bytes:
        from maru.native import core

        return core.chunk_keys(tokens, chunk_tokens, core.blake3(IDENTITY.encode(), 16))


def main() -> None:
    client = FarClient()
    for line in sys.stdin:
        arguments = json.loads(line)
        call = getattr(client, arguments.pop("call"))
        begun_s = time.monotonic()
        try:
            answer = call(**arguments)
        except maru.MaruError as error:
            say(error=type(error).__name__, seconds=time.monotonic() - begun_s)
        else:
            say(answer=answer, seconds=time.monotonic() - begun_s)


if __name__ == "__main__":
    main()
