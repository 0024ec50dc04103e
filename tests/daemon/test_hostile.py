"""A daemon under a hundred thousand frames that nobody should send, and under connections that say nothing.

The worst stranger is one that has a key: all others are refused by their handshake (test_strangers). It knows what
others asked, their session and what they hold; another client works all along.
"""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import zmq
from serving import IDENTITY, Served, bytes_for, keys_of, serve_process, until
from strangers import Frames, Mutations, Stranger, recording

import maru
from maru import Outcome, credentials, wire
from maru.client.remote import RemotePool
from maru.credentials import ClientKey, load_client_key
from pools import with_force_gone

pytestmark = pytest.mark.crash

WITHOUT_SESSION, WITH_SESSION = 20_000, 80_000
GROWN_BYTES_MAX = 64 << 20
LEASE_S = 2.0
SIZE = 20_000
CHUNKS = 12
SEED = 7
FEW_FILES = ("sh", "-c", 'ulimit -Sn 128 && exec "$0" "$@"')
"""As a shell may have it; the daemon takes what the host allows."""


@dataclass
class Scene:
    """A daemon in a process of its own, and who may speak to it. Its pool has slabs for chunks of every size, so that
    nobody is without room because strangers hold what they may.
    """

    pool: maru.Pool
    daemon: Served
    folder: Path
    context: zmq.Context[Any]

    def key(self, name: str) -> ClientKey:
        return load_client_key(self.folder / "clients" / f"{name}.key")

    def client(self, name: str) -> RemotePool:
        path = self.folder / "clients" / f"{name}.key"
        found = maru.connect(self.daemon.address, mode="wire", key=str(path), deadline=20.0)
        assert isinstance(found, RemotePool)
        return found

    def stranger(self) -> Stranger:
        return Stranger(self.context, self.daemon.rpc, self.key("stranger"))

    @property
    def own_bytes(self) -> int:
        """Memory of the daemon that is not the pool's."""
        for line in Path(f"/proc/{self.daemon.process.pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) * 1024
        raise AssertionError("the daemon is gone")

    def others(self) -> tuple[bytes, list[bytes]]:
        """Keys and content of what engines of this host stored."""
        namespace = self.pool.namespace(IDENTITY)
        return keys_of(namespace, CHUNKS), [bytes_for(n, SIZE) for n in range(CHUNKS)]


@pytest.fixture
def scene(pool_url: str, tmp_path: Path) -> Iterator[Scene]:
    url = pool_url.partition("?")[0] + "?size=128MiB&slab_bytes=512KiB&slots=8192&processes=32"
    folder = tmp_path / "keys"
    credentials.generate_server(folder)
    for name in ("good", "stranger"):
        credentials.generate_client(folder, name)
    with maru.Pool.create(url) as pool, zmq.Context() as context:
        more = ("--lease", str(LEASE_S), "--keys", str(folder), "--http", "off")
        with serve_process(url, *more, inside=FEW_FILES) as daemon:
            yield Scene(pool, daemon, folder, context)
            context.destroy(linger=0)
    with_force_gone(url)


class Worker:
    """A client that does its work all along, in a thread; what went wrong is in `wrong`."""

    def __init__(self, client: RemotePool) -> None:
        self.client = client
        self.rounds = 0
        self.wrong: list[str] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Worker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(60)
        assert not self._thread.is_alive()

    def _work(self) -> None:
        namespace = self.client.namespace(IDENTITY)
        data = [bytes_for(50 + n, SIZE) for n in range(3)]
        while not self._over.is_set():
            keys = keys_of(namespace, 3, first=1000 + 100 * (self.rounds % 5))
            outcomes = self.client.put_many(keys, data, namespace)
            if set(outcomes) - {Outcome.STORED, Outcome.EXISTS}:
                self.wrong.append(f"stored: {outcomes}")
            with self.client.pin(keys) as prefix:
                if [bytes(view) for view in prefix.views] != data:
                    self.wrong.append(f"read {len(prefix)} chunks, not all of them right")
            self.client.remove(keys[-16:])  # Unless what we just read is still on its way out of the daemon.
            self.rounds += 1


def a_recorded_day(scene: Scene) -> list[Frames]:
    """What a real client of the stranger's key sends: every kind of request."""
    frames: list[Frames] = []
    with recording(frames), scene.client("stranger") as client:
        namespace = client.namespace(IDENTITY)
        keys = keys_of(namespace, 4, first=9000)
        assert client.put_many(keys, [bytes_for(n, SIZE) for n in range(4)], namespace) == [Outcome.STORED] * 4
        with client.pin(keys) as prefix:
            assert len(prefix.views) == 4
        client.lookup(keys)
        client.find(keys)
        client.wait(keys[:16], 1.0)
        client.reserve(bytes(range(16)), SIZE).discard()
        client.remove(keys[-16:])
        client.stats()
        client.renew()
        drafts, _ = client.channel.call(wire.Allocate(0, SIZE, 2))
        client.channel.call(wire.Publish(0, drafts.holds), bytes(range(32)))
    return frames


def test_a_hundred_thousand_hostile_frames_change_nothing_for_others(scene: Scene) -> None:
    keys, data = scene.others()
    namespace = scene.pool.namespace(IDENTITY)
    assert set(scene.pool.put_many(keys, data, namespace)) == {Outcome.STORED}
    recorded = a_recorded_day(scene)
    kinds = {type(wire.decode_request(frames[0])) for frames in recorded}
    assert len(kinds) == 19
    before_bytes = scene.own_bytes
    with scene.client("good") as good, good.pin(keys) as held, Worker(good) as worker:
        sessions, holds = [good.channel.session], [held._lease]

        stranger = scene.stranger()
        theirs = [frames for frames in recorded if not isinstance(wire.decode_request(frames[0]), wire.Hello)]
        theirs += [[wire.encode(request), *body] for request, *body in asked_by_others(keys, holds)]
        mutations = Mutations(SEED, theirs, [b"no session"], holds)
        for _ in range(WITHOUT_SESSION // 2):
            frames = mutations._random.choice(theirs)
            stranger.send(frames)
            stranger.send(mutations._flipped(frames))
        stranger.send([b"\xc1"])
        assert until(lambda: stranger.listen() or stranger.answers.total() >= WITHOUT_SESSION * 0.9)
        assert set(stranger.answers) <= {"BadMessage", "SessionUnknown"}
        assert stranger.answers["SessionUnknown"] > WITHOUT_SESSION // 2
        with scene.pool.pin(keys) as prefix:
            assert [bytes(view) for view in prefix.views] == data
        stranger.close()

        mutations = Mutations(SEED, recorded, sessions, holds)
        strangers = [scene.stranger() for _ in range(4)]
        session = bytes(range(16))
        for number in range(WITH_SESSION):
            one = strangers[number % len(strangers)]
            if number % 100 < len(strangers):
                one.greet(session)
            one.send(next(mutations))
        assert all(one.is_through(session) for one in strangers)
        assert sum(one.answers.total() for one in strangers) > WITH_SESSION // 2
        assert min(one.answers[name] for one in strangers for name in ("Done", "BadMessage", "Welcome")) > 100
        for one in strangers:
            one.close()

        assert held.held
        assert [bytes(view) for view in held.views] == data
        rounds = worker.rounds
        assert until(lambda: worker.rounds > rounds + 5)
    assert worker.wrong == []
    assert good.failures == {}
    assert until(lambda: holds_nothing(scene.pool), 2 * LEASE_S + 5)
    assert scene.pool.check() == []
    with scene.pool.pin(keys) as prefix:
        assert [bytes(view) for view in prefix.views] == data
    assert scene.own_bytes - before_bytes < GROWN_BYTES_MAX


def asked_by_others(keys: bytes, holds: list[int]) -> list[tuple[Any, ...]]:
    """What would be the end of others' chunks, from somebody who may ask for it."""
    return [
        (wire.Remove(1), keys[-16:]),
        (wire.Remove(1), keys[:16]),
        (wire.Pin(1, 1 << 30), keys),
        (wire.Release(1, holds),),
        (wire.Read(1, holds[0], 0, 0, 100),),
        (wire.Seal(1, holds),),
        (wire.Discard(1, holds),),
        (wire.Renew(1),),
        (wire.Goodbye(1),),
    ]


def holds_nothing(pool: maru.Pool) -> bool:
    figures = pool.stats()
    rows = [row for row in figures["processes"] if row["pins"] or row["name"] == "stranger"]
    return not rows and figures["chunks"]["reserved"] == 0


def test_connections_that_say_nothing_or_little_keep_nobody_waiting(scene: Scene) -> None:
    keys, data = scene.others()
    namespace = scene.pool.namespace(IDENTITY)
    scene.pool.put_many(keys, data, namespace)
    place = ("127.0.0.1", int(scene.daemon.rpc.rpartition(":")[2]))
    greeting = b"\xff" + bytes(7) + b"\x01\x7f\x03\x01CURVE" + bytes(47)
    with scene.client("good") as good:
        silent = [socket.create_connection(place, 20) for _ in range(100)]
        slow = [socket.create_connection(place, 20) for _ in range(100)]
        noisy = [socket.create_connection(place, 20) for _ in range(20)]
        try:
            for one in noisy:
                one.sendall(os.urandom(5000))
            for byte in greeting:
                for one in slow:
                    one.sendall(bytes([byte]))
                assert good.lookup(keys) == CHUNKS
                assert good.get(keys[:16]) == data[0]
            with scene.client("good") as late:  # Who comes now is let in too.
                assert late.lookup(keys) == CHUNKS
            for one in (*silent, *slow, *noisy):
                one.settimeout(20)
                while answer_of(one):  # Until the daemon has had enough of it.
                    pass
        finally:
            for one in (*silent, *slow, *noisy):
                one.close()
        assert good.lookup(keys) == CHUNKS
        assert good.failures == {}


def answer_of(connection: socket.socket) -> bytes:
    try:
        return connection.recv(4096)
    except ConnectionResetError:
        return b""
