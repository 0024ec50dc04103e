"""CPU time is counted without ticks, and of every process that a figure's processes started."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from maru.bench.usage import Reading, cpu_seconds, family, shares

# Starts a process of its session that outlives it, and says that one's number.
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=0, stdout=subprocess.DEVNULL)
print(child.pid, flush=True)
if sys.argv[1] == "stays":
    sys.stdin.read()
"""


def test_cpu_time_is_finer_than_a_tick() -> None:
    before = cpu_seconds([os.getpid()])
    begun = time.process_time()
    while time.process_time() - begun < 0.002:
        pass
    used = cpu_seconds([os.getpid()]) - before
    assert used >= 0.002
    assert used % 0.01 not in (0.0, 0.01)


def test_a_process_that_ended_took_no_time() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert cpu_seconds([process.pid]) == 0.0


def test_the_children_of_a_process_are_its_family() -> None:
    command = [sys.executable, "-c", PARENT, "stays"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        assert family([process.pid]) == {process.pid, child}
        assert child in family([os.getpid()])


def test_whom_init_has_taken_is_still_of_the_session_that_it_was_started_in() -> None:
    leader = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {PARENT!r}, 'goes']); sys.stdin.read()"
    command = [sys.executable, "-c", leader]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True) as process:
        assert process.stdout is not None
        orphan = int(process.stdout.readline())
        assert orphan in family([process.pid])


def test_what_others_take_is_what_is_busy_and_not_ours() -> None:
    before = Reading(wall=0.0, all=100.0, busy=40.0, stolen=0.0, ours=10.0)
    after = Reading(wall=5.0, all=110.0, busy=47.0, stolen=1.0, ours=15.0)
    assert shares(before, after) == (0.2, 0.1)
    assert shares(before, before) == (0.0, 0.0)
