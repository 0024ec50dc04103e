"""`maru audit`: people read the log, and are told when somebody changed it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from maru.audit import AuditLog, Entry, Who, read_key
from maru.cli import app

LINES = [
    Entry("removed", "http", Who("acme", "alice"), "kv", "ab" * 16, chunks=3, at_unix_ns=10**18),
    Entry("hit", "rpc", Who("acme", "node7"), "kv", "cd" * 16, chunks=5, bytes=2048, calls=2),
    Entry("refused", "rpc", Who(client="?[red]x\x1b[2J"), outcome="BadMessage"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    AuditLog(tmp_path / "audit").write(LINES)
    return tmp_path / "audit"


def run(*words: str) -> tuple[int, str, str]:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, ["audit", *words])
    return done.exit_code, done.stdout, done.stderr or str(done.exception or "")


def test_a_good_log_ends_with_zero_and_tells_the_line_to_note(folder: Path) -> None:
    code, out, _ = run("verify", str(folder))
    assert code == 0
    assert "4 lines in 1 files, without a key: as they were written" in out
    told = out.splitlines()[-1].removeprefix("the last line is ")
    assert run("verify", str(folder), "--held", told)[0] == 0
    assert run("verify", str(folder), "--held", "4:" + "0" * 64)[0] == 1
    assert run("verify", str(folder), "--held", "4")[0] == 2


def test_damage_ends_with_one_and_is_named(folder: Path) -> None:
    path = next(folder.glob("*.jsonl"))
    path.write_bytes(path.read_bytes().replace(b"alice", b"malic"))
    code, out, _ = run("verify", str(folder))
    assert code == 1
    assert "line_changed" in out
    code, out, _ = run("verify", str(folder), "--json")
    document = json.loads(out)
    assert (code, document["is_good"]) == (1, False)
    assert [damage["seq"] for damage in document["damages"]] == [2]


def test_a_key_is_made_once_and_for_its_owner(tmp_path: Path) -> None:
    path = tmp_path / "audit.key"
    code, out, _ = run("key", str(path))
    assert code == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text().strip() not in out
    assert run("key", str(path))[0] == 1
    AuditLog(tmp_path / "audit", read_key(path)).write(LINES)
    assert run("verify", str(tmp_path / "audit"), "--key", str(path))[0] == 0
    assert run("verify", str(tmp_path / "audit"))[0] == 1


def test_the_key_in_the_folder_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "audit"
    folder.mkdir(mode=0o700)
    run("key", str(folder / "audit.key"))
    AuditLog(folder, read_key(folder / "audit.key")).write(LINES)
    assert run("verify", str(folder))[0] == 0


@pytest.mark.parametrize(
    ("options", "whats"),
    [
        ([], ["opened", "removed", "hit", "refused"]),
        (["--who", "alice"], ["removed"]),
        (["--what", "hit"], ["hit"]),
        (["--namespace", "cdcd"], ["hit"]),
        (["--since", "1h"], ["opened", "hit", "refused"]),
        (["--since", "2001-01-01"], ["opened", "removed", "hit", "refused"]),
    ],
)
def test_what_is_shown_agrees_with_all_that_is_asked(folder: Path, options: list[str], whats: list[str]) -> None:
    code, out, _ = run("show", str(folder), *options, "--json")
    assert code == 0
    assert [line["what"] for line in json.loads(out)] == whats


def test_what_a_client_called_itself_is_neither_markup_nor_control(folder: Path) -> None:
    for command in (["show", str(folder)], ["tail", str(folder), "-n", "1"]):
        out = run(*command)[1]
        assert "\x1b" not in out
        assert "?[red]x?[2J" in out


def test_the_tail_is_the_newest_lines(folder: Path) -> None:
    out = run("tail", str(folder), "--lines", "2")[1].splitlines()
    assert ["hit" in out[0], "refused" in out[1], len(out)] == [True, True, 2]


def test_no_log_and_a_bad_time_are_said(folder: Path, tmp_path: Path) -> None:
    for command in ("verify", "show", "tail"):
        code, _, error = run(command, str(tmp_path))
        assert code == 1
        assert "holds no audit log" in error
    assert run("show", str(folder), "--since", "yesterday")[0] == 2


# ---- maru keys ------------------------------------------------------------------------------------------------------


def test_changes_of_keys_are_noted_and_no_secret_with_them(tmp_path: Path) -> None:
    folder, keys = tmp_path / "audit", tmp_path / "keys"
    shown = []
    for words in (
        ["generate"],
        ["generate", "node7", "--tenant", "acme"],
        ["revoke", "node7"],
        ["token", "add", "alice", "--role", "admin"],
        ["token", "revoke", "alice"],
        ["list"],
    ):
        done = CliRunner(env={"MARU_AUDIT": str(folder)}).invoke(app, ["keys", *words, "--dir", str(keys)])
        assert done.exit_code == 0, done.output
        shown.append(done.stdout)
    lines = json.loads(run("show", str(folder), "--what", "keys", "--json")[1])
    assert [(line.get("tenant"), line.get("client"), line["reason"]) for line in lines] == [
        (None, None, "the daemon's keys were made"),
        ("acme", "node7", "a client was let in with a key made here"),
        ("acme", "node7", "a client was revoked"),
        (None, "alice", "a token of role admin was made"),
        (None, "alice", "a token of role admin was revoked"),
    ]
    assert shown[3].split()[-1] not in (folder / "audit-000001.jsonl").read_text()
    assert run("verify", str(folder))[0] == 0


def test_a_change_of_keys_that_cannot_be_noted_is_made_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "audit").write_text("no folder")
    done = CliRunner(env={"MARU_AUDIT": str(tmp_path / "audit")}).invoke(
        app, ["keys", "generate", "--dir", str(tmp_path / "keys")]
    )
    assert done.exit_code == 0
    assert "not noted" in done.stderr
    assert (tmp_path / "keys" / "server.key").exists()
