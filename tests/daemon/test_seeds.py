"""Keys of tenants with secrets, from a daemon with real clients: shared within a tenant, unknown outside of it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from serving import LIMITS, address_of, bytes_for, client_of, guarded, keys_of, serve_process

import maru
from maru import Outcome
from maru.address import read_address
from maru.client.near import NearPool
from maru.client.opening import open_pool, reopened, settled
from maru.config import parse_url
from maru.credentials import generate_client, generate_server, load_pool_secret, write_tenant_secret
from maru.daemon.control import Control
from maru.daemon.tenancy import tenants_seed
from maru.native import core
from pools import with_force_gone

SIZE = 20_000
BLUE = maru.Identity(model="m", kv_layout="l", tenant="blue")
PLAIN_DIGEST = core.blake3(BLUE.encode(), 16)


def keys_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    generate_server(folder)
    return folder


def seeded_control(pool: maru.Pool, folder: Path) -> Control:
    return Control(pool, LIMITS, os.urandom(16), "test", seed=tenants_seed(pool, load_pool_secret(folder)))


def test_clients_of_one_tenant_and_its_local_processes_share_what_nobody_else_can_name(
    pool: maru.Pool, pool_url: str, tmp_path: Path
) -> None:
    folder, secret = keys_folder(tmp_path), tmp_path / "blue.secret"
    (_, first), (_, second) = generate_client(folder, "a", "blue"), generate_client(folder, "b", "blue")
    write_tenant_secret(folder, "blue", secret)
    with (
        guarded(pool, folder, seeded_control(pool, folder)) as server,
        client_of(server, first) as one,
        client_of(server, second) as other,
        maru.Pool.attach(f"{pool_url}&tenant_secret=file:{secret}") as local,
        maru.Pool.attach(pool_url) as unaware,
    ):
        spaces = [who.namespace(BLUE) for who in (one, other, local)]
        keys = keys_of(spaces[0], 2)
        assert [keys_of(space, 2) for space in spaces] == [keys] * 3
        assert one.put_many(keys, [bytes_for(n, SIZE) for n in range(2)], spaces[0]) == [Outcome.STORED] * 2
        assert other.lookup(keys) == local.lookup(keys) == 2
        computed = keys_of(unaware.namespace(BLUE), 2)
        assert computed != keys
        assert unaware.lookup(computed) == 0


def test_a_tenant_that_sends_anothers_digest_gets_a_namespace_of_its_own(pool: maru.Pool, tmp_path: Path) -> None:
    """Not even that somebody has it is told."""
    folder = keys_folder(tmp_path)
    (_, red_key), (_, blue_key) = generate_client(folder, "a", "red"), generate_client(folder, "b", "blue")
    with (
        guarded(pool, folder, seeded_control(pool, folder)) as server,
        client_of(server, red_key) as red,
        client_of(server, blue_key) as blue,
    ):
        number, digest = blue.channel.register(PLAIN_DIGEST, "blue", None)
        for sent in (PLAIN_DIGEST, digest):
            mine = red.channel.register(sent, "red", None)
            assert mine[0] != number
            assert mine[1] not in (sent, digest)
        assert blue.channel.register(PLAIN_DIGEST, "blue", None) == (number, digest)


def test_the_default_tenants_keys_are_those_of_the_pools_own_processes(pool: maru.Pool, tmp_path: Path) -> None:
    folder = keys_folder(tmp_path)
    _, key = generate_client(folder, "a")
    identity = maru.Identity(model="m", kv_layout="l")
    with guarded(pool, folder, seeded_control(pool, folder)) as server, client_of(server, key) as client:
        assert client.namespace(identity).digest == pool.namespace(identity).digest


def test_the_default_tenant_has_a_secret_where_the_daemons_pool_is_given_it(
    pool: maru.Pool, pool_url: str, tmp_path: Path
) -> None:
    folder, file = keys_folder(tmp_path), tmp_path / "default.secret"
    _, key = generate_client(folder, "a")
    write_tenant_secret(folder, "default", file)
    identity = maru.Identity(model="m", kv_layout="l")
    with (
        maru.Pool.attach(f"{pool_url}&tenant_secret=file:{file}") as ours,
        guarded(ours, folder, seeded_control(ours, folder)) as server,
        client_of(server, key) as client,
    ):
        digest = client.namespace(identity).digest
        assert digest == ours.namespace(identity).digest != pool.namespace(identity).digest


def test_what_a_stranger_stores_under_keys_it_can_compute_is_found_by_no_client_of_another_tenant(
    pool: maru.Pool, pool_url: str, tmp_path: Path
) -> None:
    """The pool's own processes ask for keys alone: their protection is a secret."""
    folder, file = keys_folder(tmp_path), tmp_path / "default.secret"
    (_, key), (_, strangers) = generate_client(folder, "a"), generate_client(folder, "b", "blue")
    write_tenant_secret(folder, "default", file)
    identity = maru.Identity(model="m", kv_layout="l")
    computed = keys_of(pool.namespace(identity), 1)
    with (
        maru.Pool.attach(f"{pool_url}&tenant_secret=file:{file}") as ours,
        guarded(pool, folder, seeded_control(pool, folder)) as server,
        client_of(server, key) as client,
        client_of(server, strangers) as stranger,
    ):
        stored = stranger.put(computed, b"poison" * 100, stranger.namespace(BLUE))
        assert stored is Outcome.STORED
        assert stranger.lookup(computed) == 1
        assert client.lookup(keys_of(client.namespace(identity), 1)) == 0
        assert ours.lookup(keys_of(ours.namespace(identity), 1)) == 0
        assert pool.lookup(computed) == 1  # As described in serve.md.


