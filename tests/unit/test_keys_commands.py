"""`maru keys`, run as a person runs it: it does what it says, and a secret is printed only where it is the answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import zmq
from typer.testing import CliRunner, Result

from maru import credentials
from maru.cli import app

KEY = "0123456789" * 4


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where there are no keys yet."""
    return tmp_path / "keys"


def keys(folder: Path, *words: str, columns: int = 200) -> Result:
    return CliRunner().invoke(app, ["keys", *words, "--dir", str(folder)], env={"COLUMNS": str(columns)})


def said(folder: Path, *words: str) -> dict[str, object]:
    result = keys(folder, *words, "--json")
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert isinstance(document, dict)
    return document


def test_a_daemon_and_a_client_get_their_keys(folder: Path) -> None:
    server, client = said(folder, "generate"), said(folder, "generate", "node7", "--tenant", "them")
    made = credentials.load_client_key(Path(str(client["file"])))
    assert server["public_key"] == made.server_public_z85
    assert (client["public_key"], client["tenant"], client["is_authorised"]) == (made.public_z85, "them", True)
    assert made.secret_z85 not in json.dumps([server, client])


def test_a_client_makes_its_own_and_is_added(folder: Path, tmp_path: Path) -> None:
    server = str(said(folder, "generate")["public_key"])
    made = said(tmp_path / "there", "generate", "node7", "--server", server)
    assert not made["is_authorised"]
    assert said(folder, "add", "node7", str(made["public_key"]))["name"] == "node7"
    assert [one.name for one in credentials.list_clients(folder)] == ["node7"]


def test_a_user_of_this_host_is_added_by_number_and_shown_so(folder: Path) -> None:
    assert "maru keys generate" in keys(folder, "add", "blue", "--uid", "1008").stderr, "the daemon's keys come first"
    said(folder, "generate")
    told = said(folder, "add", "blue", "--uid", "1008", "--tenant", "blue", "--may", "read")
    assert (told["uid"], told["tenant"], told["may"], told["may_map"]) == (1008, "blue", ["read"], False)
    assert "uid 1008" in keys(folder, "list").stdout
    for words in (("--uid", "1", KEY), ()):
        assert keys(folder, "add", "red", *words).exit_code == 2, "a key, or a user"
    said(folder, "revoke", "blue")
    assert said(folder, "list")["clients"] == []


def test_the_list_tells_everything_but_secrets(folder: Path) -> None:
    said(folder, "generate")
    path = str(said(folder, "generate", "node7")["file"])
    token = str(said(folder, "token", "add", "prometheus", "--role", "read")["token"])
    said(folder, "certificate", "--host", "maru.example.org")
    told = said(folder, "list")
    assert told["server_public_key"] == credentials.load_server_keys(folder).public_z85
    assert isinstance(told["clients"], list)
    assert [one["name"] for one in told["clients"]] == ["node7"]
    shown = keys(folder, "list").stdout
    for part in ("node7", "default", "prometheus", "read", "maru.example.org"):
        assert part in shown
    secrets = (
        token,
        credentials.load_client_key(Path(path)).secret_z85,
        credentials.load_server_keys(folder).secret_z85,
    )
    for secret in secrets:
        assert secret not in shown + json.dumps(told) + keys(folder, "token", "list").output


@pytest.mark.parametrize("words", [("list",), ("certificate", "--host", "a.example.org")])
def test_what_is_shown_is_whole_on_a_narrow_terminal(folder: Path, words: tuple[str, ...]) -> None:
    said(folder, "generate")
    key = str(said(folder, "generate", "node7")["public_key"])
    shown = keys(folder, *words, columns=30).stdout
    assert "…" not in shown.replace(" …", "")
    assert key in shown if words == ("list",) else credentials.load_certificate(folder).sha256_fingerprint in shown


def test_a_token_goes_to_stdout_alone_and_is_shown_once(folder: Path) -> None:
    result = keys(folder, "token", "add", "alice", "--role", "admin")
    token = result.stdout.strip()
    assert credentials.Authorised(folder).authenticate(token) == "admin"
    assert "shown once" in result.stderr
    assert token not in keys(folder, "token", "list", "--json").output
    assert keys(folder, "token", "add", "alice", "--role", "admin").exit_code == 1


def test_who_is_revoked_is_gone_from_the_list(folder: Path) -> None:
    said(folder, "generate")
    said(folder, "generate", "node7")
    said(folder, "token", "add", "alice", "--role", "read")
    assert said(folder, "revoke", "node7")["name"] == "node7"
    assert said(folder, "token", "revoke", "alice")["role"] == "read"
    assert (said(folder, "list")["clients"], said(folder, "list")["tokens"]) == ([], [])


@pytest.mark.parametrize(
    ("words", "advice"),
    [
        (("list",), "maru keys generate"),
        (("generate", "node7"), "maru keys generate"),
        (("add", "node7", "short"), "single quotes"),
        (("add", "a/b", KEY), "not a name"),
        (("token", "add", "..", "--role", "read"), "not a name"),
        (("certificate", "--host", "http://x"), "DNS name"),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(folder: Path, words: tuple[str, ...], advice: str) -> None:
    result = keys(folder, *words)
    assert (result.exit_code, result.stdout) == (1, "")
    assert advice in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_a_role_that_is_none_is_a_line_that_cannot_be_read(folder: Path) -> None:
    assert keys(folder, "token", "add", "alice", "--role", "root").exit_code == 2
    assert keys(folder, "generate", "--server", KEY).exit_code == 2


@pytest.mark.parametrize(
    ("package", "words", "extra"),
    [("zmq", ("generate",), "remote"), ("cryptography", ("certificate",), "serve")],
)
def test_a_package_that_is_missing_is_named_with_what_brings_it(
    folder: Path, monkeypatch: pytest.MonkeyPatch, package: str, words: tuple[str, ...], extra: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    result = keys(folder, *words)
    assert result.exit_code == 1
    assert f"pip install 'maru-kvcache[{extra}]'" in result.stderr


def test_a_key_that_is_made_never_looks_like_an_option(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = iter([(b"-" + KEY[1:].encode(), b""), zmq.curve_keypair()])
    monkeypatch.setattr(zmq, "curve_keypair", lambda: next(pairs))
    assert not str(said(folder, "generate")["public_key"]).startswith("-")


@pytest.mark.parametrize("words", [(), ("token",), ("generate",), ("certificate",), ("token", "add")])
def test_help_shows_how_it_is_typed(words: tuple[str, ...]) -> None:
    text = CliRunner().invoke(app, ["keys", *words, "--help"], env={"COLUMNS": "120"}).stdout
    assert "maru keys" in text
