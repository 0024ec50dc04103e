"""What a ladder tells about itself is seen from outside while its process lives, and never afterwards."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable
from pathlib import Path

import pytest

from maru.inherited import give_back, take_file
from maru.native import core
from maru.pool import Pool
from maru.tiering.ladder import LadderSettings
from maru.tiering.prefill import Prefill
from maru.tiering.told import PATTERN, Teller, told_beside
from tiering.conftest import CHUNK_TOKENS, IDENTITY, PREFIX_CHUNKS, Story, keys_in, prefix_of, put

FIGURES = {"places": [{"url": "file:///x"}], "demoter": {}, "promoter": {}, "decision": {}, "sources": {}}
DEADLINE_S = 20.0


def until(condition: Callable[[], bool]) -> None:
    ends, pause = time.monotonic() + DEADLINE_S, threading.Event()
    while not condition():
        assert time.monotonic() < ends
        pause.wait(0.01)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """As a pool's: there is a lock file."""
    (tmp_path / "lock").touch(0o640)
    return tmp_path


def test_what_is_told_is_seen_as_it_is_now(folder: Path) -> None:
    with Teller(folder) as teller:
        teller.tell(FIGURES)
        teller.tell({**FIGURES, "decision": {"loads": 7}})
        (told,) = told_beside(folder)
        assert told["decision"] == {"loads": 7}
        assert told["places"] == FIGURES["places"]
        assert told["pid"] == os.getpid()
        (file,) = folder.glob(PATTERN)
        assert file.stat().st_mode & 0o777 == 0o640  # Whoever may open the pool may read it, nobody else.
    assert told_beside(folder) == []
    assert list(folder.glob(PATTERN)) == []


def test_what_did_not_change_is_not_written_again(folder: Path) -> None:
    with Teller(folder) as teller:
        teller.tell(dict(FIGURES))
        (before,) = folder.glob(PATTERN)
        inode = before.stat().st_ino
        teller.tell(dict(FIGURES))
        assert before.stat().st_ino == inode


def test_several_processes_tell_and_the_oldest_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.tiering.told.time.time", map(float, range(1, 100)).__next__)
    tellers = [Teller(folder) for _ in range(3)]
    for number, teller in reversed(list(enumerate(tellers))):
        teller.tell({**FIGURES, "decision": {"loads": number}})
    assert [told["decision"]["loads"] for told in told_beside(folder)] == [0, 1, 2]
    for teller in tellers:
        teller.__exit__()


_DIES = """
import os, signal, sys
from pathlib import Path
from maru.tiering.told import Teller
teller = Teller(Path(sys.argv[1]))
teller.tell({"places": [], "demoter": {}, "promoter": {}, "decision": {}, "sources": {}})
print("told", flush=True)
sys.stdin.read()
"""


def test_a_dead_process_is_not_believed_and_the_next_one_clears_up(folder: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _DIES, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"told\n"
        assert [told["pid"] for told in told_beside(folder)] == [child.pid]
        child.send_signal(signal.SIGSTOP)
        assert len(told_beside(folder)) == 1  # Stopped is not dead.
        child.kill()
    assert told_beside(folder) == []
    (left,) = folder.glob(PATTERN)
    with Teller(folder) as teller:
        teller.tell(FIGURES)
        assert not left.exists()
        assert len(told_beside(folder)) == 1


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"[]", b'"ladder"', b"[" * 100_000, b"\xff\xfe", json.dumps({"pid": 1}).encode(),
     json.dumps({"pid": "1", "since_unix_s": 1.0, "told_unix_s": 1.0, **FIGURES}).encode(),
     json.dumps({"pid": 1, "since_unix_s": 1.0, "told_unix_s": 1.0, **FIGURES, "places": [3]}).encode()],
)  # fmt: skip
def test_a_file_that_makes_no_sense_is_left_out(folder: Path, text: bytes) -> None:
    fd = os.open(folder / "ladder-0.json", os.O_CREAT | os.O_RDWR, 0o600)
    os.write(fd, text)
    assert take_file(fd)
    with Teller(folder) as teller:
        teller.tell(FIGURES)
        assert [told["places"] for told in told_beside(folder)] == [FIGURES["places"]]
    give_back(fd)


