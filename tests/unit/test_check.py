"""The independent reader: sound pools of every shape pass, the dead leave leftovers only, the living do not disturb it.

What it finds in damaged pools is in test_check_damage.py.
"""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import xxhash
from rich.console import Console
from typer.testing import CliRunner

import maru
from maru.check import Report, check_pool
from maru.check.files import PoolFile, held_bytes
from maru.check.layout import layout
from maru.check.show import LISTED_MAX, show_report
from maru.check.xxh3 import xxh3_64
from maru.cli import app
from maru.errors import PoolMismatch, PoolNotFound
from maru.native import core
from maru.testing import tour
from maru.testing.content import bytes_of, key_of
from maru.testing.crash import crash_points, spawn

SIZE = 9_000


def found(report: Report) -> set[tuple[str, str]]:
    return {(finding.severity, finding.code) for finding in report.findings}


# ---- sound pools ----

SHAPES = {
    "plain": "size=8MiB&slots=1024",
    "checksums": "size=8MiB&slots=1024&checksum=always",
    "one slab size": "size=1MiB&slab_bytes=64KiB&slots=60&processes=1&namespaces=1",
    "many processes": "size=4MiB&slots=256&processes=255",
    "large units": "size=32MiB&unit_bytes=64KiB&slots=300",
    "small units": "size=4MiB&unit_bytes=512&slots=5000",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_sound_pool_passes_alive_and_left(shape: str, tmp_path: Path) -> None:
    with maru.Pool.create(f"maru:///kv?dir={tmp_path}&{SHAPES[shape]}") as pool:
        assert pool.wait_ready(20)
        for n in range(200):
            pool.put(key_of(n), bytes_of(key_of(n), SIZE + n))
        view = pool.get(key_of(199))
        assert view is not None
        alive = check_pool(tmp_path / "kv", read_data=True)
        assert (alive.findings, alive.figures["processes_alive"]) == ([], 1)
        assert alive.figures["sealed"] == pool.stats()["chunks"]["sealed"]
        del view
    left = check_pool(tmp_path / "kv", read_data=True)
    assert (left.findings, left.figures["processes_alive"]) == ([], 0)
    assert left.is_sound


def test_several_segments_are_read_where_they_lie(tmp_path: Path) -> None:
    places = [tmp_path / f"data-{n}" for n in range(3)]
    url = f"maru:///kv?dir={tmp_path}&size=12MiB&checksum=always&medium=file&data={','.join(map(str, places))}"
    with maru.Pool.create(url) as pool:
        for n in range(300):
            pool.put(key_of(n), bytes_of(key_of(n), SIZE))
    report = check_pool(tmp_path / "kv", read_data=True)
    assert report.findings == []
    assert report.figures["segments"] == 3
    assert report.figures["bytes_verified"] == 300 * SIZE
    places[1].rename(tmp_path / "elsewhere")
    assert found(check_pool(tmp_path / "kv")) == {("error", "segment.file")}


def test_the_layout_is_the_cores() -> None:
    assert layout().crc == core.layout_crc()


def test_it_needs_nothing_of_the_core(tmp_path: Path) -> None:
    with maru.Pool.create(f"maru:///kv?dir={tmp_path}&size=4MiB") as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
    # A package of that name whose __init__ was not run: the face of the pool, and the core below it, are not loaded.
    program = f"""
import sys, types, pathlib
package = types.ModuleType("maru")
package.__path__ = [{str(Path(maru.__file__).parent)!r}]
sys.modules["maru"] = package
from maru.check import check_pool
report = check_pool(pathlib.Path({str(tmp_path / "kv")!r}), read_data=True)
loaded = [name for name in sys.modules if "native" in name or name == "maru.pool"]
print(report.is_sound, report.figures["sealed"], loaded)
"""
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout.strip() == "True 1 []"


def test_its_own_xxh3_is_xxh3() -> None:
    dice = random.Random("xxh3")
    for size in [*range(300), 511, 512, 513, 1023, 1024, 1025, 2048, 2049, 70_001]:
        data = dice.randbytes(size)
        assert xxh3_64(data) == xxhash.xxh3_64_intdigest(data), size


def test_looking_writes_nothing_and_takes_no_lock(pool: maru.Pool) -> None:
    pool.put(key_of(0), bytes_of(key_of(0), SIZE))
    folder = pool.config.folder
    before = pool.stats()
    for file in folder.iterdir():
        file.chmod(0o400)
    check_pool(folder, read_data=True)
    after = pool.stats()
    assert [row["number"] for row in after["processes"]] == [row["number"] for row in before["processes"]]
    assert after["chunks"] == before["chunks"]


# ---- the dead ----


@pytest.fixture
def tour_url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + tour.POOL_QUERY


@pytest.mark.crash
@pytest.mark.parametrize("point", crash_points())
def test_a_process_killed_anywhere_leaves_leftovers_and_no_error(point: str, tour_url: str) -> None:
    folder = maru.config.parse_url(tour_url).folder
    with spawn(tour.walk, tour_url, die_at=point) as walker:
        code = walker.wait()
    try:
        report = check_pool(folder, pause_s=0)
    except PoolNotFound:
        assert code == 0 or point.startswith(("create.", "destroy."))
        return
    assert code == -signal.SIGKILL
    assert report.count("error") == 0, report.findings
    with maru.Pool.open(tour_url) as pool:
        pool.reap()
        assert check_pool(folder, pause_s=0).is_sound


def hold_and_wait(url: str) -> None:
    """Hold an overdue reservation, one part of a chunk and a pin; say so and wait."""
    with maru.Pool.attach(url) as pool:
        held = (
            pool.reserve(key_of(0, "slow"), SIZE, deadline=0),
            pool.reserve(key_of(0, "part"), SIZE, part=0, parts=2),
            pool.get(key_of(0)),
        )
        print("holding", flush=True)
        sys.stdin.readline()
        del held


def test_what_a_living_process_sits_on_is_a_note_with_its_pid(pool: maru.Pool, pool_url: str) -> None:
    pool.put(key_of(0), bytes_of(key_of(0), SIZE))
    with spawn(hold_and_wait, pool_url) as holder:
        assert holder.line() == "holding"
        report = check_pool(pool.config.folder, pause_s=0)
        assert found(report) == {("note", "slot.overdue")}
        assert f"(pid {holder.pid}, alive)" in report.findings[0].what
        pool.put(key_of(0, "slow"), bytes_of(key_of(0, "slow"), SIZE))  # Takes the key over.
        report = check_pool(pool.config.folder, pause_s=0)
        assert found(report) == {("note", "slot.revoked")}
        assert report.is_sound
        stats = pool.stats()
        assert [(pin["pid"], pin["count"], pin["bytes"]) for pin in stats["oldest_pins"]][-1] == (holder.pid, 1, SIZE)
        rows = {row["state"]: row for row in stats["reservations"]}
        assert rows.keys() == {"reserved", "revoked"}
        assert rows["revoked"]["deadline_ns"] < stats["now_ns"] < rows["reserved"]["deadline_ns"]
        assert {row["pid"] for row in rows.values()} == {holder.pid}
        assert rows["reserved"]["parts"] == 2


def hold_a_part_and_die(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        held = pool.reserve(key_of(0, "part"), SIZE, part=1, parts=2)
        os.kill(os.getpid(), signal.SIGKILL)
        del held


def test_the_part_of_a_dead_writer_is_a_leftover(pool_url: str) -> None:
    # The one living process is stopped while we look: its housekeeper would be faster than we are.
    maru.Pool.create(pool_url).close()
    with spawn(hold_and_wait, pool_url) as holder:
        assert holder.line() == "holding"
        holder.process.send_signal(signal.SIGSTOP)
        holder.wait_stopped()
        with spawn(hold_a_part_and_die, pool_url) as dead:
            assert dead.wait() == -signal.SIGKILL
        report = check_pool(maru.config.parse_url(pool_url).folder, pause_s=0)
        assert ("leftover", "slot.dead-part") in found(report)
        assert report.count("error") == 0
        holder.resume()


def test_parts_that_nobody_holds_any_more_are_a_leftover(tour_url: str) -> None:
    with spawn(tour.walk, tour_url, die_at="part.revoked") as walker:
        assert walker.wait() == -signal.SIGKILL
    report = check_pool(maru.config.parse_url(tour_url).folder, pause_s=0)
    assert ("leftover", "slot.revoked-by-all") in found(report)


def put_one(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))


def test_a_lock_that_a_stopped_process_holds_is_a_note_with_its_pid(pool: maru.Pool, pool_url: str) -> None:
    with spawn(put_one, pool_url, die_at="lock.taken", action="stop") as holder:
        holder.wait_stopped()
        report = check_pool(pool.config.folder, pause_s=0)
        assert found(report) == {("note", "shard.held")}
        assert f"(pid {holder.pid}, alive)" in report.findings[0].what
        holder.resume()
        assert holder.wait() == 0


def test_a_pin_on_what_is_free_is_a_note(pool: maru.Pool) -> None:
    index = pool.config.folder / "index"
    place = int.from_bytes(index.read_bytes()[240:248], "little") + 2 * 7  # Process 0, slot 7.
    for count, findings in ((1, {("note", "process.pins-free")}), (0, set())):
        with index.open("r+b") as file:
            file.seek(place)
            file.write(count.to_bytes(2, "little"))
        assert found(check_pool(index.parent, pause_s=0)) == findings


def write_without_end(url: str) -> None:
    """Store, read and evict until killed."""
    with maru.Pool.attach(url) as pool:
        print("writing", flush=True)
        for n in range(1 << 30):
            key = key_of(n % 3000)
            pool.put(key, bytes_of(key, SIZE if n % 7 else 60_000))
            pool.get(key_of((n * 31) % 3000))


def test_a_pool_in_full_use_is_sound(pool: maru.Pool, pool_url: str) -> None:
    with spawn(write_without_end, pool_url) as one, spawn(write_without_end, pool_url) as two:
        assert (one.line(), two.line()) == ("writing", "writing")
        for _ in range(25):
            report = check_pool(pool.config.folder)
            assert [finding for finding in report.findings if finding.severity != "note"] == []
            assert report.figures["processes_alive"] == 3


# ---- what cannot be read ----


@pytest.fixture
def torn(tmp_path: Path) -> Iterator[Path]:
    """The index of a pool in a folder of its own, to be spoilt."""
    with maru.Pool.create(f"maru:///kv?dir={tmp_path}&size=4MiB&slots=256") as pool:
        pool.put(key_of(0), bytes_of(key_of(0), SIZE))
    yield tmp_path / "kv" / "index"
    shutil.rmtree(tmp_path / "kv", ignore_errors=True)


def run(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["check", *arguments], env={"COLUMNS": "200"})
    assert "Traceback" not in result.output
    return result.exit_code, result.stdout, result.stderr


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"", "no complete pool"),
        (b"\0" * 9000, "no complete pool"),
        (b"not an index" * 900, "not a Maru index"),
        (b"MARUIDX1", "cut off after 8 bytes"),
    ],
)
def test_garbage_is_exit_code_2_and_a_sentence(torn: Path, content: bytes, told: str) -> None:
    torn.write_bytes(content)
    code, out, complaint = run("kv", "--dir", str(torn.parents[1]))
    assert (code, out, len(complaint.splitlines())) == (2, "", 1)
    assert told in complaint


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.999])
def test_a_truncated_index_is_exit_code_2_and_says_so(torn: Path, keep: float) -> None:
    with torn.open("r+b") as file:
        file.truncate(int(torn.stat().st_size * keep))
    code, _, complaint = run("kv", "--dir", str(torn.parents[1]))
    assert code == 2
    assert "cut off after" in complaint


