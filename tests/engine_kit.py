"""What tests with whole serving engines share: a real model, real text, and names of pools.

Imported by the conftest of each folder of such tests; they run in the environment that `make engines` makes.
"""

from __future__ import annotations

import argparse
import inspect
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import maru
from maru.demo.model import ensure_model
from maru.errors import PoolNotFound
from pools import with_force_gone

ROOT = Path(__file__).parents[1]

_numbers = itertools.count()


@pytest.fixture
def pool_name() -> Iterator[str]:
    """A name that no pool has yet; whatever got it is destroyed afterwards."""
    name = f"test-engines-{os.getpid()}-{next(_numbers)}"
    yield name
    with_force_gone(f"maru:///{name}")


@pytest.fixture(scope="module")
def pool_of_module() -> Iterator[str]:
    """The same for all tests of a module."""
    name = f"test-engines-{os.getpid()}-{next(_numbers)}"
    yield name
    with_force_gone(f"maru:///{name}")


@pytest.fixture(scope="session")
def model() -> Path:
    """A real trained model's folder; fetched when nothing fetched it before."""
    return ensure_model(Path(os.environ.get("MARU_DEMO_CACHE", ROOT / ".cache")))


@pytest.fixture(scope="session")
def text_ids(model: Path) -> list[int]:
    """Tokens of real source code: enough for many prompts."""
    from tokenizers import Tokenizer

    source = inspect.getsource(argparse) + inspect.getsource(json.decoder) + inspect.getsource(inspect)
    return list(Tokenizer.from_file(str(model / "tokenizer.json")).encode(source).ids)


def stored(pool_name: str) -> int:
    """How many chunks were ever stored in this pool, if it is there already."""
    try:
        return settled(pool_name, 0)
    except PoolNotFound:
        return 0


def settled(pool_name: str, more: int, before: int = 0) -> int:
    """Engines store in the background: wait, with a deadline, until so many chunks came; how many there are then."""
    with maru.Pool.attach(f"maru:///{pool_name}") as pool:
        for _ in range(15_000):
            count: int = pool.stats()["counters"]["stored"]
            if count >= before + more:
                return count
            pool.wait(b"nobody's".ljust(16), 0.002)
    raise AssertionError(f"{more} chunks were never stored")
