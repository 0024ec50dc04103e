"""What every place below the pool has to keep, as a suite that ships: one method a promise of maru.tier.contract.

    class TestMine(TierContract):
        def make_tier(self, tmp_path: Path) -> Tier:
            return MyTier(...)

With pytest that is a test class; without it, call the methods with a folder that may be filled. Each makes a tier of
its own, drives it in a loop of its own, and closes it. Two methods' tiers may share a place: names are theirs alone.
"""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
import tracemalloc
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

from maru.errors import BadKey, NoSuchObject
from maru.tier.contract import PIECE_BYTES, Tier, marked, name_of

DEADLINE_S = 120.0
MIB = 1 << 20
NOT_NAMES = (
    "", "/", "a/b", "../../etc/passwd", "0" * 32, f"{'0' * 32}/", f"{'0' * 32}/{'0' * 31}", f"{'0' * 32}/{'G' * 32}",
    f"{'A' * 32}/{'0' * 32}", f"/{'0' * 32}/{'0' * 32}", f"{'0' * 32}/{'0' * 32}\n", f"{'0' * 30}../{'0' * 32}",
    f"{'٠' * 32}/{'0' * 32}",
)  # fmt: skip


class TierContract:
    """Subclass it, and say how a tier is made."""

    large_bytes = 64 * MIB
    """The object that has to pass through little memory."""

    def make_tier(self, tmp_path: Path) -> Tier:
        """A tier that can be used at once. Called in a running loop."""
        raise NotImplementedError

    def drive(self, tmp_path: Path, promise: Callable[[Tier], Awaitable[None]]) -> None:
        """Keep one promise with a tier of its own, and see that its threads are gone afterwards."""
        before = set(threading.enumerate())

        async def run() -> None:
            async with asyncio.timeout(DEADLINE_S):
                tier = self.make_tier(tmp_path)
                try:
                    await promise(tier)
                finally:
                    await tier.close()
                await tier.close()  # Twice is no error.

        asyncio.run(run())
        assert set(threading.enumerate()) <= before

    def test_what_is_stored_comes_back(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            for size in (1, 7, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 5 * MIB):
                name, content = fresh_name(), content_of(size)
                await tier.store(name, [content])
                assert await read(tier, name) == content, size

        self.drive(tmp_path, promise)

    def test_frames_are_joined_whatever_their_sizes(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            content = content_of(5 * MIB + 12345)
            for cuts in ((10,), (0, 0, 1, 2), (4, 4 + MIB, 8 + MIB), tuple(range(0, 5 * MIB, 100_003))):
                name, edges = fresh_name(), [0, *cuts, len(content)]
                frames = [memoryview(content)[a:b] for a, b in pairwise(edges)]
                await tier.store(name, frames)
                assert await read(tier, name) == content, len(frames)

        self.drive(tmp_path, promise)

    def test_a_part_can_be_loaded(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            name, content = fresh_name(), content_of(2 * MIB + 1000)
            total = len(content)
            await tier.store(name, [content])
            for start in (0, 1, 4095, 4096, MIB - 1, MIB, MIB + 1, total - 1, total, total + 1, total + 5 * MIB):
                for size in (None, 0, 1, 4096, MIB, MIB + 1, total, total + 1):
                    end = None if size is None else start + size
                    assert await read(tier, name, start, size) == content[start:end], (start, size)

        self.drive(tmp_path, promise)

    def test_what_is_not_there_is_said_to_be_missing(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            await tier.store(fresh_name(), [b"another"])
            for start, size in ((0, None), (0, 1), (5, None), (0, 0)):
                assert await _is_missing(tier, fresh_name(), start, size), (start, size)

        self.drive(tmp_path, promise)

    def test_contains_answers_for_each_name_in_order(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            assert await tier.contains([]) == []
            there = [fresh_name() for _ in range(20)]
            await asyncio.gather(*(tier.store(name, [b"x"]) for name in there))
            asked = [there[n // 25] if n % 25 == 3 else fresh_name() for n in range(500)]
            expected = [name in set(there) for name in asked]
            assert sum(expected) == 20
            assert await tier.contains(asked) == expected
            assert await tier.contains([there[0], there[0]]) == [True, True]

        self.drive(tmp_path, promise)

    def test_a_name_can_be_stored_again(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            for size in (100, 3 * MIB):
                name, content = fresh_name(), content_of(size)
                for _ in range(3):
                    await tier.store(name, [content])
                    assert await read(tier, name) == content
                listed = [one async for one in tier.list(name.partition("/")[0])]
                assert [(one.name, one.size_bytes) for one in listed] == [(name, size)]

        self.drive(tmp_path, promise)

    def test_a_time_to_live_is_taken(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            for size in (100, 3 * MIB):
                name, content = fresh_name(), content_of(size)
                await tier.store(name, [content], ttl_s=3600.0)
                assert await read(tier, name) == content

        self.drive(tmp_path, promise)

    def test_to_remove_what_is_not_there_is_no_error(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            name, other = fresh_name(), fresh_name()
            await tier.store(name, [b"x"])
            await tier.store(other, [b"y"])
            await tier.remove([])
            for _ in range(2):
                await tier.remove([fresh_name(), name, fresh_name()])
                assert await tier.contains([name, other]) == [False, True]
                assert await _is_missing(tier, name)
            assert await read(tier, other) == b"y"

        self.drive(tmp_path, promise)

    def test_what_is_to_be_overwritten_is_stored_and_goes_as_all_else(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            if not tier.capabilities.overwrites:
                return
            for size in (1, 4097, 5 * MIB + 1):
                name, stays, content = fresh_name(True), fresh_name(True), content_of(size)
                for _ in range(2):
                    await tier.store(name, [content])
                    assert await read(tier, name) == content
                await tier.store(stays, [content])
                await tier.remove([fresh_name(True), name])
                assert await _is_missing(tier, name)
                assert await read(tier, stays) == content
                await tier.remove([name, stays])
                assert await tier.contains([name, stays]) == [False, False]

        self.drive(tmp_path, promise)

    def test_everything_is_listed_and_by_folder(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            folders = [secrets.token_bytes(16) for _ in range(3)]
            sizes = {name_of(folders[n % 2], secrets.token_bytes(16)): n + 1 for n in range(30)}
            await asyncio.gather(*(tier.store(name, [content_of(size)]) for name, size in sizes.items()))
            everything = {one.name: one async for one in tier.list()}
            assert {name: everything[name].size_bytes for name in sizes} == sizes
            assert all(one.stored_at > 1.6e9 for one in everything.values())
            for folder in folders:
                listed = {one.name: one.size_bytes async for one in tier.list(folder.hex())}
                assert listed == {name: size for name, size in sizes.items() if name.startswith(folder.hex())}

        self.drive(tmp_path, promise)

    def test_a_store_that_is_cancelled_leaves_all_or_nothing(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            content, folder = content_of(6 * MIB), secrets.token_bytes(16)
            names = []
            for turns in (0, 1, 2, 3, 5, 8, 20, 60, 200):
                names.append(name_of(folder, secrets.token_bytes(16)))
                storing = asyncio.ensure_future(tier.store(names[-1], [content[:MIB], content[MIB:]]))
                for _ in range(turns):
                    await asyncio.sleep(0)
                storing.cancel()
                await asyncio.gather(storing, return_exceptions=True)
                assert await _is_whole_or_missing(tier, names[-1], content), turns
            await tier.store(names[0], [content])  # It goes on working.
            assert await read(tier, names[0]) == content
            listed = [one async for one in tier.list(folder.hex())]
            assert {one.name for one in listed} <= set(names)
            assert {one.size_bytes for one in listed} == {len(content)}

        self.drive(tmp_path, promise)

    def test_stores_of_one_name_at_once_end_in_one_whole_object(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            name, content = fresh_name(), content_of(2 * MIB + 1)
            await asyncio.gather(*(tier.store(name, [content]) for _ in range(8)))
            assert await read(tier, name) == content
            assert [one.size_bytes async for one in tier.list(name.partition("/")[0])] == [len(content)]

        self.drive(tmp_path, promise)

    def test_many_stores_and_loads_at_once(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            contents = {fresh_name(): content_of(200_000 + n) for n in range(32)}
            await asyncio.gather(*(tier.store(name, [content]) for name, content in contents.items()))
            got = await asyncio.gather(*(read(tier, name) for name in contents))
            assert got == list(contents.values())

        self.drive(tmp_path, promise)

    def test_a_place_that_can_be_used_is_healthy_and_nothing_is_left_of_asking(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            before = {one.name async for one in tier.list()}
            await tier.health()
            assert {one.name async for one in tier.list()} <= before

        self.drive(tmp_path, promise)

    def test_what_is_no_name_is_refused(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            for name in NOT_NAMES:
                assert await _refuses(tier.store(name, [b"x"])), name
                assert await _refuses(read(tier, name)), name
                assert await _refuses(tier.contains([fresh_name(), name])), name
                assert await _refuses(tier.remove([name])), name
                if name not in ("", "0" * 32):  # Those are folders.
                    assert await _refuses(_listed(tier, name)), name

        self.drive(tmp_path, promise)

    def test_a_large_object_passes_through_little_memory(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            name, frame = fresh_name(), content_of(MIB)
            count = self.large_bytes // MIB
            tracemalloc.start()
            try:
                await tier.store(name, [frame] * count)
                at, largest = 0, 0
                async for piece in tier.load(name):
                    for cut in range(0, len(piece), MIB):  # Pieces may begin anywhere.
                        part = bytes(piece[cut : cut + MIB])
                        begin = (at + cut) % MIB
                        assert part == (frame + frame)[begin : begin + len(part)]
                    at, largest = at + len(piece), max(largest, len(piece))
                assert (at, largest <= 4 * PIECE_BYTES) == (self.large_bytes, True)
                assert tracemalloc.get_traced_memory()[1] < 24 * MIB
            finally:
                tracemalloc.stop()
            await tier.remove([name])

        self.drive(tmp_path, promise)

    def test_loaders_that_stop_half_way_hold_nothing(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            name, content = fresh_name(), content_of(5 * MIB)
            await tier.store(name, [content])
            for _ in range(40):  # More than any bound on threads or connections.
                pieces = tier.load(name)
                assert len(await anext(pieces)) > 0
                await pieces.aclose()  # type: ignore[attr-defined]
            for _ in range(5):
                loading = asyncio.ensure_future(read(tier, name))
                await asyncio.sleep(0)
                loading.cancel()
                await asyncio.gather(loading, return_exceptions=True)
            assert await read(tier, name) == content

        self.drive(tmp_path, promise)

    def test_it_says_what_it_is_and_shows_no_secret(self, tmp_path: Path) -> None:
        async def promise(tier: Tier) -> None:
            assert tier.kind
            assert tier.url.startswith(f"{tier.kind}:")
            assert tier.capabilities.object_bytes_max >= self.large_bytes

        self.drive(tmp_path, promise)


def fresh_name(is_overwritten: bool = False) -> str:
    """A name that nobody else has. `is_overwritten`: of an object that is overwritten before it goes."""
    return name_of(marked(secrets.token_bytes(16), is_overwritten), secrets.token_bytes(16))


def content_of(size_bytes: int) -> bytes:
    """Bytes without a pattern, the same at each run."""
    return hashlib.shake_128(size_bytes.to_bytes(8, "little")).digest(size_bytes)


async def read(tier: Tier, name: str, start: int = 0, size: int | None = None) -> bytes:
    """All that load() gives."""
    whole = bytearray()
    async for piece in tier.load(name, start, size):
        whole += piece
    return bytes(whole)


async def _is_missing(tier: Tier, name: str, start: int = 0, size: int | None = None) -> bool:
    try:
        await read(tier, name, start, size)
    except NoSuchObject:
        return True
    return False


async def _is_whole_or_missing(tier: Tier, name: str, content: bytes) -> bool:
    try:
        return await read(tier, name) == content
    except NoSuchObject:
        return True


async def _listed(tier: Tier, folder: str) -> list[str]:
    return [one.name async for one in tier.list(folder)]


async def _refuses(call: Awaitable[object]) -> bool:
    try:
        await call
    except BadKey:
        return True
    return False