def test_links_pipes_and_folders_are_not_read(folder: Path) -> None:
    (folder / "elsewhere").write_text("{}")
    (folder / "ladder-1.json").symlink_to(folder / "elsewhere")
    os.mkfifo(folder / "ladder-2.json")
    (folder / "ladder-3.json").mkdir()
    assert told_beside(folder) == []


def test_a_folder_that_takes_no_file_costs_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", logger="maru")
    with Teller(tmp_path / "gone") as teller:
        teller.tell(FIGURES)
        teller.tell({**FIGURES, "decision": {"loads": 1}})
    assert [record.message for record in caplog.records if "maru stat will not show" in record.message] == [
        f"maru stat will not show the places below {tmp_path / 'gone'}: No such file or directory"
    ]


def test_destroying_a_pool_removes_what_ladders_left(story: Story) -> None:
    folder = Pool.attach(story.url).config.folder
    (folder / "ladder-0123.json").write_text("{}")
    (folder / "ladder-0123.new").write_text("{}")
    Pool.destroy(story.url, force=True)
    assert not folder.exists()
    Pool.create(story.url).close()


def test_a_living_ladder_tells_what_its_stats_say(story: Story, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maru.tiering.ladder.TELL_EVERY_S", 0.01)
    settings = LadderSettings(prefill=Prefill(CHUNK_TOKENS, 1000.0))
    pool = story.handle(story.tier + "&write=through", settings=settings)
    namespace = pool.namespace(IDENTITY)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(DEADLINE_S)
    for key in reversed(keys_in(packed)):
        assert core.PoolCore.remove(pool, key)
    assert pool.bring(packed)
    pool.ladder.flush(DEADLINE_S)
    wanted = pool.ladder.stats()
    until(lambda: [{name: told[name] for name in wanted} for told in told_beside(pool.config.folder)] == [wanted])
    assert wanted["decision"]["prefill_is"] == "told"
    assert wanted["places"][0]["load_bytes_per_s"] > 0
    pool.close()
    assert told_beside(pool.config.folder) == []


def test_no_password_is_told(story: Story) -> None:
    pool = story.handle("redis://somebody:hunter2@127.0.0.1:1/0?deadline=0.5")
    until(lambda: len(told_beside(pool.config.folder)) == 1)
    (file,) = pool.config.folder.glob(PATTERN)
    text = file.read_text()
    assert "127.0.0.1" in text
    assert "hunter2" not in text


def test_chunks_are_counted_by_where_they_came_from(story: Story) -> None:
    pool = story.handle(story.tier + "&write=through")
    namespace = pool.namespace(IDENTITY)
    packed = prefix_of(namespace, 1)
    put(pool, namespace, packed)
    assert pool.ladder.flush(DEADLINE_S)
    keys = keys_in(packed)
    for key in reversed(keys[2:]):  # Two stay here; one of the others is nowhere.
        assert core.PoolCore.remove(pool, key)
    longer = namespace.chunk_keys(array("q", [1] * ((PREFIX_CHUNKS + 1) * CHUNK_TOKENS)), CHUNK_TOKENS)
    place = pool.ladder.stats()["places"][0]["url"]
    with pool.pin(longer) as prefix:
        assert len(prefix) == PREFIX_CHUNKS
    assert pool.ladder.stats()["sources"] == {"pool": 2, "below": {place: PREFIX_CHUNKS - 2}, "computed": 1}
    rising = pool.begin(packed)
    assert rising is None  # All of it is here by now.
    assert pool.ladder.stats()["sources"] == {"pool": 7, "below": {place: PREFIX_CHUNKS - 2}, "computed": 1}
    for key in reversed(keys[2:]):
        assert core.PoolCore.remove(pool, key)
    coming = pool.begin(longer)
    assert coming is not None
    assert coming.result(DEADLINE_S) == PREFIX_CHUNKS - 2
    until(lambda: pool.ladder.stats()["sources"]["computed"] == 2)
    assert pool.ladder.stats()["sources"] == {"pool": 9, "below": {place: 2 * (PREFIX_CHUNKS - 2)}, "computed": 2}
