"""Threads for calls that may never return: a bounded number of them, which hold up nobody's end.

Holds:      a Crew, like `concurrent.futures.ThreadPoolExecutor` but for one thing: the interpreter waits for an
            executor's threads when it ends, and so for ever for a call that hangs in a library.
Promises:   a job that was cancelled before its turn is not begun; a thread that has nothing to do holds nothing of
            what it did.
Leaves:     deadlines to whoever waits for a job, and what a job that nobody waits for any more still holds to its
            future's callbacks.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

_T = TypeVar("_T")
_Job = tuple["Future[Any]", Callable[..., Any], tuple[Any, ...]]


class Crew:
    """At most `count` threads, made when they are needed."""

    def __init__(self, name: str, count: int) -> None:
        self._name, self._count = name, count
        self._guard = threading.Lock()
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []

    def submit(self, job: Callable[..., _T], *args: Any) -> Future[_T]:
        """Have it done; what it returns or raises is in the future."""
        future: Future[_T] = Future()
        with self._guard:
            self._jobs.put((future, job, args))
            if len(self._threads) < self._count:
                name = f"{self._name}-{len(self._threads)}"
                self._threads.append(threading.Thread(target=self._work, name=name, daemon=True))
                self._threads[-1].start()
        return future

    def end(self, patience_s: float) -> None:
        """Let the threads end, each when it has done what is waiting. Blocks `patience_s` for each that hangs."""
        with self._guard:
            threads, self._threads = self._threads, []
        for _ in threads:
            self._jobs.put(None)
        for thread in threads:
            thread.join(patience_s)

    def _work(self) -> None:
        while (one := self._jobs.get()) is not None:
            _do(*one)
            del one


def _do(future: Future[Any], job: Callable[..., Any], args: tuple[Any, ...]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(job(*args))
    except BaseException as error:
        future.set_exception(error)
    finally:
        del future, job, args  # An error's traceback leads to this frame, and would hold them in a circle.
