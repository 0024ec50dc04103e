"""The steps of `maru selftest gpu`: register, compare bytes both ways and across an edge, measure, and kill.

A step that cannot be done is a bad line with what the driver said, and the steps after it are left out.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

from maru.config import format_size, parse_url
from maru.doctor.line import Line, Verdict
from maru.engine.device_copy import DeviceError
from maru.errors import MaruError
from maru.pool import Draft, Outcome, Pool
from maru.selftest.content import bytes_of, key_of
from maru.selftest.ground import Ground
from maru.selftest.kills import kill_workers

KILLS_DEFAULT = 1000
SIZE = "512MiB"
CHUNKS = 32
ROUNDS = 7
SHARE_GOOD = 0.8
"""Of a copy from the driver's own pinned memory. Below it something is in the way: pages of 4 KiB, another node."""
_READY_DEADLINE_S = 120.0
_SECTION = "gpu self-test"

Tell: TypeAlias = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""


def url_of_own() -> str:
    """A pool of this process's own, in /dev/shm."""
    return f"maru:///selftest-gpu-{os.getpid()}?size={SIZE}&slab_bytes=16MiB"


def run(url: str, ordinal: int, kills: int, tell: Tell) -> list[Line]:
    """Every line. Makes the pool, which must not be there yet, and destroys it.

    Raises DeviceUnavailable, and what Pool.create raises.
    """
    lines: list[Line] = []
    with _own_pool(url) as pool:
        try:
            with Ground(pool, ordinal, pieces=True) as ground:
                for step in (_register, _to_gpu, _from_gpu, _across, _measure):
                    tell(step.__name__.strip("_").replace("_", " "), len(lines), 6)
                    lines.append(step(ground))
            lines.append(_kill(pool, ordinal, kills, tell))
        except DeviceError as error:
            lines.append(Line(_SECTION, "driver", "bad", error.message, error.code, error.hint))
    return lines


@contextlib.contextmanager
def _own_pool(url: str) -> Iterator[Pool]:
    with Pool.create(url) as pool:
        try:
            pool.wait_ready(_READY_DEADLINE_S)
            yield pool
        finally:
            with contextlib.suppress(MaruError):
                Pool.destroy(parse_url(url).url, force=True)


def _register(ground: Ground) -> Line:
    begun = time.monotonic()
    ground.registration.begin()
    ground.registration.wait(_READY_DEADLINE_S)
    seconds = time.monotonic() - begun
    done = ground.registration.progress
    figure = {"registered_bytes": done.registered_bytes, "size_bytes": done.size_bytes, "seconds": round(seconds, 4)}
    text = f"{format_size(done.registered_bytes)} of {format_size(done.size_bytes)} in {seconds:.2f} s"
    if done.registered_bytes == done.size_bytes:
        return Line(_SECTION, "registration", "ok", text, figure)
    advice = "maru doctor --gpu says what is in the way; copies take a detour through pinned memory"
    return Line(_SECTION, "registration", "improve", text, figure, advice)


def _to_gpu(ground: Ground) -> Line:
    """The CPU's chunks, loaded, then read back by way of pinned memory."""
    wrong = 0
    for number in range(CHUNKS):
        key = key_of("to", number)
        content = bytes_of(key, ground.chunk_bytes)
        outcome = ground.pool.put(key, content)
        with ground.pool.pin(key) as prefix:
            if outcome != Outcome.STORED or not len(prefix):
                wrong += 1
                continue
            offset = int.from_bytes(prefix.extents()[:8], "little")
            ground.copier.load(ground.rows(offset), prefix.views, ground.compute)
        ground.drain()
        wrong += ground.read_blocks() != content
    return _compared("pool to GPU", wrong, CHUNKS * ground.chunk_bytes)


def _from_gpu(ground: Ground) -> Line:
    """The GPU's chunks, stored, then read by the CPU."""
    keys = [key_of("from", number) for number in range(CHUNKS)]
    for key in keys:
        ground.store(key)
    ground.drain()
    wrong = 0
    for key in keys:
        view = ground.pool.get(key)
        wrong += view is None or bytes(view) != bytes_of(key, ground.chunk_bytes)
    return _compared("GPU to pool", wrong, CHUNKS * ground.chunk_bytes)


