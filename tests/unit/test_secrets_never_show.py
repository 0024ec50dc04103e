"""One secret, given to every door in every way that it takes one: no error, repr, log line, figure or file shows it."""

from __future__ import annotations

import asyncio
import json
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from typer.testing import CliRunner

import maru
from maru.address import read_address
from maru.audit import make_key, read_key
from maru.cli import app
from maru.client.ways import read_way
from maru.config import parse_url, redact
from maru.credentials import generate_client, generate_server, load_client_key, load_server_keys
from maru.daemon.peers import PeerAddress, PeerSettings
from maru.daemon.registry import Registry
from maru.daemon.serve import Daemon, ServeConfig
from maru.daemon.server import _refuse_open_plain
from maru.daemon.web_settings import Engine
from maru.errors import MaruError, UnsafeCredentials
from maru.handler_config import MaruConfig
from maru.tier.cipher import Keyring
from maru.tier.opening import open_tier, parse_tier_url

SECRET = "hunter2hunter2"
REDIS = f"redis://:{SECRET}@127.0.0.1:1/0"


def told(error: BaseException) -> str:
    """All that any way of showing an error can show."""
    fields = json.dumps({name: str(value) for name, value in vars(error).items()})
    return "".join(traceback.format_exception(error)) + repr(error) + fields + repr(pickle.loads(pickle.dumps(error)))


# Of the URLs that people mistype, those in which a library would find a port, a host or a path in the password.
BAD_URLS = [
    f"redis://:{SECRET}@host:port", f"redis://:{SECRET}/x@host", f"redis://{SECRET}:x/y@host", f"redis::{SECRET}@host",
    f"redis:{SECRET}@host", f"ftp://u:{SECRET}@host", f"redis://u:{SECRET}@host/name", f"redis://:{SECRET}@host?what=1",
    f"redis://u:{SECRET}@h[ost/0", f"redis://u:{SECRET}\u2100@host/0", f"redis://h/0?password={SECRET}",
    f"redis://h:{SECRET}", f"redis://h:{SECRET}/0", f"s3://{SECRET}:x@bucket?a=1", f"s3://b?sas={SECRET}", f"redis://h#{SECRET}",
    f"az://b?sig={SECRET}&endpoint=x", f"s3://b?endpoint={quote(f'ftp://u:{SECRET}@h', safe='')}",
    f"mooncake://u:{SECRET}@host:1", f"maru://u:{SECRET}@h:1/p", f"maru:///u:{SECRET}@h", f"tcp://h:{SECRET}",
    f"maru:///kv?tier={quote(f'redis://:{SECRET}@h', safe='')}&size=1&size=2", f"tcp://u:{SECRET}@h[",
    f"redis://u:{SECRET}#x@h", f"redis://u:x?{SECRET}@h", f"redis://u:{SECRET}?x@h",
    f"maru:///kv?tier={quote(quote(f'x://:{SECRET}@h', safe=''), safe='')}?",
]  # fmt: skip
READERS: list[Callable[[str], Any]] = [
    maru.Pool.open, maru.Pool.destroy, maru.connect, parse_url, read_address, read_way, parse_tier_url, Engine,
    lambda url: PeerAddress("peer", url), lambda url: Registry(url, "us", "", "", []).close(),
    lambda url: _refuse_open_plain(url, False, False),
    lambda url: read_address(f"maru:///kv?tier={quote(url, safe='')}&what=1"),
    lambda url: maru.MaruHandler(MaruConfig(server_url=url)).connect(),
]  # fmt: skip


