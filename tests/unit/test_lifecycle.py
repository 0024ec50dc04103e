"""A handle's life: open, close, threads, and figures. Forks, deaths and exits are in test_processes.py."""

from __future__ import annotations

import fcntl
import gc
import os
import pickle
import struct
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import maru
from maru import Outcome, errors
from maru.errors import NotAttached, NotReserved, PoolExists, PoolNotFound
from maru.testing.content import bytes_of, is_right, key_of

SIZE = 9_000
SPACE_BYTE = 2  # Of the lock file: held by the one process that makes space real.


def put(pool: maru.Pool, number: int, size: int = SIZE) -> Outcome:
    return pool.put(key_of(number), bytes_of(key_of(number), size))


# ---- opening ----


def test_open_creates_and_then_attaches(pool_url: str, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(PoolNotFound):
        maru.Pool.attach(pool_url)
    with maru.Pool.open(pool_url) as first, maru.Pool.open(pool_url) as second:
        assert put(first, 0) == Outcome.STORED
        assert second.lookup(key_of(0)) == 1
        assert first.stats()["uuid"] == second.stats()["uuid"]
    with maru.Pool.open(pool_url) as later:  # Nobody was attached meanwhile: the cache is still warm.
        assert later.lookup(key_of(0)) == 1
    assert caplog.messages == []


def test_create_refuses_what_exists_and_changes_nothing(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    with pytest.raises(PoolExists):
        maru.Pool.create(pool_url)
    assert pool.lookup(key_of(0)) == 1
    assert pool.check() == []


@pytest.mark.parametrize("asked", ["size=2MiB", "size=64MiB"])
def test_another_size_is_one_warning_with_both_sizes(
    pool: maru.Pool, pool_url: str, asked: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert pool.stats()["size_bytes"] == 8 << 20
    with maru.Pool.open(f"{pool_url.partition('?')[0]}?{asked}") as other:
        assert other.stats()["size_bytes"] == 8 << 20
    assert len(caplog.messages) == 1
    assert "8 MiB" in caplog.messages[0]
    assert asked.removeprefix("size=").replace("MiB", " MiB") in caplog.messages[0]


@pytest.mark.parametrize("query", ["", "?size=8MiB", "?size=8388608", "?size=8M&slots=7&processes=3"])
def test_the_same_size_or_none_is_no_warning(
    pool: maru.Pool, pool_url: str, query: str, caplog: pytest.LogCaptureFixture
) -> None:
    with maru.Pool.open(pool_url.partition("?")[0] + query) as other:
        assert other.stats()["size_bytes"] == pool.stats()["size_bytes"]
    assert caplog.messages == []


# ---- closing ----

CALLS: dict[str, Callable[[maru.Pool], object]] = {
    "lookup": lambda p: p.lookup(key_of(0)),
    "exists": lambda p: p.exists(key_of(0)),
    "pin": lambda p: p.pin(key_of(0)),
    "get": lambda p: p.get(key_of(0)),
    "wait": lambda p: p.wait(key_of(0), 0),
    "put": lambda p: p.put(key_of(0), b"x"),
    "put_many": lambda p: p.put_many(key_of(0), [b"x"]),
    "reserve": lambda p: p.reserve(key_of(0), 1),
    "reserve_many": lambda p: p.reserve_many(key_of(0), 1),
    "allocate": lambda p: p.allocate(1),
    "remove": lambda p: p.remove(key_of(0)),
    "reap": lambda p: p.reap(),
    "check": lambda p: p.check(),
    "stats": lambda p: p.stats(),
    "wait_ready": lambda p: p.wait_ready(0),
    "namespace": lambda p: p.namespace(maru.Identity(model="m", kv_layout="l")),
}


@pytest.mark.parametrize("call", CALLS)
def test_a_closed_handle_says_so_with_its_path(pool: maru.Pool, call: str) -> None:
    CALLS[call](pool)
    gc.collect()
    pool.close()
    assert pool.closed
    with pytest.raises(NotAttached) as refused:
        CALLS[call](pool)
    assert refused.value.path == pool.folder
    assert "closed" in repr(pool)


def test_closing_twice_and_leaving_a_with_block_after_close_is_fine(pool_url: str) -> None:
    with maru.Pool.create(pool_url) as pool:
        pool.close()
        pool.close()
    assert pool.closed
    with pytest.raises(RuntimeError, match="mine"), maru.Pool.attach(pool_url) as other:
        raise RuntimeError("mine")
    assert other.closed


def test_a_view_outlives_its_handle_and_keeps_its_pin(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    view = pool.get(key_of(0))
    assert view is not None
    array = np.frombuffer(view, dtype=np.uint8)
    pool.close()
    with maru.Pool.attach(pool_url) as other:
        assert not other.remove(key_of(0))
        assert len(other.stats()["processes"]) == 2
        del view
        assert array.tobytes() == bytes_of(key_of(0), SIZE)
        assert not other.remove(key_of(0))
        del array
        assert other.remove(key_of(0))
        assert len(other.stats()["processes"]) == 1
        assert other.reap() == 0
        assert other.check() == []


def test_a_pinned_prefix_outlives_its_handle(pool: maru.Pool, pool_url: str) -> None:
    for n in range(3):
        put(pool, n)
    prefix = pool.pin(key_of(0) + key_of(1) + key_of(2))
    pool.close()
    assert [is_right(key_of(n), view) for n, view in enumerate(prefix.views)] == [True] * 3
    with maru.Pool.attach(pool_url) as other:
        assert not other.remove(key_of(1))
        prefix.release()
        assert other.remove(key_of(1))
        assert other.check() == []


def test_a_reservation_and_a_draft_can_be_finished_after_close(pool: maru.Pool, pool_url: str) -> None:
    reservation, draft = pool.reserve(key_of(0), SIZE), pool.allocate(SIZE)
    assert draft is not None
    pool.close()
    reservation.buffer[:] = bytes_of(key_of(0), SIZE)
    draft.buffer[:] = bytes_of(key_of(1), SIZE)
    assert reservation.seal() == Outcome.STORED
    assert draft.publish(key_of(1)) == Outcome.STORED
    with maru.Pool.attach(pool_url) as other:
        assert len(other.stats()["processes"]) == 1  # What is finished holds nothing.
        for n in (0, 1):
            view = other.get(key_of(n))
            assert view is not None
            assert is_right(key_of(n), view)
        assert other.check() == []


def test_what_is_dropped_after_close_is_given_back(pool: maru.Pool, pool_url: str) -> None:
    reservation, draft, batch = pool.reserve(key_of(0), SIZE), pool.allocate(SIZE), pool.reserve_many(key_of(1), SIZE)
    array = np.frombuffer(reservation.buffer, dtype=np.uint8)
    pool.close()
    with maru.Pool.attach(pool_url) as other:
        assert other.put(key_of(0), b"x") == Outcome.IN_FLIGHT
        reservation.discard()
        with pytest.raises(NotReserved):
            reservation.seal()
        assert other.put(key_of(0), b"x") == Outcome.IN_FLIGHT  # The array could still write.
        array[:] = 1
        del array
        assert other.put(key_of(0), b"x") == Outcome.STORED
        del draft, batch
        assert other.put(key_of(1), b"x") == Outcome.STORED
        assert len(other.stats()["processes"]) == 1
        assert other.check() == []


def test_a_handle_that_is_dropped_detaches(pool: maru.Pool, pool_url: str) -> None:
    other = maru.Pool.attach(pool_url)
    assert len(pool.stats()["processes"]) == 2
    del other
    gc.collect()
    assert len(pool.stats()["processes"]) == 1


def hold_space(folder: str) -> int:
    """Keep every housekeeper from making space real, so that no pool there becomes ready. Close it to let go."""
    lock = os.open(f"{folder}/lock", os.O_RDWR)
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, SPACE_BYTE, 1, 0))
    return lock


@pytest.fixture
def unready_folder(pool_url: str) -> str:
    """A pool that was made without anybody making it ready."""
    config = maru.config.parse_url(pool_url)
    maru.config.secure_folder(config, create=True)
    maru.native.core.create_pool(
        folder=str(config.folder), size=8 << 20, segments=["segment-0"], medium="shm", slot_count=1024, process_limit=32
    )
    return str(config.folder)


def test_wait_ready_waits_no_longer_than_told_and_sees_the_end(unready_folder: str, pool_url: str) -> None:
    lock = hold_space(unready_folder)
    with maru.Pool.attach(pool_url) as pool:
        assert not pool.wait_ready(0)
        assert not pool.wait_ready(0.05)
        assert not pool.stats()["ready"]
        os.close(lock)
        assert pool.wait_ready(20)
        figures = pool.stats()
        assert figures["ready"]
        assert figures["real_bytes"] == figures["populated_bytes"] == figures["size_bytes"] == 8 << 20
        assert pool.wait_ready(0)


def test_closing_ends_another_threads_wait_ready_at_once(unready_folder: str, pool_url: str) -> None:
    lock = hold_space(unready_folder)
    pool = maru.Pool.attach(pool_url)
    ended: list[object] = []

    def wait() -> None:
        try:
            ended.append(pool.wait_ready(8))
        except NotAttached:
            ended.append(False)

    threads = [threading.Thread(target=wait) for _ in range(4)]
    for thread in threads:
        thread.start()
    while sum(thread.is_alive() for thread in threads) < 4:
        assert not ended
    begin, burnt = time.monotonic(), time.process_time()
    pool.close()
    for thread in threads:
        thread.join(20)
    os.close(lock)
    assert ended == [False] * 4
    assert time.monotonic() - begin < 4
    assert time.process_time() - burnt < 2  # Waiting, not spinning.


# ---- threads ----


def test_eight_threads_store_and_read_at_once(pool_url: str) -> None:
    with maru.Pool.create(pool_url + "&gate=off") as pool:
        eight_threads_store_and_read(pool)


def eight_threads_store_and_read(pool: maru.Pool) -> None:
    """Each key is stored by somebody and every reader sees the right bytes, while chunks are evicted all the time."""
    wrong: list[object] = []
    start = threading.Barrier(8)

    def work(seed: int) -> None:
        start.wait(20)
        for step in range(150):
            number = (step * 7 + seed * 13) % 300
            key = key_of(number)
            size = 20_000 + number * 300
            outcome = pool.put(key, bytes_of(key, size))
            if outcome not in (Outcome.STORED, Outcome.EXISTS, Outcome.IN_FLIGHT, Outcome.BUSY):
                wrong.append((outcome, number))
            view = pool.get(key_of((number + step) % 300))
            if view is not None and not is_right(key_of((number + step) % 300), view):
                wrong.append(("bytes", number))
            with pool.pin(key_of(number) + key_of((number + 1) % 300)) as prefix:
                for at, held in enumerate(prefix.views):
                    if not is_right(key_of((number + at) % 300), held):
                        wrong.append(("pinned bytes", number))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []
    counters = pool.stats()["counters"]
    assert counters["evicted"] > 0
    assert counters["stored"] > 300
    assert pool.check() == []
    assert pool.stats()["processes"][0]["pins"] == 0


def test_one_key_reserved_by_eight_threads_is_given_to_one(pool: maru.Pool) -> None:
    start = threading.Barrier(8)
    won: list[int] = []

    def compete(me: int) -> None:
        start.wait(20)
        for n in range(200):
            with pool.reserve(key_of(n), 2000) as r:
                if r.outcome == Outcome.RESERVED:
                    r.buffer[:] = bytes_of(key_of(n), 2000)
                    if r.seal() == Outcome.STORED:
                        won.append(n)
                else:
                    assert r.outcome in (Outcome.EXISTS, Outcome.IN_FLIGHT, Outcome.BUSY), me

    threads = [threading.Thread(target=compete, args=(me,)) for me in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(won) == list(range(200))
    assert pool.lookup(b"".join(key_of(n) for n in range(200))) == 200
    assert pool.check() == []


def test_closing_while_threads_work_ends_them_with_not_attached(pool: maru.Pool, pool_url: str) -> None:
    ends: list[type] = []
    started = threading.Barrier(9)

    def work(seed: int) -> None:
        data = bytes(100_000)
        started.wait(20)
        try:
            for n in range(1_000_000):
                pool.put(key_of(n % 50, str(seed)), data)
                pool.get(key_of(n % 50, str(seed)))
                pool.stats()
        except NotAttached:
            ends.append(NotAttached)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    started.wait(20)
    pool.stats()
    pool.close()
    for thread in threads:
        thread.join(60)
    assert ends == [NotAttached] * 8
    with maru.Pool.attach(pool_url) as other:
        assert len(other.stats()["processes"]) == 1
        assert other.check() == []


# ---- figures and errors ----


def test_stats_hold_every_documented_figure(pool: maru.Pool) -> None:
    ns = pool.namespace(maru.Identity(model="m", kv_layout="l", tenant="acme"), ttl=60)
    pool.put(key_of(0), bytes_of(key_of(0), SIZE), namespace=ns)
    view = pool.get(key_of(0))
    figures = pool.stats()
    for name in ("size_bytes", "real_bytes", "used_bytes", "chunk_bytes", "index_bytes", "unit_bytes", "slab_bytes"):
        assert isinstance(figures[name], int), name
        assert figures[name] > 0, name
    assert figures["chunk_bytes"] == SIZE
    assert figures["used_bytes"] == 12_288
    assert figures["chunks"]["sealed"] == figures["chunks"]["leaves"] == 1
    assert figures["chunks"]["free_slots"] + 1 == figures["chunks"]["slots"]
    assert set(figures["chunks"]) >= {"reserved", "evicting", "revoked", "releasing", "quarantined", "stale"}
    assert figures["counters"]["stored_bytes"] == SIZE
    assert [s["state"] for s in figures["segments"]] == ["ONLINE"]
    assert figures["classes"][0]["chunk_bytes"] == 12_288
    row = figures["namespaces"][1]
    assert (row["tenant"], row["chunks"], row["bytes"], row["ttl_ns"]) == ("acme", 1, SIZE, 60 * 10**9)
    process = figures["processes"][0]
    assert (process["pid"], process["alive"], process["pins"]) == (os.getpid(), True, 1)
    assert set(figures["eviction"]) >= {"slots_looked_at", "victims"}
    del view


def all_errors() -> list[type[errors.MaruError]]:
    found, todo = [], [errors.MaruError]
    while todo:
        kind = todo.pop()
        found.append(kind)
        todo.extend(kind.__subclasses__())
    return found


@pytest.mark.parametrize("kind", all_errors(), ids=lambda kind: kind.__name__)
def test_an_error_keeps_its_numbers_through_pickle(kind: type[errors.MaruError]) -> None:
    fields: dict[str, Any] = {"path": "/a/b", "wanted_bytes": 1 << 40, "free_bytes": -1, "process_limit": 2}
    copy = pickle.loads(pickle.dumps(kind("what happened", **fields)))
    assert type(copy) is kind
    assert {name: getattr(copy, name) for name in fields} == fields
    assert str(copy) == str(kind("what happened", **fields))
    assert copy.message == "what happened"


def test_an_error_of_the_native_core_keeps_its_numbers_through_pickle(pool: maru.Pool) -> None:
    with pytest.raises(errors.ChunkTooLarge) as refused:
        pool.reserve(key_of(0), 1 << 40)
    copy = pickle.loads(pickle.dumps(refused.value))
    assert type(copy) is errors.ChunkTooLarge
    assert (copy.wanted_bytes, copy.slab_bytes) == (1 << 40, 512 << 10)
    assert str(copy) == str(refused.value)
