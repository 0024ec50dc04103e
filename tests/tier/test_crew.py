"""Threads for calls that may never return."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import weakref

from maru.tier.crew import Crew

HANGS = """
import threading
from maru.tier.crew import Crew
crew, has_begun = Crew("hangs", 2), threading.Event()
def hang():
    has_begun.set()
    threading.Event().wait()
crew.submit(hang)
has_begun.wait()
crew.end(patience_s=0.0)
print("the end")
"""


class Held:
    """Something that can be seen to be let go of."""


def test_a_crew_does_what_it_is_given_and_tells_what_went_wrong() -> None:
    crew = Crew("does", 3)
    assert [crew.submit(divmod, n, 3).result(60) for n in range(10)] == [divmod(n, 3) for n in range(10)]
    assert isinstance(crew.submit(divmod, 1, 0).exception(60), ZeroDivisionError)
    crew.end(60)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("does")]


def test_a_job_that_was_cancelled_before_its_turn_is_not_begun() -> None:
    crew, may_end, done = Crew("cancels", 1), threading.Event(), []
    first = crew.submit(may_end.wait, 60)
    second, third = crew.submit(done.append, 2), crew.submit(done.append, 3)
    assert second.cancel()
    may_end.set()
    third.result(60)
    assert (first.result(), done) == (True, [3])
    crew.end(60)


def test_nothing_of_a_job_is_held_when_it_is_over() -> None:
    crew = Crew("holds", 1)
    gc.disable()
    try:
        for job in (id, divmod):  # One that goes well, and one that does not.
            held = Held()
            gone = weakref.ref(held)
            crew.submit(job, held).exception(60)
            crew.submit(int).result(60)  # The thread has turned to another.
            del held
            assert gone() is None
    finally:
        gc.enable()
        crew.end(60)


def test_a_call_that_never_returns_does_not_keep_the_process_from_ending() -> None:
    told = subprocess.run([sys.executable, "-c", HANGS], capture_output=True, text=True, timeout=120, check=True)
    assert told.stdout == "the end\n"
