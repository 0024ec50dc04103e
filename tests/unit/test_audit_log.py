"""The audit log: what is written stays as it was, and whoever changes it is found out."""

from __future__ import annotations

import errno
import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from maru.audit import Audit, AuditLog, Bounds, Entry, Wanted, Who, entries_in, make_key, read_key, verify_log
from maru.audit.log import HEAD
from maru.audit.summing import RARE_MAX, ROWS_MAX, Key
from maru.errors import AuditError, BadCredential, UnsafeCredentials

ALICE = Who("acme", "alice")
REMOVED = Entry("removed", "http", ALICE, "kv", "ab" * 16, chunks=3, bytes=300, at_unix_ns=5)
HIT: Key = ("hit", "rpc", ALICE, "kv", "ab" * 16, "done", "")
SMALL = Bounds(file_bytes=4096, file_age_s=1e9, total_bytes=16384)


def files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.jsonl"))


def kinds(folder: Path, **options: object) -> set[str]:
    return {damage.kind for damage in verify_log(folder, **options).damages}  # type: ignore[arg-type]


def lines_of(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def written(folder: Path) -> Path:
    """A log of two files: an opening line and twelve entries, then an opening line and four."""
    first = AuditLog(folder, clock_ns=lambda: 0, bounds=Bounds(file_age_s=1))
    for n in range(12):
        first.write([Entry("removed", "http", ALICE, "kv", "ab" * 16, chunks=n, at_unix_ns=n)])
    AuditLog(folder, clock_ns=lambda: 2 * 10**9, bounds=Bounds(file_age_s=1)).write([REMOVED] * 4)
    assert [len(lines_of(path)) for path in files_of(folder)] == [13, 5]
    assert verify_log(folder).is_good
    return folder


def test_a_line_says_who_did_what_when_with_which_namespace_and_how_much(folder: Path) -> None:
    AuditLog(folder).write([REMOVED])
    opening, line = map(json.loads, lines_of(files_of(folder)[0]))
    assert opening["what"] == "opened"
    assert opening["file"] == 1
    assert {name: line[name] for name in line if name != "hash"} == {
        "seq": 2, "at_unix_ns": 5, "what": "removed", "door": "http", "tenant": "acme", "client": "alice",
        "pool": "kv", "namespace": "ab" * 16, "chunks": 3, "bytes": 300, "calls": 1, "outcome": "done",
    }  # fmt: skip


def test_the_folder_and_its_files_are_for_their_owner_alone(folder: Path) -> None:
    AuditLog(folder).write([REMOVED])
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o600}


def test_a_folder_that_others_can_use_is_refused(folder: Path) -> None:
    folder.mkdir(mode=0o750)
    folder.chmod(0o750)
    with pytest.raises(AuditError, match=r"mode 0750.*chmod 700"):
        AuditLog(folder)


def test_several_writers_make_one_chain(folder: Path) -> None:
    logs = [AuditLog(folder) for _ in range(3)]
    for n in range(9):
        logs[n % 3].write([REMOVED])
    verdict = verify_log(folder)
    assert verdict.is_good
    assert (verdict.files, verdict.lines, verdict.last_seq) == (1, 10, 10)


def test_threads_with_logs_of_their_own_lose_no_line(folder: Path) -> None:
    def write() -> None:
        log = AuditLog(folder)
        for _ in range(10):
            log.write([REMOVED])

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert verify_log(folder).is_good
    assert sum(1 for fields in entries_in(folder, Wanted(what="removed"))) == 40


# ---- each damage by its name ------------------------------------------------------------------------------


def test_a_changed_line_is_named(written: Path) -> None:
    path = files_of(written)[0]
    lines = lines_of(path)
    lines[5] = lines[5].replace(b"alice", b"malic")
    path.write_bytes(b"".join(lines))
    (damage,) = verify_log(written).damages
    assert (damage.kind, damage.file, damage.seq) == ("line_changed", path.name, 6)


def test_a_changed_hash_accuses_its_own_line_only(written: Path) -> None:
    path = files_of(written)[0]
    lines = lines_of(path)
    lines[5] = b'{"hash":"' + b"0" * 64 + lines[5][len(b'{"hash":"') + 64 :]
    path.write_bytes(b"".join(lines))
    assert [(one.kind, one.seq) for one in verify_log(written).damages] == [("line_changed", 6)]


def test_a_missing_line_is_named(written: Path) -> None:
    path = files_of(written)[0]
    lines = lines_of(path)
    del lines[4]
    path.write_bytes(b"".join(lines))
    assert [(one.kind, one.seq) for one in verify_log(written).damages] == [("line_missing", 5)]


