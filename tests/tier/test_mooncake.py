"""Mooncake: what only it does, on a real master and a real client that lends memory."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from maru.errors import BadUrl, NoSuchObject, TierFailed, TierFull
from maru.testing.tier_contract import content_of, fresh_name, read
from maru.tier import mooncake, mooncake_client
from maru.tier.contract import PIECE_BYTES, Tier
from maru.tier.envelope import ChunkFacts
from maru.tier.mooncake import SMALL_BYTES
from maru.tier.opening import open_tier, parse_tier_url
from maru.tiering.place import Loaded, Place, Which
from mooncake_servers import MIB, MooncakeServers, mooncake_servers

SOON_S = 60.0
"""Within this, what comes back by itself has come back."""
HANGS_S = 25.0
"""Mooncake's own calls end after half a minute."""
LEASE_S = 600
SMALL, LARGE = 100, 3 * MIB

EXITS = """
import asyncio, os, signal, sys
from maru.tier.opening import open_tier, parse_tier_url
async def run():
    tier = open_tier(parse_tier_url(sys.argv[1]))
    await tier.health()
    os.kill(int(sys.argv[2]), signal.SIGSTOP)
    try:
        async with asyncio.timeout(3):  # By now its own pings hang too.
            await tier.contains(["0" * 32 + "/" + "1" * 32])
    except TimeoutError:
        print("no answer", flush=True)
asyncio.run(run())
"""
FORKS = """
import asyncio, os, sys
from maru.errors import TierFailed
from maru.tier.opening import open_tier, parse_tier_url
NAME, CONTENT = "0" * 32 + "/" + "1" * 32, b"x" * 3000000
async def begin():
    tier = open_tier(parse_tier_url(sys.argv[1]))
    await tier.store(NAME, [CONTENT])
    return tier
tier = asyncio.run(begin())
async def in_child():
    try:
        await tier.contains([NAME])
    except TierFailed as error:
        print(error, flush=True)
    await tier.close()
async def go_on():
    assert b"".join([bytes(piece) async for piece in tier.load(NAME)]) == CONTENT
    await tier.store(NAME, [CONTENT])
    await tier.close()
    print("goes on", flush=True)
child = os.fork()
if not child:
    asyncio.run(in_child())
    sys.exit(7)
code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
assert code == 7, code
asyncio.run(go_on())
"""


def with_tier(url: str, story: Callable[[Tier], Awaitable[None]]) -> None:
    async def run() -> None:
        tier = open_tier(parse_tier_url(url))
        try:
            await story(tier)
        finally:
            await tier.close()

    asyncio.run(run())


async def soon(call: Callable[[], Awaitable[None]]) -> None:
    """Call it again until the place has come back."""
    ends = time.monotonic() + SOON_S
    while True:
        try:
            return await call()
        except TierFailed:
            assert time.monotonic() < ends
            await asyncio.sleep(0.05)


def raw_client(servers: MooncakeServers) -> Any:
    """Mooncake's own, beside ours."""
    client = mooncake.api().MooncakeDistributedStore()
    assert client.setup("127.0.0.1", "P2PHANDSHAKE", 0, 16 * MIB, "tcp", "", servers.address) == 0
    return client


def test_what_is_stored_again_with_other_content_is_replaced(mooncake_store: MooncakeServers) -> None:
    async def story(tier: Tier) -> None:
        for size in (SMALL, LARGE):
            name = fresh_name()
            for content in (b"a" * size, b"b" * size, b"c" * (size + 1)):
                await tier.store(name, [content])
                if size == SMALL:  # What is large and was read a moment ago has a lease, and stays.
                    assert await read(tier, name) == content
            assert await read(tier, name) == b"c" * (size + 1)

    with_tier(mooncake_store.url("again"), story)


def test_a_large_object_that_somebody_reads_is_left_as_it_is(mooncake_store: MooncakeServers) -> None:
    async def story(tier: Tier) -> None:
        name, content = fresh_name(), content_of(LARGE)
        await tier.store(name, [content])
        assert await read(tier, name, 0, 1) == content[:1]  # From now on it has a lease.
        await tier.store(name, [content_of(LARGE)[::-1]])
        assert await read(tier, name) == content
        await tier.remove([name])  # A lease does not stand against that.
        with pytest.raises(NoSuchObject):
            await read(tier, name)

    with_tier(mooncake_store.url("leased"), story)


