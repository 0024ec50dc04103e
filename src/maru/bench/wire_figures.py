"""The rows about a daemon: a question beside a bare echo, bytes beside a bare socket, and many clients at once.

Daemon, echo and socket are processes of their own on this host, and the client's side is this process; all of them
share its cores. What is fetched is compared once with what was stored, before anything is measured.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from maru.bench.daemons import serving, why_no_daemon
from maru.bench.ground import (
    MIB,
    PREFIX_CHUNKS,
    Keys,
    Missing,
    Plan,
    Rotation,
    bench_pool,
    source_array,
    touched_array,
)
from maru.bench.measure import Contestant, Progress, Row, Target, interleave
from maru.client import Mode, connect
from maru.pool import Outcome, Pool

if TYPE_CHECKING:
    from maru.client.remote import RemotePool

CLIENT_COUNTS = (1, 4, 16, 64)
LOOKUPS = 3200
"""Of all clients of a sample together, at least."""
SMALL_CHUNK_BYTES = 8 * 1024
SMALL_OPTIONS = f"chunk_bytes={SMALL_CHUNK_BYTES}"
STORED_SHARE = 5
"""Of the pool, a prefix takes one part in so many at most: a quarter is what one client may have reserved."""


@dataclass(frozen=True)
class Rpc:
    """A pool with a prefix in it, its daemon and what bounds it, and a client of each kind that is asked for."""

    pool: Pool
    keys: bytes
    address: str
    bare: Any
    context: Any


def insist_on_daemon() -> None:
    """Raises Missing."""
    if reason := why_no_daemon():
        raise Missing(f"nothing about a daemon was measured: {reason}")


@contextmanager
def _rpc(label: str, size_bytes: int, options: str, chunk: Any) -> Iterator[Rpc]:
    """The prefix is pinned as long as the context lasts, so that nothing pushes it out."""
    import zmq

    from maru.bench.bare_wire import bare_peer

    keys = Keys(label).packed(PREFIX_CHUNKS)
    with ExitStack() as stack:
        pool = stack.enter_context(bench_pool(label, size_bytes, options))
        if set(pool.put_many(keys, [chunk] * PREFIX_CHUNKS)) != {Outcome.STORED}:
            raise RuntimeError("the prefix was not stored")
        stack.enter_context(pool.pin(keys))
        address = stack.enter_context(serving(pool.config.url.partition("?")[0]))
        bare = stack.enter_context(bare_peer(PREFIX_CHUNKS * len(chunk)))
        context = zmq.Context()
        stack.callback(context.destroy, linger=0)
        yield Rpc(pool, keys, address, bare, context)


def _client(stack: ExitStack, address: str, mode: Mode, key: str | None = None) -> RemotePool:
    from maru.client.remote import RemotePool

    client = stack.enter_context(connect(address, mode=mode, key=key))
    assert isinstance(client, RemotePool)
    return client


def rpc_rows(plan: Plan, progress: Progress) -> list[Row]:
    """Questions about a prefix: one round trip, and two."""
    insist_on_daemon()
    from maru import wire
    from maru.bench.bare_wire import Echo

    with ExitStack() as stack:
        rpc = stack.enter_context(_rpc("rpc", 64 * MIB, SMALL_OPTIONS, bytes(SMALL_CHUNK_BYTES)))
        client = _client(stack, rpc.address, "wire")
        echo, keys, extents_bytes = Echo(rpc.context, rpc.bare.echo), rpc.keys, PREFIX_CHUNKS * wire.EXTENT_BYTES
        lookup_header, pin_header = wire.encode(wire.Lookup(9)), wire.encode(wire.Pin(9, 1 << 30))
        release_header = wire.encode(wire.Release(9, [1 << 62]))

        def lookup(turns: Iterable[None]) -> None:
            for _ in turns:
                if client.lookup(keys) != PREFIX_CHUNKS:
                    raise RuntimeError("the prefix is not whole")

        def echo_once(turns: Iterable[None]) -> None:
            for _ in turns:
                echo.ask(lookup_header, keys, 0)

        def pin_and_release(turns: Iterable[None]) -> None:
            for _ in turns:
                with client.pin(keys) as prefix:
                    if len(prefix) != PREFIX_CHUNKS:
                        raise RuntimeError("the prefix is not whole")

        def echo_twice(turns: Iterable[None]) -> None:
            for _ in turns:
                echo.ask(pin_header, keys, extents_bytes)
                echo.ask(release_header, b"", 0)

        seconds = interleave(
            [
                Contestant("lookup by a daemon, 680 keys", lookup),
                Contestant("echo of as many bytes", echo_once),
                Contestant("pin + release by a daemon, 680 keys", pin_and_release),
                Contestant("two echoes of as many bytes", echo_twice),
            ],
            plan.rounds(300),
            progress=progress,
        )
        echo.close()
    found, echoed, pinned, echoed_twice = seconds
    return [
        Row(found, seconds[found], 0, echoed, seconds[echoed], Target(ratio_max=2.0)),
        Row(echoed, seconds[echoed]),
        Row(pinned, seconds[pinned], 0, echoed_twice, seconds[echoed_twice]),
        Row(echoed_twice, seconds[echoed_twice]),
    ]


def transfer_rows(plan: Plan, progress: Progress) -> list[Row]:
    """A prefix of bytes: fetched over the wire, plain and encrypted, stored over it, and read in place by messages."""
    insist_on_daemon()
    from maru.bench.bare_wire import Tcp
    from maru.credentials import generate_client, generate_server

    chunk_bytes = chunk_bytes_for(plan.data_bytes)
    prefix_bytes = PREFIX_CHUNKS * chunk_bytes
    source = source_array(max(plan.source_bytes, 2 * chunk_bytes))
    chunk, fresh, data = source[:chunk_bytes], Keys("transfer stores"), Rotation(source, chunk_bytes)
    options = f"chunk_bytes={chunk_bytes}&gate=off"
    with ExitStack() as stack:
        rpc = stack.enter_context(_rpc("transfer", plan.data_bytes, options, chunk))
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="maru-bench-"))) / "keys"
        generate_server(keys)
        _, key = generate_client(keys, "bench")
        encrypted = stack.enter_context(serving(rpc.pool.config.url.partition("?")[0], keys=keys))
        careful = stack.enter_context(bench_pool("careful", prefix_bytes * 5 // 4, f"{options}&checksum=always"))
        if set(careful.put_many(rpc.keys, [chunk] * PREFIX_CHUNKS)) != {Outcome.STORED}:
            raise RuntimeError("the prefix was not stored")
        tcp = stack.enter_context(Tcp(rpc.bare.tcp, prefix_bytes))
        plain = _client(stack, rpc.address, "wire")
        secret = _client(stack, encrypted, "wire", str(key))
        mapped = _client(stack, rpc.address, "mapped")
        landing = touched_array(chunk_bytes)

        def receive(turns: Iterable[None]) -> None:
            for _ in turns:
                tcp.receive()

        def send(buffers: list[memoryview]) -> None:
            for buffer in buffers:
                tcp.send(buffer)

        def fetch_with(client: Any) -> Callable[[Iterable[None]], None]:
            def fetch(turns: Iterable[None]) -> None:
                for _ in turns:
                    with client.pin(rpc.keys) as prefix:
                        if len(prefix.views) != PREFIX_CHUNKS:
                            raise RuntimeError("the prefix is not whole")

            return fetch

        def store(chosen: list[tuple[bytes, list[Any]]]) -> None:
            for packed, chunks in chosen:
                if set(plain.put_many(packed, chunks)) != {Outcome.STORED}:
                    raise RuntimeError("a prefix was not stored")

        def prefixes(repeats: int) -> list[tuple[bytes, list[Any]]]:
            return [(fresh.packed(PREFIX_CHUNKS), data.take(PREFIX_CHUNKS)) for _ in range(repeats)]

        def read_with(pool: Any) -> Callable[[Iterable[None]], None]:
            def read(turns: Iterable[None]) -> None:
                for _ in turns:
                    with pool.pin(rpc.keys) as prefix:
                        views = prefix.views
                        if len(views) != PREFIX_CHUNKS:
                            raise RuntimeError("the prefix is not whole")
                        for view in views:
                            np.copyto(landing, np.frombuffer(view, dtype=np.uint8))

            return read

        for client in (plain, secret, mapped):
            _insist_on_bytes(client, rpc.keys, chunk)
        whole = memoryview(touched_array(prefix_bytes))
        seconds = interleave(
            [
                Contestant("fetched over the wire, verified", fetch_with(plain), repeats=1),
                Contestant("bare TCP socket into fresh memory", receive, repeats=1),
                Contestant("fetched over the wire, encrypted (CURVE)", fetch_with(secret), repeats=1),
                Contestant("stored over the wire", store, prefixes, 1),
                Contestant("bare TCP socket out of memory", send, lambda repeats: [whole] * repeats, 1),
                Contestant("read in place, told by a daemon, verified", read_with(mapped), repeats=1),
                Contestant("read of this host's pool, checksum=always", read_with(careful), repeats=1),
            ],
            plan.rounds(40),
            progress=progress,
        )  # fmt: skip
    fetched, received, secretly, stored, sent, in_place, local = seconds

    def row(name: str, reference: str = "", target: Target | None = None) -> Row:
        return Row(name, seconds[name], prefix_bytes, reference, seconds.get(reference, ()), target)

    return [
        row(fetched, received, Target(ratio_min=0.8)), row(received), row(secretly, fetched),
        row(stored, sent), row(sent), row(in_place, local), row(local),
    ]  # fmt: skip


def chunk_bytes_for(data_bytes: int) -> int:
    """The largest power of two of which a prefix fits STORED_SHARE times into a pool."""
    chunk_bytes = 4096
    while PREFIX_CHUNKS * chunk_bytes * 2 * STORED_SHARE <= data_bytes:
        chunk_bytes *= 2
    return chunk_bytes


def _insist_on_bytes(client: Any, keys: bytes, chunk: Any) -> None:
    with client.pin(keys) as prefix:
        views = prefix.views
        if len(views) != PREFIX_CHUNKS or not all(
            np.array_equal(np.frombuffer(view, np.uint8), chunk) for view in views
        ):
            raise RuntimeError(f"a {client.kind} client read other bytes than were stored")


def client_rows(plan: Plan, progress: Progress) -> list[Row]:
    """1 to 64 clients that look up at once."""
    insist_on_daemon()
    from maru.bench.many_clients import Crowd, EchoClient, LookupClient

    rows: list[Row] = []
    numbers, rounds = itertools.count(1), plan.rounds(20)
    with _rpc("clients", 64 * MIB, SMALL_OPTIONS, bytes(SMALL_CHUNK_BYTES)) as rpc:
        endpoint = rpc.address.replace("maru://", "tcp://")
        for done, count in enumerate(CLIENT_COUNTS):

            def of_all(part: int, total: int, before: int = done) -> None:
                progress(before * total + part, len(CLIENT_COUNTS) * total)

            each = LOOKUPS // max(CLIENT_COUNTS) // (10 if plan.quick else 1) * max(CLIENT_COUNTS) // count
            daemons = [LookupClient(rpc.context, endpoint, next(numbers), rpc.keys) for _ in range(count)]
            ours = Crowd(daemons, each)
            bare = Crowd([EchoClient(rpc.context, rpc.bare.echo, rpc.keys) for _ in range(count)], each)
            who = f"{count} client{'s' if count > 1 else ''}"
            found, echoed = f"lookups, {who}", f"echoes, {who}"
            try:
                contestants = [Contestant(found, ours.run, repeats=1), Contestant(echoed, bare.run, repeats=1)]
                seconds = interleave(contestants, rounds, progress=of_all)
            finally:
                ours.close()
                bare.close()
            each_s = {name: tuple(one / ours.lookups for one in samples) for name, samples in seconds.items()}
            rows.append(Row(found, each_s[found], 0, echoed, each_s[echoed], is_rate=True))
            rows.append(Row(echoed, each_s[echoed], is_rate=True))
            waits = {one: tuple(crowd.slowest_p99_s[-rounds:]) for one, crowd in (("ours", ours), ("bare", bare))}
            slowest, slowest_echo = f"lookup, p99 of the slowest of {who}", f"echo, p99 of the slowest of {who}"
            rows.append(Row(slowest, waits["ours"], 0, slowest_echo, waits["bare"]))
            rows.append(Row(slowest_echo, waits["bare"]))
    return rows
