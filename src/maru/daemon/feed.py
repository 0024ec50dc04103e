"""/events: what the dashboard and `maru top` show, as server-sent events: `history` once, then `frame` every second.

Promises:   one frame is made a second, however many follow; a follower that reads too slowly is let go, and so is one
            whose token ended. Their number is bounded. Ten minutes of history are kept also when nobody looks.
Leaves:     rates to those who show them: a frame holds counters and the pool's own clock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import msgspec
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from maru.daemon.answers import Refused
from maru.daemon.facts import Facts
from maru.daemon.keeps import KeptPrefixes
from maru.daemon.looks import Look, Looks

FRAME_S = 1.0
SAMPLE_S = 5.0
SAMPLES_MAX = 121
SEND_DEADLINE_S = 10.0
NAMESPACES_SHOWN = 64
_SAMPLED = ("lookup_keys", "hit_keys", "pinned_bytes", "stored_bytes")


class Feed:
    """Frames and history of one daemon. `clock` counts seconds of Unix time."""

    def __init__(self, facts: Facts, looks: Looks, keeps: KeptPrefixes, clock: Callable[[], float] = time.time) -> None:
        self._facts, self._looks, self._keeps, self._clock = facts, looks, keeps, clock
        self._lock = threading.Lock()
        self._seen: object = None
        self._frame = b""
        self._samples: deque[dict[str, Any]] = deque(maxlen=SAMPLES_MAX)

    def frame(self) -> bytes:
        """Everything at this moment, as JSON; the same bytes for all who ask within a second."""
        with self._lock:
            looks = self._looks.all()
            if looks is not self._seen:
                self._frame = msgspec.json.encode(self._now(list(looks.values())))
                self._seen = looks
            return self._frame

    def sample(self) -> None:
        """Remember this moment's counters."""
        pools = {}
        for name, look in self._looks.all().items():
            if not look.error:
                counters = {field: look.stats["counters"][field] for field in _SAMPLED}
                pools[name] = {**{field: look.stats[field] for field in ("uuid", "now_ns", "used_bytes")}, **counters}
        with self._lock:
            self._samples.append({"unix_s": self._clock(), "pools": pools})

    def history(self) -> bytes:
        """The samples so far, oldest first, as JSON."""
        with self._lock:
            return msgspec.json.encode(list(self._samples))

    def _now(self, looks: list[Look]) -> dict[str, Any]:
        is_ready, why_not = self._facts.is_ready()
        rpc = self._facts.rpc()
        return {
            "daemon": {**asdict(self._facts.identity), "now_unix_s": self._clock()},
            "ready": {"is_ready": is_ready, "why_not": why_not},
            "pools": [_shown(look) for look in looks],
            "rpc": {
                "clients": rpc.clients,
                "requests": dict(rpc.requests),
                "errors": dict(rpc.errors),
                "bytes_in": rpc.bytes_in,
                "bytes_out": rpc.bytes_out,
                # JSON knows no infinity: the last bound is null.
                "seconds": {op: {"buckets": one.buckets, "sum_s": one.sum_s} for op, one in rpc.seconds.items()},
            },
            "leases": list(self._facts.leases()),
            "peers": list(self._facts.peers()),
            "keeps": self._keeps.all(),
            "below": dict(self._facts.below()),
        }


def _shown(look: Look) -> dict[str, Any]:
    if look.error:
        return {"name": look.name, "error": look.error.message}
    rows = sorted(look.stats["namespaces"], key=lambda row: -row["bytes"])
    rest = {"namespaces": rows[:NAMESPACES_SHOWN], "namespace_count": len(rows)}
    return {"name": look.name, "error": None, "stats": {**look.stats, **rest}}


class Followers:
    """Who follows the feed now. `still_allowed` looks at a follower's request again, before each frame."""

    def __init__(self, feed: Feed, count_max: int, still_allowed: Callable[[Request], bool]) -> None:
        self._feed, self._count_max, self._still_allowed = feed, count_max, still_allowed
        self.count = 0
        self.closing = asyncio.Event()
        # One thread at most waits for a walk, however many follow: the others are for those who change something.
        self._one_at_a_time = asyncio.Lock()

    def follow(self, request: Request) -> EventStream:
        """The answer to GET /events. Raises Refused when too many follow already."""
        if self.count >= self._count_max:
            raise Refused(503, "TooManyListeners", f"{self._count_max} pages follow already", "close one")
        return EventStream(self, request)

    async def events(self, send: Callable[[bytes], Any], request: Request) -> None:
        """Send until the daemon stops, the token ends or the follower is too slow."""
        await send(b"retry: 2000\n\n" + _event("history", await run_in_threadpool(self._feed.history)))
        while not self.closing.is_set() and self._still_allowed(request):
            async with self._one_at_a_time:
                frame = await run_in_threadpool(self._feed.frame)
            await asyncio.wait_for(send(_event("frame", frame)), SEND_DEADLINE_S)
            try:
                await asyncio.wait_for(self.closing.wait(), FRAME_S)
            except TimeoutError:
                continue


class EventStream:
    """One follower's answer, as ASGI wants it."""

    def __init__(self, followers: Followers, request: Request) -> None:
        self._followers, self._request = followers, request

    async def __call__(self, _scope: Scope, receive: Receive, send: Send) -> None:
        headers = [(b"content-type", b"text/event-stream"), (b"x-accel-buffering", b"no")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def piece(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                continue

        self._followers.count += 1
        try:
            tasks = {
                asyncio.ensure_future(self._followers.events(piece, self._request)),
                asyncio.ensure_future(gone()),
            }
            done, waiting = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            failures = [task.exception() for task in done]
            if any(failure is not None and not isinstance(failure, TimeoutError | OSError) for failure in failures):
                raise next(failure for failure in failures if failure is not None)
        finally:
            self._followers.count -= 1
        if not any(failures):
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _event(name: str, data: bytes) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), data)