def test_an_address_of_this_hosts_daemon_leads_to_the_pool_with_its_secret(pool: maru.Pool, tmp_path: Path) -> None:
    folder, file = keys_folder(tmp_path), tmp_path / "blue.secret"
    _, key = generate_client(folder, "a", "blue")
    write_tenant_secret(folder, "blue", file)
    with guarded(pool, folder, seeded_control(pool, folder)) as server, client_of(server, key) as client:
        address = read_address(
            f"{address_of(server)}/{pool.config.name}?key={key}&tenant_secret=file:{file}&tenant=blue"
        )
        with open_pool(address) as found:
            assert type(found) is maru.Pool
            assert found.namespace(BLUE).digest == client.namespace(BLUE).digest
            again = settled(address, found)
        assert again.daemon == ""
        with reopened(again) as found:
            assert found.namespace(BLUE).digest == client.namespace(BLUE).digest


def test_a_near_pool_with_the_secret_shares_with_clients_over_the_wire(pool: maru.Pool, tmp_path: Path) -> None:
    folder, file = keys_folder(tmp_path), tmp_path / "blue.secret"
    (_, key), (_, near_key) = generate_client(folder, "a", "blue"), generate_client(folder, "b", "blue")
    write_tenant_secret(folder, "blue", file)
    url = f"maru:///near-seeds-{os.getpid()}?size=8M&tenant_secret=file:{file}"
    try:
        with guarded(pool, folder, seeded_control(pool, folder)) as server, client_of(server, key) as client:
            maru.Pool.create(url).close()
            with NearPool(parse_url(url), client_of(server, near_key)) as near:
                namespace, far = near.namespace(BLUE), client.namespace(BLUE)
                keys = keys_of(namespace, 2)
                assert keys == keys_of(far, 2)
                client.put(keys[:16], bytes_for(0, SIZE), far)
                assert near.lookup(keys) == 1
                assert near.put(keys[16:], bytes_for(1, SIZE), namespace, keys[:16]) is Outcome.STORED
                assert near.flush(10)
                assert client.lookup(keys) == 2
    finally:
        with_force_gone(url)


def test_no_secret_is_seen_from_outside(pool: maru.Pool, pool_url: str, tmp_path: Path) -> None:
    """Not in process lists, environments, answers, figures or what commands print; but it is in use."""
    folder, file = keys_folder(tmp_path), tmp_path / "blue.secret"
    _, key = generate_client(folder, "a", "blue")
    write_tenant_secret(folder, "blue", file)
    of_blue = file.read_text().split()[1]
    secrets = (of_blue, json.loads((folder / "pool.secret").read_text())["secret"])
    with serve_process(pool_url, "--keys", str(folder), "--http", "off") as daemon:
        client = maru.connect(daemon.address, mode="wire", key=str(key))
        with client:
            namespace = client.namespace(BLUE)
            assert namespace.digest == core.blake3_keyed(bytes.fromhex(of_blue), PLAIN_DIGEST, 16)
            proc = Path("/proc") / str(daemon.process.pid)
            seen = [(proc / name).read_bytes().decode("utf-8", "replace") for name in ("cmdline", "environ")]
            seen += [json.dumps(client.stats()), repr(client), repr(namespace), json.dumps(pool.stats())]
            for words in (["stat", pool_url, "--json"], ["keys", "list", "--dir", str(folder), "--json"]):
                command = [sys.executable, "-m", "maru", *words]
                seen.append(subprocess.run(command, capture_output=True, text=True, timeout=60).stdout)
                assert len(seen[-1]) > 100
    assert [text for text in seen if any(secret in text for secret in secrets)] == []
