"""Hosts of their own: network namespaces whose links are cut, whose peers die, and who see the pool or do not.

The daemon is `maru serve` with keys on the first host; clients are processes on the others. Its lease is 2 s and its
guard 0.5 s: a client that hears nothing gives up what it holds after 1.5 s, the daemon after 2.5 s.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from hosts import Far, Host, hosts, why_not
from serving import IDENTITY, bytes_for, keys_of, serve_process, until

import maru
from maru import Outcome, credentials
from pools import with_force_gone

pytestmark = [pytest.mark.crash, pytest.mark.skipif(bool(why_not()), reason=why_not() or "there are hosts")]

LEASE_S, GUARD_S = 2.0, 0.5
DEADLINE_S = 2.0
LATE_S = 1.5
"""What a call may take beyond its deadline on a busy machine."""
SIZES = [3_000_000] * 8
"""24 pieces on the wire, of which 8 are under way at once."""
STORED = SIZES[:5]
"""As much as one client may have reserved."""
FIRST = 1


@dataclass
class Scene:
    """A daemon on the first host, its pool as this process sees it, and the other hosts."""

    pool: maru.Pool
    url: str
    keys: Path
    others: list[Host]

    def far(self, host: Host, way: str, name: str = "far") -> Far:
        """A client on this host that takes this way because it sees so much of the pool."""
        far = host.client(sees_pools=way == "local")
        url = self.url.replace("10.77.1.1", host.address[:-1] + "1")
        assert self.connect(far, url, name) == way
        return far

    def connect(self, far: Far, url: str, name: str) -> str:
        kind: str = far.ask("connect", url=url, key=str(self.keys / "clients" / f"{name}.key"), deadline=DEADLINE_S)
        return kind

    @property
    def pins(self) -> int:
        return sum(row["pins"] for row in self.pool.stats()["processes"])

    @property
    def is_free(self) -> bool:
        figures = self.pool.stats()
        return self.pins == 0 and figures["chunks"]["reserved"] == 0

    def store(self) -> bytes:
        """What the first host's engines stored."""
        namespace = self.pool.namespace(IDENTITY)
        keys = keys_of(namespace, len(SIZES), FIRST)
        data = [bytes_for(FIRST + n, size) for n, size in enumerate(SIZES)]
        assert set(self.pool.put_many(keys, data, namespace)) == {Outcome.STORED}
        return keys


@pytest.fixture
def scene(pool_url: str, tmp_path: Path) -> Iterator[Scene]:
    """The pool's bytes lie in a file outside /dev/shm: who sees that, but not its index, may map it."""
    url = pool_url.partition("?")[0] + f"?size=64MiB&slots=2048&processes=32&data={tmp_path}/data"
    keys = tmp_path / "keys"
    credentials.generate_server(keys)
    for name in ("far", "third", "fourth"):
        credentials.generate_client(keys, name)
    with hosts("first", "far", "third") as (first, *others), maru.Pool.create(url) as pool:
        more = ("--lease", str(LEASE_S), "--keys", str(keys), "--http", "off")
        with serve_process(url, *more, listen="tcp://0.0.0.0:7001", inside=first.inside) as daemon:
            yield Scene(pool, daemon.address.replace("0.0.0.0", first.address), keys, others)
    with_force_gone(url)


def hide_data(scene: Scene) -> None:
    """The segments stay the daemon's and ours; clients that begin from now on do not find them."""
    data = Path(scene.pool.stats()["segments"][0]["path"])
    data.rename(data.with_name("elsewhere"))


@pytest.mark.parametrize("way", ["local", "mapped", "wire"])
def test_a_client_takes_the_best_way_that_its_host_has(scene: Scene, way: str) -> None:
    if way == "wire":
        hide_data(scene)
    scene.store()
    far = scene.far(scene.others[0], way)
    assert far.ask("get", first=FIRST, sizes=SIZES) == ["right"] * len(SIZES)
    assert far.ask("put", first=50, sizes=[20_000, 7]) == ["STORED", "STORED"]
    with scene.pool.pin(keys_of(scene.pool.namespace(IDENTITY), 2, 50)) as prefix:
        assert [bytes(view) for view in prefix.views] == [bytes_for(50, 20_000), bytes_for(51, 7)]
    if way != "local":
        assert far.ask("failures") == {}
    far.ask("close")
    assert until(lambda: scene.is_free)
    assert scene.pool.check() == []


@pytest.mark.parametrize("way", ["mapped", "wire"])
def test_what_a_silent_host_holds_is_given_back_after_it_gave_it_up_itself(scene: Scene, way: str) -> None:
    if way == "wire":
        hide_data(scene)
    scene.store()
    host = scene.others[0]
    far = scene.far(host, way)
    assert far.ask("pin", first=FIRST, chunks=len(SIZES)) == len(SIZES)
    assert far.ask("held")
    host.cut()
    cut_s = last_pinned_s = time.monotonic()
    far.begin("last_held_s")
    while scene.pins:
        last_pinned_s = time.monotonic()
        assert last_pinned_s < cut_s + LEASE_S + GUARD_S + LATE_S
    last_held_s = far.said()["answer"]
    assert cut_s < last_held_s < last_pinned_s
    host.mend()
    assert until(lambda: far.ask("lookup", first=FIRST, chunks=len(SIZES)) == len(SIZES))
    assert not far.ask("held")  # What was given up once does not come back with the link.
    far.begin("read", first=FIRST, sizes=SIZES)
    assert far.said()["error"] == "LeaseEnded"
    assert far.ask("get", first=FIRST, sizes=SIZES) == ["right"] * len(SIZES)
    assert scene.pool.check() == []


