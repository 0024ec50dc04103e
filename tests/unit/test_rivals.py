"""The stores that the pool is measured beside: each gives back what it took, and none outlives whoever measures it.

No time is asserted. Ray, NIXL and Mooncake are not run here; a toy store stands in for them.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from maru.bench.ground import Plan
from maru.bench.measure import silent
from maru.bench.rivals import figures, install
from maru.bench.rivals.contract import Rival, RivalFailed
from maru.bench.rivals.crew import Crew
from maru.bench.rivals.figures import Contest, OursFailed
from maru.bench.rivals.files_store import FilesStore
from maru.bench.rivals.pool_store import PoolStore
from maru.bench.rivals.roster import ENTRIES, OURS, Entry
from maru.bench.rivals.work import Job, Worker, prefix_keys
from maru.config import shared_memory_root

HERE = str(Path(__file__).parent)
MIB = 1 << 20
CAPACITY_BYTES = 128 * MIB  # The least that the pool's slabs allow.
JOB = Job(CAPACITY_BYTES, 8 * MIB, 5, 4096)
PATIENCE_S = 60
TOY = Entry("toy", "toy_rival:ToyStore", folder="apart", variables=(("PYTHONPATH", HERE),))
FORGETFUL = Entry("forgetful", "toy_rival:ForgetfulStore", folder="apart", variables=(("PYTHONPATH", HERE),))


def server_store() -> Rival:
    pytest.importorskip("zmq")
    pytest.importorskip("msgspec")
    from maru.bench.rivals.server_store import ServerStore

    return ServerStore()


def lmdb_store() -> Rival:
    pytest.importorskip("lmdb")
    from maru.bench.rivals.lmdb_store import LmdbStore

    return LmdbStore()


KINDS: list[Callable[[], Rival]] = [PoolStore, server_store, lmdb_store, FilesStore]


@pytest.fixture
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a short name, since a socket may lie in it, in a folder of this run's own."""
    place = tmp_path_factory.mktemp(f"rivals-{os.getpid()}-") / "store"
    place.mkdir()
    return place


@pytest.fixture(params=KINDS, ids=["pool", "server", "lmdb", "files"])
def store(request: pytest.FixtureRequest, place: Path) -> Iterator[Rival]:
    """Each store that runs in this interpreter, set up."""
    store: Rival = request.param()
    try:
        store.setup(place, CAPACITY_BYTES)
        yield store
    finally:
        store.teardown()


def chunk(number: int, size: int = 4096) -> Any:
    return np.random.default_rng(number).integers(0, 256, size, dtype=np.uint8)


def put_prefix(store: Rival, count: int, size: int = 4096) -> bytes:
    packed = prefix_keys(0, count)
    for number in range(count):
        store.put(store.key_of(packed[16 * number : 16 * (number + 1)]), chunk(number, size))
    return packed


def test_a_store_gives_back_the_bytes_it_took(store: Rival) -> None:
    packed = put_prefix(store, 3)
    for number in range(3):
        key = store.key_of(packed[16 * number : 16 * (number + 1)])
        view = store.get_view(key)
        assert np.array_equal(np.frombuffer(view, dtype=np.uint8), chunk(number))
        store.release(key, view)


def test_a_lookup_counts_the_leading_keys(store: Rival) -> None:
    packed = put_prefix(store, 3)
    absent = prefix_keys(1, 1)
    assert store.lookup(store.keys_of(packed)) == 3
    assert store.lookup(store.keys_of(packed[:16] + absent + packed[16:])) == 1
    assert store.lookup(store.keys_of(absent)) == 0


def test_a_prefix_is_copied_out_whole_or_refused(store: Rival) -> None:
    packed = put_prefix(store, 3)
    landing = store.make_landing(3 * 4096)
    store.read_into(store.keys_of(packed), landing)
    assert np.array_equal(landing, np.concatenate([chunk(number) for number in range(3)]))
    with pytest.raises(RivalFailed):
        store.read_into(store.keys_of(prefix_keys(1, 3)), landing)


def test_a_miss_is_a_failure_and_never_a_fast_figure(store: Rival) -> None:
    with pytest.raises(RivalFailed):
        store.get_view(store.key_of(prefix_keys(1, 1)))


