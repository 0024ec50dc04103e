"""Random kills: workers doing everything at once, SIGKILLed at random moments and at random crash points.

    MARU_CORE=testing python -m maru.testing.stress --seconds 20 --seed 1

One nursery process forks the workers (a fork costs a millisecond, an interpreter fifty), kills them, forks new ones,
and after every batch looks at all invariants and at every byte. It prints one JSON object; a fault ends it with exit
code 1 and the seed to run again.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

from maru.key import Identity
from maru.native import core
from maru.pool import Outcome, Pool
from maru.testing.content import bytes_of, is_right, key_of

WORKERS = 4
KEYS = 300
KILLS_PER_BATCH = 40
SIZES = (3_000, 9_000, 40_000, 9_000)
POOL_QUERY = "?size=2MiB&slab_bytes=128KiB&slots=400&processes=32&populate=off&checksum=off"


@dataclass
class Tally:
    """What happened."""

    seed: int
    kills_from_outside: int = 0
    kills_at_points: int = 0
    checks: int = 0
    verified_reads: int = 0
    faults: list[str] = field(default_factory=list)


class WrongBytes(Exception):
    """A reader saw bytes that its key does not demand."""


def work(url: str, seed: int) -> None:
    """Everything a process can do with a pool, at random, until it dies. Raises WrongBytes."""
    dice = random.Random(seed)
    if dice.random() < 0.7:
        core.arm_crash_point(dice.choice(list(core.crash_points())), "kill", dice.randrange(1, 200))
    if dice.random() < 0.5:
        for name in dice.sample(list(core.crash_points()), 3):
            core.arm_crash_point(name, "delay", 1, dice.choice((0.00002, 0.0002)))
    held: list[tuple[bytes, memoryview]] = []
    with Pool.attach(url) as pool:
        ns = pool.namespace(Identity(model="stress", kv_layout="bytes"))
        while True:
            number = dice.randrange(KEYS)
            key, size = key_of(number), SIZES[number % len(SIZES)]
            act = dice.randrange(16)
            if act < 5:
                parent = key_of(number - 1) if number % 8 else None
                pool.put(key, bytes_of(key, size), parent=parent, namespace=ns if number % 3 == 0 else None)
            elif act == 5:
                pool.remove(key)
            elif act == 6:
                write_slowly(pool, dice, key, size)
            elif act == 7:
                publish(pool, key, size)
            elif act == 8:
                write_part(pool, dice, number)
            elif act == 9 and len(held) < 6:
                view = pool.get(key)
                if view is not None:
                    held.append((key, view))
            elif act == 10 and held:
                held_key, view = held.pop(dice.randrange(len(held)))
                if not is_right(held_key, view):
                    raise WrongBytes(held_key.hex())
            elif act == 11 and dice.random() < 0.02:
                ns.bump()
            elif act == 12 and dice.random() < 0.05:
                pool.reap()
            else:
                view = pool.get(key)
                if view is not None and not is_right(key, view):
                    raise WrongBytes(key.hex())


def write_slowly(pool: Pool, dice: random.Random, key: bytes, size: int) -> None:
    """A reservation that may be too late, or given up."""
    with pool.reserve(key, size, deadline=dice.choice((0.0, 0.001, 30.0))) as r:
        if r.outcome != Outcome.RESERVED:
            return
        r.buffer[:] = bytes_of(key, size)
        if dice.random() < 0.8:
            r.seal()


def publish(pool: Pool, key: bytes, size: int) -> None:
    draft = pool.allocate(size)
    if draft is not None:
        draft.buffer[:] = bytes_of(key, size)
        draft.publish(key)


def write_part(pool: Pool, dice: random.Random, number: int) -> None:
    """One part of a chunk that other workers write the other parts of."""
    key, size, part = key_of(number, "parts"), 6_000, dice.randrange(3)
    with pool.reserve(key, size, part=part, parts=3, deadline=0.002) as r:
        if r.outcome == Outcome.RESERVED:
            r.buffer[:] = bytes_of(key, size)[part * 2_000 : (part + 1) * 2_000]
            r.seal()
    view = pool.get(key)
    if view is not None and not is_right(key, view):
        raise WrongBytes(key.hex())


def fork(target: Callable[[], None]) -> int:
    """A child that runs `target` and exits 0, or 3 when it saw wrong bytes, or 4 on any other surprise."""
    pid = os.fork()
    if pid:
        return pid
    code = 0
    try:
        target()
    except WrongBytes as wrong:
        print(f"wrong bytes under {wrong}", file=sys.stderr, flush=True)
        code = 3
    except BaseException as surprise:
        print(f"worker: {surprise!r}", file=sys.stderr, flush=True)
        code = 4
    os._exit(code)


def inspect(url: str, tally: Tally) -> None:
    """With every worker dead: clean up, check, read everything."""
    with Pool.attach(url) as pool:
        pool.reap()
        tally.faults += pool.check()
        figures = pool.stats()
        states = figures["chunks"]
        for state in ("reserved", "evicting", "revoked", "releasing", "quarantined"):
            if states[state]:
                tally.faults.append(f"{states[state]} chunks left {state}")
        for family in ("", "parts"):
            for number in range(KEYS):
                view = pool.get(key_of(number, family))
                tally.verified_reads += view is not None
                if view is not None and not is_right(key_of(number, family), view):
                    tally.faults.append(f"wrong bytes under {family}{number}")
    tally.checks += 1


def run_batch(url: str, dice: random.Random, tally: Tally) -> None:
    """Kill workers and start new ones, then kill all of them."""
    workers: list[int] = []

    def start() -> None:
        seed = dice.randrange(1 << 62)
        workers.append(fork(lambda: work(url, seed)))

    def bury(pid: int, status: int) -> None:
        workers.remove(pid)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL:
            return
        tally.faults.append(f"worker ended with status {status}")

    for _ in range(WORKERS):
        start()
    kills = 0
    while kills < KILLS_PER_BATCH and not tally.faults:
        signal.sigtimedwait({signal.SIGCHLD}, dice.random() ** 3 * 0.05)  # Some live long, most do not.
        for pid in list(workers):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                bury(pid, status)
                tally.kills_at_points += 1
                kills += 1
                start()
        victim = dice.choice(workers)
        os.kill(victim, signal.SIGKILL)
        bury(*os.waitpid(victim, 0))
        tally.kills_from_outside += 1
        kills += 1
        start()
    for pid in list(workers):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        bury(*os.waitpid(pid, 0))
        tally.kills_from_outside += 1


def stress(url: str, seconds: float, seed: int) -> Tally:
    """Batches until the time is over or something is wrong."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
    dice, tally = random.Random(seed), Tally(seed)
    Pool.create(url).close()
    end = time.monotonic() + seconds
    try:
        while time.monotonic() < end and not tally.faults:
            run_batch(url, dice, tally)
            inspect(url, tally)
    finally:
        Pool.destroy(url, force=True)
    return tally


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=20.0, help="how long to go on (default 20)")
    parser.add_argument("--seed", type=int, default=1, help="the same seed starts the same workers")
    options = parser.parse_args()
    if not core.crash_points():
        parser.error("this needs the test build of the core: set MARU_CORE=testing")
    tally = stress(f"maru:///stress-{os.getpid()}{POOL_QUERY}", options.seconds, options.seed)
    print(json.dumps(asdict(tally)))
    return 1 if tally.faults else 0


if __name__ == "__main__":
    sys.exit(main())
