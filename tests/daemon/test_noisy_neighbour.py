"""Two tenants, one daemon, real keys: whatever one of them does, the other keeps what its share promises.

Each kind of noise is made twice: with a share, where nothing may be lost, and without, where something has to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from serving import client_named, client_of, guarded

import maru
from maru import Outcome, wire
from maru.client.remote import RemoteNamespace, RemotePool
from maru.credentials import generate_client, generate_server
from maru.daemon.control import Control
from maru.daemon.server import RpcServer
from maru.daemon.sessions import Limits, Session
from maru.errors import PoolBusy
from maru.testing.content import bytes_of, is_right, key_of

SIZE = 16 << 10
CHUNKS = 64  # As many as the pool holds.
SHARE = 24
QUERY = f"?size={CHUNKS * SIZE}&slab_bytes={CHUNKS * SIZE // 8}&slots=900&processes=16&gate=off&unit_bytes=4096"


def identity(tenant: str, model: str = "m") -> maru.Identity:
    return maru.Identity(model=model, kv_layout="l", tenant=tenant)


@dataclass
class Street:
    """A daemon, a calm client, and as many loud ones as somebody makes. What loud ones hold is kept until the end."""

    server: RpcServer
    folder: Path
    stack: ExitStack
    calm: RemotePool
    calm_space: RemoteNamespace
    keys: dict[str, Path] = field(default_factory=dict)
    held: list[object] = field(default_factory=list)
    made: int = 0

    def loud(self, user: str = "loud") -> tuple[RemotePool, RemoteNamespace]:
        """A session more, of this key."""
        if user not in self.keys:
            _, self.keys[user] = generate_client(self.folder, user, "loud")
        client = self.stack.enter_context(client_of(self.server, self.keys[user]))
        return client, client.namespace(identity("loud"))

    def fresh(self, count: int) -> list[bytes]:
        self.made += count
        return [key_of(self.made - n, "loud") for n in range(1, count + 1)]

    def calm_stores(self, *numbers: int) -> list[Outcome]:
        keys = [key_of(n, "calm") for n in numbers]
        return [self.calm.put(key, bytes_of(key, SIZE), self.calm_space) for key in keys]

    def calm_hits(self, count: int) -> int:
        """How many of the first `count` chunks are there; every byte of them is looked at."""
        views = [(key_of(n, "calm"), self.calm.get(key_of(n, "calm"))) for n in range(count)]
        assert all(view is None or is_right(key, view) for key, view in views)
        return sum(view is not None for _, view in views)


@contextmanager
def street(url: str, folder: Path, *, has_share: bool) -> Iterator[Street]:
    generate_server(folder)
    _, key = generate_client(folder, "calm", "calm")
    with maru.Pool.create(url.partition("?")[0] + QUERY) as pool, ExitStack() as stack:
        assert pool.wait_ready(20)
        if has_share:
            pool.set_share("calm", SHARE * SIZE)
            pool.set_share("loud", SHARE * SIZE)
        server = stack.enter_context(guarded(pool, folder))
        calm = stack.enter_context(client_of(server, key))
        here = Street(server, folder, stack, calm, calm.namespace(identity("calm")))
        yield here
        here.held.clear()
        assert pool.check() == []


# ---- noise ----------------------------------------------------------------------------------------------------


def stores(here: Street) -> None:
    client, space = here.loud()
    for key in here.fresh(3 * CHUNKS):
        client.put(key, bytes(SIZE), space)


def stores_one_long_prefix(here: Street) -> None:
    client, space = here.loud()
    keys = here.fresh(3 * CHUNKS)
    client.put_many(b"".join(keys), [bytes(SIZE)] * len(keys), space)
    for n in range(0, len(keys), 8):
        client.put_many(b"".join(keys[n : n + 8]), [bytes(SIZE)] * 8, space)


def stores_tiny_chunks(here: Street) -> None:
    """Each takes a slot of the index, and a unit of memory."""
    client, space = here.loud()
    for _ in range(30):
        keys = here.fresh(40)
        for key in keys:
            client.put(key, b"tiny", space)


def stores_large_chunks(here: Street) -> None:
    client, space = here.loud()
    for key in here.fresh(60):
        client.put(key, bytes(8 * SIZE), space)


def stores_in_many_namespaces(here: Street) -> None:
    client, _ = here.loud()
    for n in range(48):
        space = client.namespace(identity("loud", f"model-{n}"))
        for key in here.fresh(4):
            client.put(key, bytes(SIZE), space)


def stores_from_many_sessions(here: Street) -> None:
    clients = [here.loud(f"loud{n % 4}") for n in range(16)]
    for _ in range(12):
        for client, space in clients:
            client.put(here.fresh(1)[0], bytes(SIZE), space)


def holds_drafts(here: Street) -> None:
    for n in range(6):
        client, _ = here.loud(f"loud{n}")
        here.held.append(client.allocate(SIZE, CHUNKS))


def holds_reservations(here: Street) -> None:
    for n in range(6):
        client, space = here.loud(f"loud{n}")
        here.held.append(client.reserve_many(b"".join(here.fresh(CHUNKS)), SIZE, space))


def holds_pins(here: Street) -> None:
    client, space = here.loud()
    for key in here.fresh(3 * CHUNKS):
        client.put(key, bytes(SIZE), space)
        here.held.append(client.pin(key))


def holds_pins_by_many_keys(here: Street) -> None:
    """One key may pin half of the pool."""
    for key in (keys := here.fresh(CHUNKS)):
        client, space = here.loud()
        client.put(key, bytes(SIZE), space)
    for n, key in enumerate(keys):
        client, _ = here.loud(f"loud{n % 4}")
        here.held.append(client.pin(key))


NOISE = [
    stores,
    stores_one_long_prefix,
    stores_tiny_chunks,
    stores_large_chunks,
    stores_in_many_namespaces,
    stores_from_many_sessions,
    holds_drafts,
    holds_reservations,
    holds_pins,
    holds_pins_by_many_keys,
]


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("has_share", [True, False])
def test_what_lies_within_a_share_stays(
    pool_url: str, tmp_path: Path, noise: Callable[[Street], None], has_share: bool
) -> None:
    with street(pool_url, tmp_path / "keys", has_share=has_share) as here:
        assert here.calm_stores(*range(SHARE)) == [Outcome.STORED] * SHARE
        noise(here)
        assert (here.calm_hits(SHARE) == SHARE) is has_share


@pytest.mark.parametrize("noise", NOISE)
def test_a_share_is_had_back_by_whoever_comes_late(
    pool_url: str, tmp_path: Path, noise: Callable[[Street], None]
) -> None:
    with street(pool_url, tmp_path / "keys", has_share=True) as here:
        noise(here)
        assert here.calm_stores(*range(SHARE)) == [Outcome.STORED] * SHARE
        assert here.calm_hits(SHARE) == SHARE


def test_room_to_write_is_kept_within_a_share_while_reservations_run(pool_url: str, tmp_path: Path) -> None:
    """One key of the other tenant's: what a daemon lets it reserve leaves the share whole."""
    with street(pool_url, tmp_path / "keys", has_share=True) as here:
        client, space = here.loud()
        here.held += [client.allocate(SIZE, CHUNKS), client.reserve_many(b"".join(here.fresh(CHUNKS)), SIZE, space)]
        assert here.calm_stores(*range(SHARE)) == [Outcome.STORED] * SHARE


