"""The folder that a native driver makes its pool in."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def pool_folder() -> Iterator[Path]:
    """An empty folder on shared memory; gone after the test, with whatever is in it."""
    place = Path(f"/dev/shm/maru-{os.getuid()}")
    place.mkdir(mode=0o700, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=f"test-{os.getpid()}-native-", dir=place))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)
