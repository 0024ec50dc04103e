"""A daemon with an audit log: real clients, real refusals, and what the log says of them afterwards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from serving import LIMITS, Talker, address_of, until

import maru
from http_asking import ask
from maru import wire
from maru.audit import Audit, AuditLog, Wanted, entries_in, verify_log
from maru.client.remote import RemotePool
from maru.credentials import add_token, generate_client, generate_server, revoke_client
from maru.daemon.audited import AuditedControl
from maru.daemon.serve import Daemon, ServeConfig
from maru.daemon.web_settings import WebSettings
from maru.errors import BadMessage, NoDaemon

CHUNK = 1000
IDENTITY = maru.Identity(model="m", kv_layout="l", tenant="acme")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    generate_server(tmp_path / "keys")
    return tmp_path / "keys"


def config(pool_url: str, folder: Path, keys: Path | None = None) -> ServeConfig:
    return ServeConfig(pool_url, "tcp://127.0.0.1:0", keys=keys, web=WebSettings(port=0), audit=folder)


def client_of(daemon: Daemon, key: Path | None = None, deadline: float = 5.0) -> RemotePool:
    address = address_of(daemon.rpc_server)
    found = maru.connect(address, mode="wire", key=str(key) if key else None, deadline=deadline)
    assert isinstance(found, RemotePool)
    return found


def told(folder: Path, what: str) -> list[dict[str, Any]]:
    return list(entries_in(folder, Wanted(what=what)))


def test_what_a_client_stores_hits_and_removes_stands_under_its_name(pool_url: str, folder: Path, keys: Path) -> None:
    _, key = generate_client(keys, "node7", "acme")
    with Daemon(config(pool_url, folder, keys)) as daemon, client_of(daemon, key) as client:
        space = client.namespace(IDENTITY)
        packed = b"a" * 16 + b"b" * 16
        client.put_many(packed, [b"x" * CHUNK] * 2, namespace=space)
        with client.pin(packed + b"c" * 16) as prefix:
            assert len(prefix) == 2
        assert client.remove(b"b" * 16)
    for what, chunks, size in (("stored", 2, 2 * CHUNK), ("hit", 2, 2 * CHUNK), ("removed", 1, 0)):
        lines = told(folder, what)
        assert {(line["door"], line["tenant"], line["client"]) for line in lines} == {("rpc", "acme", "node7")}, what
        assert {line["namespace"] for line in lines} == {space.digest.hex()}
        assert sum(line.get("chunks", 0) for line in lines) == chunks
        assert sum(line.get("bytes", 0) for line in lines) == size
    assert sum(line["chunks"] for line in told(folder, "missed")) == 1
    assert verify_log(folder).is_good


def test_who_may_not_speak_is_told_without_its_key(pool_url: str, folder: Path, keys: Path, tmp_path: Path) -> None:
    generate_server(tmp_path / "elsewhere")
    _, foreign = generate_client(tmp_path / "elsewhere", "node7")
    _, revoked = generate_client(keys, "node8")
    with Daemon(config(pool_url, folder, keys)) as daemon:
        with pytest.raises(NoDaemon):
            client_of(daemon, foreign, deadline=0.5)
        with client_of(daemon, revoked) as client:
            revoke_client(keys, "node8")
            client.lookup(b"a" * 16)
    outcomes = {line["outcome"] for line in told(folder, "refused")}
    assert "revoked key" in outcomes
    text = "".join(path.read_text() for path in folder.glob("*.jsonl"))
    assert "public" not in text


def test_a_change_by_http_stands_under_the_name_of_its_token(pool_url: str, folder: Path, keys: Path) -> None:
    token, reader = add_token(keys, "alice", "admin"), add_token(keys, "bob", "read")
    with Daemon(config(pool_url, folder, keys)) as daemon:
        pool, server = daemon.pool, daemon.web_server
        assert server is not None
        space = pool.namespace(IDENTITY)
        pool.put(b"a" * 16, b"x" * CHUNK, namespace=space)
        name, digest = pool.config.name, space.digest.hex()
        body = {"keys": (b"a" * 16).hex()}
        assert ask(server, f"/v1/pools/{name}/remove", body, token="not-a-token").status == 401
        assert ask(server, f"/v1/pools/{name}/remove", body, token=reader).status == 403
        assert ask(server, f"/v1/pools/{name}/keeps", {**body, "seconds": 5}, token=token).status == 201
        keep = ask(server, f"/v1/pools/{name}/keeps", token=token).json["keeps"][0]["id"]
        assert ask(server, f"/v1/pools/{name}/keeps/{keep}", method="DELETE", token=token).status == 200
        assert ask(server, f"/v1/pools/{name}/remove", body, token=token).status == 200
        assert ask(server, f"/v1/pools/{name}/expire", {"namespace": digest}, token=token).status == 200
        assert ask(server, "/v1/pools/none/remove", body, token=token).status == 404
        assert until(lambda: told(folder, "expired"))  # What is rare does not wait for the end.
    (removed,), (expired,) = told(folder, "removed"), told(folder, "expired")
    assert (removed["client"], removed["chunks"], removed["pool"]) == ("alice", 1, name)
    assert (expired["client"], expired["namespace"]) == ("alice", digest)
    assert [line["reason"] for line in told(folder, "policy")] == [f"keep {keep}", f"keep {keep} ended"]
    refused = {(line.get("client", ""), line["outcome"]) for line in told(folder, "refused")}
    assert refused == {("", "Unauthorized"), ("bob", "Forbidden"), ("alice", "UnknownPool")}
    text = "".join(path.read_text() for path in folder.iterdir())
    for secret in (token, reader, "not-a-token"):
        assert secret not in text


def test_a_request_that_is_asked_twice_is_noted_once(pool: maru.Pool, folder: Path) -> None:
    audit = Audit(AuditLog(folder), starts=False)
    control = AuditedControl(pool, LIMITS, bytes(16), "test", audit=audit, tenants=None)
    pool.put(b"a" * 16, b"x" * CHUNK)
    talker = Talker(control)
    first = talker.ask(wire.Pin(0, 1 << 30), b"a" * 16)
    talker.number -= 1
    assert talker.ask(wire.Pin(0, 1 << 30), b"a" * 16) == first
    with pytest.raises(BadMessage):
        talker.ask(wire.Pin(0, -1), b"a" * 16)
    audit.close()
    assert [(line["what"], line.get("calls")) for line in entries_in(folder)][1:] == [("hit", 1), ("refused", 1)]
    (refused,) = told(folder, "refused")
    assert (refused["outcome"], refused["reason"]) == ("BadMessage", "Pin")


def test_where_nobody_asks_for_keys_a_client_is_what_it_calls_itself(pool_url: str, folder: Path) -> None:
    with Daemon(config(pool_url, folder)) as daemon, client_of(daemon) as client:
        client.put(b"a" * 16, b"x" * CHUNK)
    (stored,) = told(folder, "stored")
    assert stored["client"].startswith("?")
    assert "tenant" not in stored


def test_a_log_whose_folder_goes_away_stops_no_request(pool_url: str, folder: Path) -> None:
    with Daemon(config(pool_url, folder)) as daemon, client_of(daemon) as client:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        assert client.put(b"a" * 16, b"x" * CHUNK) is maru.Outcome.STORED
        assert daemon.audit is not None
        daemon.audit.flush()
        assert client.lookup(b"a" * 16) == 1
        assert daemon.audit.counts.failures == 1