def test_an_object_that_is_replaced_while_it_is_read_is_noticed(mooncake_store: MooncakeServers) -> None:
    async def story(tier: Tier) -> None:
        name = fresh_name()
        await tier.store(name, [content_of(9 * MIB)])
        pieces = tier.load(name)
        await anext(pieces)
        while tier._jobs:  # type: ignore[attr-defined]
            await asyncio.sleep(0)  # What is read ahead has come.
        await tier.remove([name])
        await tier.store(name, [content_of(9 * MIB)[::-1]])
        with pytest.raises(TierFailed, match="replaced while it was read"):
            async for _ in pieces:
                pass

    with_tier(mooncake_store.url("replaced"), story)


def test_an_object_whose_store_was_given_up_half_way_can_be_stored(mooncake_store: MooncakeServers) -> None:
    async def story(tier: Tier) -> None:
        for turns in (1, 5, 20, 60, 200):
            name, content = fresh_name(), content_of(LARGE)
            storing = asyncio.ensure_future(tier.store(name, [content] * 13))
            for _ in range(turns):
                await asyncio.sleep(0)
            storing.cancel()
            await asyncio.gather(storing, return_exceptions=True)
            await tier.store(name, [content])
            assert await read(tier, name) == content, turns

    with_tier(mooncake_store.url("given-up"), story)


def test_what_others_keep_there_is_neither_listed_nor_taken_for_ours(mooncake_store: MooncakeServers) -> None:
    others = raw_client(mooncake_store)
    short = fresh_name()
    assert [others.upsert(key, b"theirs") for key in ("foreign/thing", f"foreign/{short}", "thing")] == [0, 0, 0]

    async def story(tier: Tier) -> None:
        name = fresh_name()
        await tier.store(name, [b"ours"])
        assert [one.name async for one in tier.list()] == [name]
        with pytest.raises(TierFailed, match="somebody else"):
            await read(tier, short)
        ours.append(name)

    async def another_story(tier: Tier) -> None:
        with pytest.raises(NoSuchObject):
            await read(tier, ours[0])

    ours: list[str] = []
    try:
        with_tier(mooncake_store.url("foreign"), story)
        with_tier(mooncake_store.url("elsewhere"), another_story)
    finally:
        others.close()


def test_more_names_than_are_asked_for_at_once_are_listed(
    mooncake_store: MooncakeServers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake, "NAMES_AT_ONCE", 3)

    async def story(tier: Tier) -> None:
        names = [fresh_name() for _ in range(10)]
        for name in names:
            await tier.store(name, [b"x"])
        assert sorted([one.name async for one in tier.list()]) == sorted(names)
        assert await tier.contains(names) == [True] * 10
        await tier.remove(names)
        assert [one async for one in tier.list()] == []

    with_tier(mooncake_store.url("many"), story)


def test_a_port_that_tells_no_keys_is_named(mooncake_store: MooncakeServers) -> None:
    async def story(tier: Tier) -> None:
        with pytest.raises(TierFailed, match=r"not told on port 1: .*--metrics_port"):
            assert [one async for one in tier.list()] == []

    with_tier(f"mooncake://{mooncake_store.address}/x?admin=1", story)


