"""Real histories of a pool: who called what on which key, from when to when, and what it answered.

Several processes with several threads each do everything a caller can do with a few keys of one pool, at random, from a
seed. Each thread writes down a call before it makes it and again when it has returned, so that a killed process leaves
its last call open. CLOCK_MONOTONIC is one clock for all processes of a host, so the times can be compared.

Every store has bytes of its own, which name the key and the store. A `get` is read in full, at once and again before it
is let go. The promise of a history: its calls really happened inside the times given. What may be answered is left to
the judge (tests/model/linearizability.py).

The order in which threads meet is the machine's, not the seed's: the same seed gives the same calls, and much the same
meetings. Delays at crash points of the core make rare meetings common.
"""

from __future__ import annotations

import json
import os
import random
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from maru.native import core
from maru.pool import Outcome, Pool
from maru.testing.content import key_of
from maru.testing.crash import Victim, spawn

DIED = "DIED"  # The answer of a call whose process was killed in it.
WRONG = "WRONG BYTES"  # What a get saw that is the content of no store, or changed under the pin.
UNIT = 24  # A content's name, as often as it takes.
# Between the two looks that each of these lies between, another process has time to act.
NARROWS = (
    "pin.before", "pin.taken", "evict.before_mark", "evict.marked", "evict.unpinned", "claim.word_set", "claim.tag_set",
    "seal.before_word", "revoke.before_word", "release.tag_cleared", "lock.taken",
)  # fmt: skip
DELAY_S = 0.0002


@dataclass(frozen=True)
class Call:
    """One call. `kind`: store, get, exists, remove. `content`: what a store would write, what a get saw (None: miss).

    Times are CLOCK_MONOTONIC nanoseconds. `let_go_ns` ends what the call held: the pin of a get. For a call that DIED
    it is, like `returned_ns`, the time by which everything of its process had been cleaned up.
    """

    key: int
    kind: str
    called_ns: int
    returned_ns: int
    let_go_ns: int
    answer: str
    content: str | None = None
    overdue: bool = False  # A store whose reservation could be taken over from the beginning.


@dataclass(frozen=True)
class Traffic:
    """What the threads do: calls a thread, over how many keys, with chunks of at most how many bytes."""

    calls: int = 200
    keys: int = 3
    size_max: int = 9_000


def record(
    url: str, seed: int, rounds: int, traffic: Traffic, mutants: tuple[str, ...] = (), kill: bool = True
) -> list[Call]:
    """Let three processes of three threads each go through `traffic`, `rounds` times; `kill` one of them each round.

    The pool must exist. The processes use the test build of the core, with `mutants` switched on.
    """
    dice = random.Random(seed)
    found: list[Call] = []
    with Pool.attach(url) as pool, tempfile.TemporaryDirectory(prefix="maru-history-") as folder:
        for round_number in range(rounds):
            files = [Path(folder) / f"{round_number}-{n}" for n in range(3)]
            doomed = dice.randrange(3) if kill else None
            workers = [
                _start(url, path, dice.randrange(1 << 30), traffic, n == doomed, mutants)
                for n, path in enumerate(files)
            ]
            _let_run(workers)
            pool.reap()
            gone_ns = time.monotonic_ns()
            for path in files:
                found += _read(path, gone_ns)
    return found


def _start(url: str, path: Path, seed: int, traffic: Traffic, doomed: bool, mutants: tuple[str, ...]) -> Victim:
    return spawn(
        work, url, str(path), seed, doomed, traffic.calls, traffic.keys, traffic.size_max, mutants=mutants
    )  # fmt: skip


def _let_run(workers: list[Victim]) -> None:
    for worker in workers:
        worker.line()  # It is attached.
    for worker in workers:
        worker.tell("begin")
    for worker in workers:
        with worker:
            worker.wait()