def test_a_full_store_goes_on_storing(store: Rival) -> None:
    size = 8 * MIB
    packed = put_prefix(store, 3 * CAPACITY_BYTES // size, size)
    last = packed[-16:]
    assert store.lookup(store.keys_of(last)) == 1
    assert store.lookup(store.keys_of(packed[:16])) == 0


def test_a_second_process_reads_what_the_first_stored(store: Rival, place: Path) -> None:
    kinds = {"PoolStore": OURS, "ServerStore": "server", "LmdbStore": "lmdb", "FilesStore": "files"}
    kind = kinds[type(store).__name__]
    with Crew(ENTRIES[kind], sys.executable, JOB, place.with_name("crew"), reader_count=1) as crew:
        crew.start()
        crew.host.ask("store_prefix", generation=0)
        crew.readers[0].ask("verify", generation=0)
        with pytest.raises(RivalFailed):
            crew.readers[0].ask("verify", generation=1)


@pytest.fixture
def crew(tmp_path: Path) -> Iterator[Crew]:
    """A host and two readers of the toy store, in interpreters that do not import the pool."""
    with Crew(TOY, sys.executable, JOB, tmp_path / "toy", reader_count=2) as crew:
        crew.start()
        yield crew


def test_an_interpreter_without_the_pool_can_take_part(crew: Crew) -> None:
    assert crew.version == "toy, without a pool"


def test_samples_are_taken_where_the_store_is(crew: Crew) -> None:
    crew.host.ask("store_prefix", generation=3)
    for what, size in (("lookup", 0), ("get", 0), ("read", 0), ("put", 4096)):
        assert crew.host.ask("sample", what=what, repeats=2, generation=3, size=size) > 0


def test_several_processes_work_at_once_and_each_answer_finds_its_question(crew: Crew) -> None:
    crew.host.ask("store_prefix", generation=3)
    asked = [(member, member.post("sample", what="read", repeats=1, generation=3)) for member in crew.readers]
    passed_over = crew.readers[0].post("verify", generation=4)
    assert all(member.collect(number) > 0 for member, number in asked)
    assert crew.readers[0].ask("sample", what="lookup", repeats=1, generation=3) > 0
    assert passed_over


def test_a_failure_is_told_and_the_process_goes_on(crew: Crew) -> None:
    for wrong in ({"do": "sample", "what": "nonsense", "repeats": 1}, {"do": "nonsense"}, {"do": "verify"}):
        with pytest.raises(RivalFailed):
            crew.host.ask(**wrong)  # type: ignore[arg-type]
    crew.host.ask("store_prefix", generation=0)


def test_a_writer_writes_until_it_is_told_and_no_more_than_it_may(crew: Crew) -> None:
    write = crew.host.post("write", size=4096, bytes_max=10 * 4096)
    count, taken_ns = crew.host.collect(write)
    assert (count, taken_ns > 0) == (10, True)
    write = crew.host.post("write", size=4096, bytes_max=1 << 40)
    stop = crew.host.post("stop")
    assert crew.host.collect(write)[0] >= 1
    assert crew.host.collect(stop) is None


def test_a_process_that_died_is_told_as_such(crew: Crew) -> None:
    crew.host.process.kill()
    crew.host.process.wait()
    assert not crew.is_alive
    with pytest.raises(RivalFailed, match="its process ended"):
        crew.host.ask("fill", size=4096)


def test_the_end_of_a_crew_takes_its_processes_and_its_folder(tmp_path: Path) -> None:
    with Crew(TOY, sys.executable, JOB, tmp_path / "toy", reader_count=1) as crew:
        crew.start()
        processes = [crew.host.process, crew.readers[0].process]
    assert [process.returncode for process in processes] == [0, 0]
    assert not (tmp_path / "toy").exists()


PARENT = """
import json, sys
from pathlib import Path
from maru.bench.rivals.crew import Crew
from maru.bench.rivals.roster import ENTRIES
from maru.bench.rivals.work import Job
crew = Crew(ENTRIES[sys.argv[1]], sys.executable, Job(1 << 20, 1 << 20, 5, 4096), Path(sys.argv[2]), reader_count=1)
crew.start()
print(json.dumps([member.process.pid for member in (crew.host, *crew.readers)]), flush=True)
crew.host.ask("write", size=4096, bytes_max=1 << 60)
"""


def children_of(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_no_process_outlives_a_parent_that_was_killed(place: Path) -> None:
    pytest.importorskip("zmq")
    pytest.importorskip("msgspec")
    command = [sys.executable, "-c", PARENT, "server", str(place.with_name("crew"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pids = json.loads(parent.stdout.readline())
        pids += children_of(pids[0])  # The metadata server.
        watched = [os.pidfd_open(pid) for pid in pids]
        parent.kill()
    assert len(watched) == 3
    for descriptor in watched:
        assert select.select([descriptor], [], [], PATIENCE_S)[0]
        os.close(descriptor)


def contest(tmp_path: Path, other: Entry) -> Contest:
    crews = {
        OURS: Crew(TOY, sys.executable, JOB, tmp_path / "ours", figures.READER_COUNT),
        "other": Crew(other, sys.executable, JOB, tmp_path / "other", figures.READER_COUNT),
    }
    return Contest(crews, {"absent": "Absent: not installed"}, JOB, Plan(True, 0, 0, ""))


@pytest.fixture
def ended() -> Iterator[list[Contest]]:
    """Contests that are ended whatever happens."""
    contests: list[Contest] = []
    yield contests
    for one in contests:
        for crew in list(one._crews.values()):
            crew.end()


def test_each_store_gets_a_row_with_samples_of_the_same_rounds(tmp_path: Path, ended: list[Contest]) -> None:
    run = contest(tmp_path, Entry("other", TOY.kind, folder="apart", variables=TOY.variables))
    ended.append(run)
    run.start(silent)
    groups = [*run.found(silent), *run.read(silent), *run.read_beside_writer(silent), *run.put(4096, silent)]
    assert [len(group.rows) for group in groups] == [2, 2, 2, 2, 4, 2]
    for group in groups:
        assert group.absent == ["Absent: not installed"]
        for ours, theirs in zip(group.rows[::2], group.rows[1::2], strict=True):
            assert (ours.reference, theirs.reference) == ("", ours.name)
            assert len(theirs.seconds) == len(ours.seconds) == len(theirs.reference_seconds)


def test_a_store_that_fails_has_a_reason_instead_of_a_row(tmp_path: Path, ended: list[Contest]) -> None:
    run = contest(tmp_path, FORGETFUL)
    ended.append(run)
    run.start(silent)
    lookup, _ = run.found(silent)
    assert [row.name for row in lookup.rows] == ["toy"]
    assert lookup.absent[1:] == ["forgetful: failed: RivalFailed: the prefix is not whole: 0 of 5 chunks"]


def test_without_ours_there_is_nothing_to_compare_with(tmp_path: Path, ended: list[Contest]) -> None:
    run = contest(tmp_path, TOY)
    ended.append(run)
    run.start(silent)
    run._crews[OURS].host.process.kill()
    with pytest.raises(OursFailed):
        run.found(silent)


def test_what_is_read_is_compared_byte_by_byte(tmp_path: Path) -> None:
    sys.path.insert(0, HERE)
    from toy_rival import ToyStore  # type: ignore[import-not-found, unused-ignore]

    store = ToyStore()
    store.setup(tmp_path, MIB)
    worker = Worker(store, JOB)
    worker.store_prefix(0)
    worker.verify(0)
    victim = tmp_path / prefix_keys(0, 5)[32:48].hex()
    victim.write_bytes(victim.read_bytes()[:-1] + b"?")
    with pytest.raises(RivalFailed, match="chunk 2 has other bytes"):
        worker.verify(0)


@pytest.mark.parametrize("name", ["ray", "mooncake", "nixl"])
def test_what_is_not_installed_says_how_to_install_it(name: str, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(install, "rivals_folder", lambda: tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)  # What it names may hold the very package.
    assert install.why_not(ENTRIES[name]) == f"not installed: python -m maru.bench rivals --install {name}"
    python = install.interpreter_of(ENTRIES[name])
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    assert "No module named" in install.why_not(ENTRIES[name])


def test_a_run_that_is_interrupted_leaves_nothing_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maru.bench", "rivals", "--quick", "--only", "lmdb"]
    never = tmp_path / "never.json"
    with subprocess.Popen(
        [*command, "--json", str(never)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as run:
        assert run.stdout is not None
        assert "Starting" in run.stdout.readline()
        assert "Lookup" in run.stdout.readline()  # Has begun to measure.
        processes = [os.pidfd_open(pid) for pid in children_of(run.pid)]
        os.kill(run.pid, signal.SIGINT)
        _, errors = run.communicate(timeout=PATIENCE_S)
    assert run.returncode != 0
    assert "nothing was left behind" in errors
    assert not never.exists()
    for descriptor in processes:
        assert select.select([descriptor], [], [], PATIENCE_S)[0]
        os.close(descriptor)
    assert list(Path("/dev/shm").glob(f"maru-rivals-{run.pid}-*")) == []
    assert list(shared_memory_root().glob(f"bench-maru-rivals-{run.pid}-*")) == []
