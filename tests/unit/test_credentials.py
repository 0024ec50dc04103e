"""Promises of the folder of keys: only its owner reads it, a change is whole or not there, and it counts at once."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import pickle
import stat
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import zmq

from maru import credentials
from maru.credentials import Authorised
from maru.credentials.authorised import STAMP_GRAIN_S
from maru.credentials.folder import FILE_BYTES_MAX, KeyFolder
from maru.errors import (
    BadCredential,
    CredentialError,
    CredentialExists,
    CredentialNotFound,
    CredentialsBusy,
    UnsafeCredentials,
)

OTHER_KEY = zmq.curve_keypair()[0].decode()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Keys of a daemon, and of one client: `node`."""
    place = tmp_path / "keys"
    credentials.generate_server(place)
    credentials.generate_client(place, "node")
    return place


def names(folder: Path) -> list[str]:
    return [one.name for one in credentials.list_clients(folder)]


def key_of(folder: Path, name: str = "node") -> str:
    return next(one.public_z85 for one in credentials.list_clients(folder) if one.name == name)


# ---- how it lies on the disk ----


def test_only_its_owner_can_read_anything(folder: Path) -> None:
    credentials.add_token(folder, "alice", "admin")
    credentials.make_certificate(folder, ["localhost"])
    made = list(folder.rglob("*"))
    assert {path.name for path in made} >= {"server.key", "clients.json", "node.key", "tokens.json", "tls.pem"}
    for path in (folder, *made):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_generous_umask_changes_nothing(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        credentials.generate_server(tmp_path / "keys")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700
    assert stat.S_IMODE((tmp_path / "keys" / "server.key").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_a_file_that_others_can_use_is_refused_and_says_what_to_do(folder: Path, mode: int) -> None:
    (folder / "server.key").chmod(mode)
    with pytest.raises(UnsafeCredentials, match="chmod 600"):
        credentials.load_server_keys(folder)


@pytest.mark.parametrize("mode", [0o710, 0o750, 0o702])
def test_a_folder_that_others_can_use_is_refused(folder: Path, mode: int) -> None:
    folder.chmod(mode)
    for refused in (
        lambda: credentials.load_server_keys(folder),
        lambda: credentials.add_token(folder, "alice", "read"),
        lambda: Authorised(folder),
    ):
        with pytest.raises(UnsafeCredentials, match="chmod 700"):
            refused()


def test_what_belongs_to_somebody_else_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    someone = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: someone)
    with pytest.raises(UnsafeCredentials, match="another user"):
        credentials.load_server_keys(folder)
    with pytest.raises(UnsafeCredentials, match="another user"):
        credentials.load_client_key(folder / "clients" / "node.key")


def test_no_link_is_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "way").symlink_to(folder)
    with pytest.raises(UnsafeCredentials):
        credentials.load_server_keys(tmp_path / "way")
    (folder / "server.key").rename(tmp_path / "elsewhere")
    (folder / "server.key").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UnsafeCredentials):
        credentials.load_server_keys(folder)
    with pytest.raises(UnsafeCredentials):
        credentials.load_client_key(folder / "server.key")


def test_a_link_in_place_of_a_list_is_replaced_and_what_it_led_to_stays(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"mine")
    KeyFolder(folder).remove("tokens.json")
    (folder / "tokens.json").symlink_to(tmp_path / "precious")
    with pytest.raises(UnsafeCredentials):
        credentials.add_token(folder, "alice", "read")
    KeyFolder(folder).write("tokens.json", b"{}")
    assert (tmp_path / "precious").read_bytes() == b"mine"


def test_a_pipe_in_place_of_a_key_does_not_block(folder: Path) -> None:
    (folder / "server.key").unlink()
    os.mkfifo(folder / "server.key", 0o600)
    with pytest.raises(UnsafeCredentials):
        credentials.load_server_keys(folder)


def test_a_file_that_is_far_too_large_is_not_read(folder: Path) -> None:
    (folder / "clients.json").write_bytes(b" " * (FILE_BYTES_MAX + 1))
    with pytest.raises(UnsafeCredentials, match="larger"):
        credentials.list_clients(folder)