@pytest.mark.parametrize("way", ["mapped", "wire"])
def test_a_link_that_is_cut_for_less_than_a_lease_is_not_noticed(scene: Scene, way: str) -> None:
    if way == "wire":
        hide_data(scene)
    keys = scene.store()
    host = scene.others[0]
    far = scene.far(host, way)
    assert far.ask("pin", first=FIRST, chunks=len(SIZES)) == len(SIZES)
    host.cut()
    assert far.ask("held")
    host.mend()
    assert far.ask("read", first=FIRST, sizes=SIZES) == ["right"] * len(SIZES)
    assert far.ask("held")
    assert scene.pool.remove(keys[-16:]) is False


def test_a_link_that_is_cut_in_the_middle_of_a_fetch_gives_no_wrong_byte(scene: Scene) -> None:
    hide_data(scene)
    scene.store()
    host = scene.others[0]
    far = scene.far(host, "wire")
    assert far.ask("pin", first=FIRST, chunks=len(SIZES)) == len(SIZES)
    far.ask("pause_at", request="Read", answers=3)
    far.begin("read", first=FIRST, sizes=SIZES)
    assert far.said() == {"reached": "Read"}
    host.cut()
    go_on(far)
    said = far.said()
    assert said["error"] == "NoDaemon"
    assert said["seconds"] < DEADLINE_S + LATE_S
    assert far.ask("get", first=FIRST, sizes=SIZES) == ["missing"] * len(SIZES)
    assert until(lambda: scene.is_free, LEASE_S + GUARD_S + LATE_S)
    host.mend()
    assert until(lambda: far.ask("get", first=FIRST, sizes=SIZES) == ["right"] * len(SIZES), 10)
    assert scene.pool.check() == []


@pytest.mark.parametrize("mends", ["before the deadline", "after the lease"])
def test_a_link_that_is_cut_in_the_middle_of_a_store_publishes_nothing_that_is_not_whole(
    scene: Scene, mends: str
) -> None:
    hide_data(scene)
    keys = keys_of(scene.pool.namespace(IDENTITY), len(STORED), FIRST)
    host = scene.others[0]
    far = scene.far(host, "wire")
    far.ask("pause_at", request="Write", answers=3)
    far.begin("put", first=FIRST, sizes=STORED)
    assert far.said() == {"reached": "Write"}
    host.cut()
    go_on(far)
    if mends == "before the deadline":
        host.mend()
        assert far.said()["answer"] == ["STORED"] * len(STORED)
    else:
        said = far.said()
        assert said["answer"] == ["LOST"] * len(STORED)
        assert said["seconds"] < 2 * DEADLINE_S + LATE_S  # To store, and to give the rest back.
        assert scene.pool.lookup(keys) == 0
        assert until(lambda: scene.is_free, LEASE_S + GUARD_S + LATE_S)
        host.mend()
        assert until(lambda: far.tries("put", first=FIRST, sizes=STORED) == ["STORED"] * len(STORED), 10)
    with scene.pool.pin(keys) as prefix:
        assert [bytes(view) for view in prefix.views] == [bytes_for(FIRST + n, size) for n, size in enumerate(STORED)]
    assert scene.pool.check() == []


def test_a_host_that_dies_without_a_word_gives_everything_back_and_others_are_served(scene: Scene) -> None:
    keys = scene.store()
    dying, other = scene.others
    mapped, third = scene.far(dying, "mapped"), scene.far(other, "mapped", "third")
    hide_data(scene)
    fetching = scene.far(dying, "wire", "fourth")  # What one key may pin is limited.
    for far in (mapped, fetching):
        assert far.ask("pin", first=FIRST, chunks=len(SIZES)) == len(SIZES)
    fetching.ask("pause_at", request="Write", answers=3)
    fetching.begin("put", first=50, sizes=SIZES[:4])
    assert fetching.said() == {"reached": "Write"}
    dying.die()
    died_s = time.monotonic()
    assert not scene.is_free
    while not scene.is_free:
        assert third.ask("get", first=FIRST, sizes=SIZES) == ["right"] * len(SIZES)
        assert time.monotonic() < died_s + LEASE_S + GUARD_S + LATE_S
    assert time.monotonic() > died_s + LEASE_S - GUARD_S
    assert third.ask("failures") == {}
    assert scene.pool.lookup(keys_of(scene.pool.namespace(IDENTITY), 4, 50)) == 0
    assert scene.pool.remove(keys[-16:]) is True
    assert scene.pool.check() == []


def test_closing_without_a_link_ends_soon_and_leaves_nothing(scene: Scene) -> None:
    hide_data(scene)
    scene.store()
    host = scene.others[0]
    far = scene.far(host, "wire")
    assert far.ask("pin", first=FIRST, chunks=len(SIZES)) == len(SIZES)
    host.cut()
    far.begin("close")
    said = far.said()
    assert said["answer"] is None
    assert said["seconds"] < DEADLINE_S
    assert until(lambda: scene.is_free, LEASE_S + GUARD_S + LATE_S)


def go_on(far: Far) -> None:
    assert far.process.stdin is not None
    far.process.stdin.write("\n")
    far.process.stdin.flush()
