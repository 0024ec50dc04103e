"""What arrives over the wire finds memory that is there already, unless somebody has tuned the allocator."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest

from maru.message_memory import KEPT_BYTES, MAPPED_BYTES

FAULTS = """
    import ctypes, resource
    from maru.message_memory import keep_message_memory
    if not keep_message_memory():
        raise SystemExit("not glibc's")
    process = ctypes.CDLL(None)
    process.malloc.restype = ctypes.c_void_p
    def message():
        at = process.malloc(ctypes.c_size_t(1 << 20))
        ctypes.memset(ctypes.c_void_p(at), 1, 1 << 20)
        process.free(ctypes.c_void_p(at))
    for _ in range(3):
        message()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        message()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def told_by(code: str, **more: str) -> str:
    plain = {name: value for name, value in os.environ.items() if "MALLOC" not in name and "GLIBC" not in name}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=plain | more, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_memory_of_a_message_is_used_for_the_next_one() -> None:
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        pytest.skip("the sanitizer's allocator is not glibc's")
    assert int(told_by(FAULTS)) < 50, "less than a page of each"


@pytest.mark.parametrize(
    "tuned",
    [{"MALLOC_TRIM_THRESHOLD_": "131072"}, {"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}],
    ids=["variable", "tunable"],
)
def test_whoever_tuned_the_allocator_is_left_alone(tuned: dict[str, str]) -> None:
    ask = "from maru.message_memory import keep_message_memory; print(keep_message_memory())"
    assert told_by(ask, **tuned) == "False"


def test_what_is_kept_is_more_than_what_a_client_has_under_way() -> None:
    from maru import wire
    from maru.client.channel import WINDOW

    largest = wire.BODY_BYTES_MAX + wire.HEADER_BYTES_MAX
    assert largest < MAPPED_BYTES
    assert WINDOW * largest < KEPT_BYTES
