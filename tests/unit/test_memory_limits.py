"""What a container's memory limit leaves, read from control groups of both versions and from every level of them."""

from __future__ import annotations

from pathlib import Path

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
