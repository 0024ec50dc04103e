"""access=read: the data is mapped without write permission, everything that reads works, and nothing else is done."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

import maru
from maru import Identity, Outcome
from maru.config import parse_url
from maru.errors import BadUrl, PoolBusy, PoolMismatch, PoolNotFound, ReadsOnly
from maru.testing.content import key_of
from other_users import as_user, only_root

QUERY = "size=4MiB&slab_bytes=256KiB&unit_bytes=4KiB&slots=256&processes=8&cooling=0&checksum=always&populate=off"
CHUNK = bytes(range(256)) * 16
IDENTITY = Identity(model="m", kv_layout="x")


@pytest.fixture
def url(pool_url: str) -> Iterator[str]:
    url = f"{pool_url.partition('?')[0]}?{QUERY}"
    maru.Pool.create(url).close()
    return url


def reader(url: str) -> maru.Pool:
    return maru.Pool.attach(url + "&access=read")


def test_what_a_writer_stores_a_reader_reads_in_place(url: str) -> None:
    with maru.Pool.attach(url) as writer, reader(url) as pool:
        assert writer.put(key_of(1), CHUNK) is Outcome.STORED
        assert pool.lookup(key_of(1)) == 1
        view = pool.get(key_of(1))
        assert view is not None
        assert bytes(view) == CHUNK
        into = bytearray(len(CHUNK))
        assert pool.read_into(key_of(1), [into]) == 1
        assert bytes(into) == CHUNK
        assert not writer.remove(key_of(1)), "the reader's pin counts"
        del view
        assert writer.remove(key_of(1))
        assert pool.lookup(key_of(1)) == 0


def test_no_byte_of_a_segment_is_mapped_for_writing(url: str) -> None:
    with reader(url) as pool:
        pool.stats()
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        segments = [row for row in maps if len(row) > 5 and row[5].endswith(f"{pool.folder}/segment-0")]
        assert segments
        assert {row[1][:2] for row in segments} == {"r-"}


def test_a_stray_store_through_its_addresses_ends_the_process_and_changes_nothing(url: str) -> None:
    with maru.Pool.attach(url) as writer:
        writer.put(key_of(1), CHUNK)
        code = f"""
            import ctypes, maru
            pool = maru.Pool.attach({url + "&access=read"!r})
            with pool.pin({key_of(1)!r}) as pinned:
                offset = int.from_bytes(pinned.extents()[:8], "little")
                for base in pool._data_range()[:2]:
                    if not __import__("os").fork():
                        ctypes.memset(base + offset, 0, 16)
                        __import__("os")._exit(0)
                    print(__import__("os").wait()[1])
        """
        out = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True)
        assert [int(status) != 0 for status in out.stdout.split()] == [True, True], "a signal, or what caught it"
        view = writer.get(key_of(1))
        assert view is not None
        assert bytes(view) == CHUNK


def test_what_it_would_store_is_answered_full_and_what_it_would_change_is_refused_by_name(url: str) -> None:
    with maru.Pool.attach(url) as writer, reader(url) as pool:
        writer.put(key_of(1), CHUNK)
        space = pool.namespace(IDENTITY)
        assert pool.put(key_of(2), CHUNK) is Outcome.FULL
        assert pool.put_many(key_of(2) + key_of(3), [CHUNK, CHUNK]) == [Outcome.FULL, Outcome.FULL]
        assert pool.reserve(key_of(2), 4096).outcome is Outcome.FULL
        assert pool.reserve(key_of(2), 4096, part=0, parts=2).outcome is Outcome.FULL
        assert pool.allocate(4096) is None
        for change in (
            lambda: pool.remove(key_of(1)),
            lambda: space.bump(),
            lambda: pool.set_share("somebody", 4096),
        ):
            with pytest.raises(ReadsOnly, match="access=read"):
                change()
        assert pool.lookup(key_of(1)) == 1
        assert pool.reap() == 0
        assert writer.check() == []
        assert pool.check() == []


def test_a_namespace_that_a_reader_was_first_to_name_comes_back_with_a_rebuilt_index(url: str) -> None:
    with reader(url) as pool:
        digest = pool.namespace(IDENTITY).digest
    with maru.Pool.attach(url) as writer:
        space = writer.namespace(IDENTITY)
        assert space.digest == digest
        space.bump()
        assert writer.put(key_of(1), CHUNK, namespace=space) is Outcome.STORED
    folder = parse_url(url).folder
    (folder / "index").unlink()
    assert maru.Pool.rebuild(url)["chunks"] == 1
    with maru.Pool.attach(url) as pool:
        assert pool.lookup(key_of(1)) == 1
        assert pool.namespace(IDENTITY).epoch == 1


def test_a_chunk_whose_bytes_changed_is_a_miss_to_a_reader_too(url: str) -> None:
    with maru.Pool.attach(url) as writer, reader(url) as pool:
        writer.put(key_of(1), CHUNK)
        with pool.pin(key_of(1)) as pinned:
            offset = int.from_bytes(pinned.extents()[:8], "little")
        place = pool.stats()["segments"][0]["data_offset"] + offset
        with (Path(pool.folder) / "segment-0").open("r+b") as file:
            file.seek(place)
            file.write(b"\xff" * 8)
        assert pool.get(key_of(1)) is None
        assert pool.stats()["counters"]["quarantined"] == 1
        assert pool.lookup(key_of(1)) == 0


HOLD = """
    import maru, os, signal
    pool = maru.Pool.attach({url!r})
    view = pool.get({key!r})
    print("held", flush=True)
    signal.pause()
