"""Secrets of tenants, and what a client may: how both are made, kept, read and refused."""

from __future__ import annotations

import hashlib
import hmac
import json
import stat
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import maru
from maru import Identity, credentials
from maru.cli import app
from maru.config import parse_url, redact
from maru.credentials import EVERYTHING, Grant, Level, level_for, read_grants
from maru.errors import BadCredential, BadUrl, CredentialExists, CredentialNotFound, UnsafeCredentials
from maru.pool import seeded_digest

BLUE = Identity(model="m", kv_layout="x", tenant="blue")
SECRET = bytes(range(32))
LINE = f"blue {SECRET.hex()}"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "keys"
    credentials.generate_server(place)
    return place


def written(path: Path, content: str, mode: int = 0o600) -> str:
    path.write_text(content)
    path.chmod(mode)
    return f"file:{path}"


def keys(folder: Path, *words: str) -> Result:
    return CliRunner().invoke(app, ["keys", *words, "--dir", str(folder)], env={"COLUMNS": "200"})


def secret_hex(folder: Path) -> str:
    text = json.loads((folder / "pool.secret").read_text())["secret"]
    assert isinstance(text, str)
    return text


# ---- the pool's secret, and what is made of it ----


def test_a_daemons_keys_come_with_a_pool_secret_that_only_its_owner_reads(folder: Path) -> None:
    assert stat.S_IMODE((folder / "pool.secret").stat().st_mode) == 0o600
    assert len(bytes.fromhex(secret_hex(folder))) == 32
    assert credentials.make_pool_secret(folder) is False  # It is not made twice: that would change every key.


def test_a_pool_secret_that_others_can_read_is_refused(folder: Path) -> None:
    (folder / "pool.secret").chmod(0o640)
    with pytest.raises(UnsafeCredentials, match="chmod 600"):
        credentials.load_pool_secret(folder)
    (folder / "pool.secret").chmod(0o600)
    assert credentials.load_pool_secret(folder) is not None


def test_a_tenants_secret_is_hkdf_of_the_pools_and_its_name(folder: Path) -> None:
    secret = credentials.load_pool_secret(folder)
    assert secret is not None
    extracted = hmac.digest(bytes(32), bytes.fromhex(secret_hex(folder)), hashlib.sha256)
    assert secret.of("blue") == hmac.digest(extracted, b"maru tenant 1\0blue\1", hashlib.sha256)
    assert secret.of("red") != secret.of("blue") == secret.of("blue")


def test_a_folder_of_before_there_were_secrets_gets_one_when_one_is_asked_for(folder: Path) -> None:
    (folder / "pool.secret").unlink()
    assert credentials.load_pool_secret(folder) is None
    assert credentials.tenant_secret_line(folder, "blue") == credentials.tenant_secret_line(folder, "blue")
    assert credentials.load_pool_secret(folder) is not None


@pytest.mark.parametrize("content", ['{"secret": "ab"}', '{"maru": "pool secret", "format": 1, "secret": "zz"}', "x"])
def test_a_pool_secret_that_is_none_is_refused_without_being_shown(folder: Path, content: str) -> None:
    (folder / "pool.secret").write_text(content)
    with pytest.raises(BadCredential) as caught:
        credentials.load_pool_secret(folder)
    assert "zz" not in str(caught.value)


def test_the_command_writes_what_a_process_reads(folder: Path, tmp_path: Path) -> None:
    said = keys(folder, "tenant-secret", "blue")
    file = tmp_path / "blue.secret"
    assert keys(folder, "tenant-secret", "blue", "--out", str(file)).exit_code == 0
    assert file.read_text() == said.stdout
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    secret, pool_secret = (
        credentials.read_tenant_secrets(f"file:{file}").of("blue"),
        credentials.load_pool_secret(folder),
    )
    assert pool_secret is not None
    assert secret == pool_secret.of("blue")
    assert isinstance(
        keys(folder, "tenant-secret", "blue", "--out", str(file)).exception, CredentialExists | SystemExit
    )
    assert file.read_text() == said.stdout


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o666])
def test_a_tenants_secret_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    with pytest.raises(UnsafeCredentials, match="chmod 600"):
        credentials.read_tenant_secrets(written(tmp_path / "s", LINE, mode))
    assert credentials.read_tenant_secrets(written(tmp_path / "s", LINE)).of("blue") == SECRET


@pytest.mark.parametrize(
    "line", ["", "# none", SECRET.hex(), f"blue {SECRET.hex()}0", f"{SECRET.hex()} blue", f"{LINE}\n{LINE}",
             f"{SECRET.hex()} {SECRET.hex()}", f"b/l {SECRET.hex()}"]
)  # fmt: skip
def test_a_line_that_is_no_secret_is_refused_without_being_shown(tmp_path: Path, line: str) -> None:
    with pytest.raises(BadCredential) as caught:
        credentials.read_tenant_secrets(written(tmp_path / "s", line))
    assert SECRET.hex()[:8] not in str(caught.value)


