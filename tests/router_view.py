"""A router as far as a test needs one: it applies KV events in their order and knows what it may count on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import zmq

from maru.daemon.kv_events import KVEventBatch

DEADLINE_MS = 20_000
Number = int


@dataclass
class View:
    """The keys that the events so far leave, with each one's parent."""

    parents: dict[bytes, bytes | None] = field(default_factory=dict)

    @property
    def keys(self) -> set[bytes]:
        return set(self.parents)

    def apply(self, batch: Any) -> None:
        """Apply one batch; a parent that was not told before its child is an error."""
        for event in batch.events if batch else ():
            kind = type(event).__name__
            if kind == "AllBlocksCleared":
                self.parents.clear()
            elif kind == "BlockRemoved":
                for key in event.block_hashes:
                    self.parents.pop(key, None)
            else:
                self._store(event)

    def _store(self, event: Any) -> None:
        above = event.parent_block_hash
        assert above is None or above in self.parents, "a child was told before its parent"
        for key in event.block_hashes:
            self.parents[key] = above
            above = key


class Router:
    """Subscribes to a publisher as vLLM's own example does: what it missed it asks for again."""

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        replay_endpoint: str,
        batch_type: type[Any] = KVEventBatch,
        secure: Callable[[zmq.Socket[Any]], None] = lambda _: None,
    ) -> None:
        """`batch_type`: what batches are decoded as, ours or vLLM's."""
        self._decoder = msgspec.msgpack.Decoder(batch_type)
        self.view = View()
        self.last_number = -1
        self.replays = 0
        self._live = context.socket(zmq.SUB)
        self._live.subscribe("")
        secure(self._live)
        self._live.connect(endpoint)
        self._asks = context.socket(zmq.DEALER)
        secure(self._asks)
        self._asks.connect(replay_endpoint)

    def close(self) -> None:
        self._live.close(linger=0)
        self._asks.close(linger=0)

    def receive(self) -> Any:
        """The next live batch, applied, after those that were missed before it."""
        assert self._live.poll(DEADLINE_MS), "no batch within the deadline"
        _, number_bytes, payload = self._live.recv_multipart()
        number = int.from_bytes(number_bytes, "big")
        if number != self.last_number + 1:
            self.catch_up()
        batch = self._decoder.decode(payload)
        if number > self.last_number:
            self.view.apply(batch)
            self.last_number = number
        return batch

    def catch_up(self) -> list[tuple[Number, Any]]:
        """Ask for what is missing, and apply it."""
        self.replays += 1
        answered = self.ask((self.last_number + 1).to_bytes(8, "big"))
        for number, batch in answered:
            assert number > self.last_number
            self.view.apply(batch)
            self.last_number = number
        return answered

    def ask(self, start: bytes) -> list[tuple[Number, Any]]:
        """Everything that the publisher sends again from `start` on."""
        self._asks.send_multipart([b"", start])
        got = []
        while True:
            assert self._asks.poll(DEADLINE_MS), "no end mark within the deadline"
            _, _, number_bytes, payload = self._asks.recv_multipart()
            number = int.from_bytes(number_bytes, "big", signed=True)
            if number == -1:
                return got
            got.append((number, self._decoder.decode(payload)))

    def wait_for(self, keys: set[bytes]) -> None:
        """Receive until exactly these keys are known."""
        deadline = time.monotonic() + DEADLINE_MS / 1000
        while self.view.keys != keys:
            assert time.monotonic() < deadline, "the events do not come to that within the deadline"
            self.receive()
