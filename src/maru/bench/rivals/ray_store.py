"""Ray's object store: `ray.put`, `ray.get` of numpy arrays without a copy, and a named actor that knows which key is
which object, since the store itself has no keys of ours.

The actor holds the references and drops the oldest, so that Ray frees them instead of spilling them to a disk.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np
import ray

from maru.bench.rivals import contract
from maru.bench.rivals.contract import KEY_BYTES, Array, Rival, RivalFailed, copy_out, insist_on, split

NAMESPACE, ACTOR = "maru-bench", "directory"
# Ray frees a dropped object a little later, and spills when the store is full: this much of it is used.
SHARE_USED = 0.75
CORES = 2


class Directory:
    """The actor: keys to references."""

    def __init__(self, capacity_bytes: int) -> None:
        self._capacity = capacity_bytes
        self._bytes = 0
        self._refs: dict[bytes, list[Any]] = {}
        self._order: deque[tuple[bytes, int]] = deque()

    def commit(self, key: bytes, boxed: list[Any], size: int) -> bool:
        """Remember a reference; the box keeps Ray from fetching the object for us."""
        if key in self._refs:
            return False
        self._refs[key] = boxed
        self._order.append((key, size))
        self._bytes += size
        while self._bytes > self._capacity:
            oldest, freed = self._order.popleft()
            del self._refs[oldest]
            self._bytes -= freed
        return True

    def lookup(self, keys: bytes) -> int:
        """How many leading keys are there."""
        for number, at in enumerate(range(0, len(keys), KEY_BYTES)):
            if keys[at : at + KEY_BYTES] not in self._refs:
                return number
        return len(keys) // KEY_BYTES

    def find(self, keys: bytes) -> list[Any]:
        """The references of the leading run."""
        return [self._refs[key][0] for key in split(keys)[: self.lookup(keys)]]


class RayStore(Rival):
    """A driver; the host starts the cluster of one node, other drivers join it."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def version(self) -> str:
        return f"ray {ray.__version__}, num_cpus={CORES}, object store 1/{SHARE_USED} of the capacity, one named actor"

    def setup(self, _place: Path, capacity_bytes: int) -> str:
        # Sockets have short names, so Ray's folder lies where names are short.
        self._folder = Path(tempfile.mkdtemp(prefix="maru-ray-"))
        context = ray.init(
            num_cpus=CORES,
            object_store_memory=int(capacity_bytes / SHARE_USED),
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            namespace=NAMESPACE,
            _node_ip_address="127.0.0.1",
            _temp_dir=str(self._folder),
        )
        # Ray's workers have none of our modules: what the actor is made of goes to them by value.
        for name in (__name__, contract.__name__):
            ray.cloudpickle.register_pickle_by_value(sys.modules[name])
        actor = ray.remote(num_cpus=0)(Directory)
        self._use(actor.options(name=ACTOR).remote(capacity_bytes))
        return str(context.address_info["address"])

    def attach(self, address: str) -> None:
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level="ERROR")
        self._use(ray.get_actor(ACTOR))

    def _use(self, directory: Any) -> None:
        self._commit, self._lookup, self._find = directory.commit, directory.lookup, directory.find

    def put(self, key: bytes, data: Array) -> None:
        reference = ray.put(data)
        if not ray.get(self._commit.remote(key, [reference], data.nbytes)):
            raise RivalFailed("a chunk was not stored")

    def get_view(self, key: bytes) -> Any:
        references = ray.get(self._find.remote(key))
        insist_on(len(references), 1)
        return ray.get(references[0])

    def release(self, _key: bytes, _view: Any) -> None:
        """Nothing to do: the last reference to the array gives it back."""

    def lookup(self, keys: bytes) -> int:
        count: int = ray.get(self._lookup.remote(keys))
        return count

    def read_into(self, keys: bytes, landing: Array) -> None:
        references = ray.get(self._find.remote(keys))
        insist_on(len(references), len(keys) // KEY_BYTES)
        copy_out([np.asarray(array) for array in ray.get(references)], landing)

    def teardown(self) -> None:
        ray.shutdown()
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
