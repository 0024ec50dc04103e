"""What `maru doctor` says about machines: this one, and others whose /proc and /sys are made up."""

from __future__ import annotations

import io
import json
import subprocess
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import blake3
import pytest
from rich.console import Console
from typer.testing import CliRunner

import maru
from maru.cli import app
from maru.doctor import Line, Machine, PoolSeen, document, examine, keys, worst
from maru.doctor.devices import look_at_devices
from maru.doctor.keys import KNOWN_ANSWER, example_keys, fingerprint, look_at_keys
from maru.doctor.memory import look_at_memory
from maru.doctor.show import show_lines
from maru.doctor.software import look_at_container, look_at_kernel, look_at_pools, look_at_versions

GIB = 1 << 30
LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max file size             unlimited            unlimited            bytes
Max open files            1024                 1048576              files
Max locked memory         8388608              8388608              bytes
Max address space         unlimited            unlimited            bytes
"""
GOOD = {
    "proc/self/mounts": "tmpfs /dev/shm tmpfs rw,huge=advise 0 0\nnone /dev/hugepages hugetlbfs rw,pagesize=2M 0 0",
    "proc/self/cgroup": "0::/\n",
    "proc/self/limits": LIMITS,
    "proc/meminfo": "MemTotal: 67108864 kB\nMemAvailable:   33554432 kB\n",
    "proc/sys/kernel/osrelease": "6.8.0-made-up",
    "proc/sys/kernel/random/boot_id": "6f0c0d7e-0000-4000-8000-000000000000",
    "proc/1/cgroup": "0::/init.scope",
    "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size [advise] never deny force",
    "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "1024",
    "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "1000",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0",
    "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0",
    "sys/devices/system/node/node0/meminfo": "Node 0 MemTotal:       33554432 kB",
    "sys/devices/system/node/node0/cpulist": "0-15",
    "dev/shm/.keep": "",
}  # fmt: skip

Make = Callable[..., Machine]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """A machine made of files; None removes one of the good machine's."""

    def build(changes: dict[str, str | None] | None = None, size: int = 16 * GIB, free: int = 15 * GIB) -> Machine:
        for name, text in {**GOOD, **(changes or {})}.items():
            if text is not None:
                (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
                (tmp_path / name).write_text(text)
        (tmp_path / "proc/self/ns").mkdir(parents=True, exist_ok=True)
        (tmp_path / "proc/self/ns/pid").symlink_to("pid:[4026531836]")
        return Machine(
            tmp_path / "proc", tmp_path / "sys", tmp_path / "dev", tmp_path / "root", room=lambda _: (size, free)
        )

    return build


def named(lines: list[Line], name: str) -> Line:
    found = [line for line in lines if line.name == name]
    assert len(found) == 1, [line.name for line in lines]
    return found[0]


def test_a_good_machine_has_nothing_to_do(make: Make) -> None:
    machine = make()
    lines = [*look_at_memory(machine), *look_at_devices(machine), *look_at_kernel(machine), *look_at_container(machine)]
    assert {line.verdict for line in lines} == {"ok"}
    assert [line.advice for line in lines if line.advice] == []


def test_what_is_not_good_says_what_to_do(make: Make) -> None:
    worse = {
        "proc/self/mounts": "tmpfs /dev/shm tmpfs ro,relatime 0 0",
        "proc/self/limits": LIMITS.replace("1024 ", "64   ").replace(
            "space         unlimited", "space         1000000  "
        ),
        "proc/meminfo": "MemAvailable: 1024 kB",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": "always within_size advise never [deny] force",
        "proc/sys/kernel/random/boot_id": None,
    }
    lines = look_at_memory(make(worse, size=64 << 20, free=GIB))
    verdicts = {line.name: line.verdict for line in lines if line.verdict != "ok"}
    assert verdicts == {
        "shared memory": "bad",
        "shared memory access": "bad",
        "memory available": "bad",
        "huge pages in /dev/shm": "improve",
        "huge pages of 2 MiB": "improve",
        "open files": "improve",
        "address space": "bad",
    }
    assert all(line.advice for line in lines if line.verdict != "ok")


@pytest.mark.parametrize(
    ("size", "free", "verdict"),
    [(64 << 20, 64 << 20, "bad"), (2 * GIB, 2 * GIB, "improve"), (16 * GIB, GIB, "improve"), (8 * GIB, 8 * GIB, "ok")],
)
def test_shared_memory_is_judged_by_what_fits(make: Make, size: int, free: int, verdict: str) -> None:
    line = named(look_at_memory(make(size=size, free=free)), "shared memory")
    assert (line.verdict, line.figure["size_bytes"], line.figure["free_bytes"]) == (verdict, size, free)
    assert ("--shm-size" in line.advice) == (verdict != "ok")


def test_no_shared_memory_at_all_is_bad(make: Make) -> None:
    def no_room(_: Path) -> tuple[int, int]:
        raise FileNotFoundError

    good = make()
    machine = Machine(good.proc, good.sys, good.dev, good.root, room=no_room)
    assert named(look_at_memory(machine), "shared memory").verdict == "bad"


LIMITED: list[tuple[dict[str, str], str, Any]] = [
    ({}, "ok", None),
    ({"proc/self/cgroup": "0::/pod/one", "sys/fs/cgroup/pod/memory.max": str(3 * GIB),
      "sys/fs/cgroup/pod/memory.current": str(GIB), "sys/fs/cgroup/pod/one/memory.max": "max",
      "sys/fs/cgroup/pod/one/memory.current": "0"}, "ok", 3 * GIB),
    ({"proc/self/cgroup": "0::/pod", "sys/fs/cgroup/memory.max": str(9 * GIB),
      "sys/fs/cgroup/memory.current": str(8 * GIB), "sys/fs/cgroup/pod/memory.max": str(6 * GIB),
      "sys/fs/cgroup/pod/memory.current": str(GIB)}, "improve", 9 * GIB),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(2 * GIB),
      "sys/fs/cgroup/memory.current": str(GIB)}, "improve", 2 * GIB),
    ({"proc/self/cgroup": "0::/", "sys/fs/cgroup/memory.max": str(GIB),
      "sys/fs/cgroup/memory.current": str(GIB)}, "bad", GIB),
    ({"proc/self/cgroup": "5:cpu:/x\n4:memory:/docker/abc", "sys/fs/cgroup/memory/memory.limit_in_bytes": str(8 * GIB),
      "sys/fs/cgroup/memory/memory.usage_in_bytes": str(GIB)}, "ok", 8 * GIB),
    ({"proc/self/cgroup": "4:memory:/", "sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712",
      "sys/fs/cgroup/memory/memory.usage_in_bytes": "1"}, "ok", None),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "verdict", "limit"), LIMITED)
