"""The benchmark of LMCache's two copying doors: every row, no other bytes, and nothing that stays."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from maru.bench import ground
from maru.bench.engines import lmcache_copies
from maru.bench.engines.lmcache_copy_figures import Sizes, l2_group, make_place, remote_group
from maru.bench.engines.lmcache_copy_lanes import Batch, CopyFailed, Steps
from maru.bench.measure import interleave, silent
from maru.pool import Outcome
from maru_lmcache.copying import PoolCopies

DEADLINE_S = 120.0
SMALL = Sizes(2 * ground.MIB, (1 * ground.MIB,))


def start(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "maru.bench", "lmcache-copies", "--batch-mib", "2", *words]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def left_by(pid: int) -> list[Path]:
    """What lies in /dev/shm under a name with this process's number: all that the benchmark or LMCache make there."""
    number = re.compile(rf"(?<!\d){pid}(?!\d)")
    return [path for path in ground.SHM.rglob("*") if number.search(str(path.relative_to(ground.SHM)))]


def small_batch() -> Batch:
    size = SMALL.batch_bytes
    return Batch(ground.source_array(size), ground.touched_array(size), SMALL.chunk_bytes[0])


def until_it_measures(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not {"dax", "l2", "index"} <= {path.name for path in left_by(process.pid)}:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, f"not measuring within {DEADLINE_S:.0f} s"
        time.sleep(0.002)


def test_a_run_writes_every_row_with_its_ratio_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "results" / "copies.json"
    process = start("--rounds", "2", "--chunk-mib", "1,2", "--json", str(path))
    said, errors = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0, said + errors
    assert left_by(process.pid) == []

    document = json.loads(path.read_text())
    copy = "streaming copy, ordinary memory"
    adapters = [f"{kind} {what}" for kind in ("maru", "dax", "fs") for what in ("store", "lookup, per key", "load")]
    backends = [f"{kind} {what}" for kind in ("maru", "fs") for what in ("put", "get")]
    assert {title: [row["name"] for row in group["rows"]] for title, group in document["groups"].items()} == {
        "L2 adapters, chunks of 1 MiB": [copy, *adapters],
        "Remote backends, chunks of 1 MiB": [copy, *backends],
        "L2 adapters, chunks of 2 MiB": [copy, *adapters],
        "Remote backends, chunks of 2 MiB": [copy, *backends],
    }
    for title, group in document["groups"].items():
        chunk_bytes = (1 if "1 MiB" in title else 2) * ground.MIB
        assert group["absent"] == []
        for row in group["rows"]:
            assert len(row["samples_s"]) == 2
            assert row["bytes_each"] == (0 if "lookup" in row["name"] else chunk_bytes)
            assert row["reference"] == ("" if row["name"] == copy else copy)
            assert row["name"] == copy or row["ratio"] > 0
    assert document["machine"]["pool"]["medium"] == "shm"
    assert "maru lookup, per key" in said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_interrupted_leaves_nothing(tmp_path: Path, number: signal.Signals) -> None:
    path = tmp_path / "copies.json"
    process = start("--rounds", "100000", "--chunk-mib", "1", "--json", str(path))
    try:
        until_it_measures(process)
        process.send_signal(number)
        _, errors = process.communicate(timeout=DEADLINE_S)
    finally:
        process.kill()
    assert errors.endswith("interrupted; nothing was left behind\n")
    assert process.returncode == 1
    assert left_by(process.pid) == []
    assert not path.exists()


def test_an_interruption_that_python_dropped_ends_the_run_after_its_round() -> None:
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    ending, told = lmcache_copies.Ending(), list[int]()
    show = ending.insisting(lambda _title, done, _total: told.append(done))
    try:
        ending.watch()
        show("", 0, 2)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # Another one is left out.
        with pytest.raises(KeyboardInterrupt):
            show("", 1, 2)
    finally:
        for number, handler in before:
            signal.signal(number, handler)
    assert told == [0]


@pytest.mark.parametrize("figures", [l2_group, remote_group])
def test_a_group_leaves_its_room_to_the_next_one(figures: Any) -> None:
    with make_place(SMALL) as place:
        figures("", place, small_batch(), 2, silent)
        chunks = place.pool.stats()["chunks"]
        assert chunks["free_slots"] == chunks["slots"]
        assert [path for path in place.folder.rglob("*") if path.is_file()] == []


def test_an_adapter_that_cannot_be_opened_is_said_to_be_absent_and_the_others_are_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def no_room(*_: int) -> None:
        raise OSError("no room")

    with make_place(SMALL) as place:
        monkeypatch.setattr(os, "posix_fallocate", no_room)
        group = l2_group("", place, small_batch(), 1, silent)
    assert group.absent == ["dax: OSError: no room"]
    assert {row.name.split()[0] for row in group.rows} == {"streaming", "maru", "fs"}


@pytest.mark.parametrize(("figures", "row"), [(l2_group, "maru load"), (remote_group, "maru get")])
def test_a_load_that_gives_other_bytes_ends_the_run(monkeypatch: pytest.MonkeyPatch, figures: Any, row: str) -> None:
    fill = PoolCopies.fill

    def wrong(copies: PoolCopies, buffer: memoryview, view: memoryview) -> bool:
        filled = fill(copies, buffer, view)
        buffer.cast("B")[-1] ^= 1
        return filled

    monkeypatch.setattr(PoolCopies, "fill", wrong)
    with make_place(SMALL) as place, pytest.raises(CopyFailed, match=f"{row}: chunk 0 of 2 is not what was stored"):
        figures("", place, small_batch(), 1, silent)


@pytest.mark.parametrize(("figures", "row"), [(l2_group, "maru store"), (remote_group, "maru put")])
def test_a_store_that_keeps_nothing_ends_the_run(monkeypatch: pytest.MonkeyPatch, figures: Any, row: str) -> None:
    monkeypatch.setattr(PoolCopies, "store", lambda _self, _keys, buffers, _parent: [Outcome.FULL] * len(buffers))
    with make_place(SMALL) as place, pytest.raises(CopyFailed, match=row):
        figures("", place, small_batch(), 1, silent)


def test_what_the_last_sample_left_is_looked_at_too() -> None:
    steps, looked = Steps(1), list[str]()
    one, other = (
        steps.contestant(name, lambda: None, before=lambda: None, after=lambda name=name: looked.append(name))
        for name in ("one", "other")
    )
    interleave([one, other], 1)
    assert looked == ["one", "other", "one"]
    steps.settle()
    steps.settle()
    assert looked == ["one", "other", "one", "other"]


def test_without_lmcache_it_says_so_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    missing: Any = None
    monkeypatch.setitem(sys.modules, "lmcache", missing)
    with pytest.raises(SystemExit, match=r"^LMCache is not installed here: `make bench-lmcache` .*$"):
        lmcache_copies.main([])


@pytest.mark.parametrize("chunks", ["3", "4", "0", "1,1"])
def test_chunks_that_do_not_make_up_a_batch_are_refused(chunks: str) -> None:
    with pytest.raises(SystemExit, match=r"MiB|each chunk size once|whole chunks"):
        lmcache_copies.main(["--batch-mib", "2", "--chunk-mib", chunks])
