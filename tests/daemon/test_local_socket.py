"""The daemon's local socket: who somebody is says the system, what they get says the list, what they may do the kernel.

Most of it needs several users, so only root can run it.
"""

from __future__ import annotations

import os
import signal
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from serving import Served, bytes_for, keys_of, serve_process

import maru
from maru import Outcome, wire
from maru.address import read_address
from maru.audit import entries_in
from maru.client.handed import HandedPool
from maru.client.opening import open_pool, reopened, settled
from maru.client.remote import RemotePool
from maru.credentials import add_user, generate_server, key_of_user, list_clients, load_server_keys, revoke_client
from maru.daemon.local_socket import Doorkeeper, LocalSocket
from maru.errors import (
    BadMessage,
    BadUrl,
    CannotListen,
    CredentialExists,
    CredentialNotFound,
    Forbidden,
    NoDaemon,
    PoolMismatch,
    VersionSkew,
)
from other_users import as_user, only_root

RED, BLUE, NOBODY = 51001, 51002, 51003
IDENTITY = maru.Identity(model="m", kv_layout="l", tenant="")
SIZE = 20_000
QUERY = "?size=8MiB&slab_bytes=1MiB&slots=600&processes=16&share=handed"


@pytest.fixture
def place() -> Iterator[Path]:
    """A short path, which every user may enter."""
    with tempfile.TemporaryDirectory(prefix="maru-") as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    folder = tmp_path / "keys"
    generate_server(folder)
    return folder


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0] + QUERY


@pytest.fixture
def served(url: str, keys: Path, place: Path, tmp_path: Path) -> Iterator[Served]:
    words = ("--keys", str(keys), "--local", str(place / "kv.sock"), "--audit", str(tmp_path / "audit"))
    with serve_process(url, *words) as daemon:
        yield daemon


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def address(place: Path, query: str = "") -> str:
    return f"unix://{place / 'kv.sock'}{query}"


def chunk_of(pool: maru.Pool | RemotePool, number: int) -> bytes:
    keys: bytes = keys_of(pool.namespace(IDENTITY), number + 1)
    return keys[-16:]


@only_root
def test_a_user_who_may_read_gets_the_memory_and_the_kernel_keeps_it_from_writing(
    served: Served, url: str, keys: Path, place: Path
) -> None:
    add_user(keys, "red", RED, may_map=True)
    with maru.Pool.attach(url) as mine:
        space = mine.namespace(IDENTITY)
        key = keys_of(space, 1)
        assert mine.put(key, bytes_for(0, SIZE), namespace=space) is Outcome.STORED
        folder = mine.folder

        def day() -> list[Any]:
            with pytest.raises(maru.MaruError):
                maru.Pool.attach(f"maru:///{Path(folder).name}?dir={Path(folder).parent}&access=read")
            with maru.connect(address(place)) as pool:
                assert isinstance(pool, HandedPool)
                view = pool.get(chunk_of(pool, 0))
                assert view is not None
                right = bytes(view) == bytes_for(0, SIZE)
                with pytest.raises(PermissionError):
                    os.open(f"{pool.folder}/segment-0", os.O_RDWR)
                del view
                return [right, pool.config.reads_only, pool.put(bytes(16), b"x").name]

        assert as_user(RED, day) == [True, True, "FULL"]


@only_root
def test_where_the_files_keep_a_user_out_it_asks_by_messages(keys: Path, url: str, place: Path) -> None:
    add_user(keys, "red", RED, may_map=True)

    def day() -> str:
        with pytest.raises(PoolMismatch, match="share=handed"):
            maru.connect(address(place, "?mode=local"))
        with maru.connect(address(place)) as pool:
            return type(pool).__name__

    with serve_process(url.replace("&share=handed", ""), "--keys", str(keys), "--local", str(place / "kv.sock")):
        assert as_user(RED, day) == "RemotePool"


@only_root
def test_a_user_who_may_not_map_asks_by_messages_as_the_tenant_it_is(served: Served, keys: Path, place: Path) -> None:
    add_user(keys, "red", RED, "red")
    add_user(keys, "blue", BLUE, "blue")

    def store() -> list[str]:
        with maru.connect(address(place)) as pool:
            assert isinstance(pool, RemotePool)
            space = pool.namespace(IDENTITY)
            return [pool.put(keys_of(space, 1), bytes_for(0, SIZE), namespace=space).name]

    def look() -> list[int]:
        with maru.connect(address(place)) as pool:
            return [pool.lookup(chunk_of(pool, 0))]

    assert as_user(RED, store) == ["STORED"]
    assert as_user(RED, look) == [1]
    assert as_user(BLUE, look) == [0]


