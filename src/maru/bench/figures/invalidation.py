"""How long after a namespace is invalidated another process still gets a hit of it.

One process looks a chunk up as fast as it can and says when the first miss came; this one raises the namespace's epoch.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from maru.bench.rivals.crew import Member, command_of
from maru.errors import PoolNotFound
from maru.key import Identity
from maru.pool import Pool

_CHILD = "maru.bench.media_child:MediaChild"
_HEAD_START_NS = 50_000_000


def delays(folder: Path, count: int) -> Iterator[float]:
    """Seconds, so many times, in a pool that goes away afterwards. Raises RivalFailed."""
    url = f"maru:///bench-invalidation-{os.getpid()}"
    member = Member(command_of(sys.executable, _CHILD), folder / "invalidation.log")
    try:
        with Pool.create(f"{url}?size=16MiB") as pool:
            member.ask("open", paths=[], pool=url, index=0, members=1)
            namespace = pool.namespace(Identity(model="invalidation", kv_layout="none"))
            for number in range(count):
                key = number.to_bytes(16, "big")
                pool.put(key, b"\0" * 4096, namespace=namespace)
                ticket = member.post("watch", key=key.hex())
                time.sleep(_HEAD_START_NS * 1e-9)
                raised_ns = time.monotonic_ns()
                namespace.bump()
                yield max(0, member.collect(ticket) - raised_ns) * 1e-9
    finally:
        member.let_go()
        member.await_end()
        with suppress(PoolNotFound):
            Pool.destroy(url, force=True)