def test_no_pool_is_exit_code_2(tmp_path: Path) -> None:
    code, _, complaint = run("kv", "--dir", str(tmp_path))
    assert code == 2
    assert "no pool at" in complaint


def test_a_pipe_in_place_of_a_segment_hangs_nobody(torn: Path) -> None:
    (torn.parent / "segment-0").unlink()
    os.mkfifo(torn.parent / "segment-0")
    report = check_pool(torn.parent, pause_s=0)
    assert found(report) == {("error", "segment.file")}


def test_a_link_in_place_of_the_index_is_not_followed(torn: Path) -> None:
    torn.rename(torn.with_name("elsewhere"))
    torn.symlink_to("elsewhere")
    with pytest.raises(PoolMismatch):
        check_pool(torn.parent)


def test_a_file_that_shrinks_while_it_is_read_is_a_sentence(torn: Path) -> None:
    from maru.check.tables import whole

    with PoolFile(torn) as index:
        os.truncate(torn, 100)
        with pytest.raises(PoolMismatch, match="became shorter"):
            whole(index, 0, 4096)


def test_locks_are_asked_for_and_not_taken(pool: maru.Pool) -> None:
    lock = pool.config.folder / "lock"
    first = layout().constants["lock_byte_process"]
    assert held_bytes(lock, range(first, first + 4)) == {first}
    assert held_bytes(lock.with_name("none"), range(first, first + 4)) is None