def test_a_command_that_dies_before_its_end_leaves_the_old_list(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    for call in ("fsync", "replace"):
        with monkeypatch.context() as broken:
            broken.setattr(os, call, full)
            with pytest.raises(CredentialError, match="No space"):
                credentials.add_client(folder, "late", OTHER_KEY)
        assert names(folder) == ["node"]
        assert [path.name for path in folder.iterdir() if path.name.startswith(".new-")] == []


def test_what_a_killed_command_left_half_written_is_removed_by_the_next(folder: Path) -> None:
    (folder / ".new-0123").write_bytes(b"half a li")
    credentials.add_client(folder, "late", OTHER_KEY)
    assert not (folder / ".new-0123").exists()


def test_commands_at_once_lose_nothing(folder: Path) -> None:
    begin = threading.Barrier(8)

    def add(number: int) -> None:
        begin.wait(timeout=20)
        credentials.add_token(folder, f"t{number}", "read", deadline_s=60)
        credentials.add_client(folder, f"c{number}", zmq.curve_keypair()[0].decode(), deadline_s=60)

    crowd = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for one in crowd:
        one.start()
    for one in crowd:
        one.join()
    assert sorted(names(folder)) == sorted(["node", *(f"c{number}" for number in range(8))])
    assert len(credentials.list_tokens(folder)) == 8


def test_who_waits_for_the_folder_longer_than_the_deadline_is_told(folder: Path) -> None:
    with (folder / ".lock").open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(CredentialsBusy):
            credentials.revoke_client(folder, "node", deadline_s=0)
    assert names(folder) == ["node"]


def test_the_folder_is_the_users_configuration_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert credentials.default_folder() == tmp_path / "maru" / "keys"
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative/is/to/be/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert credentials.default_folder() == tmp_path / ".config" / "maru" / "keys"


# ---- keys ----


def test_a_clients_file_is_all_it_needs(folder: Path, tmp_path: Path) -> None:
    server, client = credentials.load_server_keys(folder), credentials.load_client_key(folder / "clients" / "node.key")
    assert client.server_public_z85 == server.public_z85
    assert client.name == "node"
    assert zmq.curve_public(client.secret_z85.encode()).decode() == client.public_z85 == key_of(folder)


def test_a_pair_made_on_the_clients_own_host_is_let_in_by_its_public_half(folder: Path, tmp_path: Path) -> None:
    server = credentials.load_server_keys(folder)
    path, public = credentials.generate_remote(tmp_path / "there", "far", server.public_z85)
    assert names(folder) == ["node"]
    credentials.add_client(folder, "far", public)
    assert key_of(folder, "far") == credentials.load_client_key(path).public_z85
    with pytest.raises(CredentialExists):
        credentials.generate_remote(tmp_path / "there", "far", server.public_z85)


def test_no_secret_is_in_a_repr_or_an_error(folder: Path) -> None:
    server, client = credentials.load_server_keys(folder), credentials.load_client_key(folder / "clients" / "node.key")
    token = credentials.add_token(folder, "alice", "read")
    kept = credentials.list_tokens(folder)[0]
    shown = f"{server!r} {client!r} {kept!r} {server} {client}"
    assert server.secret_z85 not in shown
    assert client.secret_z85 not in shown
    assert kept.sha256_hex not in shown
    assert token not in (folder / "tokens.json").read_text()
    (folder / "server.key").write_text((folder / "server.key").read_text().replace(server.public_z85, OTHER_KEY))
    with pytest.raises(BadCredential, match="do not belong together") as caught:
        credentials.load_server_keys(folder)
    assert server.secret_z85 not in str(caught.value)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_the_daemons_keys_are_not_made_twice(folder: Path) -> None:
    before = credentials.load_server_keys(folder).public_z85
    with pytest.raises(CredentialExists, match="hand every client a key file anew"):
        credentials.generate_server(folder)
    assert credentials.load_server_keys(folder).public_z85 == before


def test_a_client_needs_a_daemon_that_has_keys(tmp_path: Path) -> None:
    with pytest.raises(CredentialNotFound, match="maru keys generate"):
        credentials.generate_client(tmp_path / "none", "node")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "key", ["", "short", OTHER_KEY[:-1], OTHER_KEY + "0", OTHER_KEY[:-1] + '"', OTHER_KEY[:-1] + "é", "#" * 40]
)
def test_what_is_no_key_is_not_let_in(folder: Path, key: str) -> None:
    with pytest.raises(BadCredential, match="40 characters") as caught:
        credentials.add_client(folder, "late", key)
    assert not key or key not in str(caught.value)
    assert names(folder) == ["node"]