def test_swapped_lines_are_named(written: Path) -> None:
    path = files_of(written)[0]
    lines = lines_of(path)
    lines[4], lines[5] = lines[5], lines[4]
    path.write_bytes(b"".join(lines))
    assert [(one.kind, one.seq) for one in verify_log(written).damages] == [("lines_swapped", 5)]


def test_a_line_that_stands_twice_is_named(written: Path) -> None:
    path = files_of(written)[0]
    lines = lines_of(path)
    path.write_bytes(b"".join([*lines[:6], lines[3], *lines[6:]]))
    assert kinds(written) == {"line_repeated"}


@pytest.mark.parametrize("cut", [1, 2, 4, 5])
def test_a_tail_that_was_cut_off_is_named_by_the_head(written: Path, cut: int) -> None:
    path = files_of(written)[1]
    path.write_bytes(b"".join(lines_of(path)[:-cut]))
    assert "tail_cut" in kinds(written)


def test_a_last_file_that_is_gone_is_a_cut_tail(written: Path) -> None:
    files_of(written)[1].unlink()
    assert kinds(written) == {"tail_cut"}


def test_all_files_gone_is_a_cut_tail(written: Path) -> None:
    for path in files_of(written):
        path.unlink()
    assert kinds(written) == {"tail_cut"}


def test_a_first_file_that_no_line_says_was_removed_is_missing(written: Path) -> None:
    files_of(written)[0].unlink()
    assert kinds(written) == {"file_missing"}


def test_a_file_missing_in_the_middle_is_named(folder: Path) -> None:
    for second in range(3):
        AuditLog(folder, clock_ns=lambda at=second: at * 10**9, bounds=Bounds(file_age_s=1)).write([REMOVED])  # type: ignore[misc]
    files_of(folder)[1].unlink()
    assert kinds(folder) == {"file_missing"}


def test_a_missing_head_is_named(written: Path) -> None:
    (written / HEAD).unlink()
    assert kinds(written) == {"head_missing"}


def test_a_cut_tail_still_shows_after_the_log_went_on(written: Path) -> None:
    path = files_of(written)[1]
    path.write_bytes(b"".join(lines_of(path)[:-2]))
    AuditLog(written).write([REMOVED])
    assert kinds(written) == {"line_missing"}


def test_a_hash_that_was_noted_elsewhere_finds_a_chain_that_was_made_anew(tmp_path: Path) -> None:
    """Without a key whoever can write the folder can write another chain; not one with the same hashes."""
    genuine, forged = tmp_path / "genuine", tmp_path / "forged"
    AuditLog(genuine).write([REMOVED] * 3)
    verdict = verify_log(genuine)
    AuditLog(forged).write([REMOVED] * 3)
    held = (verdict.last_seq, verdict.last_hash)
    assert kinds(genuine, held=held) == set()
    assert kinds(forged) == set()
    assert kinds(forged, held=held) == {"not_the_same"}


# ---- keys -------------------------------------------------------------------------------------------------


def test_a_chain_without_the_key_is_foreign(folder: Path, tmp_path: Path) -> None:
    key, other = make_key(tmp_path / "key"), make_key(tmp_path / "other")
    AuditLog(folder, key).write([REMOVED] * 3)
    assert verify_log(folder, read_key(tmp_path / "key")).is_good
    assert "foreign_key" in kinds(folder, key=other)
    assert "key_needed" in kinds(folder)


def test_a_whole_new_chain_without_the_key_is_found_out(folder: Path, tmp_path: Path) -> None:
    key = make_key(tmp_path / "key")
    AuditLog(folder).write([REMOVED] * 3)
    assert "foreign_key" in kinds(folder, key=key)


def test_a_log_that_got_its_key_later_is_good(folder: Path, tmp_path: Path) -> None:
    AuditLog(folder).write([REMOVED])
    key = make_key(tmp_path / "key")
    AuditLog(folder, key).write([REMOVED])
    assert len(files_of(folder)) == 2
    assert verify_log(folder, key).is_good
    lines = lines_of(files_of(folder)[0])
    files_of(folder)[0].write_bytes(lines[0] + lines[1].replace(b"alice", b"malic"))
    assert "line_changed" in kinds(folder, key=key)


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    make_key(path)
    path.chmod(0o640)
    with pytest.raises(UnsafeCredentials, match="mode 0640"):
        read_key(path)


