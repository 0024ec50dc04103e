"""A pool of six segments loses some: what was in them is a miss, what was elsewhere stays, and life goes on."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import maru
from maru import Outcome
from maru.check import check_pool
from maru.cli import app
from maru.errors import PoolMismatch, PoolNotFound
from maru.testing.content import bytes_of, is_right, key_of

SEGMENTS = 6
SIZE = 20_000
COUNT = 120


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return [tmp_path / f"card-{n}" for n in range(SEGMENTS)]


@pytest.fixture
def pool(pool_url: str, files: list[Path]) -> Iterator[maru.Pool]:
    place = ",".join(map(str, files))
    options = f"size=6MiB&slab_bytes=256KiB&slots=1000&processes=8&medium=file&data={place}&gate=off"
    with maru.Pool.create(f"{pool_url.partition('?')[0]}?{options}") as pool:
        yield pool


def store(pool: maru.Pool, first: int, count: int = COUNT) -> list[Outcome]:
    return [pool.put(key_of(n), bytes_of(key_of(n), SIZE)) for n in range(first, first + count)]


def present(pool: maru.Pool, count: int = COUNT) -> set[int]:
    found = set()
    for n in range(count):
        view = pool.get(key_of(n))
        if view is not None:
            assert is_right(key_of(n), view)
            found.add(n)
    return found


def state_of(pool: maru.Pool, number: int) -> str:
    return str(pool.stats()["segments"][number]["state"])


def test_chunks_are_spread_over_all_segments(pool: maru.Pool) -> None:
    store(pool, 0)
    for n in range(SEGMENTS):
        maru.Pool.set_segment(pool.config.url, n, "lost")
        assert len(present(pool)) == COUNT * (SEGMENTS - 1 - n) // SEGMENTS


def test_what_lay_in_a_lost_segment_is_a_miss_everywhere_at_once(pool: maru.Pool) -> None:
    with maru.Pool.attach(pool.config.url) as other:
        store(pool, 0)
        maru.Pool.set_segment(pool.config.url, 2, "lost")
        left = present(pool)
        assert present(other) == left
        assert len(left) == COUNT * 5 // 6
        assert state_of(other, 2) == "LOST"
        assert set(store(other, 0)) == {Outcome.STORED, Outcome.EXISTS}
        assert present(pool) == set(range(COUNT))
        pool.reap()
        assert pool.check() == []


def test_a_view_into_a_lost_segment_keeps_its_bytes_as_long_as_the_memory_does(pool: maru.Pool) -> None:
    store(pool, 0)
    views = {n: pool.get(key_of(n)) for n in range(COUNT)}
    maru.Pool.set_segment(pool.config.url, 0, "lost")
    for n, view in views.items():
        assert view is not None
        assert is_right(key_of(n), view)


def test_a_pool_whose_segment_is_cut_off_can_be_attached_after_giving_it_up(pool: maru.Pool, files: list[Path]) -> None:
    url = pool.config.url
    store(pool, 0)
    pool.close()
    files[3].write_bytes(files[3].read_bytes()[:8192])
    with pytest.raises(PoolMismatch, match=r"truncated.*maru pool segment"):
        maru.Pool.attach(url)
    maru.Pool.set_segment(url, 3, "lost")
    with maru.Pool.attach(url) as again:
        assert len(present(again)) == COUNT * 5 // 6
        assert Outcome.STORED in store(again, 0)
        again.reap()
        assert again.check() == []
        assert store(again, 1000, 400).count(Outcome.STORED) > 300  # With eviction in what is left.
        assert again.check() == []


@pytest.mark.parametrize("number", [0, 5])
def test_a_pool_whose_segment_is_gone_can_be_attached_after_giving_it_up(
    pool: maru.Pool, files: list[Path], number: int
) -> None:
    url = pool.config.url
    namespace = pool.namespace(maru.Identity(model="m", kv_layout="x"))
    pool.put(key_of(0), b"of a namespace", namespace=namespace)
    store(pool, 1, COUNT - 1)
    pool.close()
    files[number].unlink()
    with pytest.raises(PoolMismatch, match="maru pool segment"):
        maru.Pool.attach(url)
    maru.Pool.set_segment(url, number, "lost")
    with maru.Pool.attach(url) as again:
        assert len([n for n in range(COUNT) if again.exists(key_of(n))]) == COUNT * 5 // 6
        renewed = again.namespace(maru.Identity(model="m", kv_layout="x"))
        renewed.bump()
        assert not again.exists(key_of(0))
        again.namespace(maru.Identity(model="another", kv_layout="x"))


def test_a_draining_segment_empties_itself_and_takes_nothing_new(pool: maru.Pool) -> None:
    store(pool, 0)
    held = pool.get(key_of(0))
    maru.Pool.set_segment(pool.config.url, 0, "draining")
    pool.reap()
    left = present(pool)
    assert len(left) in (COUNT * 5 // 6, COUNT * 5 // 6 + 1)
    assert held is not None
    assert is_right(key_of(0), held)
    store(pool, 1000, 300)
    maru.Pool.set_segment(pool.config.url, 0, "lost")
    assert present(pool) - left == set()
    pool.reap()
    assert pool.check() == []


def test_a_drained_segment_can_be_taken_back(pool: maru.Pool) -> None:
    maru.Pool.set_segment(pool.config.url, 1, "draining")
    store(pool, 0)
    maru.Pool.set_segment(pool.config.url, 1, "online")
    store(pool, 1000, 400)
    before = len(present(pool, 1400))
    maru.Pool.set_segment(pool.config.url, 1, "lost")
    assert len(present(pool, 1400)) < before


def test_a_lost_segment_and_one_that_never_was_are_refused(pool: maru.Pool) -> None:
    url = pool.config.url
    maru.Pool.set_segment(url, 4, "lost")
    for number in (4, 6, 31):
        with pytest.raises(PoolMismatch, match="no segment"):
            maru.Pool.set_segment(url, number, "online")
    with pytest.raises(PoolNotFound):
        maru.Pool.set_segment("maru:///there-is-no-such-pool", 0, "lost")


def test_a_writer_in_a_segment_that_is_lost_meanwhile_is_told_so(pool: maru.Pool) -> None:
    written = [pool.reserve(key_of(n), SIZE) for n in range(SEGMENTS)]
    for n, reservation in enumerate(written):
        reservation.buffer[:] = bytes_of(key_of(n), SIZE)
    maru.Pool.set_segment(pool.config.url, 5, "lost")
    answers = [reservation.seal() for reservation in written]
    assert sorted(answer.name for answer in answers) == ["LOST"] + ["STORED"] * 5
    assert pool.check() == []


def test_nobody_joins_a_chunk_whose_memory_is_lost(pool: maru.Pool) -> None:
    first = pool.reserve(key_of(0), 2 * SIZE, part=0, parts=2)
    assert first.outcome == Outcome.RESERVED
    for n in range(SEGMENTS):
        maru.Pool.set_segment(pool.config.url, n, "lost")
    with maru.Pool.attach(pool.config.url) as late:
        assert late.reserve(key_of(0), 2 * SIZE, part=1, parts=2).outcome == Outcome.IN_FLIGHT


def test_the_independent_reader_agrees_about_a_lost_segment(pool: maru.Pool) -> None:
    store(pool, 0)
    maru.Pool.set_segment(pool.config.url, 2, "lost")
    pool.reap()
    folder = Path(pool.stats()["folder"])
    pool.close()
    report = check_pool(folder, read_data=True)
    assert [finding for finding in report.findings if finding.severity == "error"] == []


def test_the_command_says_what_it_did(pool: maru.Pool) -> None:
    ran = CliRunner().invoke(app, ["pool", "segment", pool.config.url, "1", "draining"])
    assert ran.exit_code == 0, ran.output
    assert "is draining" in ran.output
    assert state_of(pool, 1) == "DRAINING"


def test_a_segment_that_is_cut_off_under_its_users_is_given_up(pool: maru.Pool, files: list[Path]) -> None:
    with maru.Pool.attach(pool.config.url) as other:
        store(pool, 0)
        os.truncate(files[3], 8192)
        other.reap()  # What its housekeeper does by itself.
        assert state_of(pool, 3) == "LOST"
        assert len(present(pool)) == len(present(other)) == COUNT * 5 // 6
        assert set(store(pool, 0)) == {Outcome.STORED, Outcome.EXISTS}
        pool.reap()
        assert pool.check() == []


def test_a_segment_whose_file_was_removed_or_replaced_is_still_whole_for_its_users(
    pool: maru.Pool, files: list[Path]
) -> None:
    store(pool, 0)
    files[2].unlink()
    files[4].unlink()
    files[4].write_bytes(b"somebody else's")
    pool.reap()
    assert present(pool) == set(range(COUNT))
    assert {state_of(pool, n) for n in range(SEGMENTS)} == {"ONLINE"}