@pytest.mark.parametrize("name", ["", ".", "..", "../server", "a/b", "-x", "a b", "é", "a" * 65, "a\n", "x\0"])
def test_what_is_no_name_is_refused_before_anything_is_written(folder: Path, name: str) -> None:
    before = sorted(path.name for path in folder.rglob("*"))
    for refused in (
        lambda: credentials.generate_client(folder, name),
        lambda: credentials.generate_client(folder, "fine", tenant=name),
        lambda: credentials.add_client(folder, name, OTHER_KEY),
        lambda: credentials.add_token(folder, name, "read"),
        lambda: credentials.generate_remote(folder, name, OTHER_KEY),
    ):
        with pytest.raises(BadCredential, match="not a name"):
            refused()
    assert sorted(path.name for path in folder.rglob("*")) == before


def test_a_name_and_a_key_stand_in_the_list_once(folder: Path) -> None:
    with pytest.raises(CredentialExists, match="revoke node"):
        credentials.add_client(folder, "node", OTHER_KEY)
    with pytest.raises(CredentialExists, match="as 'node'"):
        credentials.add_client(folder, "other", key_of(folder))
    with pytest.raises(CredentialExists, match="revoke node"):
        credentials.generate_client(folder, "node")


def test_whoever_is_revoked_leaves_no_key_file(folder: Path) -> None:
    credentials.revoke_client(folder, "node")
    assert names(folder) == []
    assert list((folder / "clients").iterdir()) == []
    with pytest.raises(CredentialNotFound, match="'node'"):
        credentials.revoke_client(folder, "node")


@pytest.mark.parametrize(
    "content",
    [
        b"", b"[]", b"{", b'{"maru": "list of clients"}', b"\xff\xfe", b"[" * 10_000,
        b'{"maru": "list of clients", "format": 2, "clients": []}',
        b'{"maru": "list of clients", "format": 1, "clients": {}}',
        b'{"maru": "list of clients", "format": 1, "clients": [1]}',
        b'{"maru": "list of clients", "format": 1, "clients": [{"name": "a", "public": 5}]}',
        b'{"maru": "list of tokens", "format": 1, "clients": []}',
    ],
)  # fmt: skip
def test_a_list_that_cannot_be_read_is_refused_by_name(folder: Path, content: bytes) -> None:
    (folder / "clients.json").write_bytes(content)
    with pytest.raises(BadCredential, match="clients"):
        credentials.list_clients(folder)
    with pytest.raises(BadCredential):
        Authorised(folder)
    assert (folder / "clients.json").read_bytes() == content


def test_a_list_that_names_somebody_twice_is_refused(folder: Path) -> None:
    document = json.loads((folder / "clients.json").read_text())
    document["clients"] *= 2
    (folder / "clients.json").write_text(json.dumps(document))
    with pytest.raises(BadCredential, match="twice"):
        credentials.list_clients(folder)


# ---- asked while a daemon runs ----


def test_who_is_added_or_revoked_counts_at_once(folder: Path) -> None:
    authorised = Authorised(folder)
    key = key_of(folder)
    assert authorised.is_authorised(key) == "node"
    assert authorised.is_authorised(OTHER_KEY) is None
    credentials.add_client(folder, "late", OTHER_KEY, tenant="them")
    late = authorised.client(OTHER_KEY)
    assert late is not None
    assert (late.name, late.tenant) == ("late", "them")
    credentials.revoke_client(folder, "node")
    assert authorised.is_authorised(key) is None


