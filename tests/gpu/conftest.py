"""Fixtures for tests of GPU copies: a fake CUDA driver in this process, and everything a worker would have on it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from rig import POOL, Rig

import maru
from fake_gpu import Fake, build


@pytest.fixture(scope="session")
def loaded_fake(tmp_path_factory: pytest.TempPathFactory) -> Fake:
    return Fake(build(tmp_path_factory.mktemp("fake_cuda")))


@pytest.fixture
def fake(loaded_fake: Fake) -> Iterator[Fake]:
    """A driver that nobody has used; at the end nobody did what a real one would have crashed on."""
    loaded_fake.reset()
    yield loaded_fake
    assert loaded_fake.violations == []


@pytest.fixture
def gpu_pool(pool_url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(pool_url.partition("?")[0] + POOL) as pool:
        assert pool.wait_ready(20)
        yield pool


@pytest.fixture
def rig(fake: Fake, gpu_pool: maru.Pool) -> Iterator[Rig]:
    with Rig(fake, gpu_pool) as made:
        yield made
