"""Everything here runs against the real LMCache, in a virtual environment of its own (`make test` makes it)."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

import pytest

from engine_kit import model, pool_name, pool_of_module, text_ids

__all__ = ["model", "pool_name", "pool_of_module", "text_ids"]  # Fixtures of all tests here.

sys.path.append(str(Path(__file__).parents[1] / "daemon"))  # Hosts of their own are made there.
os.environ.setdefault("LMCACHE_TRACK_USAGE", "false")
os.environ.setdefault("LMCACHE_LOG_LEVEL", "ERROR")
os.environ.setdefault("MARU_LOG_LEVEL", "INFO")  # Else LMCache's level is ours too.

collect_ignore_glob = [] if importlib.util.find_spec("lmcache") else ["test_*.py"]

if not collect_ignore_glob and sys.flags.hash_randomization:
    # LMCache hashes tokens with Python's own hash(): this process and its children would never hit each other's chunks.
    pytest.exit("run this with PYTHONHASHSEED=0 in the environment, as `make test` does", returncode=4)
