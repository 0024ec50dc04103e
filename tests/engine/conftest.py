"""Pools and a model for the tests of the engine doors. Nothing here is downloaded."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from typing import Any

import pytest

import maru
from maru.errors import PoolNotFound

_numbers = itertools.count()


@pytest.fixture
def pool_url() -> Iterator[str]:
    """A pool that exists for one test."""
    url = f"maru:///test-engine-{os.getpid()}-{next(_numbers)}?size=64MiB"
    maru.Pool.create(url).close()
    yield url
    with contextlib.suppress(PoolNotFound):  # Some tests destroy it themselves.
        maru.Pool.destroy(url, force=True)


@pytest.fixture
def pool(pool_url: str) -> Iterator[maru.Pool]:
    with maru.Pool.attach(pool_url) as attached:
        yield attached


@pytest.fixture(scope="session")
def model() -> Any:
    # Imported here, so that the tests which need no torch run without it.
    from tiny_llama import build_llama

    return build_llama()
