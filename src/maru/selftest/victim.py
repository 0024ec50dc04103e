"""A worker that stores from its GPU until it is killed: `python -m maru.selftest.victim URL ORDINAL NUMBER`."""

from __future__ import annotations

import sys

from maru.pool import Pool
from maru.selftest.content import key_of
from maru.selftest.ground import DEADLINE_S, Ground

STORES_MAX = 512
PENDING_MAX = 8


def store_until_killed(url: str, ordinal: int, number: int) -> None:
    """Chunks of the family "victim-NUMBER", up to eight copies under way at a time."""
    with Pool.attach(url) as pool, Ground(pool, ordinal) as ground:
        ground.registration.begin()
        ground.registration.wait(DEADLINE_S)
        for n in range(STORES_MAX):
            ground.store(key_of(f"victim-{number}", n))
            if n == 0:
                print("storing", flush=True)
            while ground.copier.poll() >= PENDING_MAX:
                pass
        sys.stdin.readline()  # Nothing is left to store, and it is killed all the same.


if __name__ == "__main__":
    store_until_killed(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