@pytest.mark.parametrize("reader", range(len(READERS)))
@pytest.mark.parametrize("url", BAD_URLS)
def test_no_door_repeats_the_secret_of_a_url_it_refuses(
    reader: int, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    shown = ""
    try:
        READERS[reader](url)
    except (MaruError, ValueError, OSError) as error:
        shown = told(error)
    assert SECRET not in shown + caplog.text


@pytest.mark.parametrize(
    "shown", [lambda: parse_tier_url(REDIS), lambda: ServeConfig("maru:///kv", tiers=(REDIS,)),
              lambda: MaruConfig(server_url=f"maru:///kv?tier={quote(REDIS, safe='')}"),
              lambda: read_address(f"maru:///kv?tier={quote(REDIS, safe='')}"),
              lambda: Engine("http://h", SECRET), lambda: PeerSettings(token=SECRET, registry=REDIS)],
)  # fmt: skip
def test_no_repr_shows_it(shown: Callable[[], object]) -> None:
    assert SECRET not in repr(shown())
    assert SECRET not in str(shown())


def test_urls_inside_urls_are_redacted_to_any_depth_in_little_time() -> None:
    url = REDIS
    for _ in range(12):
        url = f"maru:///kv?tier={quote(url, safe='')}"
        assert SECRET not in redact(url)
    assert len(redact("a?a=" * 5000)) < 20_001


def test_a_place_that_does_not_answer_says_so_without_its_password() -> None:
    async def ask() -> BaseException:
        tier = open_tier(parse_tier_url(REDIS + "?deadline=1"))
        try:
            await tier.health()
        except MaruError as error:
            return error
        finally:
            await tier.close()
        raise AssertionError("somebody answered")

    assert SECRET not in told(asyncio.run(ask()))


def test_a_server_that_repeats_what_it_does_not_know_is_not_repeated() -> None:
    """Redis before 6, asked HELLO or AUTH with a user, quotes the password that came with it."""
    tier: Any = open_tier(parse_tier_url(REDIS))
    error = tier._named(OSError(f"unknown command `AUTH`, with args beginning with: `default`, `{SECRET}`, "))
    assert SECRET not in told(error)
    assert "unknown command" in str(error)
    asyncio.run(tier.close())


@pytest.mark.parametrize("wrong", [f"{SECRET}\n", f"{SECRET}\r\nX: y", f"{SECRET}\u2026"])
def test_a_token_that_no_header_may_have_is_refused_without_being_quoted(wrong: str) -> None:
    for make in (lambda: PeerSettings(token=wrong), lambda: Engine("http://h", wrong)):
        with pytest.raises(ValueError, match="no header may have") as refused:
            make()
        assert SECRET not in told(refused.value)


def test_keys_are_in_no_repr_and_in_no_error_of_their_files(tmp_path: Path) -> None:
    generate_server(tmp_path)
    _, path = generate_client(tmp_path, "node7")
    server, client = load_server_keys(tmp_path), load_client_key(path)
    assert server.secret_z85 not in repr(server)
    assert client.secret_z85 not in repr(client)
    content = path.read_text()
    path.write_text(content.replace(client.secret_z85, client.secret_z85[:-1]))
    with pytest.raises(MaruError) as refused:
        load_client_key(path)
    assert client.secret_z85[:-1] not in told(refused.value)
    path.write_text(content[:-3])
    with pytest.raises(MaruError) as refused:
        load_client_key(path)
    assert client.secret_z85 not in told(refused.value)


def _ring(path: Path) -> object:
    path.write_text("11" * 32)
    return Keyring.read(f"file:{path}")


def _audit_key(path: Path) -> object:
    if not path.exists():
        make_key(path)
    return read_key(path)


def _client_key(path: Path) -> object:
    if not path.exists():
        generate_server(path.parent / "keys")
        path.write_bytes(generate_client(path.parent / "keys", "node7")[1].read_bytes())
        path.chmod(0o600)
    return load_client_key(path)


@pytest.mark.parametrize("read", [_ring, _audit_key, _client_key])
@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o622])
def test_a_key_file_that_others_can_use_is_refused(tmp_path: Path, read: Callable[[Path], object], mode: int) -> None:
    path = tmp_path / "a.key"
    path.touch(0o600) if read is _ring else None
    read(path)
    path.chmod(mode)
    with pytest.raises(UnsafeCredentials, match=f"mode {mode:04o}"):
        read(path)


