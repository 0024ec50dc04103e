"""What is to be overwritten before it goes is so, at every place that says it does that, whichever way it goes."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from maru.errors import TierFailed
from maru.testing.tier_contract import content_of, fresh_name, read
from maru.tier.contract import PIECE_BYTES, Tier, is_overwritten, marked, name_of
from maru.tier.disk import FileTier
from maru.tier.disk_files import OVERWRITTEN, PARTS
from maru.tier.opening import open_tier, parse_tier_url

SIZES = (1, 4096, PIECE_BYTES + 5)


def drive(tier: Tier, promise: Callable[[], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await promise()
        finally:
            await tier.close()

    asyncio.run(run())


class Copies:
    """Second names of objects' files: what they show is what lies where the object lay."""

    def __init__(self, place: Path, beside: Path) -> None:
        self._place, self._beside = place, beside
        beside.mkdir()

    def take(self, name: str) -> Path:
        folder, key = name.split("/")
        copy = self._beside / f"{folder}-{key}-{len(list(self._beside.iterdir()))}"
        os.link(self._place / folder / key[:2] / key, copy)
        return copy


def is_zeros(copy: Path, size: int) -> bool:
    return copy.read_bytes() == bytes(size)


def test_a_folder_says_whether_what_lies_in_it_is_overwritten() -> None:
    for last in range(256):
        folder = bytes(15) + bytes([last])
        for wanted in (False, True):
            assert is_overwritten(name_of(marked(folder, wanted), b"k" * 16)) is wanted
            assert marked(folder, wanted)[:15] == folder[:15]
            assert not is_overwritten(name_of(marked(folder, wanted), bytes(16)))  # A marker.


@pytest.mark.parametrize("url", ["file://{}", "file://{}?direct=0", "nfs://{}"])
def test_a_file_is_zeros_where_it_lay_when_it_was_removed(url: str, tmp_path: Path) -> None:
    place = tmp_path / "below"
    place.mkdir()
    tier, copies = open_tier(parse_tier_url(url.format(place))), Copies(place, tmp_path / "copies")

    async def promise() -> None:
        for size in SIZES:
            zeroed, plain = fresh_name(True), fresh_name()
            for name in (zeroed, plain):
                await tier.store(name, [content_of(size)])
            gone, left = copies.take(zeroed), copies.take(plain)
            await tier.remove([zeroed, plain])
            assert is_zeros(gone, size)
            assert left.read_bytes() == content_of(size)

    drive(tier, promise)


def test_a_file_that_makes_room_or_is_replaced_is_zeros_where_it_lay(tmp_path: Path) -> None:
    place = tmp_path / "below"
    tier, copies = open_tier(parse_tier_url(f"file://{place}?size=250000")), Copies(place, tmp_path / "copies")

    async def promise() -> None:
        names, size = [fresh_name(True) for _ in range(3)], 100_000
        await tier.store(names[0], [content_of(size)])
        first = copies.take(names[0])
        await tier.store(names[0], [content_of(size)])
        assert is_zeros(first, size)
        assert await read(tier, names[0]) == content_of(size)
        second = copies.take(names[0])
        for name in names[1:]:
            await tier.store(name, [content_of(size)])
        assert await tier.contains(names) == [False, True, True]
        assert is_zeros(second, size)

    drive(tier, promise)


def test_what_a_writer_that_died_left_half_stored_is_zeros_where_it_lay(tmp_path: Path) -> None:
    place, size = tmp_path / "below", 100_000
    (place / PARTS).mkdir(parents=True)
    parts = {ends: place / PARTS / f"1-abc{ends}" for ends in ("", OVERWRITTEN)}
    copies = {}
    for ends, part in parts.items():
        part.write_bytes(content_of(size))
        copies[ends] = tmp_path / f"copy{ends}"
        os.link(part, copies[ends])
    tier = open_tier(parse_tier_url(f"file://{place}"))

    async def promise() -> None:
        await tier.store(fresh_name(), [b"opens the folder"])
        assert list((place / PARTS).iterdir()) == []
        assert is_zeros(copies[OVERWRITTEN], size)
        assert copies[""].read_bytes() == content_of(size)

    drive(tier, promise)


class Calls:
    """The module os, with a disk that fails to be overwritten so often, and a list of what was done to it."""

    def __init__(self, failures: int = 0) -> None:
        self.failures, self.told = failures, list[str]()

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, file: int, data: Any, at: int) -> int:
        if self.failures:
            self.failures -= 1
            raise OSError(errno.EIO, "Input/output error")
        self.told.append(f"zeros {len(data)}" if bytes(data) == bytes(len(data)) else "bytes")
        return os.pwrite(file, data, at)

    def fsync(self, file: int) -> None:
        self.told.append("synced")
        os.fsync(file)

    def unlink(self, path: Path) -> None:
        self.told.append("unlinked")
        path.unlink()