@pytest.mark.parametrize("has_share", [True, False])
def test_hits_stay_hits_while_both_store_in_turns(pool_url: str, tmp_path: Path, has_share: bool) -> None:
    with street(pool_url, tmp_path / "keys", has_share=has_share) as here:
        client, space = here.loud()
        missed = 0
        for n in range(SHARE):
            here.calm_stores(n)
            for key in here.fresh(12):
                client.put(key, bytes(SIZE), space)
            missed += n + 1 - here.calm_hits(n + 1) if n % 4 == 3 else 0
        assert (missed == 0) is has_share


# ---- what a daemon has a limited number of --------------------------------------------------------------------


def greeted(control: Control, number: int, tenant: str | None) -> Session:
    hello = wire.Hello(0, (1, 1), "test", number.to_bytes(16, "little"), "talker", "boot")
    return control.greet(client_named(f"{tenant}{number % 3}", tenant) if tenant else None, hello)[0]


@pytest.mark.parametrize("share", [0.75, 1.0])
def test_one_tenants_sessions_leave_room_for_anothers(pool: maru.Pool, share: float) -> None:
    control = Control(pool, Limits(sessions=8, tenant_share=share), bytes(16), "test")
    for n in range(int(8 * share)):
        greeted(control, n, "loud")
    with pytest.raises(PoolBusy):
        greeted(control, 100, "loud")
    if share < 1:
        assert [greeted(control, n, "calm").user for n in (101, 102)] == ["calm2", "calm0"]
    with pytest.raises(PoolBusy, match="8 clients already"):
        greeted(control, 103, "calm")


def test_where_nobody_asks_who_somebody_is_sessions_are_for_all(pool: maru.Pool) -> None:
    control = Control(pool, Limits(sessions=8), bytes(16), "test")
    for n in range(8):
        greeted(control, n, None)
    with pytest.raises(PoolBusy, match="8 clients already"):
        greeted(control, 8, None)


def test_one_tenants_watches_leave_room_for_anothers(pool: maru.Pool) -> None:
    control = Control(pool, Limits(watches=8), bytes(16), "test")
    loud, calm = greeted(control, 0, "loud"), greeted(control, 1, "calm")
    for n in range(6):
        control.watch(loud, wire.Watch(n, 60.0), bytes(16), b"peer")
    with pytest.raises(PoolBusy, match="6 watches of this tenant"):
        control.watch(loud, wire.Watch(6, 60.0), bytes(16), b"peer")
    for n in range(2):
        control.watch(calm, wire.Watch(n, 60.0), bytes(16), b"peer")
    with pytest.raises(PoolBusy, match="8 watches already"):
        control.watch(calm, wire.Watch(2, 60.0), bytes(16), b"peer")