@pytest.mark.parametrize("name", ["server.key", "clients.json", "tokens.json", "tls.pem"])
def test_a_daemon_refuses_a_folder_of_keys_with_a_file_that_others_can_use(
    tmp_path: Path, pool_url: str, name: str
) -> None:
    keys = tmp_path / "keys"
    for words in (["generate"], ["generate", "node7"], ["token", "add", "alice", "--role", "read"], ["certificate"]):
        assert CliRunner().invoke(app, ["keys", *words, "--dir", str(keys)]).exit_code == 0
    config = ServeConfig(pool_url, "tcp://127.0.0.1:0", keys=keys)
    assert config.web is not None
    Daemon(replace(config, web=replace(config.web, port=0))).stop()
    (keys / name).chmod(0o640)
    with pytest.raises(UnsafeCredentials, match="mode 0640"):
        Daemon(config)


def test_no_command_prints_it(tmp_path: Path, pool_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARU_PEER_TOKEN", SECRET)
    monkeypatch.setenv("MARU_REGISTRY", f"redis://:{SECRET}@h[:1")
    for words in (
        ["serve", pool_url, "--tier", f"redis://:{SECRET}@127.0.0.1:x"],
        ["serve", pool_url, "--engine", f"a=http://u:{SECRET}@h"],
        ["serve", pool_url, "--engine", f"a=http://u:{SECRET}\u2100@h"],
        ["serve", pool_url, "--peer", f"a=http://u:{SECRET}@h"],
        ["serve", pool_url, "--listen", f"tcp://u:{SECRET}@h["],
        ["tier", "check", f"redis://:{SECRET}@127.0.0.1:1?deadline=1", "--count", "1", "--chunk-mib", "1"],
        ["tier", "show", f"redis://:{SECRET}@127.0.0.1:1?deadline=1"],
        ["stat", f"maru://u:{SECRET}@h/kv"],
    ):
        done = CliRunner().invoke(app, words)
        assert done.exit_code != 0
        assert SECRET not in done.output
        if done.exception is not None:
            assert SECRET not in told(done.exception)


def test_a_password_on_a_command_line_is_warned_of(pool_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["serve", pool_url, "--tier", REDIS, "--http", "nonsense"]
    monkeypatch.setattr(sys, "argv", ["maru", *words])
    done = CliRunner().invoke(app, words)
    assert "MARU_TIERS" in done.output
    assert SECRET not in done.output
    monkeypatch.setattr(sys, "argv", ["maru", "serve", pool_url, "--http", "nonsense"])
    done = CliRunner(env={"MARU_TIERS": REDIS}).invoke(app, ["serve", pool_url, "--http", "nonsense"])
    assert "among the processes" not in done.output


# ---- core dumps -------------------------------------------------------------------------------------------


def test_a_process_that_holds_keys_cannot_be_dumped() -> None:
    program = (
        "import ctypes; from maru.credentials.memory import keep_out_of_dumps as keep; libc = ctypes.CDLL(None);"
        "print(libc.prctl(3, 0, 0, 0, 0), keep(), libc.prctl(3, 0, 0, 0, 0))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "True", "0"]


def test_the_pools_memory_is_in_no_core_dump(pool: maru.Pool) -> None:
    """`dd` among the flags of a mapping: left out of dumps, whatever the coredump_filter says."""
    flags: dict[str, set[str]] = {}
    name = ""
    for line in Path("/proc/self/smaps").read_text().splitlines():
        words = line.split()
        if "-" in words[0] and not words[0].endswith(":"):
            name = " ".join(words[5:])
        elif words[0] == "VmFlags:" and name.startswith(f"{pool.folder}/") and not name.endswith("/lock"):
            flags.setdefault(name, set(words)).intersection_update(words)
    assert {Path(name).name for name in flags} == {"index", "segment-0"}
    assert all("dd" in words for words in flags.values())


@pytest.mark.parametrize(("more", "calls"), [([], 1), (["--core-dumps"], 0)])
def test_the_daemon_keeps_itself_out_of_dumps_unless_told_otherwise(
    pool_url: str, monkeypatch: pytest.MonkeyPatch, more: list[str], calls: int
) -> None:
    kept: list[None] = []
    monkeypatch.setattr("maru.serve_commands.keep_out_of_dumps", lambda: kept.append(None))
    CliRunner().invoke(app, ["serve", pool_url, "--http", "nonsense", *more])
    assert len(kept) == calls