def test_changed_bytes_are_a_miss_and_are_taken_away(mooncake_store: MooncakeServers) -> None:
    others = raw_client(mooncake_store)

    async def run() -> None:
        place = Place.open(parse_tier_url(mooncake_store.url("torn")), bytes(16))
        for size in (SMALL, LARGE):
            chunk = Which(os.urandom(16), os.urandom(16), 0)
            assert await place.store(chunk, None, memoryview(content_of(size)), None)
            names = [one.name async for one in place.tier.list()]
            [name] = [name for name in names if name.endswith(chunk.key.hex())]
            stored = bytearray(others.get(f"torn/{name}"))
            stored[-size // 2] ^= 1
            assert others.upsert(f"torn/{name}", bytes(stored)) == 0

            async def begin(facts: ChunkFacts) -> memoryview:
                return memoryview(bytearray(facts.size_bytes))

            assert await place.load(chunk, begin) is Loaded.FAILED
            assert await place.load(chunk, begin) is Loaded.ABSENT
        assert place.stats()["torn"] == 2
        await place.close()

    try:
        asyncio.run(run())
    finally:
        others.close()


def test_a_full_store_says_so_and_takes_more_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake, "AGAIN_S_MAX", 0.1)

    async def story(tier: Tier) -> None:
        names: list[str] = []
        with pytest.raises(TierFull, match="lend more") as full:  # noqa: PT012
            for _ in range(17):
                names.append(fresh_name())
                await tier.store(names[-1], [content_of(4 * MIB)])
                assert await tier.contains(names[-1:]) == [True]  # Leased, so that it is not evicted.
        assert full.value.wanted_bytes == 4 * MIB
        assert await tier.contains(names) == [True] * (len(names) - 1) + [False]
        for name in names[:-1]:
            assert await read(tier, name) == content_of(4 * MIB)
        await tier.remove(names[:2])
        await tier.store(names[-1], [content_of(4 * MIB)])
        assert await read(tier, names[-1]) == content_of(4 * MIB)

    with mooncake_servers(tmp_path, 64 * MIB, f"--default_kv_lease_ttl={LEASE_S}s") as servers:
        with_tier(servers.url(), story)


def test_a_store_that_evicts_takes_more_than_it_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mooncake, "AGAIN_S_MAX", SOON_S)

    async def story(tier: Tier) -> None:
        names = [fresh_name() for _ in range(40)]
        for number, name in enumerate(names):
            await tier.store(name, [content_of(4 * MIB + number)])
        there = await tier.contains(names)
        assert 0 < sum(there) < 20
        for number, (name, is_there) in enumerate(zip(names, there, strict=True)):
            if is_there:
                assert await read(tier, name) == content_of(4 * MIB + number)

    with mooncake_servers(tmp_path, 64 * MIB) as servers:
        with_tier(servers.url(), story)


def test_a_master_that_died_is_named_and_used_again_when_it_is_back(tmp_path: Path) -> None:
    async def story(tier: Tier) -> None:
        name = fresh_name()
        await tier.store(name, [content_of(LARGE)])
        servers.kill_master()
        calls = (lambda: tier.contains([name]), lambda: read(tier, name), lambda: tier.store(name, [content_of(LARGE)]))
        for call in calls:
            async with asyncio.timeout(SOON_S):
                with pytest.raises(TierFailed, match=r"mooncake_master does not answer .*start mooncake_master"):
                    await call()
        servers.start_master_again()
        await soon(tier.health)  # Whoever lends memory has come back too.
        with pytest.raises(NoSuchObject):  # It started with nothing.
            await read(tier, name)
        await tier.store(name, [content_of(LARGE)])
        assert await read(tier, name) == content_of(LARGE)

    with mooncake_servers(tmp_path) as servers:
        with_tier(servers.url(), story)


def test_a_lender_that_died_is_a_failure_or_a_miss_and_another_takes_over(tmp_path: Path) -> None:
    async def story(tier: Tier) -> None:
        name = fresh_name()
        await tier.store(name, [content_of(LARGE)])
        servers.lender.kill()
        servers.lender.wait()
        async with asyncio.timeout(SOON_S):
            with pytest.raises((TierFailed, NoSuchObject)):
                await read(tier, name)
        servers.lend(64 * MIB)

        async def store() -> None:
            await tier.store(name, [content_of(LARGE)])
            assert await read(tier, name) == content_of(LARGE)

        await soon(store)

    with mooncake_servers(tmp_path, 64 * MIB, "--client_ttl=1") as servers:
        with_tier(servers.url(), story)


def test_a_call_that_hangs_ends_at_its_deadline_and_holds_up_no_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mooncake, "CLOSE_S_MAX", 0.05)

    async def story(tier: Tier) -> None:
        await tier.health()
        servers.master.send_signal(signal.SIGSTOP)
        name = fresh_name()
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await tier.store(name, [content_of(LARGE)])
        await tier.close()
        with pytest.raises(TierFailed, match="closed"):
            await tier.contains([name])

    with mooncake_servers(tmp_path) as servers:
        try:
            with_tier(servers.url(), story)
        finally:
            servers.master.send_signal(signal.SIGCONT)