def test_two_changes_within_a_tick_of_the_clock_are_both_seen(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stamps of a file are as coarse as the kernel's tick: a daemon that trusts fresh ones misses a change."""
    credentials.add_token(folder, "alice", "read")
    frozen = {path: path.lstat() for path in (folder, *folder.iterdir())}
    monkeypatch.setattr(Path, "lstat", lambda path: frozen[path])
    authorised, key = Authorised(folder), key_of(folder)
    assert authorised.is_authorised(key) == "node"
    raw = (folder / "clients.json").read_bytes()
    KeyFolder(folder).write("clients.json", raw.replace(b'"node"', b'"nope"'))
    assert authorised.is_authorised(key) == "nope"


def test_an_old_list_is_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_of(folder)
    monkeypatch.setattr("maru.credentials.authorised.time.time", lambda: datetime.now(UTC).timestamp() + 60)
    authorised = Authorised(folder)
    with monkeypatch.context() as unreadable:
        unreadable.setattr(KeyFolder, "read", lambda *_: pytest.fail("the list was read again"))
        assert authorised.is_authorised(key) == "node"
    credentials.revoke_client(folder, "node")
    assert authorised.is_authorised(key) is None
    assert STAMP_GRAIN_S > 0.02  # Coarser than any kernel's tick.


def test_a_list_that_breaks_lets_in_nobody_and_is_told_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    token = credentials.add_token(folder, "alice", "admin")
    authorised, key = Authorised(folder), key_of(folder)
    (folder / "clients.json").chmod(0o666)
    (folder / "tokens.json").write_bytes(b"{")
    with caplog.at_level(logging.ERROR):
        for _ in range(3):
            assert authorised.is_authorised(key) is None
            assert authorised.authenticate(token) is None
    assert len(caplog.records) == 2
    (folder / "clients.json").chmod(0o600)
    assert authorised.is_authorised(key) == "node"


def test_a_folder_that_vanishes_lets_in_nobody(folder: Path) -> None:
    authorised, key = Authorised(folder), key_of(folder)
    folder.rename(folder.with_name("gone"))
    assert authorised.is_authorised(key) is None


def test_a_token_has_its_role_until_it_is_revoked(folder: Path) -> None:
    authorised = Authorised(folder)
    reader, admin = credentials.add_token(folder, "p", "read"), credentials.add_token(folder, "a", "admin")
    assert (authorised.authenticate(reader), authorised.authenticate(admin)) == ("read", "admin")
    for wrong in (
        "",
        reader[:-1],
        reader + "x",
        reader.upper(),
        "x" * 100_000,
        "\udcff",
        "é",
        credentials.list_tokens(folder)[0].sha256_hex,
    ):
        assert authorised.authenticate(wrong) is None
    credentials.revoke_token(folder, "p")
    assert (authorised.authenticate(reader), authorised.authenticate(admin)) == (None, "admin")
    with pytest.raises(CredentialNotFound, match="there are: a"):
        credentials.revoke_token(folder, "p")


def test_every_token_is_compared_whatever_matches(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = [credentials.add_token(folder, f"t{number}", "read") for number in range(5)]
    authorised, compared = Authorised(folder), []
    monkeypatch.setattr("maru.credentials.tokens.hmac.compare_digest", lambda a, b: compared.append(a) or a == b)
    for token in (made[0], made[4], "nobody's"):
        compared.clear()
        authorised.authenticate(token)
        assert len(compared) == 5


def test_a_role_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(BadCredential, match="read and admin"):
        credentials.add_token(folder, "alice", "root")


# ---- the certificate ----


def test_a_certificate_that_has_run_out_is_refused(folder: Path) -> None:
    made = credentials.make_certificate(folder, ["localhost"])
    assert credentials.load_certificate(folder) == made
    later = datetime.now(UTC) + timedelta(days=366)
    with pytest.raises(BadCredential, match="maru keys certificate"):
        credentials.load_certificate(folder, now=later)
    assert credentials.read_certificate(folder) == made


@pytest.mark.parametrize("hosts", [[], ["a b"], [""], ["-x"], ["http://x"], ["x:1"], ["fe80::1%eth0"], ["1.2.3"]])
def test_what_is_no_host_gets_no_certificate(folder: Path, hosts: list[str]) -> None:
    with pytest.raises(BadCredential):
        credentials.make_certificate(folder, hosts)
    with pytest.raises(CredentialNotFound, match="maru keys certificate"):
        credentials.load_certificate(folder)