def test_no_error_and_no_repr_shows_a_key(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    key = make_key(path)
    assert key.secret.hex() not in repr(key)
    path.write_text(key.secret.hex()[:-2])
    with pytest.raises(BadCredential) as caught:
        read_key(path)
    assert key.secret.hex()[:16] not in str(caught.value)


# ---- crashes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("left", [1, 20, 150])
def test_a_half_line_of_a_crash_is_no_damage(written: Path, left: int) -> None:
    path = files_of(written)[1]
    path.write_bytes(path.read_bytes() + lines_of(path)[-1][:left])
    verdict = verify_log(written)
    assert verdict.is_good
    assert any("crash" in note for note in verdict.notes)
    AuditLog(written, clock_ns=lambda: 2 * 10**9).write([REMOVED])
    verdict = verify_log(written)
    assert verdict.is_good
    assert verdict.files == 3


def test_a_half_line_that_was_changed_after_the_next_file_began_is_damage(written: Path) -> None:
    path = files_of(written)[1]
    path.write_bytes(path.read_bytes() + b'{"hash":"00')
    AuditLog(written).write([REMOVED])
    path.write_bytes(path.read_bytes() + b"1")
    assert kinds(written) == {"line_changed"}


def test_a_head_that_a_crash_left_behind_is_no_damage(folder: Path) -> None:
    log = AuditLog(folder)
    log.write([REMOVED])
    before = (folder / HEAD).read_bytes()
    log.write([REMOVED])
    (folder / HEAD).write_bytes(before)
    assert verify_log(folder).is_good
    AuditLog(folder).write([REMOVED])
    assert verify_log(folder).is_good
    assert verify_log(folder).last_seq == 4


# ---- bounds -----------------------------------------------------------------------------------------------


def test_the_folder_never_takes_more_than_it_may(folder: Path) -> None:
    log = AuditLog(folder, bounds=SMALL)
    for _ in range(200):
        log.write([REMOVED])
        taken = sum(path.stat().st_size for path in files_of(folder))
        assert taken <= SMALL.total_bytes + 1024
    verdict = verify_log(folder)
    assert verdict.is_good
    assert any("own bound" in note for note in verdict.notes)


def test_a_file_that_is_old_gets_no_more_lines(folder: Path) -> None:
    now = [0]
    log = AuditLog(folder, bounds=Bounds(file_age_s=60), clock_ns=lambda: now[0])
    log.write([REMOVED])
    now[0] = 59 * 10**9
    log.write([REMOVED])
    assert len(files_of(folder)) == 1
    now[0] = 60 * 10**9
    log.write([REMOVED])
    assert len(files_of(folder)) == 2


# ---- summing ----------------------------------------------------------------------------------------------


@pytest.fixture
def audit(folder: Path) -> Audit:
    return Audit(AuditLog(folder), starts=False)


def test_what_is_often_becomes_one_line_a_period(folder: Path, audit: Audit) -> None:
    for _ in range(1000):
        audit.note(HIT, 3, 300)
    audit.flush()
    audit.flush()
    (line,) = entries_in(folder, Wanted(what="hit"))
    assert (line["calls"], line["chunks"], line["bytes"]) == (1000, 3000, 300_000)


def test_notes_of_threads_that_ended_are_written_once(folder: Path, audit: Audit) -> None:
    def note() -> None:
        for _ in range(100):
            audit.note(HIT, 1, 10)

    threads = [threading.Thread(target=note) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    audit.flush()
    audit.flush()
    assert sum(line["calls"] for line in entries_in(folder, Wanted(what="hit"))) == 800
    assert audit._tables == []


def test_many_clients_in_one_period_make_a_bounded_number_of_lines(folder: Path, audit: Audit) -> None:
    for period in range(3):
        for n in range(10 * ROWS_MAX):
            audit.note(("hit", "rpc", Who("", f"?client{period}-{n}"), "kv", "", "done", ""), 1, 1)
        assert sum(len(table.rows) for table in audit._tables) <= 2 * (ROWS_MAX + 1)  # Of memory, in the meantime.
        audit.flush()
        lines = list(entries_in(folder, Wanted(what="hit")))
        assert len(lines) <= (period + 1) * (ROWS_MAX + 1)
        assert sum(line["calls"] for line in lines) == (period + 1) * 10 * ROWS_MAX
    assert any(line["client"] == "others" for line in lines)


def test_a_flood_of_refusals_is_bounded_and_counted(folder: Path, audit: Audit) -> None:
    for _ in range(10 * RARE_MAX):
        audit.tell(Entry("refused", "http", outcome="Unauthorized"))
    audit.flush()
    assert sum(1 for _ in entries_in(folder, Wanted(what="refused"))) == RARE_MAX
    (left_out,) = entries_in(folder, Wanted(what="left_out"))
    assert left_out["calls"] == 9 * RARE_MAX
    audit.tell(Entry("refused", "http", outcome="Unauthorized"))
    audit.flush()
    assert sum(1 for _ in entries_in(folder, Wanted(what="refused"))) == RARE_MAX + 1


def test_what_is_rare_is_written_by_a_thread_at_once_and_the_rest_at_close(folder: Path) -> None:
    audit = Audit(AuditLog(folder))
    audit.note(HIT, 1, 1)
    audit.tell(REMOVED)
    audit.close()
    audit.close()
    assert {line["what"] for line in entries_in(folder)} == {"opened", "removed", "hit"}


def test_a_forked_child_writes_what_it_noted_and_not_what_its_parent_did(folder: Path) -> None:
    audit = Audit(AuditLog(folder))
    audit.note(HIT, 1, 1)
    child = os.fork()
    if child == 0:
        audit.note(HIT, 10, 10)
        audit.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    audit.close()
    assert sorted(line["chunks"] for line in entries_in(folder, Wanted(what="hit"))) == [1, 10]
    assert verify_log(folder).is_good


# ---- a disk that fails ------------------------------------------------------------------------------------


def failing_writes(monkeypatch: pytest.MonkeyPatch, after_bytes: int) -> Callable[[], None]:
    """A disk that is full after so many bytes; returns what makes room again."""
    real, room = os.write, [after_bytes]

    def write(file: int, content: bytes) -> int:
        if room[0] <= 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        took = real(file, bytes(content)[: room[0]])
        room[0] -= took
        return took

    monkeypatch.setattr("maru.audit.log.os.write", write)
    return lambda: monkeypatch.setattr("maru.audit.log.os.write", real)


@pytest.mark.parametrize("after_bytes", [0, 10, 200])
@pytest.mark.parametrize("can_be_cut", [True, False])
def test_a_full_disk_is_told_once_and_leaves_a_gap_that_says_how_much(
    folder: Path,
    audit: Audit,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    after_bytes: int,
    can_be_cut: bool,
) -> None:
    audit.note(HIT, 1, 1)
    audit.flush()
    if not can_be_cut:  # chattr +a on the file, say.
        monkeypatch.setattr("maru.audit.log.os.ftruncate", lambda *_: (_ for _ in ()).throw(OSError(errno.EPERM, "")))
    make_room = failing_writes(monkeypatch, after_bytes)
    for _ in range(3):
        audit.note(HIT, 1, 1)
        audit.flush()
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 1
    assert audit.counts.failures == 3
    make_room()
    audit.note(HIT, 1, 1)
    audit.flush()
    (gap,) = entries_in(folder, Wanted(what="gap"))
    assert (gap["calls"], gap["reason"]) == (3, "No space left on device")
    assert sum(line["calls"] for line in entries_in(folder, Wanted(what="hit"))) == 2
    assert verify_log(folder).is_good


def test_a_folder_that_vanishes_stops_nobody(folder: Path, audit: Audit) -> None:
    audit.note(HIT, 1, 1)
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    audit.flush()
    audit.tell(REMOVED)
    audit.flush()
    assert audit.counts.lost_calls == 2


# ---- any one change ---------------------------------------------------------------------------------------


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_whatever_was_written_any_one_change_is_found(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("any")
    folder = root / "audit"
    key = make_key(root / "key") if data.draw(st.booleans(), "with a key") else None
    now = [0]
    logs = [AuditLog(folder, key, SMALL, lambda: now[0]) for _ in range(2)]
    for writer, count in data.draw(st.lists(st.tuples(st.integers(0, 1), st.integers(1, 9)), min_size=1, max_size=30)):
        logs[writer].write([Entry("hit", "rpc", ALICE, "kv", "ab" * 16, chunks=n, at_unix_ns=n) for n in range(count)])
    assert verify_log(folder, key).damages == []
    path = data.draw(st.sampled_from([*files_of(folder), folder / HEAD]), "file")
    content = path.read_bytes()
    lines = content.splitlines(keepends=True)
    match data.draw(st.sampled_from(["byte", "drop", "swap", "repeat", "cut", "remove"]), "change"):
        case "byte":
            at = data.draw(st.integers(0, len(content) - 1), "at")
            other = data.draw(st.integers(0, 255).filter(lambda byte: byte != content[at]), "byte")
            changed = content[:at] + bytes([other]) + content[at + 1 :]
        case "drop":
            at = data.draw(st.integers(0, len(lines) - 1), "line")
            changed = b"".join(lines[:at] + lines[at + 1 :])
        case "swap" if len(lines) > 1:
            at = data.draw(st.integers(0, len(lines) - 2), "line")
            changed = b"".join([*lines[:at], lines[at + 1], lines[at], *lines[at + 2 :]])
        case "repeat":
            at = data.draw(st.integers(0, len(lines) - 1), "line")
            changed = b"".join([*lines[: at + 1], lines[at], *lines[at + 1 :]])
        case "cut":
            changed = content[: data.draw(st.integers(0, len(content) - 1), "bytes")]
        case _:
            changed = None
    if changed is None:
        path.unlink()
    else:
        path.write_bytes(changed)
    assert verify_log(folder, key).damages
