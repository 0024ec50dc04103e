"""A folder below the pool: kills at every step, room, restarts, one writer, and what a disk or a server may answer."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import subprocess
import sys
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from maru.errors import NoSuchObject, TierFailed, TierFull
from maru.testing.tier_contract import content_of, read
from maru.tier.contract import name_of
from maru.tier.disk import STEPS, FileTier
from maru.tier.disk_journal import RECORD_BYTES
from maru.tier.disk_lock import RENEW_S, LeaseRight
from maru.tier.opening import parse_tier_url

A, B, C, D = (name_of(b"n" * 16, bytes([n]) * 16) for n in range(4))
SIZE = 100_000
BYTES = content_of(SIZE)
# Room for two of them.
VICTIM = f"""
import asyncio, os, signal, sys
from maru.testing.tier_contract import content_of, read
from maru.tier.disk import FileTier
from maru.tier.opening import parse_tier_url
place, fatal, hits = sys.argv[1], sys.argv[2], int(sys.argv[3])
def at(step):
    global hits
    hits -= step == fatal
    if not hits:
        os.kill(os.getpid(), signal.SIGKILL)
async def main():
    tier = FileTier(parse_tier_url(f"file://{{place}}?size=250000"), at=at)
    steps = [
        lambda: tier.store({A!r}, [content_of({SIZE})]), lambda: tier.store({B!r}, [content_of({SIZE})]),
        lambda: read(tier, {A!r}), lambda: tier.store({C!r}, [content_of({SIZE})]), lambda: tier.remove([{C!r}]),
    ]
    for step in steps:
        await step()
        print("done", flush=True)