@only_root
@pytest.mark.parametrize("way", ["wire", "local"])
def test_a_user_cannot_say_that_it_is_of_another_tenant(served: Served, keys: Path, place: Path, way: str) -> None:
    add_user(keys, "red", RED, "red", may_map=True)

    def claim() -> None:
        with maru.connect(address(place, f"?mode={way}")) as pool, pytest.raises(Forbidden, match="'red'"):
            pool.namespace(replace(IDENTITY, tenant="blue"))

    as_user(RED, claim)


@only_root
def test_both_ways_lead_a_tenant_to_the_same_chunks(served: Served, keys: Path, place: Path) -> None:
    add_user(keys, "red", RED, "red", may_map=True)

    def stored_by_messages() -> str:
        with maru.connect(address(place, "?mode=wire")) as pool:
            space = pool.namespace(IDENTITY)
            return pool.put(keys_of(space, 1), bytes_for(0, SIZE), namespace=space).name

    def read_in_place() -> bool:
        with maru.connect(address(place, "?mode=local")) as pool:
            assert isinstance(pool, HandedPool)
            view = pool.get(chunk_of(pool, 0))
            return view is not None and bytes(view) == bytes_for(0, SIZE)

    assert as_user(RED, stored_by_messages) == "STORED"
    assert as_user(RED, read_in_place)


@only_root
def test_a_stranger_gets_nothing_and_a_revoked_user_no_more(served: Served, keys: Path, place: Path) -> None:
    add_user(keys, "red", RED, "red")

    def try_it() -> str:
        with pytest.raises(Forbidden) as refused:
            maru.connect(address(place))
        return str(refused.value)

    assert f"--uid {NOBODY}" in as_user(NOBODY, try_it)
    assert as_user(RED, lambda: maru.connect(address(place)).close() or "in") == "in"
    revoke_client(keys, "red")
    assert f"--uid {RED}" in as_user(RED, try_it)


@only_root
def test_who_was_handed_what_is_in_the_audit_log(served: Served, keys: Path, place: Path, tmp_path: Path) -> None:
    add_user(keys, "red", RED, "red", may_map=True)
    as_user(RED, lambda: maru.connect(address(place)).close())

    def try_it() -> None:
        with pytest.raises(Forbidden):
            maru.connect(address(place))

    as_user(NOBODY, try_it)
    served.process.terminate()
    served.process.wait(20)
    told = ("what", "door", "tenant", "client", "outcome")
    lines = [[str(entry.get(field, "")) for field in told] for entry in entries_in(tmp_path / "audit")]
    assert ["exported", "local", "red", f"uid {RED}", "mapped for writing"] in lines
    assert ["refused", "local", "", f"uid {NOBODY}", "Forbidden"] in lines


def test_the_daemons_own_user_gets_the_pool_to_write_without_any_keys(url: str, place: Path) -> None:
    with serve_process(url, "--local", str(place / "kv.sock")), maru.connect(address(place)) as pool:
        assert isinstance(pool, HandedPool)
        assert pool.put(chunk_of(pool, 0), bytes_for(0, SIZE)) is Outcome.STORED
        assert pool.config.url == address(place)
        assert pool.namespace(IDENTITY).digest == maru.connect(url).namespace(IDENTITY).digest
        with pytest.raises(Forbidden, match="has no keys"):
            maru.connect(address(place, "?mode=wire"))


def test_what_was_handed_over_outlives_the_daemon(url: str, place: Path) -> None:
    with serve_process(url, "--local", str(place / "kv.sock")) as daemon:
        with maru.connect(address(place)) as pool:
            daemon.kill()
            assert pool.put(chunk_of(pool, 0), bytes_for(0, SIZE)) is Outcome.STORED
            child = os.fork()
            if child == 0:
                os._exit(0 if pool.lookup(chunk_of(pool, 0)) == 1 else 1)
            assert os.waitpid(child, 0)[1] == 0
            with pytest.raises(NoDaemon, match="Connection refused"):
                maru.connect(address(place))
        with serve_process(url, "--local", str(place / "kv.sock")), maru.connect(address(place)) as pool:
            assert pool.lookup(chunk_of(pool, 0)) == 1, "a socket that a dead daemon left is replaced"


def test_an_engines_address_may_be_a_local_socket(url: str, place: Path) -> None:
    with serve_process(url, "--local", str(place / "kv.sock")):
        where = read_address(address(place, "?pool_size=8MiB&tenant=red"))
        assert (where.daemon, where.needs_daemon, where.tenant) == (address(place), True, "red")
        with open_pool(where) as pool:
            assert isinstance(pool, HandedPool)
            again = settled(where, pool)
        with reopened(again) as pool:
            assert isinstance(pool, HandedPool)