# ---- a pool that is given one ----


def test_a_process_with_the_secret_has_keys_that_nobody_else_computes(
    pool: maru.Pool, pool_url: str, tmp_path: Path
) -> None:
    plain = pool.namespace(BLUE)
    with maru.Pool.attach(f"{pool_url}&tenant_secret={written(tmp_path / 's', LINE)}") as ours:
        namespace = ours.namespace(BLUE)
        assert namespace.digest == seeded_digest(SECRET, plain.digest) != plain.digest
        assert namespace.digest == maru.native.core.blake3_keyed(SECRET, plain.digest, 16)
        other = Identity(model="m", kv_layout="x", tenant="red")
        assert ours.namespace(other).digest == pool.namespace(other).digest
        for shown in (repr(ours), repr(ours.config), ours.config.url, repr(ours._secrets), json.dumps(ours.stats())):
            assert SECRET.hex() not in shown
            assert "tenant_secret" not in shown


def test_an_address_says_where_the_secret_is_and_never_holds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bad in (SECRET.hex(), "", "file:relative", "file:", "http://x"):
        with pytest.raises(BadUrl) as caught:
            parse_url(f"maru:///p?tenant_secret={bad}")
        assert SECRET.hex() not in str(caught.value)
    assert redact(f"maru:///p?tenant_secret={SECRET.hex()}") == "maru:///p?tenant_secret=***"
    monkeypatch.setenv("BLUE", LINE)
    assert credentials.read_tenant_secrets(parse_url("maru:///p?tenant_secret=env:BLUE").tenant_secret).of("blue")
    with pytest.raises(CredentialNotFound):
        credentials.read_tenant_secrets("env:MARU_NO_SUCH_VARIABLE")


# ---- grants ----


def test_grants_are_levels_for_digests_that_begin_so() -> None:
    grants = read_grants(["lookup", "write=AB", "read=ab12"])
    assert [str(one) for one in grants] == ["lookup", "write=ab", "read=ab12"]
    assert level_for(grants, bytes.fromhex("ab" + "00" * 15)) == Level.WRITE
    assert level_for(grants, bytes(16)) == Level.LOOKUP
    assert level_for([Grant(Level.READ, "b")], bytes.fromhex("ab" * 16)) == 0
    assert read_grants([]) == EVERYTHING


@pytest.mark.parametrize("text", ["", "delete", "read=", "read=xyz", "write=" + "0" * 33, "READ", "admin"])
def test_what_is_no_grant_is_refused(text: str) -> None:
    with pytest.raises(BadCredential):
        read_grants([text])


def test_a_client_is_let_in_with_what_it_may(folder: Path) -> None:
    made = [
        ["generate", "a"],
        ["generate", "b", "--tenant", "blue", "--may", "read", "--may", "write=ab"],
        ["generate", "c", "--tenant", "blue", "--may-map"],
        ["add", "d", "0123456789" * 4, "--may", "lookup", "--no-map"],
    ]
    assert [keys(folder, *words).exit_code for words in made] == [0, 0, 0, 0]
    assert keys(folder, "generate", "e", "--may", "everything").exit_code != 0
    kept = {one.name: ([str(grant) for grant in one.grants], one.may_map) for one in credentials.list_clients(folder)}
    assert kept == {
        "a": (["write"], True), "b": (["read", "write=ab"], False), "c": (["write"], True), "d": (["lookup"], False),
    }  # fmt: skip
    assert "read write=ab" in keys(folder, "list").output


def test_a_list_of_before_there_were_grants_allows_all_but_mapping_for_others(folder: Path) -> None:
    for name, tenant in (("a", "default"), ("b", "blue")):
        credentials.generate_client(folder, name, tenant)
    document = json.loads((folder / "clients.json").read_text())
    for row in document["clients"]:
        del row["grants"], row["may_map"]
    (folder / "clients.json").write_text(json.dumps(document))
    kept = [(one.may_map, one.grants) for one in credentials.list_clients(folder)]
    assert kept == [(True, EVERYTHING), (False, EVERYTHING)]


@pytest.mark.parametrize(
    ("field", "value"), [("may_map", 1), ("may_map", None), ("grants", []), ("grants", "read"), ("grants", ["all"])]
)
def test_a_record_that_says_what_cannot_be_lets_in_nobody(folder: Path, field: str, value: object) -> None:
    credentials.generate_client(folder, "a")
    document = json.loads((folder / "clients.json").read_text())
    document["clients"][0][field] = value
    (folder / "clients.json").write_text(json.dumps(document))
    with pytest.raises(BadCredential):
        credentials.list_clients(folder)


def test_two_tenants_names_differ_within_what_a_pool_keeps_of_them(folder: Path) -> None:
    with pytest.raises(BadCredential, match="at most 63"):
        credentials.generate_client(folder, "a", "t" * 64)
    credentials.generate_client(folder, "a", "t" * 63)
