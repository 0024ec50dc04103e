"""Fixtures for all tests: pools that vanish with their test, and a house that is clean at the end."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator

import pytest

import maru
from pools import with_force_gone

_numbers = itertools.count()

SMALL_POOL = "?size=8MiB&slots=1024&processes=32"


@pytest.fixture
def pool_url() -> Iterator[str]:
    """The URL of a pool that nobody has made yet; destroyed afterwards."""
    url = f"maru:///test-{os.getpid()}-{next(_numbers)}{SMALL_POOL}"
    yield url
    with_force_gone(url)


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    """A small pool, created and ready."""
    with maru.Pool.create(pool_url) as fresh:
        assert fresh.wait_ready(20)
        yield fresh
