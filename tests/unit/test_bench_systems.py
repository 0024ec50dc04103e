"""What every system of the engine `synthetic` promises: another process reads what one stored, bit by bit; a process
that dies is noticed and replaced; and nothing outlives the deployment. No time is asserted.

Stores that are not installed here are left out, and the report says so.
"""

from __future__ import annotations

import os
import select
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from maru.bench import usage
from maru.bench.rivals import install
from maru.bench.rivals.contract import Rival, RivalFailed
from maru.bench.rivals.files_store import FilesStore
from maru.bench.rivals.roster import Entry
from maru.bench.systems import roster, stores
from maru.bench.systems.contract import Deployment, Job, SystemFailed
from maru.config import shared_memory_root

MIB = 1 << 20
CHUNK_TOKENS = 16
CHUNKS = 3
PATIENCE_S = 30
PROMPT = list(range(CHUNKS * CHUNK_TOKENS + 5))
JOB_CAPACITY_BYTES = 128 * MIB  # The least that the pool's slabs allow.


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Job]:
    """Chunks of 64 KiB, and little to cut them from."""
    monkeypatch.setattr(stores, "SOURCE_BYTES", MIB)
    memory = Path(tempfile.mkdtemp(prefix=f"maru-test-{os.getpid()}-", dir=shared_memory_root().parent))
    yield Job(
        folder=tmp_path, memory=memory, model_name="toy", model=None, token_bytes=4096, chunk_tokens=CHUNK_TOKENS,
        context_tokens_max=8 * CHUNK_TOKENS, capacity_bytes=JOB_CAPACITY_BYTES,
    )  # fmt: skip
    shutil.rmtree(memory)


@pytest.fixture(params=stores.SYSTEMS, ids=lambda system: system.name)
def system(request: pytest.FixtureRequest) -> stores.StoreSystem:
    found: stores.StoreSystem = request.param
    if reason := found.why_not():
        pytest.skip(reason)
    return found


def with_two(system: stores.StoreSystem, job: Job) -> Deployment:
    """Two replicas, both ready."""
    deployment = system.deploy(job)
    for _ in range(2):
        deployment.add().learn(PROMPT)
    return deployment


def test_another_process_loads_every_byte_that_one_stored(system: stores.StoreSystem, job: Job) -> None:
    with with_two(system, job) as deployment:
        a, b = deployment.replicas
        stored = a.ask(PROMPT)
        assert (stored.cached_tokens, stored.stored_bytes) == (0, CHUNKS * job.chunk_bytes)
        loaded = b.ask(PROMPT)
        assert loaded.cached_tokens == CHUNKS * CHUNK_TOKENS
        assert (loaded.compared, loaded.wrong) == (CHUNKS, 0)
        assert deployment.version()


def test_a_replica_that_was_killed_fails_and_its_successor_hits(system: stores.StoreSystem, job: Job) -> None:
    with with_two(system, job) as deployment:
        deployment.replicas[0].ask(PROMPT)
        victim = deployment.replicas[1]
        victim.kill()
        assert not victim.is_alive()
        with pytest.raises(SystemFailed):
            victim.ask(PROMPT)
        successor = deployment.restart(1)
        assert successor.is_alive()
        assert successor.ask(PROMPT).cached_tokens == CHUNKS * CHUNK_TOKENS


def have_ended(pids: set[int]) -> bool:
    """Do they all end, within our patience? Ray's end a moment after who started them."""
    for pid in pids:
        with suppress(ProcessLookupError):
            process = os.pidfd_open(pid)
            try:
                if not select.select([process], [], [], PATIENCE_S)[0]:
                    return False
            finally:
                os.close(process)
    return True


def test_no_process_and_no_file_outlives_the_deployment(system: stores.StoreSystem, job: Job) -> None:
    with with_two(system, job) as deployment:
        deployment.replicas[0].ask(PROMPT)
        started = usage.family(deployment.pids())
        assert len(started) >= 2
    assert have_ended(started)
    assert [path for path in job.memory.rglob("*") if not path.is_dir()] == []


@pytest.fixture
def two_of_files(tmp_path: Path) -> Iterator[tuple[Rival, Rival]]:
    """A host of plain files and another process's view of them: 16 chunks of 64 KiB fit."""
    host, other = FilesStore(), FilesStore()
    other.attach(host.setup(tmp_path, MIB))
    yield host, other
    host.teardown()


def test_files_stay_within_the_capacity_whoever_writes(two_of_files: tuple[Rival, Rival], tmp_path: Path) -> None:
    chunk = np.ones(64 << 10, dtype=np.uint8)
    for number in range(100):
        store = two_of_files[number % 2]
        store.put(store.key_of(number.to_bytes(16, "big")), chunk)
        assert sum(file.stat().st_size for file in (tmp_path / "chunks").iterdir()) <= MIB
    newest = two_of_files[0].keys_of((99).to_bytes(16, "big"))
    assert two_of_files[0].lookup(newest) == 1


def test_a_chunk_larger_than_the_files_may_be_is_refused(two_of_files: tuple[Rival, Rival]) -> None:
    store = two_of_files[0]
    with pytest.raises(RivalFailed, match="in a store of"):
        store.put(store.key_of(bytes(16)), np.ones(MIB + 1, dtype=np.uint8))


@pytest.mark.parametrize("engine", ["vllm", "lmcache"])
def test_an_engine_that_is_not_installed_says_how_to_install_it(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)
    assert all("`make engines`" in system.why_not() for system in roster.systems_of(engine))


def test_a_store_without_its_program_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    entry = Entry("toy", "toy_rival:ToyStore", ("json",), program="redis-server")
    assert "there is no redis-server" in install.why_not(entry)
