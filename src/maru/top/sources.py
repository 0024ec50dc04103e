"""Where `maru top` has its figures from: the pools of this host, looked at again and again, or a daemon's /events.

Promises:   a source never raises for a world that fails; it says what was lost and goes on trying, until it is closed.
            A token goes into a header and nowhere else.
Leaves:     what is done with a moment to `screen`.
"""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from maru.errors import MaruError
from maru.stat_view import SeenPool

LOOK_S = 1.0
SILENCE_S = 5.0
PAUSE_S_MIN, PAUSE_S_MAX = 0.5, 10.0
LINE_BYTES_MAX = 16 << 20


@dataclass(frozen=True)
class PoolNow:
    """One pool: Pool.stats(), or why there are none."""

    name: str
    stats: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Moment:
    """What there is to see now. `hosts`: the parts of a daemon's frame that are about others, None beside the pools."""

    title: str
    unix_s: float
    pools: list[PoolNow]
    hosts: Mapping[str, Any] | None = None
    notice: str = ""


@dataclass(frozen=True)
class Past:
    """Samples from before we came, oldest first, as /events tells them."""

    samples: list[dict[str, Any]]


@dataclass(frozen=True)
class Lost:
    """Nothing comes. `again_s`: seconds until the next attempt; None: there is no use in trying."""

    why: str
    again_s: float | None


News = Moment | Past | Lost


class Source(Protocol):
    def news(self) -> Iterator[News]:
        """What happens, as it happens, until close(); blocks in between."""

    def close(self) -> None:
        """End news() soon; from any thread."""


class LocalPools:
    """Pools of this host. `look` attaches for a moment each time, so that watching keeps nobody from destroying one."""

    def __init__(self, look: Callable[[], list[SeenPool]]) -> None:
        self._look = look
        self._closed = threading.Event()

    def news(self) -> Iterator[News]:
        while not self._closed.is_set():
            try:
                seen = self._look()
            except MaruError as error:
                yield Lost(error.message, LOOK_S)
            else:
                pools = [PoolNow(one.folder.name, one.stats, one.error.message if one.error else "") for one in seen]
                yield Moment("this host", time.time(), pools)
            self._closed.wait(LOOK_S)

    def close(self) -> None:
        self._closed.set()


class DaemonEvents:
    """The events of a daemon at `url` (http or https). `context`: whom to trust, when it is https."""

    def __init__(self, url: str, token: str | None, context: ssl.SSLContext | None = None) -> None:
        self._parts, self._token, self._context = urlsplit(url), token, context
        self._closed = threading.Event()
        self._connection: http.client.HTTPConnection | None = None

    def news(self) -> Iterator[News]:
        pause_s = PAUSE_S_MIN
        while not self._closed.is_set():
            why = ""
            try:
                for one in self._follow():
                    pause_s = PAUSE_S_MIN
                    yield one
                    if isinstance(one, Lost):
                        return
                why = "the daemon ended it"
            except (OSError, http.client.HTTPException, ValueError) as error:
                why = "no answer" if isinstance(error, TimeoutError) else str(error) or type(error).__name__
            if self._closed.is_set():
                return
            yield Lost(why, pause_s)
            self._closed.wait(pause_s)
            pause_s = min(2 * pause_s, PAUSE_S_MAX)

    def close(self) -> None:
        self._closed.set()
        wire = self._connection.sock if self._connection else None
        if wire is not None:
            try:
                wire.shutdown(2)
            except OSError:
                return  # It ended by itself.

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        if self._parts.scheme == "https":
            return http.client.HTTPSConnection(host, port, timeout=SILENCE_S, context=self._context)
        return http.client.HTTPConnection(host, port, timeout=SILENCE_S)

    def _follow(self) -> Iterator[News]:
        """One connection's news. Raises OSError, HTTPException, ValueError."""
        connection = self._connection = self._connect()
        try:
            headers = {"Authorization": f"Bearer {self._token}"} if self._token else {}
            connection.request("GET", self._parts.path.rstrip("/") + "/events", headers=headers)
            response = connection.getresponse()
            if response.status in (401, 403):
                yield Lost("set MARU_TOKEN to a token that may look" if self._token is None else "wrong token", None)
                return
            if response.status != 200:
                raise ValueError(f"the daemon answered {response.status} {response.reason}")
            name = ""
            while line := response.readline(LINE_BYTES_MAX):
                mark, _, value = line.rstrip(b"\n").partition(b": ")
                if mark == b"event":
                    name = value.decode()
                elif mark == b"data" and name == "history":
                    yield Past(json.loads(value))
                elif mark == b"data":
                    yield _moment(json.loads(value))
        finally:
            connection.close()


def _moment(frame: dict[str, Any]) -> Moment:
    pools = [PoolNow(one["name"], one.get("stats") or {}, one["error"] or "") for one in frame["pools"]]
    notice = "" if frame["ready"]["is_ready"] else f"not ready: {frame['ready']['why_not']}"
    hosts = {part: frame[part] for part in ("rpc", "leases", "peers", "keeps")}
    return Moment(frame["daemon"]["name"], frame["daemon"]["now_unix_s"], pools, hosts, notice)