def _across(ground: Ground) -> Line:
    """One row across the edge of two registered pieces: it must arrive whole, in two copies."""
    size = ground.block_bytes
    edge = ground.registration.cut(0, ground.registration.size_bytes)[0].size_bytes
    offset = edge - size
    if offset + 2 * size > ground.registration.size_bytes:
        return Line(_SECTION, "across an edge", "ok", "the pool has one piece; nothing to cross", None)
    ground.copier.load([(offset, ground.blocks, 2 * size)], None, ground.compute)
    ground.drain()
    expected = ctypes.string_at(ground.registration.address + offset, 2 * size)
    return _compared("across an edge", int(ground.read_device(2 * size) != expected), 2 * size)


def _compared(name: str, wrong: int, size_bytes: int) -> Line:
    figure = {"bytes": size_bytes, "wrong": wrong}
    if wrong:
        advice = "do not use Maru with this GPU; report it with maru selftest gpu --json and maru doctor --gpu --json"
        return Line(_SECTION, name, "bad", f"{wrong} copies of {format_size(size_bytes)} arrived wrong", figure, advice)
    return Line(_SECTION, name, "ok", f"{format_size(size_bytes)}, every bit right", figure)


# ---- bandwidth ------------------------------------------------------------------------------------------------


def _measure(ground: Ground) -> Line:
    """A slab in rows of a block, from the pool and from the driver's own pinned memory, in turns."""
    draft = ground.pool.allocate(ground.slab_bytes // 2, device=True)
    if draft is None:
        return Line(_SECTION, "bandwidth", "improve", "the pool had no room to measure in", None)
    with draft:
        speeds = _speeds(ground, draft)
    shares = {way: speeds[f"pool_{way}"] / speeds[f"pinned_{way}"] for way in ("to_gpu", "from_gpu")}
    figure = {
        **{f"{name}_gb_per_s": round(speed, 3) for name, speed in speeds.items()},
        **{f"share_{way}": round(share, 3) for way, share in shares.items()},
    }
    text = ", ".join(
        f"{way.replace('_', ' ')} {speeds[f'pool_{way}']:.1f} GB/s ({share:.0%} of pinned memory)"
        for way, share in shares.items()
    )
    verdict: Verdict = "ok" if min(shares.values()) >= SHARE_GOOD else "improve"
    advice = "" if verdict == "ok" else "huge pages (medium=hugetlb), and a pool on the GPU's own NUMA node"
    return Line(_SECTION, "bandwidth", verdict, text, figure, advice)


def _speeds(ground: Ground, draft: Draft) -> dict[str, float]:
    """GB/s, the best of some rounds each."""
    size, block = draft.size, ground.block_bytes
    rows = [(draft.offset + at, ground.blocks + at, block) for at in range(0, size - block + 1, block)]
    pinned_in = [(ground.blocks + at, ground.pinned + at, block) for at in range(0, size - block + 1, block)]
    pinned_out = [(to, source, length) for source, to, length in pinned_in]
    ways: dict[str, Callable[[], object]] = {
        "pinned_to_gpu": lambda: ground.device.copy_to_device(pinned_in, ground.compute),
        "pool_to_gpu": lambda: ground.copier.load(rows, None, ground.compute),
        "pinned_from_gpu": lambda: ground.device.copy_to_host(pinned_out, ground.compute),
        "pool_from_gpu": lambda: ground.copier.store(rows, lambda _: None, ground.compute),
    }
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, copy in ways.items():
            begun = time.perf_counter()
            with ground.device.bound():
                copy()
            ground.copier.before_next_step(ground.compute)
            ground.finish(ground.compute)
            best[name] = min(best[name], time.perf_counter() - begun)
            ground.drain()
    return {name: len(rows) * block / seconds / 1e9 for name, seconds in best.items()}


# ---- deaths ---------------------------------------------------------------------------------------------------


def _kill(pool: Pool, ordinal: int, kills: int, tell: Tell) -> Line:
    result = kill_workers(pool, ordinal, kills, lambda done: tell("killing workers", done, kills))
    figure = result.document()
    text = f"{result.kills} workers killed while they stored, {result.chunks_checked:,} reads verified"
    if result.problem:
        return Line(_SECTION, "kills", "bad", result.problem, figure, "report it with maru selftest gpu --json")
    return Line(_SECTION, "kills", "ok", text, figure)
