"""A pool whose index was lost comes back from its segments: what verifies, and nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import maru
from maru import Identity, Outcome
from maru.check import check_pool
from maru.cli import app
from maru.errors import PoolBusy, PoolExists, PoolMismatch
from maru.testing.content import bytes_of, is_right, key_of

FORMAT = json.loads((Path(maru.__file__).parent / "pool_format.json").read_text())
STRUCTS = {one["name"]: {field["name"]: field for field in one["fields"]} for one in FORMAT["structs"]}
SIZES = (4_000, 9_000, 60_000)
COUNT = 90


def store(pool: maru.Pool, numbers: range, **options: Any) -> None:
    for n in numbers:
        key = key_of(n)
        assert pool.put(key, bytes_of(key, SIZES[n % len(SIZES)]), **options) == Outcome.STORED


def present(pool: maru.Pool, count: int = COUNT) -> set[int]:
    """Chunks that are there; every one of them must be right."""
    found = set()
    for n in range(count):
        view = pool.get(key_of(n))
        if view is not None:
            assert is_right(key_of(n), view)
            found.add(n)
    return found


def lose_index(pool: maru.Pool) -> Path:
    folder = Path(pool.stats()["folder"])
    pool.close()
    (folder / "index").unlink()
    return folder


@pytest.fixture
def url(pool_url: str) -> str:
    return pool_url.partition("?")[0]


def made(url: str, options: str = "") -> maru.Pool:
    return maru.Pool.create(f"{url}?size=8MiB&slab_bytes=512KiB&slots=2048&processes=8{options}")


def test_everything_that_was_readable_comes_back(url: str) -> None:
    pool = made(url)
    store(pool, range(COUNT))
    folder = lose_index(pool)
    found = maru.Pool.rebuild(url)
    assert found == {"chunks": COUNT, "bytes": sum(SIZES[n % 3] for n in range(COUNT)), "left_out": {}}
    with maru.Pool.attach(url) as again:
        assert present(again) == set(range(COUNT))
        assert again.check() == []
        assert check_pool(folder, read_data=True).findings == []
        store(again, range(1000, 1400))  # And the rest of its life goes on: there is room, and there is eviction.
        assert again.check() == []


def test_what_was_removed_evicted_or_never_sealed_does_not_come_back(url: str) -> None:
    pool = made(url, "&gate=off")
    store(pool, range(600))
    assert pool.remove(key_of(599))
    reservation, draft = pool.reserve(key_of(700), 9_000), pool.allocate(9_000)
    kept = present(pool, 600)
    assert len(kept) < 500
    del reservation, draft
    lose_index(pool)
    assert maru.Pool.rebuild(url)["chunks"] == len(kept)
    with maru.Pool.attach(url) as again:
        assert present(again, 701) == kept


def test_what_was_invalidated_stays_invalid(url: str) -> None:
    pool = made(url)
    old, young = (pool.namespace(Identity(model=name, kv_layout="x")) for name in ("old", "young"))
    store(pool, range(10), namespace=old)
    store(pool, range(10, 20), namespace=young)
    old.bump()
    store(pool, range(20, 30), namespace=old)
    lose_index(pool)
    found = maru.Pool.rebuild(url)
    assert found["chunks"] == 20
    # Unless the housekeeper had swept some of it away before.
    assert sum(found["left_out"].values()) in range(11)
    with maru.Pool.attach(url) as again:
        assert present(again) == set(range(10, 30))
        again.namespace(Identity(model="old", kv_layout="x")).bump()
        assert present(again) == set(range(10, 20))


def test_what_expires_is_left_out_since_its_time_is_lost(url: str) -> None:
    pool = made(url)
    store(pool, range(5), ttl=100.0)
    store(pool, range(5, 9))
    lose_index(pool)
    assert maru.Pool.rebuild(url)["left_out"] == {"expires at a time that is lost": 5}
    with maru.Pool.attach(url) as again:
        assert present(again) == {5, 6, 7, 8}


def header_place(segment: bytearray, row: int) -> int:
    field = STRUCTS["SegmentHeader"]["header_offset"]
    begin = int.from_bytes(segment[field["offset"] : field["offset"] + 8], "little")
    return begin + 64 * row


@pytest.mark.parametrize("field", [name for name in STRUCTS["ExtentHeader"] if name != "sealed"])
def test_a_header_that_was_tampered_with_does_not_verify(url: str, field: str) -> None:
    pool = made(url)
    store(pool, range(1))
    folder = lose_index(pool)
    segment = bytearray((folder / "segment-0").read_bytes())
    segment[header_place(segment, 0) + STRUCTS["ExtentHeader"][field]["offset"]] ^= 1
    (folder / "segment-0").write_bytes(segment)
    assert maru.Pool.rebuild(url) == {"chunks": 0, "bytes": 0, "left_out": {"a header that does not verify": 1}}


def test_bytes_that_changed_do_not_come_back_where_there_is_a_checksum(url: str) -> None:
    pool = made(url, "&checksum=always")
    store(pool, range(6))
    folder = lose_index(pool)
    segment = bytearray((folder / "segment-0").read_bytes())
    at = segment.index(bytes_of(key_of(2), SIZES[2]))
    segment[at + 100] ^= 1
    (folder / "segment-0").write_bytes(segment)
    assert maru.Pool.rebuild(url)["left_out"] == {"bytes that do not match their checksum": 1}
    with maru.Pool.attach(url) as again:
        assert present(again) == {0, 1, 3, 4, 5}
        assert again.stats()["checksum"] == "always"


def test_several_segments_come_back_in_their_order(url: str, tmp_path: Path) -> None:
    data = ",".join(str(tmp_path / f"part-{n}") for n in range(3))
    place = f"&data={data}&medium=file"
    pool = maru.Pool.create(f"{url}?size=6MiB&slab_bytes=256KiB&slots=2048&processes=8{place}")
    store(pool, range(COUNT))
    lose_index(pool)
    swapped = ",".join(reversed(data.split(",")))
    with pytest.raises(PoolMismatch, match="named as number 0"):
        maru.Pool.rebuild(f"{url}?data={swapped}&medium=file")
    with pytest.raises(PoolMismatch, match="name all of them"):
        maru.Pool.rebuild(f"{url}?data={data.rpartition(',')[0]}&medium=file")
    assert maru.Pool.rebuild(f"{url}?{place[1:]}")["chunks"] == COUNT
    with maru.Pool.attach(url) as again:
        assert present(again) == set(range(COUNT))


def test_a_pool_with_an_index_is_not_rebuilt(url: str) -> None:
    with made(url) as pool:
        store(pool, range(3))
        with pytest.raises(PoolExists, match="has an index"):
            maru.Pool.rebuild(url)
        assert present(pool) == {0, 1, 2}


def test_a_process_that_has_the_lost_index_keeps_it_from_being_rebuilt(url: str) -> None:
    with made(url) as pool:
        (Path(pool.stats()["folder"]) / "index").unlink()
        with pytest.raises(PoolBusy, match="still has the lost index"):
            maru.Pool.rebuild(url)
    assert maru.Pool.rebuild(url)["chunks"] == 0


def test_segments_that_are_not_there_or_not_ours_are_named(url: str, pool_url: str) -> None:
    folder = lose_index(made(url))
    segment = folder / "segment-0"
    whole = segment.read_bytes()
    segment.write_bytes(whole[:100])
    with pytest.raises(PoolMismatch, match="too short"):
        maru.Pool.rebuild(url)
    segment.write_bytes(b"\0" * len(whole))
    with pytest.raises(PoolMismatch, match="not a segment"):
        maru.Pool.rebuild(url)
    segment.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(PoolMismatch, match="not cut as"):
        maru.Pool.rebuild(url)
    moved = folder.with_name(folder.name + "-moved")
    moved.mkdir(mode=0o700)
    try:
        shutil.copy(segment, moved / "segment-0")
        (moved / "segment-0").write_bytes(whole)
        with pytest.raises(PoolMismatch, match="rebuild it there"):
            maru.Pool.rebuild(f"maru:///{moved.name}")
    finally:
        shutil.rmtree(moved)
    segment.unlink()
    with pytest.raises(PoolMismatch, match="cannot open this segment"):
        maru.Pool.rebuild(url)


def test_parameters_are_read_from_the_segments(url: str) -> None:
    pool = maru.Pool.create(f"{url}?size=4MiB&slab_bytes=256KiB&slots=3000&processes=5&namespaces=7&gate=off&cooling=3")
    before = pool.stats()
    lose_index(pool)
    maru.Pool.rebuild(url)
    with maru.Pool.attach(url) as again:
        after = again.stats()
    same = (
        "uuid",
        "size_bytes",
        "slab_bytes",
        "unit_bytes",
        "process_limit",
        "namespace_limit",
        "checksum",
        "index_bytes",
    )
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    assert after["chunks"]["slots"] == before["chunks"]["slots"]


def test_the_command_says_what_came_back(url: str) -> None:
    pool = made(url)
    store(pool, range(4))
    store(pool, range(4, 6), ttl=50.0)
    lose_index(pool)
    ran = CliRunner().invoke(app, ["pool", "rebuild", url])
    assert ran.exit_code == 0, ran.output
    assert "Rebuilt" in ran.output
    assert "left out: expires at a time that is lost" in ran.output
    (maru.config.default_folder(url.rpartition("/")[2]) / "index").unlink()
    ran = CliRunner().invoke(app, ["pool", "rebuild", url, "--json"])
    assert json.loads(ran.output)["chunks"] == 4