# ---- the command ----


def test_a_sound_pool_is_exit_code_0_and_one_verdict(torn: Path) -> None:
    code, out, _ = run("kv", "--dir", str(torn.parents[1]), "--read-data")
    assert code == 0
    assert "sound" in out
    assert "1 sealed" in out


def test_findings_are_exit_code_1_with_place_and_advice(torn: Path) -> None:
    with torn.open("r+b") as file:
        file.seek(-2, os.SEEK_END)  # In the last pin column, of a process that never was.
        at = int.from_bytes(torn.read_bytes()[240:248], "little")
        file.seek(at + 2 * 255)
        file.write(b"\1\0")
        file.seek(at + 2 * 270 * 2)
        file.write(b"\1\0")
    code, out, _ = run("kv", "--dir", str(torn.parents[1]))
    assert code == 1
    assert "process.stranded-pins" in out
    assert "at byte" in out
    assert "do  " in out


def test_json_carries_every_finding_and_nothing_else(torn: Path) -> None:
    code, out, _ = run("--dir", str(torn.parents[1]), "--json")
    listed = json.loads(out)
    assert (code, [item["verdict"] for item in listed]) == (0, ["sound"])
    torn.write_bytes(b"")
    code, out, _ = run("kv", "--dir", str(torn.parents[1]), "--json")
    assert (code, json.loads(out)["verdict"]) == (2, "unreadable")


def test_many_findings_of_one_kind_are_listed_up_to_a_limit(torn: Path) -> None:
    index = bytearray(torn.read_bytes())
    tags = int.from_bytes(index[200:208], "little")
    index[tags : tags + 10 * 64] = b"\7" * 640
    torn.write_bytes(index)
    report = check_pool(torn.parent, pause_s=0)
    assert report.count("error") > LISTED_MAX * 2
    shown = io.StringIO()
    show_report(Console(file=shown, width=160), report)
    text = shown.getvalue()
    assert text.count("tag 07070707 [") == LISTED_MAX
    assert "more [slot.tag-of-free]" in text