asyncio.run(main())
os.kill(os.getpid(), signal.SIGKILL)
"""
# What may be there after so many of these calls came back, the next one being under way.
LEGAL: list[list[set[str]]] = [
    [set(), {A}], [{A}, {A, B}], [{A, B}], [{A, B}, {A}, {A, C}], [{A, C}, {A}], [{A}],
]  # fmt: skip


class Calls:
    """The module os, but for what a test overrides."""

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)


def tier_at(place: Path, words: str = "", kind: str = "file", **parts: Any) -> FileTier:
    return FileTier(parse_tier_url(f"{kind}://{place}{words}"), **parts)


def drive(tier: FileTier, promise: Callable[[FileTier], Awaitable[None]]) -> None:
    async def run() -> None:
        try:
            await promise(tier)
        finally:
            await tier.close()

    asyncio.run(run())


def files_of(place: Path) -> dict[str, int]:
    """Every object by name and size, as the file system tells it."""
    return {f"{one.parent.parent.name}/{one.name}": one.stat().st_size for one in place.glob("?*/??/*")}


@pytest.mark.crash
@pytest.mark.parametrize("hits", [1, 2, 3])
@pytest.mark.parametrize("step", STEPS)
def test_a_writer_that_is_killed_leaves_whole_objects_and_a_right_index(step: str, hits: int, tmp_path: Path) -> None:
    victim = subprocess.run(
        [sys.executable, "-c", VICTIM, str(tmp_path), step, str(hits)], stdout=subprocess.PIPE, text=True, check=False
    )
    assert victim.returncode == -signal.SIGKILL
    there = files_of(tmp_path)
    assert set(there) in LEGAL[victim.stdout.count("done")]
    assert set(there.values()) <= {SIZE}

    async def promise(tier: FileTier) -> None:
        for name in there:
            assert await read(tier, name) == BYTES
        await tier.store(D, [b"d"])
        left = files_of(tmp_path)
        assert tier.bytes_used == sum(left.values())
        assert tier._index is not None
        assert set(tier._index.names) == set(left) == {*there, D}
        assert tier._index.was_listed == ((step, hits) == ("compacting", 1))  # Killed before there was a journal.
        assert list((tmp_path / ".part").iterdir()) == []

    drive(tier_at(tmp_path, "?size=250000"), promise)


def test_the_steps_of_a_store_are_told_in_an_order_that_survives_a_loss_of_power(tmp_path: Path) -> None:
    told: list[str] = []

    class Watched(Calls):
        names: dict[int, str] = {}  # noqa: RUF012

        def open(self, path: Any, *words: Any) -> int:
            file = os.open(path, *words)
            self.names[file] = Path(path).parent.name if ".part" in str(path) else Path(path).name
            return file

        def fsync(self, file: int) -> None:
            os.fsync(file)
            told.append(f"sync {self.names[file]}")

        def rename(self, a: Path, b: Path) -> None:
            a.rename(b)
            told.append(f"rename {b.name}")

    async def promise(tier: FileTier) -> None:
        await tier.store(A, [BYTES])
        told.append("returned")

    drive(tier_at(tmp_path, calls=Watched()), promise)
    folder, key = A.split("/")
    begin = told.index("sync .part")
    assert told[begin : told.index("returned")] == [
        "sync .part", f"sync {tmp_path.name}", f"sync {folder}", f"rename {key}", f"sync {key[:2]}",
    ]  # fmt: skip


def test_what_was_used_longest_ago_goes_first_also_after_a_restart(tmp_path: Path) -> None:
    async def first(tier: FileTier) -> None:
        for name in (A, B):
            await tier.store(name, [BYTES])
        await read(tier, A)

    async def second(tier: FileTier) -> None:
        await tier.store(C, [BYTES])
        assert tier._index is not None
        assert not tier._index.was_listed
        assert await tier.contains([A, B, C]) == [True, False, True]
        assert tier.bytes_used == 2 * SIZE
        with pytest.raises(TierFull):
            await tier.store(D, [bytes(250_001)])
        assert set(files_of(tmp_path)) == {A, C}  # What cannot fit drives nothing out.

    drive(tier_at(tmp_path, "?size=250000"), first)
    drive(tier_at(tmp_path, "?size=250000"), second)


@pytest.mark.parametrize("damage", ["gone", "cut off", "torn tail", "changed", "of another start", "of the future"])
def test_a_journal_that_cannot_be_believed_is_replaced_by_a_listing(damage: str, tmp_path: Path) -> None:
    async def first(tier: FileTier) -> None:
        for name in (A, B, C):
            await tier.store(name, [BYTES])
        await read(tier, A)

    drive(tier_at(tmp_path), first)
    journal = tmp_path / "journal"
    told = bytearray(journal.read_bytes())
    # header, then STORING and STORED of three, USED, CLOSED
    assert len(told) == 9 * RECORD_BYTES
    if damage == "gone":
        journal.unlink()
    elif damage == "of another start":
        crc = zlib.crc32
        told[12:28] = bytes(16)
        told[44:48] = crc(bytes(told[:44])).to_bytes(4, "little")
        journal.write_bytes(told[:-RECORD_BYTES])  # Nobody closed it.
    else:
        if damage == "changed":
            told[RECORD_BYTES * 6 + 10] ^= 1
        elif damage == "of the future":
            told[8] += 1
        journal.write_bytes({"cut off": told[:20], "torn tail": told[:-RECORD_BYTES] + b"x" * 7}.get(damage, told))

    async def second(tier: FileTier) -> None:
        await tier.store(D, [b"d"])
        assert tier._index is not None
        assert tier._index.was_listed
        assert set(tier._index.names) == {A, B, C, D}
        if damage in ("torn tail", "of another start"):
            assert tier._index.names == [B, C, A, D]
        assert tier.bytes_used == 3 * SIZE + 1

    drive(tier_at(tmp_path), second)


def test_the_journal_is_rewritten_now_and_then(tmp_path: Path) -> None:
    async def promise(tier: FileTier) -> None:
        await tier.store(A, [b"a"])
        assert tier._index is not None
        tier._index._spare_records = 10
        for _ in range(100):
            await read(tier, A)
        assert (tmp_path / "journal").stat().st_size < 20 * RECORD_BYTES

    drive(tier_at(tmp_path), promise)


def test_one_process_writes_and_others_load_and_one_of_them_takes_over(tmp_path: Path) -> None:
    async def promise(writer: FileTier) -> None:
        other = tier_at(tmp_path)
        await writer.store(A, [BYTES])
        assert await read(other, A) == BYTES
        for refused in (other.store(B, [b"b"]), other.remove([A])):
            with pytest.raises(TierFailed, match=f"pid {os.getpid()} on .* stores there"):
                await refused
        await writer.close()
        await other.store(B, [b"b"])
        assert other.bytes_used == SIZE + 1
        await other.close()

    drive(tier_at(tmp_path), promise)


def test_a_file_that_somebody_took_away_is_missing_and_no_longer_counted(tmp_path: Path) -> None:
    async def promise(tier: FileTier) -> None:
        await tier.store(A, [BYTES])
        next(tmp_path.glob(f"*/*/{A.split('/')[1]}")).unlink()
        assert await tier.contains([A]) == [False]
        with pytest.raises(NoSuchObject):
            await read(tier, A)
        assert tier.bytes_used == 0

    drive(tier_at(tmp_path), promise)


def test_loaders_that_stop_give_their_descriptors_back(tmp_path: Path) -> None:
    async def promise(tier: FileTier) -> None:
        await tier.store(A, [content_of(3 << 20)])
        before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
        for _ in range(5):
            pieces = tier.load(A)
            await anext(pieces)
            await pieces.aclose()  # type: ignore[attr-defined]
            loading = asyncio.ensure_future(read(tier, A))
            await asyncio.sleep(0)
            loading.cancel()
            await asyncio.gather(loading, return_exceptions=True)
        await tier.close()
        assert len(os.listdir("/proc/self/fd")) <= before  # noqa: PTH208

    drive(tier_at(tmp_path), promise)


class OnParts(Calls):
    """Fails at one call on a part."""

    def __init__(self, call: str, code: int, times: int) -> None:
        self.call, self.code, self.times, self.parts = call, code, times, set[int]()

    def open(self, path: Any, *words: Any) -> int:
        file = os.open(path, *words)
        (self.parts.add if ".part/" in str(path) else self.parts.discard)(file)
        return file

    def _maybe(self, call: str, file: int) -> None:
        if call == self.call and file in self.parts and self.times > 0:
            self.times -= 1
            raise OSError(self.code, os.strerror(self.code))

    def write(self, file: int, data: Any) -> int:
        self._maybe("write", file)
        return os.write(file, data)

    def fsync(self, file: int) -> None:
        self._maybe("fsync", file)
        os.fsync(file)

    def close(self, file: int) -> None:
        os.close(file)
        self._maybe("close", file)


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_a_full_medium_drives_the_oldest_out_once_and_is_full_then(call: str, code: int, tmp_path: Path) -> None:
    calls = OnParts(call, code, 0)

    async def promise(tier: FileTier) -> None:
        await tier.store(A, [BYTES])
        await tier.store(B, [BYTES])
        calls.times = 1
        await tier.store(C, [BYTES])
        assert set(files_of(tmp_path)) == {B, C}
        calls.times = 2
        with pytest.raises(TierFull):
            await tier.store(D, [BYTES])
        assert set(files_of(tmp_path)) == {C}
        assert tier.bytes_used == SIZE
        assert list((tmp_path / ".part").iterdir()) == []

    drive(tier_at(tmp_path, calls=calls), promise)


@pytest.mark.parametrize("call", ["write", "fsync", "close"])
def test_errors_of_the_disk_fail_the_store_and_say_what_to_do(call: str, tmp_path: Path) -> None:
    async def promise(tier: FileTier) -> None:
        with pytest.raises(TierFailed, match=r"Input/output error.*dmesg") as failed:
            await tier.store(A, [BYTES])
        assert not isinstance(failed.value, TierFull)
        assert files_of(tmp_path) == {}
        await tier.store(A, [BYTES])
        assert await read(tier, A) == BYTES

    drive(tier_at(tmp_path, calls=OnParts(call, errno.EIO, 1)), promise)


def test_a_file_system_without_direct_access_is_used_through_the_page_cache(tmp_path: Path) -> None:
    class Indirect(Calls):
        def open(self, path: Any, flags: int, *words: Any) -> int:
            if flags & os.O_DIRECT:
                raise OSError(errno.EINVAL, "Invalid argument")
            return os.open(path, flags, *words)

    async def promise(tier: FileTier) -> None:
        await tier.store(A, [BYTES])
        assert await read(tier, A) == BYTES

    drive(tier_at(tmp_path, calls=Indirect()), promise)


@pytest.mark.parametrize("is_lost", [True, False], ids=["its answer was lost", "it failed"])
def test_a_rename_that_answers_with_an_error_is_looked_after(is_lost: bool, tmp_path: Path) -> None:
    class Renaming(Calls):
        def rename(self, a: Path, b: Path) -> None:
            if len(b.name) != 32:
                a.rename(b)
                return
            if is_lost:
                a.rename(b)
            raise OSError(errno.EIO, "Input/output error")

    async def promise(tier: FileTier) -> None:
        if is_lost:
            await tier.store(A, [BYTES])
            assert await read(tier, A) == BYTES
        else:
            with pytest.raises(TierFailed):
                await tier.store(A, [BYTES])
            assert files_of(tmp_path) == {}
        assert list((tmp_path / ".part").iterdir()) == []

    drive(tier_at(tmp_path, kind="nfs", calls=Renaming()), promise)


@pytest.mark.parametrize("call", ["open", "preadv", "stat"])
@pytest.mark.parametrize("times", [1, 99])
def test_a_stale_handle_is_opened_once_more(call: str, times: int, tmp_path: Path) -> None:
    left = 0

    class Stale(Calls):
        def __getattr__(self, name: str) -> Any:
            def maybe(path: Any, *words: Any, **more: Any) -> Any:
                nonlocal left
                if left and (isinstance(path, int) or len(Path(path).name) == 32):
                    left -= 1
                    raise OSError(errno.ESTALE, "Stale file handle")
                return getattr(os, name)(path, *words, **more)

            return maybe if name == call else getattr(os, name)

    async def promise(tier: FileTier) -> None:
        nonlocal left
        await tier.store(A, [BYTES])
        left = times

        async def look() -> bool:
            return await tier.contains([A]) == [True] and await read(tier, A) == BYTES

        if times == 1:
            assert await look()
        else:
            with pytest.raises(TierFailed, match="Stale"):
                await look()
        left = 0

    drive(tier_at(tmp_path, kind="nfs", calls=Stale()), promise)


def test_files_that_a_server_only_hides_are_not_listed(tmp_path: Path) -> None:
    async def promise(tier: FileTier) -> None:
        await tier.store(A, [BYTES])
        folder = next(tmp_path.glob("?*/??"))
        (folder / ".nfs000000000000000000000001").write_bytes(b"x")
        (folder / "README").write_bytes(b"x")
        assert [one.name async for one in tier.list()] == [A]

    drive(tier_at(tmp_path, kind="nfs"), promise)


def test_a_lease_goes_to_another_host_when_its_holder_was_silent(tmp_path: Path) -> None:
    now = 0.0
    first = tier_at(tmp_path, kind="nfs", right=LeaseRight(tmp_path, clock=lambda: now))

    async def promise(tier: FileTier) -> None:
        nonlocal now
        await tier.store(A, [BYTES])
        other = tier_at(tmp_path, kind="nfs")
        with pytest.raises(TierFailed, match="stores there"):
            await other.store(B, [BYTES])
        os.utime(tmp_path / "lease", (0, 0))
        await other.store(B, [BYTES])
        assert other.bytes_used == 2 * SIZE
        now += RENEW_S
        with pytest.raises(TierFailed, match="stores there"):  # It has noticed.
            await tier.store(C, [BYTES])
        await other.close()
        await tier.store(C, [BYTES])
        assert tier.bytes_used == 3 * SIZE

    drive(first, promise)
    assert sorted(one.name for one in tmp_path.iterdir() if one.is_file()) == ["journal"]


def test_a_mount_that_is_not_there_fails_and_is_not_made(tmp_path: Path) -> None:
    async def promise(tier: FileTier) -> None:
        for call in (tier.store(A, [b"a"]), tier.contains([A]), read(tier, A), tier.health()):
            with pytest.raises(TierFailed, match="mount it first"):
                await call

    drive(tier_at(tmp_path / "share", kind="nfs"), promise)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_anybody_may_write_to_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    async def promise(tier: FileTier) -> None:
        for call in (tier.store(A, [b"a"]), tier.health()):
            with pytest.raises(TierFailed, match="anybody may write"):
                await call

    drive(tier_at(tmp_path), promise)