@only_root
def test_an_engine_of_a_user_who_may_not_map_has_a_pool_of_its_own_in_front(
    served: Served, keys: Path, place: Path
) -> None:
    add_user(keys, "red", RED, "red")

    def day() -> list[str]:
        with open_pool(read_address(address(place, "?pool_size=8MiB"))) as pool:
            name = pool.config.name
        maru.Pool.destroy(f"maru:///{name}")
        return [type(pool).__name__, name[:5]]

    assert as_user(RED, day) == ["NearPool", "near-"]


def test_a_descriptor_is_closed_with_its_pool(url: str, place: Path) -> None:
    with serve_process(url, "--local", str(place / "kv.sock")):
        before = open_descriptors()
        for _ in range(3):
            maru.connect(address(place)).close()
        assert open_descriptors() == before


def answer_once(place: Path, raw: bytes, descriptors: list[int]) -> int:
    """A stand-in for a daemon that says this to whoever connects; returns the child to wait for."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(str(place / "kv.sock"))
    listening.listen(1)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        peer, _ = listening.accept()
        socket.send_fds(peer, [raw], descriptors) if raw else None
        os._exit(0)
    listening.close()
    return child


@pytest.mark.parametrize(
    ("raw", "descriptors", "error"),
    [
        (b"", 0, BadMessage),
        (b"\xc1", 0, BadMessage),
        (wire.encode_handed(wire.Handed(wire.PROTOCOL))[:-3], 0, BadMessage),
        (wire.encode_handed(wire.Handed(wire.PROTOCOL + 1)), 0, VersionSkew),
        (wire.encode_handed(wire.Handed(wire.PROTOCOL, access="read")), 0, BadMessage),
        (wire.encode_handed(wire.Handed(wire.PROTOCOL, "NoSuchError\nwords")), 0, maru.MaruError),
        (wire.encode_handed(wire.Handed(wire.PROTOCOL, pool="kv", access="write")), 1, maru.errors.PoolNotFound),
        (b"x" * (wire.HANDED_BYTES_MAX + 1), 0, BadMessage),
    ],
    ids=["nothing", "noise", "half", "newer", "no folder", "unknown error", "empty folder", "too much"],
)
def test_whatever_answers_in_a_daemons_place_is_refused_by_name_and_leaves_no_descriptor(
    place: Path, raw: bytes, descriptors: int, error: type[Exception]
) -> None:
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY)
    child = answer_once(place, raw, [folder] * descriptors)
    before = open_descriptors()
    with pytest.raises(error):
        maru.connect(address(place))
    assert open_descriptors() == before
    os.waitpid(child, 0)
    os.close(folder)


@pytest.mark.parametrize("path", ["unix://relative", "unix:///x?key=a", "unix:///x?mode=mapped"])
def test_an_address_that_cannot_be_one_is_refused(path: str) -> None:
    with pytest.raises(BadUrl):
        maru.connect(path)


def keeper(pool: maru.Pool) -> Doorkeeper:
    return Doorkeeper(pool, pool.stats()["uuid"], "tcp://127.0.0.1:1", None, None, None)


def test_a_socket_is_not_made_where_others_could_take_its_place(pool: maru.Pool, place: Path, tmp_path: Path) -> None:
    place.chmod(0o777)
    with pytest.raises(CannotListen, match="anybody may write"):
        LocalSocket(place / "kv.sock", keeper(pool)).start()
    place.chmod(0o755)
    (place / "kv.sock").write_text("mine")
    with pytest.raises(CannotListen, match="is no socket"):
        LocalSocket(place / "kv.sock", keeper(pool)).start()
    with pytest.raises(CannotListen, match="too long"):
        LocalSocket(place / ("x" * 120), keeper(pool)).start()
    first = LocalSocket(place / "other.sock", keeper(pool))
    first.start()
    with pytest.raises(CannotListen, match="another daemon answers"):
        LocalSocket(place / "other.sock", keeper(pool)).start()
    first.stop()
    assert not (place / "other.sock").exists()


def test_a_user_is_one_client_and_is_shown_by_its_number(keys: Path) -> None:
    add_user(keys, "red", RED, "red")
    with pytest.raises(CredentialExists, match="as 'red'"):
        add_user(keys, "scarlet", RED)
    with pytest.raises(maru.errors.BadCredential, match="no user's number"):
        add_user(keys, "blue", -1)
    (client,) = list_clients(keys)
    daemon = load_server_keys(keys)
    assert key_of_user(daemon, client).public_z85 == client.public_z85
    with pytest.raises(CredentialNotFound, match="keys have changed"):
        key_of_user(daemon, replace(client, added_unix_s=client.added_unix_s + 1))
    assert (client.uid, client.tenant, client.may_map) == (RED, "red", False)
