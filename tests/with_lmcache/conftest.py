"""Everything here runs against the real LMCache, in a virtual environment of its own (`make test` makes it)."""

from __future__ import annotations

import importlib.util
import itertools
import os
import sys
from collections.abc import Iterator

import pytest

import maru

os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
os.environ.setdefault("MARU_LOG_LEVEL", "INFO")  # Else LMCache's level is ours too.

collect_ignore_glob = [] if importlib.util.find_spec("lmcache") else ["test_*.py"]

if not collect_ignore_glob and sys.flags.hash_randomization:
    # LMCache hashes tokens with Python's own hash(): this process and its children would never hit each other's chunks.
    pytest.exit("run this with PYTHONHASHSEED=0 in the environment, as `make test` does", returncode=4)

_numbers = itertools.count()


@pytest.fixture
def pool_name() -> Iterator[str]:
    """A name that no pool has yet; whatever got it is destroyed afterwards."""
    name = f"test-lmcache-{os.getpid()}-{next(_numbers)}"
    yield name
    try:
        maru.Pool.destroy(f"maru:///{name}", force=True)
    except maru.MaruError:
        return
