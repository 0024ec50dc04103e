"""Segments that are added while the pool lives: everybody uses them, nothing moves, and whoever dies adding one is no
trouble."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import maru
from maru import Outcome
from maru.check import check_pool
from maru.cli import app
from maru.errors import BadSize, BadUrl, PoolMismatch
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

SIZE = 60_000
FIRST, SECOND = 16, 8
"""Slabs of the segments that are awaited; the pool has eight."""
SLAB = 512 << 10


@pytest.fixture
def url(pool_url: str) -> str:
    options = f"size={8 * SLAB}&slab_bytes={SLAB}&slots=4096&processes=16&gate=off"
    return f"{pool_url.partition('?')[0]}?{options}&spare={FIRST * SLAB},{SECOND * SLAB}"


@pytest.fixture
def pool(url: str) -> Iterator[maru.Pool]:
    with maru.Pool.create(url) as made:
        yield made


def store(pool: maru.Pool, first: int, count: int) -> None:
    for n in range(first, first + count):
        assert pool.put(key_of(n), bytes_of(key_of(n), SIZE)) is Outcome.STORED


def present(pool: maru.Pool, count: int) -> int:
    """How many are there; every one of them is right."""
    found = 0
    for n in range(count):
        view = pool.get(key_of(n))
        if view is not None:
            assert is_right(key_of(n), view)
            found += 1
    return found


def states(pool: maru.Pool) -> list[str]:
    return [row["state"] for row in pool.stats()["segments"]]


def errors_in(pool: maru.Pool) -> list[object]:
    return [one for one in check_pool(pool.config.folder, read_data=True).findings if one.severity == "error"]


def test_more_memory_is_used_by_everybody_and_nothing_is_lost(pool: maru.Pool, tmp_path: Path) -> None:
    chunks = 8 * (SLAB // SIZE)
    with maru.Pool.attach(pool.config.url) as other:
        store(pool, 0, chunks)
        assert states(pool) == ["ONLINE", "AWAITED", "AWAITED"]
        assert pool.stats()["size_bytes"] == 8 * SLAB
        assert maru.Pool.add_segment(pool.config.url, str(tmp_path / "more")) == 1
        pool.reap()  # What the housekeepers do by themselves.
        other.reap()
        assert pool.stats()["size_bytes"] == (8 + FIRST) * SLAB
        store(other, chunks, FIRST * (SLAB // SIZE))
        total = chunks + FIRST * (SLAB // SIZE)
        assert present(pool, total) == present(other, total) == total
        assert maru.Pool.add_segment(pool.config.url, str(tmp_path)) == 2
        assert states(other) == ["ONLINE"] * 3
        with pytest.raises(PoolMismatch, match=r"awaits no segment.*spare="):
            maru.Pool.add_segment(pool.config.url, str(tmp_path))
        assert pool.check() == other.check() == []
        assert errors_in(pool) == []


def test_whoever_attaches_later_has_all_of_it(pool: maru.Pool, tmp_path: Path) -> None:
    maru.Pool.add_segment(pool.config.url, str(tmp_path / "more"))
    pool.reap()
    store(pool, 0, 120)
    with maru.Pool.attach(pool.config.url) as late:
        assert present(late, 120) == 120
        assert late.wait_ready(20)
        assert late.stats()["real_bytes"] == (8 + FIRST) * SLAB


def test_what_a_process_cannot_see_is_a_miss_to_it_and_stays_for_others(pool: maru.Pool, tmp_path: Path) -> None:
    """A container without the new mount: here the file is moved away before it was mapped."""
    with maru.Pool.attach(pool.config.url) as blind:
        for handle in (pool, blind):
            handle.wait_ready(20)
        place = tmp_path / "more"
        pid = os.fork()
        if pid == 0:  # A process of its own adds it, uses it and hides it again, before any housekeeper here looks.
            try:
                maru.Pool.add_segment(pool.config.url, str(place))
                with maru.Pool.attach(pool.config.url) as there:
                    store(there, 0, 120)
                    place.rename(tmp_path / "hidden")
            finally:
                os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        if not (tmp_path / "hidden").exists():
            pytest.fail("the child did not come so far")
        here = present(blind, 120)
        if here < 120:  # Unless its housekeeper was quicker.
            assert blind.put(key_of(500), b"x" * SIZE) is Outcome.STORED
            (tmp_path / "hidden").rename(place)
            blind.reap()
        assert present(blind, 120) >= 119
        assert pool.check() == []


def test_a_chunk_in_memory_out_of_reach_is_never_handed_out_for_writing(url: str, tmp_path: Path) -> None:
    """Evicting it would give this process an extent that it cannot write."""
    with maru.Pool.create(url) as pool:
        store(pool, 0, 60)
        maru.Pool.set_segment(url, 0, "lost")
        maru.Pool.add_segment(url, str(tmp_path / "more"))
        pool.reap()
        store(pool, 100, 200)
        assert present(pool, 60) == 0
        assert pool.check() == []


def test_a_drained_pool_moves_to_the_memory_that_was_added(pool: maru.Pool, tmp_path: Path) -> None:
    store(pool, 0, 40)
    maru.Pool.add_segment(pool.config.url, str(tmp_path / "more"))
    pool.reap()
    maru.Pool.set_segment(pool.config.url, 0, "draining")
    pool.reap()
    assert present(pool, 40) == 0
    store(pool, 100, 100)
    assert sum(is_right(key_of(n), pool.get(key_of(n)) or b"") for n in range(100, 200)) == 100


def test_a_lost_index_comes_back_with_what_lies_in_added_segments(pool: maru.Pool, tmp_path: Path) -> None:
    place = tmp_path / "more"
    maru.Pool.add_segment(pool.config.url, str(place))
    pool.reap()
    store(pool, 0, 150)
    before, folder = present(pool, 150), pool.config.folder
    pool.close()
    (folder / "index").unlink()
    url = f"maru:///{pool.config.name}?medium=file&data={folder}/segment-0,{place}"
    with pytest.raises(PoolMismatch, match="segment"):
        maru.Pool.rebuild(f"maru:///{pool.config.name}?medium=file&data={place}")
    assert maru.Pool.rebuild(url)["chunks"] == before
    with maru.Pool.attach(pool.config.url) as again:
        assert present(again, 150) == before
        assert again.check() == []


@pytest.mark.parametrize(
    ("path", "error", "word"),
    [
        ("not/absolute", BadUrl, "absolute"),
        ("{tmp}/full", PoolMismatch, "not empty"),
        ("{tmp}/no/such/folder", PoolMismatch, "cannot open"),
        ("/dev/null", PoolMismatch, "device"),
    ],
)
def test_a_place_that_cannot_be_had_changes_nothing(
    pool: maru.Pool, tmp_path: Path, path: str, error: type[Exception], word: str
) -> None:
    (tmp_path / "full").write_bytes(b"somebody's thesis")
    with pytest.raises(error, match=word):
        maru.Pool.add_segment(pool.config.url, path.format(tmp=tmp_path))
    assert states(pool) == ["ONLINE", "AWAITED", "AWAITED"]
    assert (tmp_path / "full").read_bytes() == b"somebody's thesis"
    assert maru.Pool.add_segment(pool.config.url, str(tmp_path / "more")) == 1


@pytest.mark.parametrize("number", [0, 1])
def test_memory_that_the_pool_has_already_is_not_taken_once_more(pool: maru.Pool, tmp_path: Path, number: int) -> None:
    maru.Pool.add_segment(pool.config.url, str(tmp_path / "more"))
    pool.reap()
    store(pool, 0, 150)
    before = present(pool, 150)
    (tmp_path / "alias").symlink_to(pool.config.folder)
    place = tmp_path / "alias" / "segment-0" if number == 0 else tmp_path / "more"
    with pytest.raises(PoolMismatch, match=f"is segment {number} of this pool already"):
        maru.Pool.add_segment(pool.config.url, str(place))
    assert present(pool, 150) == before
    assert states(pool) == ["ONLINE", "ONLINE", "AWAITED"]


def test_a_segment_of_another_living_pool_is_refused(pool: maru.Pool, url: str, tmp_path: Path) -> None:
    maru.Pool.add_segment(pool.config.url, str(tmp_path / "more"))
    other = url.replace("maru:///", "maru:///other-")
    with maru.Pool.create(other) as second, pytest.raises(PoolMismatch, match="is a segment of the pool"):
        maru.Pool.add_segment(second.config.url, str(tmp_path / "more"))
    maru.Pool.destroy(other)


def test_an_awaited_segment_is_neither_drained_nor_lost(pool: maru.Pool) -> None:
    for state in ("draining", "lost", "online"):
        with pytest.raises(PoolMismatch, match="not there yet"):
            maru.Pool.set_segment(pool.config.url, 1, state)  # type: ignore[arg-type]


def test_spare_room_has_sizes_that_can_be_laid_out(pool_url: str) -> None:
    base = pool_url.partition("?")[0]
    for query, error in (
        ("spare=0", BadUrl),
        ("spare=much", BadUrl),
        ("slab_bytes=1MiB&size=8MiB&spare=64KiB", BadSize),
    ):
        with pytest.raises(error):
            maru.Pool.create(f"{base}?{query}")
    with pytest.raises(BadSize, match="32"):
        maru.Pool.create(f"{base}?size=8MiB&spare={','.join(['1MiB'] * 32)}")


def test_the_command_says_what_it_did(pool: maru.Pool, tmp_path: Path) -> None:
    said = CliRunner().invoke(app, ["pool", "add-segment", pool.config.name, str(tmp_path / "more")])
    assert said.exit_code == 0, said.output
    assert "Segment 1" in said.output
    said = CliRunner().invoke(app, ["pool", "add-segment", pool.config.name, "/dev/null"])
    assert said.exit_code != 0


def add_and_use(url: str, place: str) -> None:
    maru.Pool.add_segment(url, place)
    with maru.Pool.attach(url) as pool:
        store(pool, 0, 100)


@pytest.mark.crash
@pytest.mark.parametrize("point", ["segment.sized", "segment.header_written", "segment.described", "segment.online"])
def test_whoever_dies_adding_a_segment_leaves_it_awaited_or_added(point: str, url: str, tmp_path: Path) -> None:
    place = str(tmp_path / "more")
    with maru.Pool.create(url) as pool:
        store(pool, 0, 20)
        with spawn(add_and_use, url, place, die_at=point) as adder:
            assert adder.wait() == -signal.SIGKILL
        pool.reap()
        assert present(pool, 20) == 20
        assert states(pool)[1] == ("ONLINE" if point == "segment.online" else "AWAITED")
        if point != "segment.online":
            assert maru.Pool.add_segment(url, place) == 1
        pool.reap()
        store(pool, 100, 150)
        assert sum(pool.exists(key_of(n)) for n in range(100, 250)) == 150
        assert pool.check() == []
        assert errors_in(pool) == []