"""


def die_holding(url: str, key: bytes) -> None:
    """A process that attaches, holds a view of the chunk, and is killed."""
    code = textwrap.dedent(HOLD.format(url=url, key=key))
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        process.kill()


def test_a_dead_readers_pins_are_taken_back_by_a_writer(url: str) -> None:
    with maru.Pool.attach(url) as writer:
        writer.put(key_of(1), CHUNK)
        die_holding(url + "&access=read", key_of(1))
        writer.reap()
        assert writer.remove(key_of(1))


def test_readers_alone_take_the_rows_of_dead_readers_and_leave_a_dead_writers(pool_url: str) -> None:
    url = f"{pool_url.partition('?')[0]}?{QUERY.replace('processes=8', 'processes=2')}"
    with maru.Pool.create(url) as writer:
        writer.put(key_of(1), CHUNK)
    for _ in range(4):  # More than there are rows.
        die_holding(url + "&access=read", key_of(1))
    for access in ("", "&access=read"):
        die_holding(url + access, key_of(1))
    with reader(url) as pool:  # The row of the dead reader.
        assert pool.lookup(key_of(1)) == 1
        with pytest.raises(PoolBusy, match="dead writers"):
            reader(url)
        with maru.Pool.attach(url):  # The row of the dead writer: whoever may write may end what it left.
            pass
        with reader(url):
            pass


def test_a_reader_is_ready_once_what_is_real_is_touched(pool_url: str) -> None:
    url = f"{pool_url.partition('?')[0]}?{QUERY}"
    with maru.Pool.create(url) as writer:
        assert writer.wait_ready(20)
        with reader(url.replace("&populate=off", "")) as pool:
            assert pool.wait_ready(20)
            figures = pool.stats()
            assert figures["populated_bytes"] == figures["real_bytes"] == 4 << 20


def test_a_forked_reader_reads_by_itself(url: str) -> None:
    with maru.Pool.attach(url) as writer, reader(url) as pool:
        writer.put(key_of(1), CHUNK)
        child = os.fork()
        if child == 0:
            os._exit(0 if pool.lookup(key_of(1)) == 1 and pool.put(key_of(2), CHUNK) is Outcome.FULL else 1)
        assert os.waitpid(child, 0)[1] == 0


def test_a_reader_makes_no_pool(pool_url: str) -> None:
    with pytest.raises(PoolNotFound):
        maru.Pool.open(pool_url + "&access=read")
    with pytest.raises(BadUrl, match="access=read"):
        maru.Pool.create(pool_url + "&access=read")
    with maru.Pool.create(pool_url) as writer, maru.Pool.open(pool_url + "&access=read") as pool:
        assert pool.stats()["uuid"] == writer.stats()["uuid"]


@only_root
def test_a_pool_of_readers_lets_its_group_read_and_the_kernel_keeps_it_from_writing() -> None:
    place = Path("/dev/shm") / f"maru-test-readers-{os.getpid()}"
    place.mkdir(mode=0o755)
    url = f"maru:///shared?dir={place}&share=readers&{QUERY}"
    gid = 54321
    try:
        with maru.Pool.create(url) as writer:
            folder = Path(writer.folder)
            modes = {name: (folder / name).stat().st_mode & 0o777 for name in ("index", "lock", "segment-0")}
            assert modes == {"index": 0o660, "lock": 0o660, "segment-0": 0o640}
            for path in (folder, *folder.iterdir()):
                os.chown(path, -1, gid)
            writer.put(key_of(1), CHUNK)

            def day_of_a_reader() -> list[bool]:
                with reader(url) as pool:
                    view = pool.get(key_of(1))
                    assert view is not None
                    seen = [bytes(view) == CHUNK]
                    with pytest.raises(PermissionError):
                        (Path(pool.folder) / "segment-0").open("r+b")
                    with pytest.raises(PoolMismatch, match="access=read"):
                        maru.Pool.attach(url)
                    del view
                return seen

            def day_of_a_stranger() -> None:
                with pytest.raises(PoolMismatch, match="Permission denied"):
                    reader(url)

            assert as_user(gid, day_of_a_reader) == [True]
            as_user(gid + 1, day_of_a_stranger)
    finally:
        maru.Pool.destroy(url, force=True)
        place.rmdir()


def test_a_pool_to_be_handed_over_must_lie_where_nobody_else_enters(tmp_path: Path, pool_url: str) -> None:
    tmp_path.chmod(0o755)
    with pytest.raises(PoolMismatch, match="anybody may enter"):
        maru.Pool.create(f"maru:///kv?dir={tmp_path}&share=handed&{QUERY}")
    url = f"{pool_url.partition('?')[0]}?share=handed&{QUERY}"
    with maru.Pool.create(url) as pool:
        folder = Path(pool.folder)
        assert folder.stat().st_mode & 0o777 == 0o755
        assert folder.parent.stat().st_mode & 0o077 == 0
        assert (folder / "segment-0").stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("option", ["access=append", "share=everybody"])
def test_what_there_is_no_such_thing_of_is_refused(option: str) -> None:
    with pytest.raises(BadUrl, match=option.split("=")[0]):
        maru.Pool.open(f"maru:///kv?{option}")
