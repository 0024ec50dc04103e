"""Fixtures for tests of the drop-in handler."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from handler_kit import config

from maru import MaruHandler


@pytest.fixture
def handler(pool_url: str) -> Iterator[MaruHandler]:
    """Connected; the pool is made with it."""
    with MaruHandler(config(pool_url)) as connected:
        assert connected.connected
        yield connected


@pytest.fixture
def other(pool_url: str, handler: MaruHandler) -> Iterator[MaruHandler]:
    """A second one on the same pool."""
    with MaruHandler(config(pool_url)) as connected:
        yield connected