def work(url: str, path: str, seed: int, doomed: bool, calls: int, keys: int, size_max: int) -> None:
    """One process: three threads at work, and the calls they make written to `path`."""
    dice = random.Random(seed)
    with Pool.attach(url) as pool:
        print("attached", flush=True)
        input()
        for name in dice.sample(NARROWS, 4):
            core.arm_crash_point(name, "delay", 1, DELAY_S)
        if doomed:
            core.arm_crash_point(dice.choice(NARROWS), "kill", dice.randrange(1, 1 + calls // 2), 0)
        out = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        traffic = Traffic(calls, keys, size_max)
        names = [f"{os.getpid()}.{n}" for n in range(3)]
        callers = [_Caller(pool, out, name, dice.randrange(1 << 30), traffic) for name in names]
        threads = [threading.Thread(target=caller.run) for caller in callers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


class _Caller:
    """One thread's calls."""

    def __init__(self, pool: Pool, out: int, name: str, seed: int, traffic: Traffic) -> None:
        self.pool, self.out, self.name, self.dice, self.traffic = pool, out, name, random.Random(seed), traffic
        self.number = 0

    def run(self) -> None:
        acts = (self.put, self.put, self.reserve, self.get, self.get, self.exists, self.remove, self.remove)
        for _ in range(self.traffic.calls):
            self.number += 1
            self.dice.choice(acts)(self.dice.randrange(self.traffic.keys))

    def tell(self, event: str, **facts: object) -> None:
        line = {"call": f"{self.name}.{self.number}", "event": event, **facts}
        os.write(self.out, (json.dumps(line) + "\n").encode())

    def calls(self, kind: str, key: int, **facts: object) -> None:
        self.tell("called", kind=kind, key=key, **facts, at=time.monotonic_ns())

    def returned(self, answer: str, **facts: object) -> None:
        self.tell("returned", at=time.monotonic_ns(), answer=answer, **facts)

    def new_content(self, key: int) -> tuple[str, bytes]:
        content = f"{key}:{self.name}.{self.number}"
        size = self.dice.choice((UNIT, self.traffic.size_max // 2, self.traffic.size_max))
        return content, content.ljust(UNIT).encode() * (size // UNIT)

    def put(self, key: int) -> None:
        content, data = self.new_content(key)
        self.calls("store", key, content=content)
        self.returned(self.pool.put(key_of(key), data).name)

    def reserve(self, key: int) -> None:
        content, data = self.new_content(key)
        overdue = self.dice.random() < 0.5
        self.calls("store", key, content=content, overdue=overdue)
        with self.pool.reserve(key_of(key), len(data), deadline=0.0 if overdue else 300.0) as mine:
            answer = mine.outcome
            if answer == Outcome.RESERVED:
                mine.buffer[:] = data
                answer = mine.seal() if self.dice.random() < 0.8 else answer
        self.returned(answer.name)

    def get(self, key: int) -> None:
        self.calls("get", key)
        view = self.pool.get(key_of(key))
        at = time.monotonic_ns()
        if view is None:
            self.tell("returned", at=at, answer="MISS")
            return
        first = _content_in(view)
        # Nothing is waited for: the pin is held a little, so that evictors meet it.
        time.sleep(self.dice.choice((0.0, 0.0, 0.0, DELAY_S)))
        content = first if _content_in(view) == first else WRONG
        del view
        self.tell("returned", at=at, answer="HIT", content=content, let_go=time.monotonic_ns())

    def exists(self, key: int) -> None:
        self.calls("exists", key)
        self.returned("HIT" if self.pool.exists(key_of(key)) else "MISS")

    def remove(self, key: int) -> None:
        self.calls("remove", key)
        self.returned("REMOVED" if self.pool.remove(key_of(key)) else "NOT REMOVED")


def _content_in(view: memoryview) -> str:
    data = bytes(view)
    is_whole = data == data[:UNIT] * (len(data) // UNIT)
    return data[:UNIT].decode("ascii", "replace").strip() if is_whole else WRONG


def _read(path: Path, gone_ns: int) -> Iterator[Call]:
    """The calls in one file. Each line was one write, which a kill does not divide; what is missing is a whole line."""
    begun: dict[str, dict[str, object]] = {}
    for line in path.read_text().splitlines():
        fact = json.loads(line)
        name = fact["call"]
        if fact["event"] == "called":
            begun[name] = fact
            continue
        before = begun.pop(name)
        yield _call(before, fact["at"], fact.get("let_go", fact["at"]), fact["answer"], fact.get("content"))
    for before in begun.values():
        yield _call(before, gone_ns, gone_ns, DIED, None)


def _call(before: dict[str, object], returned: int, let_go: int, answer: str, seen: str | None) -> Call:
    content = before.get("content", seen)
    return Call(
        key=int(str(before["key"])), kind=str(before["kind"]), called_ns=int(str(before["at"])), returned_ns=returned,
        let_go_ns=let_go, answer=answer, content=None if content is None else str(content),
        overdue=bool(before.get("overdue")),
    )  # fmt: skip
