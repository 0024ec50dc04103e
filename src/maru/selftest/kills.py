"""Workers that are killed while their GPU copies into the pool, and what the pool holds after each of them.

After every kill the core's own check must find nothing wrong, and every chunk that can be read must hold what its key
says: those that the dead worker sealed, those that others stored into what it left, and earlier ones. At the end other
code than the core's reads the pool's bytes.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maru.check import check_pool
from maru.pool import Pool
from maru.selftest.content import bytes_of, chunk_bytes_in, key_of
from maru.selftest.victim import STORES_MAX

START_DEADLINE_S = 180.0
PAUSE_S_MAX = 0.03
OWN_CHUNKS = 8
OTHERS_READ = 64
"""Chunks of earlier rounds that are read again after a kill."""
_SEED = 20250


@dataclass
class Killed:
    """What a series of kills found."""

    kills: int = 0
    chunks_checked: int = 0
    chunks_sealed_by_victims: int = 0
    wrong_chunks: int = 0
    findings: int = 0
    seconds: float = 0.0
    problem: str = ""

    def document(self) -> dict[str, Any]:
        return {**self.__dict__, "seconds": round(self.seconds, 3)}


def kill_workers(pool: Pool, ordinal: int, kills: int, tell: Callable[[int], None]) -> Killed:
    """Stops at the first thing that is wrong."""
    result, dice = Killed(), random.Random(_SEED)
    begun = time.monotonic()
    known: list[bytes] = []
    for number in range(kills):
        problem = _kill_one(pool, ordinal, number, dice)
        if problem:
            result.problem = problem
            break
        result.kills += 1
        _look(pool, number, known, dice, result)
        tell(number + 1)
        if result.problem:
            break
    if not result.problem:
        report = check_pool(Path(pool.folder), read_data=True)
        result.findings = report.count("error")
        if result.findings:
            result.problem = f"maru check finds {result.findings} errors in the pool's bytes"
    result.seconds = time.monotonic() - begun
    return result


def _kill_one(pool: Pool, ordinal: int, number: int, dice: random.Random) -> str:
    """Start a worker, let it store for a while, kill it. What went wrong, or ""."""
    paths = os.pathsep.join(path for path in sys.path if path)
    worker = subprocess.Popen(
        [sys.executable, "-m", "maru.selftest.victim", pool.config.url, str(ordinal), str(number)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ, PYTHONPATH=paths),
    )  # fmt: skip
    assert worker.stdout is not None
    assert worker.stderr is not None
    overdue = threading.Timer(START_DEADLINE_S, worker.kill)
    overdue.start()
    try:
        said = worker.stdout.readline().strip()
        overdue.cancel()
        if said != "storing":
            worker.kill()
            lines = worker.stderr.read().strip().splitlines() or [f"nothing within {START_DEADLINE_S:.0f} s"]
            return f"worker {number} did not start: {lines[-1]}"
        time.sleep(dice.random() * PAUSE_S_MAX)
    finally:
        overdue.cancel()
        worker.kill()
        worker.wait()
        worker.stdout.close()
        worker.stderr.close()
    return ""


def _look(pool: Pool, number: int, known: list[bytes], dice: random.Random, result: Killed) -> None:
    """Clean up, store into what became free, and read."""
    pool.reap()
    size = chunk_bytes_in(int(pool.stats()["slab_bytes"]))
    own = [key_of(f"own-{number}", n) for n in range(OWN_CHUNKS)]
    for key in own:
        pool.put(key, bytes_of(key, size))
    sealed = [key for n in range(STORES_MAX) if pool.exists(key := key_of(f"victim-{number}", n))]
    result.chunks_sealed_by_victims += len(sealed)
    for key in (*own, *sealed, *dice.sample(known, min(OTHERS_READ, len(known)))):
        view = pool.get(key)
        if view is not None:
            result.chunks_checked += 1
            result.wrong_chunks += bytes(view) != bytes_of(key, len(view))
    known += [*own, *sealed]
    del known[: -4 * STORES_MAX]
    findings = pool.check(verify_bytes=False)
    result.findings += len(findings)
    if result.wrong_chunks:
        result.problem = f"after kill {number + 1}: {result.wrong_chunks} chunks hold other bytes than were stored"
    elif findings:
        result.problem = f"after kill {number + 1}: {findings[0]}"