def test_a_process_ends_although_a_call_hangs(tmp_path: Path) -> None:
    with mooncake_servers(tmp_path) as servers:
        words = [sys.executable, "-c", EXITS, servers.url(query="&segment=64MiB"), str(servers.master.pid)]
        told = subprocess.run(words, capture_output=True, text=True, timeout=HANGS_S)
        assert not told.returncode, told.stderr
        assert told.stdout == "no answer\n"


@pytest.mark.parametrize("lent", ["", "&segment=64MiB"])
def test_a_forked_child_is_refused_and_its_parent_goes_on(tmp_path: Path, lent: str) -> None:
    with mooncake_servers(tmp_path) as servers:
        words = [sys.executable, "-c", FORKS, servers.url(query=lent)]
        told = subprocess.run(words, capture_output=True, text=True, timeout=SOON_S)
        assert not told.returncode, told.stderr
        refused, goes_on = told.stdout.splitlines()
        assert "before this process was forked" in refused
        assert goes_on == "goes on"


def test_where_no_master_is_it_is_said_at_once(mooncake_store: MooncakeServers) -> None:
    with socket.socket() as nobody:  # Bound, so that nobody else listens there; and not listening itself.
        nobody.bind(("127.0.0.1", 0))

        async def story(tier: Tier) -> None:
            for call in (tier.health(), read(tier, fresh_name()), tier.contains([fresh_name()])):
                with pytest.raises(TierFailed, match=r"no mooncake_master: .*--rpc_port"):
                    await call

        with_tier(f"mooncake://127.0.0.1:{nobody.getsockname()[1]}", story)


@pytest.mark.parametrize(
    ("says", "said"), [(b"", "timed out"), (b"HTTP/1.1 400 Bad Request\r\n", "something else listens there")]
)
def test_what_is_no_master_is_named_and_stops_nobody(
    mooncake_store: MooncakeServers, monkeypatch: pytest.MonkeyPatch, says: bytes, said: str
) -> None:
    monkeypatch.setattr(mooncake_client, "CONNECT_S_MAX", 0.1)

    async def run(listener: asyncio.Server) -> None:
        tier = open_tier(parse_tier_url(f"mooncake://127.0.0.1:{listener.sockets[0].getsockname()[1]}"))
        with pytest.raises(TierFailed, match=f"no mooncake_master: {said}"):
            await tier.health()
        await tier.close()

    async def listen() -> None:
        async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(says)
            await writer.drain()
            writers.append(writer)

        writers: list[asyncio.StreamWriter] = []
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as listener:
            await run(listener)
            for writer in writers:
                writer.close()

    asyncio.run(listen())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("/a b", "space"),
        ("/%2e%2e", "prefix"),
        ("/a%0Ab", "control character"),
        ("/x?protocol=carrier", "not tcp or rdma"),
        ("/x?segment=much", "segment: .* not a size"),
        ("/x?buffer=1MiB", "is less than"),
        ("/x?metadata=http://me:word@host", "metadata"),
        ("/x?threads=0", "threads"),
        ("/x?size=1GiB", "known for mooncake:// are"),
    ],
)
def test_what_a_store_cannot_be_told_is_refused(mooncake_store: MooncakeServers, words: str, said: str) -> None:
    with pytest.raises(BadUrl, match=said):
        open_tier(parse_tier_url("mooncake://host:1" + words))


def test_an_object_travels_in_parts_of_any_number(mooncake_store: MooncakeServers) -> None:
    async def story(tier: Tier) -> None:
        part, slot = mooncake.PART_BYTES, mooncake.SLOT_BYTES
        for size in (SMALL_BYTES - 16, SMALL_BYTES - 15, part, part + 1, slot - 16, slot - 15, 2 * slot, 3 * part + 5):
            name, content = fresh_name(), content_of(size)
            await tier.store(name, [content[:7], content[7:]])
            assert await read(tier, name) == content, size
            assert await read(tier, name, part - 1, 2) == content[part - 1 : part + 1], size
            async for piece in tier.load(name):
                assert len(piece) <= PIECE_BYTES

    with_tier(mooncake_store.url("parts"), story)
