"""The simplest store that can take part: a folder with a file for each chunk. It imports nothing of the pool."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from maru.bench.rivals.contract import Rival, RivalFailed, copy_out, insist_on, split


class ToyStore(Rival):
    """One file a chunk, named by its key; nothing is ever evicted."""

    _folder: Path

    def version(self) -> str:
        return f"toy, {'with' if 'maru.pool' in sys.modules else 'without'} a pool"

    def setup(self, place: Path, _capacity_bytes: int) -> str:
        print("whatever a store prints is no answer")
        self.attach(str(place))
        return str(place)

    def attach(self, address: str) -> None:
        self._folder = Path(address)

    def put(self, key: bytes, data: Any) -> None:
        (self._folder / f"{key.hex()}.tmp").write_bytes(data)
        (self._folder / f"{key.hex()}.tmp").rename(self._folder / key.hex())

    def get_view(self, key: bytes) -> Any:
        try:
            return memoryview((self._folder / key.hex()).read_bytes())
        except FileNotFoundError:
            raise RivalFailed("a chunk is missing") from None

    def release(self, _key: bytes, view: Any) -> None:
        view.release()

    def lookup(self, keys: bytes) -> int:
        found = [(self._folder / key.hex()).exists() for key in split(keys)]
        return found.index(False) if False in found else len(found)

    def read_into(self, keys: bytes, landing: Any) -> None:
        insist_on(self.lookup(keys), len(keys) // 16)
        copy_out([self.get_view(key) for key in split(keys)], landing)

    def teardown(self) -> None:
        """Its host takes the folder away."""


class ForgetfulStore(ToyStore):
    """Says that it stored everything, and has nothing."""

    def put(self, key: bytes, data: Any) -> None:
        pass
