"""What a container's memory limit leaves, read from control groups of both versions and from every level of them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from maru.native import core

NO_LIMIT = (1 << 64) - 1
KEPT = 64 << 20
GIB = 1 << 30


def machine(root: Path, groups: str, files: dict[str, str]) -> str:
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


def version_2(limit: str, used: int, folder: str = "") -> dict[str, str]:
    base = f"sys/fs/cgroup{folder}"
    return {f"{base}/memory.max": limit, f"{base}/memory.current": str(used)}


def test_without_a_limit_there_is_room_without_end(tmp_path: Path) -> None:
    assert core.memory_headroom(machine(tmp_path, "0::/", {})) == NO_LIMIT
    assert core.memory_headroom(machine(tmp_path, "0::/", version_2("max", GIB))) == NO_LIMIT
    assert core.memory_headroom(str(tmp_path / "nothing")) == NO_LIMIT


def test_a_limit_leaves_what_is_not_used_yet_without_the_last_bytes(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/", version_2(str(4 * GIB), GIB))
    assert core.memory_headroom(root) == 3 * GIB - KEPT


def test_past_a_limit_nothing_is_left(tmp_path: Path) -> None:
    assert core.memory_headroom(machine(tmp_path, "0::/", version_2(str(GIB), GIB - KEPT // 2))) == 0


def test_the_tightest_level_of_the_hierarchy_counts(tmp_path: Path) -> None:
    files = version_2("max", 0, "/pod/box") | version_2(str(2 * GIB), GIB, "/pod") | version_2(str(8 * GIB), 2 * GIB)
    assert core.memory_headroom(machine(tmp_path, "0::/pod/box", files)) == GIB - KEPT


def test_a_path_of_the_host_still_finds_what_is_mounted_here(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/kubepods/pod1/box", version_2(str(2 * GIB), GIB))
    assert core.memory_headroom(root) == GIB - KEPT


def test_version_1_is_read_where_the_memory_controller_is(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    files = {
        f"{base}/docker/box/memory.limit_in_bytes": str(3 * GIB),
        f"{base}/docker/box/memory.usage_in_bytes": str(GIB),
        f"{base}/memory.limit_in_bytes": str((1 << 63) - 4096),
        f"{base}/memory.usage_in_bytes": str(5 * GIB),
    }
    groups = "12:cpu,cpuacct:/docker/box\n5:hugetlb,memory:/docker/box\n0::/elsewhere"
    assert core.memory_headroom(machine(tmp_path, groups, files)) == 2 * GIB - KEPT


MIB = 1 << 20
LIMIT = 320 * MIB
ASKED = 1024 * MIB

# A process in a group of its own: makes a pool larger than its limit, fills it twice over, reads back what is there.
CONTAINED = """
import sys, pathlib, os
pathlib.Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
import maru
from maru.testing.content import bytes_of, is_right, key_of
SIZE = 1 << 20
with maru.Pool.create(sys.argv[2]) as pool:
    pool.wait_ready(60)
    stored = [n for n in range(600) if pool.put(key_of(n), bytes_of(key_of(n), SIZE)) is maru.Outcome.STORED]
    here = [n for n in stored if (view := pool.get(key_of(n))) is not None and is_right(key_of(n), view)]
    view = None
    print(pool.stats()["real_bytes"], len(stored), len(here), pool.check(), flush=True)
"""


@pytest.fixture
def limited_group() -> Iterator[Path]:
    """A real control group whose processes get LIMIT bytes."""
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, own = line.split(":", 2)
        is_v1 = "memory" in controllers.split(",")
        if controllers and not is_v1:
            continue
        mount = Path("/sys/fs/cgroup/memory" if is_v1 else "/sys/fs/cgroup")
        for parent in (mount / own.lstrip("/"), mount):
            group = parent / "maru-test"
            try:
                group.mkdir()
            except OSError:
                continue
            try:
                (group / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(LIMIT))
                yield group
                return
            except OSError:
                continue
            finally:
                group.rmdir()
    pytest.skip("no control group with a memory limit can be made here (root, and a writable /sys/fs/cgroup)")


def test_a_pool_larger_than_its_container_is_smaller_and_nobody_is_killed(limited_group: Path, pool_url: str) -> None:
    url = f"{pool_url.partition('?')[0]}?size={ASKED}&slab_bytes=16MiB&gate=off"
    said = subprocess.run(
        [sys.executable, "-c", CONTAINED, str(limited_group), url], capture_output=True, text=True, timeout=120
    )
    assert said.returncode == 0, f"ended with {said.returncode}: {said.stderr}"
    real, stored, here, wrong = said.stdout.split(maxsplit=3)
    assert 64 * MIB <= int(real) <= LIMIT
    assert int(stored) == 600, "what did not fit was not made room for"
    assert int(here) * MIB > 0.5 * int(real)
    assert wrong.strip() == "[]"
