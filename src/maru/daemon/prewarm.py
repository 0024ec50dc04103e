"""Prewarm: ask an engine in the background to compute a prompt, so that its KV is in the pool before it is needed.

The engine is any that speaks OpenAI's POST /v1/completions and keeps its KV in a pool; one token is asked for.

Promises:   one request at a time, a bounded queue, a deadline for each from the moment it was asked for, and the
            outcomes of the latest ones to look up. Only engines that the settings name are asked; redirects are not
            followed, and no proxy of the environment is used.
Leaves:     whether the engine really stores what it computes to the engine.
"""

from __future__ import annotations

import http.client
import json
import logging
import queue
import secrets
import ssl
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

from maru.daemon.admin_bodies import Prewarm, PrewarmBody
from maru.daemon.answers import Refused
from maru.daemon.web_settings import Engine

OUTCOMES_MAX = 64
ANSWER_BYTES_MAX = 1 << 20
_log = logging.getLogger("maru.daemon")


@dataclass
class _Job:
    number: str
    engine: str
    body: bytes
    asked_s: float
    state: Literal["queued", "running", "done", "failed"] = "queued"
    ended_s: float | None = None
    message: str = ""
    prompt_tokens: int | None = None
    cut: Callable[[], None] = field(default=lambda: None, repr=False)


class Prewarmer:
    """The queue and its one thread, which begins with the first request. `clock` counts seconds."""

    def __init__(
        self,
        engines: Mapping[str, Engine],
        queue_max: int,
        deadline_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engines, self._deadline_s, self._clock = dict(engines), deadline_s, clock
        self._queue: queue.Queue[_Job | None] = queue.Queue(queue_max)
        self._lock = threading.Lock()
        self._jobs: OrderedDict[str, _Job] = OrderedDict()
        self._thread: threading.Thread | None = None
        self._is_stopping = False

    @property
    def engines(self) -> list[str]:
        return sorted(self._engines)

    def ask(self, body: PrewarmBody) -> Prewarm:
        """Queue one. Raises Refused for an engine that is not known and when the queue is full."""
        if body.engine not in self._engines:
            known = ", ".join(self.engines) or "none"
            raise Refused(404, "UnknownEngine", f"this daemon was told of no engine {body.engine!r}", f"known: {known}")
        asked = {"model": body.model, "prompt": body.prompt, "max_tokens": 1, "temperature": 0, "stream": False}
        job = _Job(secrets.token_hex(4), body.engine, json.dumps(asked).encode(), self._clock())
        with self._lock:
            if self._is_stopping:
                raise Refused(503, "Stopping", "this daemon is stopping")
            try:
                self._queue.put_nowait(job)
            except queue.Full:
                raise Refused(
                    429, "QueueFull", f"{self._queue.maxsize} prewarms wait already", "try again when one is done"
                ) from None
            self._jobs[job.number] = job
            self._forget_old()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="maru-prewarm", daemon=True)
                self._thread.start()
            return self._line(job)

    def all(self) -> list[Prewarm]:
        """The latest, newest first."""
        with self._lock:
            return [self._line(job) for job in reversed(self._jobs.values())]

    def one(self, number: str) -> Prewarm | None:
        with self._lock:
            job = self._jobs.get(number)
            return self._line(job) if job else None

    def stop(self, deadline_s: float) -> None:
        """Fail what waits, cut what runs, end the thread."""
        with self._lock:
            self._is_stopping = True
            for job in self._jobs.values():
                job.cut()
            thread = self._thread
        if thread is None:
            return
        try:
            while True:
                waiting = self._queue.get_nowait()
                if waiting:
                    self._end(waiting, "failed", "the daemon stopped")
        except queue.Empty:
            pass
        self._queue.put(None)
        thread.join(deadline_s)

    def _forget_old(self) -> None:
        ended = [number for number, job in self._jobs.items() if job.ended_s is not None]
        for number in ended[: max(0, len(self._jobs) - OUTCOMES_MAX)]:
            del self._jobs[number]

    def _line(self, job: _Job) -> Prewarm:
        seconds = (self._clock() if job.ended_s is None else job.ended_s) - job.asked_s
        line = Prewarm(id=job.number, engine=job.engine, state=job.state, seconds=seconds, message=job.message)
        if job.prompt_tokens is not None:
            line.prompt_tokens = job.prompt_tokens
        return line

    def _end(self, job: _Job, state: Literal["done", "failed"], message: str = "", tokens: int | None = None) -> None:
        with self._lock:
            job.state, job.message, job.prompt_tokens, job.ended_s = state, message, tokens, self._clock()
            job.body, job.cut = b"", lambda: None
        if state == "failed":
            _log.warning("prewarm %s by engine %s failed: %s", job.number, job.engine, message)

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            left_s = job.asked_s + self._deadline_s - self._clock()
            if left_s <= 0:
                self._end(job, "failed", f"waited for longer than {self._deadline_s:g} s")
                continue
            try:
                self._end(job, "done", tokens=self._compute(job, self._engines[job.engine], left_s))
            except (OSError, http.client.HTTPException, ValueError) as error:
                is_late = self._clock() >= job.asked_s + self._deadline_s or isinstance(error, TimeoutError)
                told = f"no answer within {self._deadline_s:g} s" if is_late else str(error) or type(error).__name__
                if self._is_stopping:  # Then stop() cut the connection, whatever the error says.
                    told = "the daemon stopped"
                self._end(job, "failed", told)

    def _compute(self, job: _Job, engine: Engine, left_s: float) -> int | None:
        """Ask and read the answer; returns the tokens that the engine counted. Raises OSError, ValueError."""
        parts = urlsplit(engine.url)
        host = parts.hostname or ""
        connection: http.client.HTTPConnection
        if parts.scheme == "https":
            context = ssl.create_default_context()
            connection = http.client.HTTPSConnection(host, parts.port, timeout=left_s, context=context)
        else:
            connection = http.client.HTTPConnection(host, parts.port, timeout=left_s)
        with self._lock:
            if self._is_stopping:
                raise OSError("the daemon stopped")
            job.state, job.cut = "running", lambda: _cut(connection)
        # The socket's own timeout begins anew with every byte; this one does not.
        watch = threading.Timer(left_s, _cut, (connection,))
        watch.daemon = True
        watch.start()
        try:
            headers = {"Content-Type": "application/json"}
            if engine.token:
                headers["Authorization"] = f"Bearer {engine.token}"
            connection.request("POST", parts.path.rstrip("/") + "/v1/completions", job.body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise ValueError(f"the engine answered {response.status} {response.reason}")
            return _tokens_in(response.read(ANSWER_BYTES_MAX))
        finally:
            watch.cancel()
            connection.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End a connection that another thread waits on."""
    wire = connection.sock
    if wire is not None:
        try:
            wire.shutdown(2)
        except OSError:
            return  # It ended by itself.


def _tokens_in(answer: bytes) -> int | None:
    """usage.prompt_tokens of a completion, when the engine tells it. Raises ValueError for what is no JSON object."""
    document = json.loads(answer)
    if not isinstance(document, dict):
        raise ValueError("the engine's answer is not a JSON object")
    usage = document.get("usage")
    tokens = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return tokens if isinstance(tokens, int) else None