def test_the_tightest_memory_limit_is_told(
    make: Make, changes: dict[str, str], verdict: str, limit: int | None
) -> None:
    line = named(look_at_memory(make(changes)), "container limit")
    assert (line.verdict, line.figure and line.figure["limit_bytes"]) == (verdict, limit)


@pytest.mark.parametrize(
    ("huge", "kernel", "verdict"),
    [
        ("", "[never]", "improve"),
        (",huge=always", "[never]", "ok"),
        ("", "[force]", "ok"),
        (",huge=advise", "[deny]", "improve"),
    ],
)
def test_the_mount_decides_about_huge_pages_unless_the_kernel_forbids(
    make: Make, huge: str, kernel: str, verdict: str
) -> None:
    changes = {
        "proc/self/mounts": f"tmpfs /dev/shm tmpfs rw{huge} 0 0",
        "sys/kernel/mm/transparent_hugepage/shmem_enabled": f"always {kernel} other",
    }
    assert named(look_at_memory(make(changes)), "huge pages in /dev/shm").verdict == verdict


DAX = {
    "sys/bus/dax/devices/dax0.0/size": str(128 * GIB),
    "sys/bus/dax/devices/dax0.0/align": str(2 << 20),
    "sys/bus/dax/devices/dax0.0/numa_node": "2",
    "sys/bus/dax/devices/dax1.0/size": str(64 * GIB),
    "sys/bus/dax/devices/dax1.0/align": str(2 << 20),
    "sys/bus/cxl/devices/mem0/ram/size": "0x2000000000",
    "sys/bus/cxl/devices/region0/size": "0x2000000000",
    "sys/bus/cxl/devices/decoder0.0/size": "0x0",
    "sys/devices/system/node/node2/meminfo": "Node 2 MemTotal: 134217728 kB",
    "sys/devices/system/node/node2/cpulist": "\n",
    "dev/dax0.0": "",
}


def test_devices_are_told_with_size_alignment_and_node(make: Make) -> None:
    lines = look_at_devices(make(DAX))
    ready = named(lines, "/dev/dax0.0")
    assert ready.verdict == "ok"
    assert ready.figure == {"size_bytes": 128 * GIB, "align_bytes": 2 << 20, "numa_node": 2, "driver": ""}
    missing = named(lines, "/dev/dax1.0")
    assert (missing.verdict, "--device=/dev/dax1.0" in missing.advice) == ("improve", True)
    assert named(lines, "CXL memory").figure == {"memories": 1, "regions": 1, "ram_bytes": 128 * GIB}
    assert "without CPUs" in named(lines, "NUMA node2").text


def test_a_device_that_serves_as_ordinary_memory_says_how_to_get_it_back(make: Make) -> None:
    machine = make(DAX)
    (machine.sys / "bus/dax/devices/dax0.0/driver").symlink_to("../../drivers/kmem")
    line = named(look_at_devices(machine), "/dev/dax0.0")
    assert (line.verdict, "daxctl reconfigure-device" in line.advice) == ("improve", True)


def test_a_kernel_that_refuses_what_is_needed_is_bad(make: Make) -> None:
    def refuse() -> None:
        raise OSError(22, "Invalid argument")

    probes = {"needed": (refuse, True, "a newer kernel"), "wanted": (refuse, False, "a newer kernel")}
    lines = look_at_kernel(make(), probes)
    assert (named(lines, "needed").verdict, named(lines, "wanted").verdict) == ("bad", "improve")


