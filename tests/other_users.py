"""Being another user for the length of one call. Only root can."""

from __future__ import annotations

import ctypes
import json
import os
import traceback
from collections.abc import Callable
from typing import Any

import pytest

PR_SET_DUMPABLE = 4

only_root = pytest.mark.skipif(os.getuid() != 0, reason="only root can be several users")


def as_user(uid: int, call: Callable[[], Any], gid: int | None = None) -> Any:
    """What `call` returns (JSON) in a forked child that has become this user, of no other group than `gid`.

    An exception in the child is a failure here, with its words.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            os.setgroups([])
            os.setgid(uid if gid is None else gid)
            os.setuid(uid)
            # The kernel hides /proc/self from who changed its user, as if it were a setuid program.
            ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)
            told = {"value": call()}
        except BaseException:
            told = {"failure": traceback.format_exc()}
        os.write(writing, json.dumps(told).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        told = json.loads(pipe.read() or '{"failure": "the child said nothing"}')
    os.waitpid(child, 0)
    assert "failure" not in told, told["failure"]
    return told["value"]
