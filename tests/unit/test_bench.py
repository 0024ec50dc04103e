"""The benchmark: samples are taken in turn and all kept, rows say what they are, and a quick run has every one of them.

No time is asserted: how fast the pool is belongs into the benchmark's own table.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from maru.bench import daemons, report
from maru.bench.__main__ import main
from maru.bench.measure import Contestant, Row, Target, interleave, quantile, repeats_wanted
from maru.config import shared_memory_root

GROUPS = {
    "keys": ["tokens → keys → pinned extents → release", "tokens → keys", "one BLAKE3 over all tokens",
             "plain Python: blake2b a chunk, dict walk"],
    "prefix": ["lookup, 680 keys", "pin + extents + release, 680 keys", "pin + views + release, 680 keys",
               "walk of a dict, 680 keys"],
    "single": ["get → view → release", "exists", "dict.get → memoryview → release"],
    "audit": [f"{call}, {which}" for call in ("pin + release, 680 keys", "get → view → release")
              for which in ("no audit", "no audit, another attachment", "with audit")],
    "reserve": ["reserve + seal, 16 KiB, full pool", "put, 16 KiB, full pool", "reserve + discard, 16 KiB, full pool"],
    "small": [f"{name}, {size} KiB" for size in (4, 16, 64, 256) for name in ("put", "put_many of 32", "32 puts")],
    "put": [f"{name}, {size} MiB" for size in (1, 8, 32)
            for name in ("put", "raw streaming copy", "numpy.copyto to ordinary memory")]
           + ["put, 32 MiB, by two threads"],
    "cold": ["first puts, after wait_ready()", "first puts, right after create", "put again, once full",
             "create until ready"],
    "newcomer": ["first retrieval in a new process", "retrieval after that", "attach", "attach until ready"],
    "recovery": ["clean up after a death", "put under a key that a dead process was writing",
                 "attach, nobody else there", "attach beside 63 others", "rebuild a lost index"],
    "rpc": ["lookup by a daemon, 680 keys", "echo of as many bytes", "pin + release by a daemon, 680 keys",
            "two echoes of as many bytes"],
    "transfer": ["fetched over the wire, verified", "bare TCP socket into fresh memory",
                 "fetched over the wire, encrypted (CURVE)", "stored over the wire", "bare TCP socket out of memory",
                 "read in place, told by a daemon, verified", "read of this host's pool, checksum=always"],
    "clients": [f"{name} {count} client{'s' if count > 1 else ''}" for count in (1, 4, 16, 64)
                for name in ("lookups,", "echoes,", "lookup, p99 of the slowest of", "echo, p99 of the slowest of")],
    "endings": [
        "one chunk removed: another process",
        "a prefix of 16 removed: another process",
        "a namespace bumped: another process",
        "one chunk removed: a near pool, its daemon on this host",
        "a prefix of 16 removed: a near pool, its daemon on this host",
        "a namespace bumped: a near pool, its daemon on this host",
        "one chunk removed: a folder below",
        "a prefix of 16 removed: a folder below",
        "a namespace bumped: another pool on a folder below",
    ],
    "verified": [
        "read_into, verified", "read_into, unverified", "get + copy, verified", "get + copy, unverified",
    ],
}  # fmt: skip
TARGETS = {
    "tokens → keys → pinned extents → release": {"seconds_max": 300e-6},
    "lookup, 680 keys": {"seconds_max": 10e-6},
    "pin + extents + release, 680 keys": {"seconds_max": 25e-6},
    "get → view → release": {"seconds_max": 0.6e-6},
    "pin + release, 680 keys, with audit": {"ratio_max": 1.02},
    "put, 32 MiB": {"ratio_min": 0.95},
    "first puts, after wait_ready()": {"ratio_min": 0.8},
    "first retrieval in a new process": {"ratio_max": 1.1},
    "read_into, verified": {"ratio_min": 0.8},
    "clean up after a death": {"seconds_max": pytest.approx(50e-9 * 200_000, rel=0.05)},  # Slots of the quick run.
    "put under a key that a dead process was writing": {"seconds_max": 1e-3},
    "attach beside 63 others": {"ratio_max": 1.2},
    "rebuild a lost index": {"seconds_max": 3.0},
    "lookup by a daemon, 680 keys": {"ratio_max": 2.0},
    "fetched over the wire, verified": {"ratio_min": 0.8},
}
FACTS = {
    "taken", "cpu", "cores", "cores_usable", "virtual_machine", "last_level_cache_bytes", "memory_bytes",
    "memory_available_bytes", "kernel", "python", "numpy", "maru", "commit", "core", "copy_path", "hash_path",
    "load_average", "huge_pages_for_shm", "pool",
}  # fmt: skip


class FakeClock:
    """Time that passes only when an operation says so."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.told: list[str] = []

    def __call__(self) -> int:
        return self.now_ns

    def operation(self, name: str, each_ns: int) -> Callable[[Any], None]:
        """An operation that takes `each_ns` a turn."""

        def run(turns: Any) -> None:
            self.told.append(name)
            self.now_ns += each_ns * len(list(turns))

        return run


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def test_every_round_samples_each_contestant_once_and_begins_with_the_next(clock: FakeClock) -> None:
    contestants = [Contestant(name, clock.operation(name, 100), repeats=1) for name in "abc"]
    interleave(contestants, 4, clock=clock)
    assert "".join(clock.told) == "abc" + "abc" + "bca" + "cab" + "abc"


