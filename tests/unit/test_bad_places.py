"""Where a pool cannot live: links, other people's folders, missing and read-only mounts, media without room.

Mounts are made in a mount namespace of their own (unshare -m). Where a machine does not permit that, the same promise
is tried with a folder that takes nothing, or with a file that gives no more.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import maru
from maru.config import parse_url, refuse_file_system_dax
from maru.errors import MaruError, NoSpace, PoolMismatch, PoolNotFound
from maru.native import core
from maru.testing.content import bytes_of, is_right, key_of
from maru.testing.crash import spawn

SIZE = 9_000
QUERY = "size=8MiB&slots=1024&processes=8"
AM_ROOT = os.getuid() == 0
SPACE_BYTE = 2  # Of the lock file: held by the one process that makes space real.


def url_in(place: Path | str, name: str = "pool", query: str = QUERY) -> str:
    return f"maru:///{name}?dir={place}&{query}"


# ---- links, and files that are none of ours ----


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """Somebody's own file, which must keep its bytes."""
    file = tmp_path / "victim"
    file.write_bytes(b"precious " * 5000)
    return file


def assert_untouched(victim: Path) -> None:
    assert victim.read_bytes() == b"precious " * 5000


@pytest.fixture
def place(tmp_path: Path) -> Path:
    folder = tmp_path / "place"
    folder.mkdir(mode=0o700)
    return folder


@pytest.mark.parametrize("target", ["a folder", "a file", "nothing"])
def test_a_link_in_the_place_of_the_folder_is_refused(place: Path, victim: Path, target: str) -> None:
    elsewhere = place.parent / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    (place / "pool").symlink_to({"a folder": elsewhere, "a file": victim, "nothing": place / "void"}[target])
    for act in (maru.Pool.open, maru.Pool.create, maru.Pool.attach, maru.Pool.destroy):
        with pytest.raises(PoolMismatch):
            act(url_in(place))
    assert list(elsewhere.iterdir()) == []
    assert not (place / "void").exists()
    assert_untouched(victim)


def test_a_file_in_the_place_of_the_folder_is_refused(place: Path) -> None:
    (place / "pool").write_text("a file")
    for act in (maru.Pool.open, maru.Pool.create, maru.Pool.attach, maru.Pool.destroy):
        with pytest.raises(PoolMismatch):
            act(url_in(place))
    assert (place / "pool").read_text() == "a file"


@pytest.mark.parametrize("name", ["lock", "segment-0"])
def test_creating_through_a_link_to_somebodys_file_is_refused(place: Path, victim: Path, name: str) -> None:
    (place / "pool").mkdir(mode=0o700)
    (place / "pool" / name).symlink_to(victim)
    for act in (maru.Pool.create, maru.Pool.open):
        with pytest.raises(PoolMismatch) as refused:
            act(url_in(place))
        assert str(place / "pool" / name) in str(refused.value)
    assert_untouched(victim)


def test_an_index_that_is_a_link_is_never_written_through(place: Path, victim: Path) -> None:
    (place / "pool").mkdir(mode=0o700)
    (place / "pool" / "index").symlink_to(victim)
    with contextlib.suppress(PoolMismatch):
        maru.Pool.create(url_in(place)).close()
    assert_untouched(victim)


@pytest.mark.parametrize("name", ["lock", "index", "segment-0"])
def test_attaching_through_a_link_is_refused_even_to_the_right_file(place: Path, name: str) -> None:
    maru.Pool.create(url_in(place)).close()
    file = place / "pool" / name
    file.rename(place / "aside")
    file.symlink_to(place / "aside")
    with pytest.raises(PoolMismatch, match=name):
        maru.Pool.attach(url_in(place))


@pytest.mark.parametrize("name", ["lock", "segment-0"])
@pytest.mark.parametrize("kind", ["fifo", "folder"])
def test_what_is_no_file_is_refused_and_nobody_hangs(place: Path, name: str, kind: str) -> None:
    (place / "pool").mkdir(mode=0o700)
    path = place / "pool" / name
    os.mkfifo(path) if kind == "fifo" else path.mkdir()
    for act in (maru.Pool.create, maru.Pool.open):
        with pytest.raises(PoolMismatch, match=name):
            act(url_in(place))


