"""Everything here runs against the real vLLM, in the virtual environment that `make engines` makes."""

from __future__ import annotations

import importlib.util
import itertools
import os
from collections.abc import Iterator

import pytest

import maru

collect_ignore_glob = [] if importlib.util.find_spec("vllm") else ["test_*.py"]

_numbers = itertools.count()


@pytest.fixture
def pool_name() -> Iterator[str]:
    """A name that no pool has yet; whatever got it is destroyed afterwards."""
    name = f"test-vllm-{os.getpid()}-{next(_numbers)}"
    yield name
    try:
        maru.Pool.destroy(f"maru:///{name}", force=True)
    except maru.MaruError:
        return


@pytest.fixture
def pool(pool_name: str) -> Iterator[maru.Pool]:
    """A small pool: 8 MiB in 16 slabs."""
    with maru.Pool.create(f"maru:///{pool_name}?size=8MiB&slots=1024&processes=32&populate=off") as made:
        yield made