def test_zeros_are_on_the_medium_before_a_file_is_unlinked(tmp_path: Path) -> None:
    calls = Calls()
    tier = FileTier(parse_tier_url(f"file://{tmp_path}/below"), calls)

    async def promise() -> None:
        name = fresh_name(True)
        await tier.store(name, [content_of(10)])
        calls.told.clear()
        await tier.remove([name])
        assert calls.told == ["zeros 10", "synced", "unlinked"]

    drive(tier, promise)


def test_a_file_that_could_not_be_overwritten_stays_and_is_asked_away_again(tmp_path: Path) -> None:
    calls, size = Calls(failures=1), 5000
    place = tmp_path / "below"
    tier, copies = FileTier(parse_tier_url(f"file://{place}"), calls), Copies(place, tmp_path / "copies")

    async def promise() -> None:
        name = fresh_name(True)
        await tier.store(name, [content_of(size)])
        copy = copies.take(name)
        with pytest.raises(TierFailed):
            await tier.remove([name])
        assert await read(tier, name) == content_of(size)
        await tier.remove([name])
        assert await tier.contains([name]) == [False]
        assert is_zeros(copy, size)
        assert tier.bytes_used == 0

    drive(tier, promise)


def test_a_server_is_told_to_overwrite_a_value_before_it_frees_it(redis_url: str) -> None:
    import redis

    tier = open_tier(parse_tier_url(redis_url + "?prefix=zeros:"))
    names = {size: fresh_name(True) for size in (100, 2 * PIECE_BYTES + 7)}
    plain = fresh_name()
    heard: list[str] = []

    def hear(monitor: Any) -> None:
        while "the-end" not in (told := monitor.next_command()["command"]):
            heard.append(told)

    async def promise() -> None:
        for size, name in names.items():
            await tier.store(name, [content_of(size)])
        await tier.store(plain, [b"plain"])
        with redis.Redis.from_url(redis_url) as client, client.monitor() as monitor:
            listening = threading.Thread(target=hear, args=(monitor,))
            listening.start()
            await tier.remove([*names.values(), plain])
            client.echo("the-end")
            listening.join(30)

    drive(tier, promise)
    for size, name in names.items():
        of_it = [one.split(" ", 3) for one in heard if name in one and one.split(" ")[0] in ("SETRANGE", "UNLINK")]
        written = [(int(words[2]), words[3].count("\\x00")) for words in of_it if words[0] == "SETRANGE"]
        ends = [0, *(at + length for at, length in written)]
        assert [at for at, _ in written] == ends[:-1]
        assert ends[-1] == size + 8  # With the stamp before it.
        assert [words[0] for words in of_it][len(written) :][0] == "UNLINK"
    assert not any("SETRANGE" in one and plain in one for one in heard)


def test_an_object_store_gets_an_empty_object_before_it_deletes(s3_url: str, s3_port: int) -> None:
    boto = pytest.importorskip("boto3")
    client = boto.client("s3", endpoint_url=f"http://127.0.0.1:{s3_port}", region_name="us-east-1")
    client.create_bucket(Bucket="versioned")
    client.put_bucket_versioning(Bucket="versioned", VersioningConfiguration={"Status": "Enabled"})
    tier = open_tier(parse_tier_url(s3_url.replace("maru-kv/below", "versioned/zeros")))
    zeroed, plain = fresh_name(True), fresh_name()

    async def promise() -> None:
        for name in (zeroed, plain):
            await tier.store(name, [content_of(100)])
        await tier.remove([zeroed, plain])
        assert await tier.contains([zeroed, plain]) == [False, False]

    drive(tier, promise)
    kept = client.list_object_versions(Bucket="versioned")["Versions"]
    sizes = {name: sorted(one["Size"] for one in kept if one["Key"].endswith(name)) for name in (zeroed, plain)}
    assert sizes == {zeroed: [0, 100], plain: [100]}  # The version that was there before is still there: docs say so.


def test_a_place_that_cannot_overwrite_says_so(mooncake_store: Any) -> None:
    tier = open_tier(parse_tier_url(mooncake_store.url()))

    async def promise() -> None:
        assert not tier.capabilities.overwrites

    drive(tier, promise)