# ---- folders ----


def test_a_folder_of_another_user_is_refused_with_the_uid(place: Path) -> None:
    if AM_ROOT:
        (place / "pool").mkdir(mode=0o700)
        os.chown(place / "pool", 4321, 4321)
        url, uid = url_in(place), 4321
    else:
        url, uid = url_in("/", name="usr"), 0
    for act in (maru.Pool.open, maru.Pool.create, maru.Pool.attach, maru.Pool.destroy):
        with pytest.raises(PoolMismatch, match=rf"another user \(uid {uid}\).*share=group"):
            act(url)


def test_a_folder_that_anybody_may_write_to_is_refused(place: Path) -> None:
    maru.Pool.create(url_in(place)).close()
    (place / "pool").chmod(0o777)
    for act in (maru.Pool.open, maru.Pool.attach, maru.Pool.destroy):
        with pytest.raises(PoolMismatch, match="chmod o-w"):
            act(url_in(place))
    (place / "pool").chmod(0o700)
    maru.Pool.attach(url_in(place)).close()


def test_what_is_made_is_private_unless_shared(place: Path) -> None:
    maru.Pool.create(url_in(place)).close()
    maru.Pool.create(url_in(place, "shared", QUERY + "&share=group")).close()
    for name, folder_mode, file_mode in (("pool", 0o700, 0o600), ("shared", 0o770, 0o660)):
        folder = place / name
        assert {p.name for p in folder.iterdir()} == {"index", "lock", "segment-0"}
        assert {p.stat().st_mode & 0o777 for p in folder.iterdir()} == {file_mode}
        assert folder.stat().st_mode & 0o777 & ~folder_mode == 0


@pytest.mark.parametrize("path", ["/does/not/exist", "/proc/self/status", "/dev/null"])
def test_a_place_that_is_not_there_is_refused_by_name(path: str) -> None:
    for act in (maru.Pool.open, maru.Pool.create):
        with pytest.raises(PoolMismatch, match=path):
            act(url_in(path))
    with pytest.raises((PoolMismatch, PoolNotFound)):
        maru.Pool.attach(url_in(path))


def test_a_data_path_whose_folder_is_not_there_is_refused_by_name(pool_url: str) -> None:
    with pytest.raises(PoolMismatch, match="/does/not/exist/file"):
        maru.Pool.create(pool_url + "&data=/does/not/exist/file")


# ---- mounts ----