def test_a_sample_is_seconds_per_operation_and_preparing_is_not_in_it(clock: FakeClock) -> None:
    def prepare(repeats: int) -> range:
        clock.now_ns += 1_000_000
        return range(repeats)

    seconds = interleave([Contestant("a", clock.operation("a", 250), prepare, 4)], 3, clock=clock)
    assert seconds == {"a": pytest.approx((250e-9,) * 3)}


def test_short_operations_are_repeated_until_the_clock_can_tell(clock: FakeClock) -> None:
    assert repeats_wanted(Contestant("a", clock.operation("a", 1_000)), clock) == 512
    assert repeats_wanted(Contestant("a", clock.operation("a", 2_000_000)), clock) == 1
    assert repeats_wanted(Contestant("a", clock.operation("a", 0)), clock) == 1 << 16


def test_no_garbage_is_collected_while_samples_are_taken(clock: FakeClock) -> None:
    seen = []

    def run(_turns: Any) -> None:
        seen.append(gc.isenabled())
        clock.now_ns += 1

    assert gc.isenabled()
    interleave([Contestant("a", run, repeats=1)], 2, clock=clock)
    assert seen == [False] * 3
    assert gc.isenabled()


def test_whoever_watches_is_told_after_each_round(clock: FakeClock) -> None:
    told: list[tuple[int, int]] = []
    contestants = [Contestant(name, clock.operation(name, 1), repeats=1) for name in "ab"]
    interleave(contestants, 3, clock=clock, progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.parametrize(("names", "rounds"), [("aa", 3), ("", 3), ("a", 0)])
def test_nothing_to_measure_is_refused(clock: FakeClock, names: str, rounds: int) -> None:
    with pytest.raises(ValueError, match="contestants"):
        interleave([Contestant(name, clock.operation(name, 1)) for name in names], rounds, clock=clock)


def test_quantiles_lie_between_their_neighbours() -> None:
    assert [quantile([5, 1, 3, 2, 4], share) for share in (0, 0.5, 1)] == [1, 3, 5]
    assert quantile([1, 2], 0.1) == pytest.approx(1.1)
    assert quantile([7], 0.9) == 7


def test_a_ratio_is_taken_within_each_round() -> None:
    # The machine was ten times slower in the last two rounds; the operation never was more than twice its reference.
    row = Row("a", (2.0, 2.0, 2.0, 20.0, 20.0), reference="b", reference_seconds=(1.0, 1.0, 1.0, 10.0, 10.0))
    assert (row.ratio, row.median) == (2.0, 2.0)


def test_what_moves_bytes_is_shown_and_compared_as_bandwidth() -> None:
    row = Row("a", (2.0, 4.0, 8.0), 80, "b", (1.0, 1.0, 1.0))
    assert (row.median, row.ratio) == (20.0, 0.25)
    assert row.spread == pytest.approx((12.0, 36.0))


def test_a_rate_is_shown_and_compared_as_how_many_a_second() -> None:
    row = Row("a", (0.5, 0.25, 0.125), 0, "b", (0.25, 0.25, 0.25), is_rate=True)
    assert (row.median, row.ratio) == (4.0, 1.0)
    assert report.shown(row, row.median) == "4.00 /s"
    assert report.row_json(row)["unit"] == "1/s"


def test_rows_that_need_what_is_not_installed_say_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rpc.json"
    monkeypatch.setattr(daemons, "NEEDED", ("zmq", "no_such_package"))
    monkeypatch.setattr(sys, "argv", ["maru.bench", "--quick", "--only", "rpc", "--json", str(path)])
    before = signal.getsignal(signal.SIGTERM)
    main()
    signal.signal(signal.SIGTERM, before)
    assert "it needs no_such_package: pip install 'maru-kvcache[serve]'" in capsys.readouterr().out
    document = json.loads(path.read_text())
    assert document["groups"] == {"rpc": []}
    assert "no_such_package" in document["absent"]["rpc"]


@pytest.mark.parametrize(
    ("target", "is_met"),
    [
        (None, None),
        (Target(seconds_max=2.0), True),
        (Target(seconds_max=1.9), False),
        (Target(ratio_max=4.0), True),
        (Target(ratio_max=3.9), False),
        (Target(ratio_min=4.0), True),
        (Target(ratio_min=4.1), False),
    ],
)
def test_a_target_is_met_or_not(target: Target | None, is_met: bool | None) -> None:
    assert Row("a", (1.0, 2.0, 3.0), 0, "b", (0.25, 0.5, 0.75), target).is_met is is_met


@pytest.mark.parametrize(("seconds", "reference"), [((), ()), ((0.0,), (1.0,)), ((1.0, 1.0), (1.0,))])
def test_a_row_without_its_samples_is_refused(seconds: tuple[float, ...], reference: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="a:"):
        Row("a", seconds, 0, "b", reference)


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The document of one quick run."""
    path = tmp_path_factory.mktemp("bench") / "folder" / "quick.json"
    command = [sys.executable, "-m", "maru.bench", "--quick", "--json", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert str(path) in done.stdout
    document: dict[str, Any] = json.loads(path.read_text())
    return document


def of_name(names: list[str], name: str) -> str:
    """The name in the list that begins this one: some rows end with a size that the machine chose."""
    return max((known for known in names if name.startswith(known)), key=len, default="")


def test_every_row_is_there(quick_run: dict[str, Any]) -> None:
    groups = quick_run["groups"]
    assert list(groups) == list(GROUPS)
    for group, rows in groups.items():
        assert [of_name(GROUPS[group], row["name"]) for row in rows] == GROUPS[group]


def test_every_figure_is_positive_and_its_samples_are_kept(quick_run: dict[str, Any]) -> None:
    for rows in quick_run["groups"].values():
        for row in rows:
            samples = row["samples_s"]
            assert len(samples) >= 2
            assert min(samples) > 0
            amount = {"1/s": 1, "bytes/s": row["bytes_each"], "s": 0}[row["unit"]]
            values = [amount / one if amount else one for one in samples]
            assert row["median"] == pytest.approx(statistics.median(values))
            assert 0 < row["p10"] <= row["median"] <= row["p90"]


def test_a_reference_was_measured_in_the_same_rounds(quick_run: dict[str, Any]) -> None:
    for rows in quick_run["groups"].values():
        by_name = {row["name"]: row for row in rows}
        for row in rows:
            assert (row["ratio"] is None) == (row["reference"] == "")
            if row["reference"]:
                assert row["ratio"] > 0
                assert row["reference"] in by_name
                assert len(row["reference_samples_s"]) == len(row["samples_s"])


def test_the_targets_are_those_of_the_design(quick_run: dict[str, Any]) -> None:
    found = {}
    for rows in quick_run["groups"].values():
        for row in rows:
            assert (row["target"] is None) == (row["met"] is None)
            if row["target"]:
                limits = {name: limit for name, limit in row["target"].items() if limit is not None}
                found[of_name(list(TARGETS), row["name"])] = limits
    assert found == TARGETS


def test_numbers_come_with_their_machine(quick_run: dict[str, Any]) -> None:
    facts = quick_run["machine"]
    assert set(facts) == FACTS
    assert all(fact not in ("", [], {}, None, 0) for fact in facts.values() if fact is not False)
    assert facts["pool"]["page_bytes"] >= 4096
    assert facts["pool"]["resident_bytes"] > 0
    assert facts["pool"]["medium"] == "shm"
    assert len(facts["load_average"]) == 3


def test_a_benchmark_that_is_interrupted_leaves_no_pool_behind(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "maru.bench", "--only", "keys", "--json", str(tmp_path / "never.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as bench:
        assert bench.stdout is not None
        assert "prompt" in bench.stdout.readline()  # Has begun to measure.
        os.kill(bench.pid, signal.SIGINT)
        _, errors = bench.communicate(timeout=60)
    assert bench.returncode != 0
    assert "nothing was left behind" in errors
    assert not (tmp_path / "never.json").exists()
    assert list(shared_memory_root().glob(f"bench-{bench.pid}-*")) == []
