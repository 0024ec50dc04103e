"""Fixtures for tests of GPU copies: a fake CUDA driver in this process, and everything a worker would have on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rig import POOL, Rig

import maru
from fake_gpu import Fake, fake, loaded_fake

__all__ = ["fake", "loaded_fake"]  # Fixtures of all tests here.


@pytest.fixture
def gpu_pool(pool_url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(pool_url.partition("?")[0] + POOL) as pool:
        assert pool.wait_ready(20)
        yield pool


@pytest.fixture
def rig(fake: Fake, gpu_pool: maru.Pool) -> Iterator[Rig]:
    with Rig(fake, gpu_pool) as made:
        yield made