def can_mount() -> list[str] | None:
    """How to get a mount namespace here, or None."""
    for how in (["unshare", "-m"], ["unshare", "-rm"]):
        try:
            done = subprocess.run([*how, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False)
        except FileNotFoundError:
            return None
        if done.returncode == 0:
            return how
    return None


UNSHARE = can_mount()


def run(prefix: list[str], act: Callable[[str], Any], place: Path) -> Any:
    """What `act(place)` prints as JSON, in a new interpreter."""
    code = f"import json, {act.__module__} as m; print(json.dumps(m.{act.__name__}({str(place)!r})))"
    environment = dict(os.environ, MARU_CORE="testing", PYTHONPATH=os.pathsep.join(p for p in sys.path if p))
    done = subprocess.run(
        [*prefix, sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, f"{act.__name__} ended with {done.returncode}: {done.stderr[-2000:]}"
    return json.loads(done.stdout.splitlines()[-1])


def run_on_tmpfs(act: Callable[[str], Any], place: Path, size: str) -> Any:
    """`act(place)` with a tmpfs of that size mounted at `place`, seen by nobody else."""
    assert UNSHARE is not None
    mount = f'mount -t tmpfs -o size={size} none "{place}" && exec "$@"'
    return run([*UNSHARE, "sh", "-c", mount, "sh"], act, place)


def refusal(act: Callable[[str], object], url: str) -> list[str]:
    try:
        act(url)
    except MaruError as error:
        return [type(error).__name__, str(error)]
    return ["", "accepted"]


def read_only(place: str) -> list[list[str]]:
    with maru.Pool.create(url_in(place)) as pool:
        pool.wait_ready(20)
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    acts = (maru.Pool.attach, maru.Pool.open, maru.Pool.create)
    return [refusal(act, url_in(place, name)) for name in ("pool", "other") for act in acts]


def takes_nothing(_: str) -> list[list[str]]:
    """Not even root makes folders in /sys."""
    return [refusal(act, url_in("/sys")) for act in (maru.Pool.open, maru.Pool.create)]


def test_a_read_only_mount_is_refused_by_name(place: Path) -> None:
    answers = run_on_tmpfs(read_only, place, "16m") if UNSHARE else run([], takes_nothing, place)
    assert [kind for kind, _ in answers if kind not in ("PoolMismatch", "PoolNotFound")] == []
    assert sum(kind == "PoolMismatch" for kind, _ in answers) >= len(answers) - 1
    for kind, text in answers:
        assert kind == "PoolNotFound" or any(why in text for why in ("Read-only", "not permitted", "denied"))


def test_an_index_larger_than_the_medium_is_no_space_with_both_numbers(pool_url: str) -> None:
    url = f"{pool_url.partition('?')[0]}?size=8MiB&slots=2000000000&processes=255"
    for act in (maru.Pool.open, maru.Pool.create):
        with pytest.raises(NoSpace) as refused:
            act(url)
        assert refused.value.wanted_bytes > 2_000_000_000 * 255 * 2
        assert 0 <= refused.value.free_bytes < refused.value.wanted_bytes
        assert "--shm-size" in str(refused.value)
    assert not maru.config.parse_url(url).folder.exists()


def too_large_an_index(place: str) -> list[int]:
    url = url_in(place, query="size=8MiB&slots=100000&processes=255")
    for _ in range(2):
        try:
            maru.Pool.create(url)
        except NoSpace as error:
            left = [p.name for p in Path(place).iterdir()]
            numbers = [error.wanted_bytes, error.free_bytes, len(left)]
    with maru.Pool.create(url_in(place, query="size=1MiB&slots=512&processes=8")) as pool:
        return [*numbers, int(pool.put(key_of(0), b"x") == maru.Outcome.STORED)]


@pytest.mark.skipif(not UNSHARE, reason="no mounts here; the same on /dev/shm is tested above")
def test_a_small_mount_refuses_a_large_index_and_takes_a_small_one(place: Path) -> None:
    wanted, free, left, stored = run_on_tmpfs(too_large_an_index, place, "8m")
    assert wanted > 8 << 20
    assert 0 < free <= 8 << 20
    assert left == 0
    assert stored == 1


def fill(pool: maru.Pool) -> dict[str, int]:
    """Store three times what the pool says it has; read everything that is there; nothing may be wrong."""
    outcomes = [pool.put(key_of(n), bytes_of(key_of(n), 60_000)) for n in range(900)]
    wrong = sum(not is_right(key_of(n), view) for n in range(900) if (view := pool.get(key_of(n))) is not None)
    held = [view for n in range(900) if (view := pool.get(key_of(n))) is not None]
    while_held = {str(pool.put(key_of(n, "more"), bytes(60_000))) for n in range(20)}
    figures = pool.stats()
    return {
        "stored": outcomes.count(maru.Outcome.STORED),
        "full": outcomes.count(maru.Outcome.FULL),
        "wrong": wrong,
        "held": len(held),
        "full while all is held": int(while_held == {"Outcome.FULL"}),
        "evicted": figures["counters"]["evicted"],
        "refused": figures["counters"]["space_refused"],
        "real_bytes": figures["real_bytes"],
        "size_bytes": figures["size_bytes"],
        "findings": len(pool.check()),
    }


def small_mount(place: str) -> dict[str, int]:
    with maru.Pool.create(url_in(place, query="size=16MiB&slots=2048&processes=8")) as pool:
        pool.wait_ready(20)
        return fill(pool)


def segment_gone(place: str) -> dict[str, int]:
    """The same without a mount: after 5 MiB the segment's file is renamed, so that nothing more can be had from it."""
    url = url_in(place, query="size=16MiB&slots=2048&processes=8")
    Path(place, "pool").mkdir(mode=0o700)
    core.create_pool(
        folder=f"{place}/pool", size=16 << 20, segments=["segment-0"], medium="shm", slot_count=2048, process_limit=8
    )
    lock = os.open(f"{place}/pool/lock", os.O_RDWR)
    space_byte = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, SPACE_BYTE, 1, 0)
    fcntl.fcntl(lock, fcntl.F_OFD_SETLK, space_byte)  # No housekeeper makes space real ahead of us.
    with maru.Pool.attach(url) as pool:
        for n in range(80):
            pool.put(key_of(n, "first"), bytes(60_000))
        Path(place, "pool", "segment-0").rename(Path(place, "aside"))
        return fill(pool)


@pytest.mark.parametrize("limit", ["of the mount", "of the file"])
def test_a_pool_larger_than_its_medium_works_with_what_there_is(place: Path, limit: str) -> None:
    """FULL and eviction, never a SIGBUS."""
    on_tmpfs = limit == "of the mount" and UNSHARE is not None
    figures = run_on_tmpfs(small_mount, place, "9m") if on_tmpfs else run([], segment_gone, place)
    assert figures["wrong"] == figures["findings"] == 0
    assert 4 << 20 < figures["real_bytes"] < figures["size_bytes"] == 16 << 20
    assert figures["refused"] > 0
    assert figures["held"] > 50
    assert figures["held"] * 60_000 <= figures["real_bytes"]
    assert figures["stored"] == 900
    assert figures["evicted"] > 500
    assert figures["full"] == 0
    assert figures["full while all is held"] == 1


def allocate_one(url: str) -> None:
    with maru.Pool.attach(url) as pool:
        pool.allocate(100_000)


def death_before_space_was_made(place: str) -> list[object]:
    url = url_in(place, query="size=32MiB&slots=256&processes=4&populate=off&slab_bytes=1MiB")
    with maru.Pool.create(url) as pool:
        pool.wait_ready(20)
        filler = os.open(f"{place}/filler", os.O_CREAT | os.O_WRONLY, 0o600)
        try:
            while True:
                os.write(filler, bytes(4096))
        except OSError:
            os.close(filler)
        drafts = []
        while (draft := pool.allocate(1 << 20)) is not None:
            drafts.append(draft)
        # Every real slab is taken, so the next chunk is claimed where the medium has given nothing yet.
        with spawn(allocate_one, url, die_at="alloc.claimed") as other:
            died = other.wait()
        reaped = pool.reap()
        return [len(drafts), died, reaped, pool.check()]


@pytest.mark.skipif(not UNSHARE, reason="a full medium needs a mount of its own")
def test_cleaning_up_after_a_death_touches_no_memory_that_the_medium_never_gave(place: Path) -> None:
    drafts, died, reaped, findings = run_on_tmpfs(death_before_space_was_made, place, "8m")
    assert drafts > 3
    assert died == -signal.SIGKILL
    assert reaped <= 1  # Or the housekeeper was faster.
    assert findings == []


MOUNTS = """\
/dev/vda / ext4 rw,relatime 0 0
/dev/pmem0 /mnt/pmem xfs rw,relatime,attr2,dax=always,inode64 0 0
/dev/pmem1 /mnt/two\\040words ext4 rw,dax 0 0
/dev/pmem2 /mnt/plain xfs rw,dax=never 0 0
/dev/vdb /mnt/hidden ext4 rw,dax 0 0
/dev/vdc /mnt/hidden ext4 rw 0 0
"""


@pytest.mark.parametrize("place", ["/mnt/pmem/segment", "/mnt/pmem/a/segment", "/mnt/two words/segment"])
def test_a_file_on_a_file_system_with_dax_is_refused_and_says_what_to_do(tmp_path: Path, place: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    config = replace(parse_url("maru:///x?medium=file&data=/somewhere/segment"), data=(place,))
    with pytest.raises(PoolMismatch, match="medium=devdax"):
        refuse_file_system_dax(config, mounts)


@pytest.mark.parametrize(
    "place", ["/mnt/plain/segment", "/mnt/hidden/segment", "/mnt/pmem-beside/segment", "segment-0"]
)
def test_a_file_elsewhere_is_not_refused(tmp_path: Path, place: str) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(MOUNTS)
    config = replace(parse_url("maru:///x?medium=file&data=/somewhere/segment"), data=(place,))
    refuse_file_system_dax(config, mounts)
    refuse_file_system_dax(config, tmp_path / "no such file")