def test_a_container_is_recognised_and_what_it_means_is_told(make: Make) -> None:
    machine = make({"root/.dockerenv": "", "proc/1/cgroup": "0::/kubepods/burstable/x"})
    (machine.proc / "self/ns/pid").unlink()
    (machine.proc / "self/ns/pid").symlink_to("pid:[4026532999]")
    line = named(look_at_container(machine), "container")
    assert line.figure == {
        "signs": [".dockerenv", "kubepods"],
        "pid_namespace": "pid:[4026532999]",
        "own_pid_namespace": True,
    }
    assert "--ipc=host" in line.text


def test_versions_come_from_metadata_and_a_stranger_is_named() -> None:
    installed = {"maru-kvcache": maru.__version__, "vllm": "9.9", "maru": "0.6"}
    lines = look_at_versions(installed.get)
    assert named(lines, "maru").verdict == "ok"
    assert named(lines, "engines").figure["vllm"] == "9.9"
    assert named(lines, "another maru").verdict == "improve"
    other = look_at_versions({"maru-kvcache": "0.0.1"}.get)
    assert named(other, "maru").verdict == "improve"


def test_pools_that_cannot_be_attached_say_what_to_run() -> None:
    lines = look_at_pools([PoolSeen("kv", "4 GiB shm"), PoolSeen("old", "", "made before this boot")], Path("/dev/shm"))
    assert [line.verdict for line in lines] == ["ok", "improve"]
    assert "maru check old" in lines[1].advice


# ---- keys ----


def test_the_known_answer_is_what_the_specification_gives() -> None:
    identity = maru.Identity(model="maru-doctor", kv_layout="example/1", tenant="anybody", tokenizer="日本語", salt="é")
    key = blake3.blake3(identity.encode()).digest(16)
    expected = b""
    for start in range(0, 64, 16):
        tokens = b"".join((token * token + 7).to_bytes(4, "little") for token in range(start, start + 16))
        key = blake3.blake3(key + blake3.blake3(tokens).digest()).digest(16)
        expected += key
    assert expected.hex() == KNOWN_ANSWER == example_keys().hex()
    assert fingerprint().replace("-", "") == blake3.blake3(expected).digest(4).hex()


def test_two_instances_agree_here() -> None:
    assert [line.verdict for line in look_at_keys()] == ["ok", "ok"]


@pytest.mark.parametrize("own", ["0", "1", "random"])
def test_the_other_interpreter_hashes_strings_otherwise(own: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, str]] = []

    def run(*_: object, env: dict[str, str], **__: object) -> subprocess.CompletedProcess[str]:
        asked.append(env)
        return subprocess.CompletedProcess([], 0, KNOWN_ANSWER, "")

    monkeypatch.setenv("PYTHONHASHSEED", own)
    monkeypatch.setattr(subprocess, "run", run)
    look_at_keys()
    assert asked[0]["PYTHONHASHSEED"] not in (own, "random")


def test_an_instance_that_makes_other_keys_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = maru.native.core.chunk_keys(array("i", range(64)), 16, bytes(16))
    monkeypatch.setattr(keys, "example_keys", lambda: wrong)
    lines = look_at_keys()
    assert [line.verdict for line in lines] == ["bad", "bad"]  # The other interpreter still makes the right ones.
    assert all(line.advice for line in lines)


# ---- the command ----


def test_json_has_a_stable_schema() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    told = json.loads(result.stdout)
    assert told.keys() == {"schema", "verdict", "fingerprint", "lines"}
    assert told["schema"] == 1
    assert all(line.keys() == {"section", "name", "verdict", "text", "figure", "do"} for line in told["lines"])
    sections = {line["section"] for line in told["lines"]}
    assert sections == {"memory", "devices", "cpu", "kernel", "container", "versions", "keys", "pools"}
    assert result.exit_code == (1 if told["verdict"] == "bad" else 0)
    assert told["fingerprint"] == fingerprint()


def test_the_exit_code_is_1_exactly_when_a_line_is_bad(monkeypatch: pytest.MonkeyPatch) -> None:
    for verdict, code in (("ok", 0), ("improve", 0), ("bad", 1)):
        lines = [Line("memory", "something", verdict, "a text", None, "a command")]  # type: ignore[arg-type]
        monkeypatch.setattr("maru.cli.examine", lambda *_, told=lines: told)
        result = CliRunner().invoke(app, ["doctor"], env={"COLUMNS": "200"})
        assert result.exit_code == code
        assert "a command" in result.stdout
        assert document(lines)["verdict"] == worst(lines) == verdict


def test_everything_is_looked_at_once(make: Make) -> None:
    lines = examine(make(DAX), [PoolSeen("\x1b[2Jkv", "4 GiB")], Path("/dev/shm"))
    names = [(line.section, line.name) for line in lines]
    assert len(names) == len(set(names))
    shown = io.StringIO()
    show_lines(Console(file=shown, width=200), lines)
    assert "\x1b" not in shown.getvalue()
    assert "?[2Jkv" in shown.getvalue()
