"""Fork, spawn, exits and deaths: no process leaves anything behind, and none is taken for another."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import pytest

import maru
from maru import Outcome
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import Victim, spawn

SIZE = 9_000
WAIT_LIMIT_S = 20.0


def put(pool: maru.Pool, number: int, size: int = SIZE) -> Outcome:
    return pool.put(key_of(number), bytes_of(key_of(number), size))


def reap_until(pool: maru.Pool, alive: int) -> None:
    """Clean up until only so many processes are left; the housekeeper may be faster."""
    deadline = time.monotonic() + WAIT_LIMIT_S
    while len(pool.stats()["processes"]) > alive:
        assert time.monotonic() < deadline, "a death went unnoticed"
        pool.reap()


def assert_nothing_is_left(pool: maru.Pool) -> None:
    pool.reap()
    assert pool.check() == []
    figures = pool.stats()
    assert [p["pid"] for p in figures["processes"]] == [os.getpid()]
    chunks = figures["chunks"]
    assert chunks["reserved"] + chunks["revoked"] + chunks["evicting"] + chunks["releasing"] == 0


def told(process: Victim) -> Any:
    return json.loads(process.line())


# ---- fork ----


def fork_a_reader(url: str) -> None:
    """The child uses the inherited handle, and what it inherited; the parent looks what became of its own."""
    pool = maru.Pool.attach(url)
    view = pool.get(key_of(0))
    reservation = pool.reserve(key_of(1), SIZE)
    draft = pool.allocate(SIZE)
    prefix = pool.pin(key_of(0))
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        fresh = pool.get(key_of(0))
        answer: dict[str, object] = {
            "lookup": pool.lookup(key_of(0)),
            "right": fresh is not None and is_right(key_of(0), fresh),
            "rival": str(pool.put(key_of(1), b"x")),
            "stored": str(put(pool, 2)),
            "pids": sorted(p["pid"] for p in pool.stats()["processes"]) == sorted([os.getppid(), os.getpid()]),
        }
        for name, act in (("seal", reservation.seal), ("views", lambda: prefix.views)):
            try:
                answer[name] = str(act())
            except (maru.MaruError, ValueError) as error:
                answer[name] = type(error).__name__
        prefix.release()
        del reservation, draft, view, prefix, fresh
        pool.close()
        os.write(into, json.dumps(answer).encode())
        os._exit(0)
    os.close(into)
    child = json.loads(os.read(out, 10_000))
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert view is not None
    parent = {
        "view": is_right(key_of(0), view),
        "pinned": not pool.remove(key_of(0)),
        "lookup": pool.lookup(key_of(2)),
        "processes": len(pool.stats()["processes"]),
    }
    prefix.release()
    del view
    parent["unpinned"] = pool.remove(key_of(0))
    reservation.buffer[:] = bytes(SIZE)
    parent["seal"] = str(reservation.seal())
    print(json.dumps([status, child, parent, pool.check()]), flush=True)


def test_a_forked_child_attaches_by_itself_and_disturbs_nobody(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    pool.close()
    with spawn(fork_a_reader, pool_url) as parent:
        status, child, figures, findings = told(parent)
        assert parent.wait() == 0
    assert status == 0
    assert child == {
        "lookup": 1, "right": True, "rival": "Outcome.IN_FLIGHT", "stored": "Outcome.STORED", "pids": True,
        "seal": "NotReserved", "views": "ValueError",
    }  # fmt: skip
    assert figures == {
        "view": True, "pinned": True, "lookup": 1, "processes": 1, "unpinned": True, "seal": "Outcome.STORED",
    }  # fmt: skip
    assert findings == []


def fork_and_touch(url: str, what: str) -> None:
    pool = maru.Pool.attach(url)
    view = pool.get(key_of(0))
    array = memoryview(pool.reserve(key_of(1), SIZE).buffer)
    assert view is not None
    pid = os.fork()
    if pid == 0:
        if what.endswith("after attaching"):
            assert pool.lookup(key_of(0)) == 1
            others = [pool.get(key_of(0)) for _ in range(20)]
            assert all(others)
        if what.startswith("view"):
            bytes(view)
        else:
            array[0] = 1
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    pool.reap()
    print(json.dumps([status, is_right(key_of(0), view), pool.check()]), flush=True)


@pytest.mark.parametrize("what", ["view", "buffer", "view, after attaching", "buffer, after attaching"])
def test_inherited_memory_faults_rather_than_lies(pool: maru.Pool, pool_url: str, what: str) -> None:
    put(pool, 0)
    pool.close()
    with spawn(fork_and_touch, pool_url, what) as parent:
        assert told(parent) == [-signal.SIGSEGV, True, []]


def fork_and_die(url: str) -> None:
    """The child says that it holds a view; the parent kills itself; the child reads on."""
    pool = maru.Pool.attach(url)
    inherited = pool.get(key_of(0))
    out, into = os.pipe()
    if os.fork() == 0:
        os.close(out)
        view = pool.get(key_of(0))
        os.write(into, b"ready")
        input()  # Until the parent is gone and somebody says so.
        assert view is not None
        answer = [
            is_right(key_of(0), view),
            pool.lookup(key_of(0)),
            pool.remove(key_of(0)),
            pool.reap() <= 1,
            pool.check(),
        ]
        print(json.dumps(answer), flush=True)
        os._exit(0)
    os.read(out, 5)
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
    del inherited


def test_a_parents_death_does_not_disturb_its_child(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    with spawn(fork_and_die, pool_url) as parent:
        assert parent.line() == "ready"
        assert parent.wait() == -signal.SIGKILL
        reap_until(pool, alive=2)
        assert not pool.remove(key_of(0))  # The child's pin.
        parent.tell("go on")
        assert told(parent) == [True, 1, False, True, []]
        reap_until(pool, alive=1)
    assert_nothing_is_left(pool)


# ---- multiprocessing ----


def store_one(url: str, number: int) -> None:
    with maru.Pool.attach(url) as pool:
        assert put(pool, number) == Outcome.STORED


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_of_multiprocessing_share_the_pool(pool: maru.Pool, pool_url: str, method: str) -> None:
    context: Any = multiprocessing.get_context(method)
    workers = [context.Process(target=store_one, args=(pool_url, n)) for n in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0] * 3
    assert pool.lookup(b"".join(key_of(n) for n in range(3))) == 3
    assert_nothing_is_left(pool)


# ---- staying alive ----


def close_all_files(url: str) -> None:
    pool = maru.Pool.attach(url)
    view = pool.get(key_of(0))
    os.closerange(3, 4096)
    print("closed", flush=True)
    input()
    assert view is not None
    print(json.dumps([is_right(key_of(0), view), str(put(pool, 1)), pool.check()]), flush=True)


def test_closing_every_file_does_not_make_a_process_look_dead(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    with spawn(close_all_files, pool_url) as other:
        assert other.line() == "closed"
        assert pool.reap() == 0
        assert [p["alive"] for p in pool.stats()["processes"]] == [True, True]
        assert not pool.remove(key_of(0))
        other.tell("go on")
        assert told(other) == [True, "Outcome.STORED", []]
        assert other.wait() == 0
    assert_nothing_is_left(pool)


def hold(url: str) -> None:
    """Hold a pin, a reservation and a draft; end when told, however that is."""
    pool = maru.Pool.attach(url)
    held = pool.pin(key_of(0)), pool.reserve(key_of(1), SIZE), pool.allocate(SIZE)
    print("holds", os.getpid(), flush=True)
    if input() == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    del held


def test_a_process_in_another_pid_namespace_is_alive_until_it_dies(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    code = f"import test_processes as t; t.hold({pool_url!r})"
    for how in (["unshare", "-p", "-f"], ["unshare", "-rpf"], []):
        # Its shell is the namespace's first process; the one that holds is an ordinary one, which can be killed.
        process = subprocess.Popen(
            [*how, "sh", "-c", '"$@"; true', "sh", sys.executable, "-c", code], text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            env=dict(os.environ, PYTHONPATH=os.pathsep.join(p for p in sys.path if p)),
        )  # fmt: skip
        with Victim(process) as other:
            said = other.line().split()
            if not said and how:
                continue  # Not permitted here. Without a namespace the pid is at least not our child's.
            assert said[0] == "holds"
            if how:
                assert int(said[1]) < 10  # Its own count, which means somebody else here.
            assert pool.reap() == 0
            assert [p["alive"] for p in pool.stats()["processes"]] == [True, True]
            assert not pool.remove(key_of(0))
            assert pool.put(key_of(1), b"x") == Outcome.IN_FLIGHT
            other.tell("die")
            reap_until(pool, alive=1)
            assert pool.remove(key_of(0))
            assert pool.put(key_of(1), b"x") == Outcome.STORED
            assert_nothing_is_left(pool)
            return
    pytest.fail("no process could be started at all")


def test_what_a_killed_process_held_is_free_again(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    used_bytes = pool.stats()["used_bytes"]
    with spawn(hold, pool_url) as other:
        assert other.line().startswith("holds")
        assert not pool.remove(key_of(0))
        assert pool.put(key_of(1), b"x") == Outcome.IN_FLIGHT
        other.kill()
    assert pool.put(key_of(1), b"x") == Outcome.STORED  # At once: whoever meets the word of a dead process resolves it.
    assert pool.remove(key_of(1))
    reap_until(pool, alive=1)
    assert pool.stats()["used_bytes"] == used_bytes
    assert pool.remove(key_of(0))
    assert_nothing_is_left(pool)


def test_twenty_deaths_one_after_another_leave_nothing(pool: maru.Pool, pool_url: str) -> None:
    put(pool, 0)
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            held = pool.get(key_of(0)), pool.reserve(key_of(1), SIZE), pool.allocate(200_000)
            os.kill(os.getpid(), signal.SIGKILL)
            del held
        os.waitpid(pid, 0)
    assert pool.put(key_of(1), b"x") == Outcome.STORED
    assert_nothing_is_left(pool)
    assert pool.remove(key_of(0))


# ---- exits ----


def busy(pool: maru.Pool, what: str, seed: int, started: threading.Barrier) -> None:
    data = bytes(300_000)
    started.wait(WAIT_LIMIT_S)
    n = 0
    while True:
        n += 1
        key = key_of(n % 50, str(seed))
        if what == "put":
            pool.put(key, data)
        elif what == "put_many":
            pool.put_many(key + key_of(n % 50, "b"), [data, data])
        elif what == "get":
            view = pool.get(key_of(0))
            assert view is not None
            bytes(view[:100])
        elif what == "reserve":
            with pool.reserve(key, len(data)) as r:
                if r.outcome == Outcome.RESERVED:
                    r.buffer[:] = data
                    r.seal()
        elif what == "wait":
            pool.wait(key_of(1), 0.0005)
        elif what == "stats":
            pool.stats()
        elif what == "reap":
            pool.reap()
        else:
            pool.check()


KINDS = ["put", "put_many", "get", "reserve", "wait", "stats", "reap", "check"]


def leave_busy(url: str, what: str) -> None:
    """End the interpreter while daemon threads are inside the core."""
    pool = maru.Pool.attach(url)
    held = pool.get(key_of(0)), pool.reserve(key_of(1), SIZE)
    started = threading.Barrier(9)
    for seed in range(8):
        threading.Thread(target=busy, args=(pool, what, seed, started), daemon=True).start()
    started.wait(WAIT_LIMIT_S)
    for _ in range(20):
        pool.lookup(key_of(0))
        os.sched_yield()
    globals()["kept"] = held  # Dies with the module, as late as possible.


@pytest.mark.parametrize("what", KINDS)
def test_an_interpreter_ends_quietly_while_daemon_threads_are_busy(pool_url: str, what: str) -> None:
    with maru.Pool.create(pool_url) as pool:
        assert pool.wait_ready(WAIT_LIMIT_S)
        put(pool, 0)
        for attempt in range(3):
            with spawn(leave_busy, pool_url, what) as other:
                assert other.wait() == 0, f"attempt {attempt}"
            reap_until(pool, alive=1)
            assert_nothing_is_left(pool)


def leave(url: str, how: str) -> None:
    """End with live views, a reservation, a draft and a batch, in one way or another."""
    pool = maru.Pool.attach(url)
    kept = {
        "view": pool.get(key_of(0)), "prefix": pool.pin(key_of(0)), "reservation": pool.reserve(key_of(1), SIZE),
        "draft": pool.allocate(SIZE), "batch": pool.reserve_many(key_of(2), SIZE), "pool": pool,
        "array": memoryview(pool.reserve(key_of(3), SIZE).buffer),
    }  # fmt: skip
    kept["cycle"] = kept
    if how == "module global":
        globals()["kept"] = kept
    elif how == "builtins":
        import builtins

        builtins.kept = kept  # type: ignore[attr-defined]
    elif how == "os._exit":
        os._exit(0)
    elif how == "SystemExit":
        raise SystemExit(0)
    elif how == "in a thread":
        thread = threading.Thread(target=lambda: kept["view"] is not None and os._exit(0))
        thread.start()
        thread.join()
    elif how == "closed first":
        globals()["kept"] = kept
        pool.close()
    elif how == "atexit":
        import atexit

        atexit.register(lambda: (pool.lookup(key_of(0)), pool.close(), kept.clear()))
    print("ends", flush=True)


@pytest.mark.parametrize(
    "how", ["return", "module global", "builtins", "os._exit", "SystemExit", "in a thread", "closed first", "atexit"]
)
def test_an_interpreter_ends_quietly_with_all_it_holds(pool_url: str, how: str) -> None:
    with maru.Pool.create(pool_url) as pool:
        put(pool, 0)
        with spawn(leave, pool_url, how) as other:
            assert other.wait() == 0
        reap_until(pool, alive=1)
        for n in (1, 2, 3):
            assert put(pool, n) == Outcome.STORED
        assert pool.remove(key_of(0))
        assert_nothing_is_left(pool)


def test_the_next_process_finds_the_pool_clean_after_the_last_one_was_killed(pool_url: str) -> None:
    with maru.Pool.create(pool_url) as pool:
        put(pool, 0)
    with spawn(hold, pool_url) as other:
        assert other.line().startswith("holds")
        other.kill()
    with maru.Pool.open(pool_url) as pool:
        assert pool.lookup(key_of(0)) == 1
        assert_nothing_is_left(pool)
        assert pool.remove(key_of(0))
