"""Memory for pools: /dev/shm, the limits of a container and of this process, huge pages of both kinds."""

from __future__ import annotations

import re
from pathlib import Path

from maru.config import DEFAULT_SIZE_BYTES, format_size
from maru.doctor.line import Line, Verdict
from maru.doctor.machine import Machine

_SECTION = "memory"
_SHM_BYTES_MIN = 128 << 20  # A container's /dev/shm has 64 MiB unless somebody says otherwise.
_HEADROOM_BYTES_BAD = 256 << 20
_HEADROOM_BYTES_GOOD = 2 << 30
_UNLIMITED = 1 << 60  # cgroup v1 writes "no limit" as a number near 2^63.
_FILES_MIN = 256


def look_at_memory(machine: Machine) -> list[Line]:
    """All lines of this section."""
    return [
        *_shared_memory(machine),
        _available(machine),
        *_container(machine),
        _transparent(machine),
        *_reserved_pages(machine),
        *_limits(machine),
    ]


def _shm_mount(machine: Machine) -> tuple[str, str] | None:
    """(type, options) of what is mounted at /dev/shm now: the last mount covers the others."""
    found = [(kind, options) for place, kind, options in machine.mounts() if place == "/dev/shm"]
    return found[-1] if found else None


def _shared_memory(machine: Machine) -> list[Line]:
    shm = machine.dev / "shm"
    try:
        size, free = machine.room(shm)
    except OSError:
        advice = "mount -t tmpfs -o size=8G tmpfs /dev/shm; or give pools another place: maru:///NAME?dir=PLACE"
        return [Line(_SECTION, "shared memory", "bad", "there is no /dev/shm", None, advice)]
    mount = _shm_mount(machine)
    options = f", mounted with {mount[1]}" if mount else ""
    figure = {"size_bytes": size, "free_bytes": free, "options": mount[1] if mount else ""}
    text = f"/dev/shm has {format_size(size)}, {format_size(free)} of it free{options}"
    remount = "sudo mount -o remount,size=8G /dev/shm; a container: docker run --shm-size=8g, or --ipc=host"
    if mount and mount[0] != "tmpfs":
        lines = [Line(_SECTION, "shared memory", "improve", f"{text}; it is {mount[0]}, not tmpfs", figure, remount)]
    elif size < _SHM_BYTES_MIN:
        lines = [Line(_SECTION, "shared memory", "bad", f"{text}: no useful pool fits", figure, remount)]
    elif free < DEFAULT_SIZE_BYTES:
        what = f"{text}: less than a pool of {format_size(DEFAULT_SIZE_BYTES)}"
        lines = [Line(_SECTION, "shared memory", "improve", what, figure, remount)]
    else:
        lines = [Line(_SECTION, "shared memory", "ok", text, figure)]
    if mount and "ro" in mount[1].split(","):
        lines.append(Line(_SECTION, "shared memory access", "bad", "/dev/shm is read-only", False,
                          "sudo mount -o remount,rw /dev/shm"))  # fmt: skip
    return lines


def _available(machine: Machine) -> Line:
    found = re.search(r"^MemAvailable:\s+(\d+) kB", machine.read(machine.proc / "meminfo"), re.M)
    if not found:
        return Line(_SECTION, "memory available", "improve", "the kernel does not say", None, "mount /proc")
    free = int(found[1]) * 1024
    if free < _HEADROOM_BYTES_BAD:
        advice = "close something: a pool that is made real now would push others into swap or be killed"
        return Line(_SECTION, "memory available", "bad", format_size(free), free, advice)
    return Line(_SECTION, "memory available", "ok", format_size(free), free)


def _container(machine: Machine) -> list[Line]:
    """The tightest memory limit above this process, in the unified hierarchy and in the old memory controller."""
    groups = machine.read(machine.proc / "self" / "cgroup").splitlines()
    found = []
    for line in groups:
        number, controllers, path = (*line.split(":", 2), "", "")[:3]
        if number == "0" and not controllers:
            for base in (machine.sys / "fs/cgroup", machine.sys / "fs/cgroup/unified"):
                found += _limits_above(machine, base, path, "memory.max", "memory.current", 2)
        elif "memory" in controllers.split(","):
            base = machine.sys / "fs/cgroup/memory"
            found += _limits_above(machine, base, path, "memory.limit_in_bytes", "memory.usage_in_bytes", 1)
    if not found:
        return [Line(_SECTION, "container limit", "ok", "no memory limit", None)]
    limit, used, version = min(found, key=lambda item: item[0] - item[1])
    left = max(0, limit - used)
    figure = {"limit_bytes": limit, "used_bytes": used, "cgroup": version}
    text = f"{format_size(limit)} by cgroup v{version}, {format_size(left)} of it left; pools in /dev/shm count"
    raise_it = "raise it (docker run --memory=…, resources.limits.memory), or create smaller pools"
    if left < _HEADROOM_BYTES_BAD:
        return [Line(_SECTION, "container limit", "bad", text, figure, raise_it)]
    verdict: Verdict = "ok" if left >= _HEADROOM_BYTES_GOOD else "improve"
    return [Line(_SECTION, "container limit", verdict, text, figure, "" if verdict == "ok" else raise_it)]


def _limits_above(
    machine: Machine, base: Path, path: str, limit_name: str, used_name: str, version: int
) -> list[tuple[int, int, int]]:
    """Every limit from the group up to the root. In a container the path may be the host's and lie nowhere here."""
    parts = [part for part in path.split("/") if part and part != ".."]
    found = []
    for depth in range(len(parts), -1, -1):
        folder = base.joinpath(*parts[:depth])
        limit, used = machine.number(folder / limit_name), machine.number(folder / used_name)
        if limit is not None and used is not None and limit < _UNLIMITED:
            found.append((limit, used, version))
    return found


def _transparent(machine: Machine) -> Line:
    """Whether pools in /dev/shm may lie in huge pages. The mount decides; the kernel can forbid or force."""
    text = machine.read(machine.sys / "kernel/mm/transparent_hugepage/shmem_enabled")
    chosen = re.search(r"\[(\w+)\]", text)
    kernel = chosen[1] if chosen else "unknown"
    mount = _shm_mount(machine)
    option = re.search(r"(?:^|,)huge=(\w+)", mount[1]) if mount else None
    huge = option[1] if option else "never"
    figure = {"mount": huge, "shmem_enabled": kernel}
    told = f"huge={huge} on /dev/shm, shmem_enabled is {kernel}"
    if kernel == "unknown":
        return Line(_SECTION, "huge pages in /dev/shm", "improve", told, figure,
                    "a kernel with CONFIG_TRANSPARENT_HUGEPAGE, or medium=hugetlb")  # fmt: skip
    if kernel == "deny":
        advice = "echo advise | sudo tee /sys/kernel/mm/transparent_hugepage/shmem_enabled"
        return Line(_SECTION, "huge pages in /dev/shm", "improve", told, figure, advice)
    if kernel == "force" or huge in ("always", "within_size", "advise"):
        return Line(_SECTION, "huge pages in /dev/shm", "ok", told, figure)
    advice = "sudo mount -o remount,huge=advise /dev/shm (before pools are created)"
    return Line(_SECTION, "huge pages in /dev/shm", "improve", f"{told}: pools lie in 4 KiB pages", figure, advice)


def _reserved_pages(machine: Machine) -> list[Line]:
    """Pages set aside for hugetlbfs. None is no fault: only medium=hugetlb wants them."""
    mounted = [place for place, kind, _ in machine.mounts() if kind == "hugetlbfs"]
    lines = []
    for folder in machine.folders(machine.sys / "kernel/mm/hugepages", "hugepages-*kB"):
        size = int(folder.name.removeprefix("hugepages-").removesuffix("kB")) * 1024
        total = machine.number(folder / "nr_hugepages") or 0
        free = machine.number(folder / "free_hugepages") or 0
        figure = {"page_bytes": size, "pages": total, "free_pages": free, "mounts": mounted}
        name = f"huge pages of {format_size(size)}"
        text = f"{free:,} of {total:,} reserved ones free" if total else "none reserved; only medium=hugetlb wants them"
        if total and not mounted:
            advice = f"sudo mount -t hugetlbfs -o pagesize={size >> 20}M none /dev/hugepages"
            lines.append(Line(_SECTION, name, "improve", f"{text}; hugetlbfs is not mounted", figure, advice))
        else:
            lines.append(Line(_SECTION, name, "ok", text, figure))
    return lines


def _limits(machine: Machine) -> list[Line]:
    lines = []
    files = machine.limit("Max open files")
    few = files is not None and files < _FILES_MIN
    advice = "ulimit -n 4096" if few else ""
    told = "unlimited" if files is None else f"{files:,}"
    lines.append(Line(_SECTION, "open files", "improve" if few else "ok", told, files, advice))
    locked = machine.limit("Max locked memory")
    told = (
        "unlimited" if locked is None else f"{format_size(locked)}; only registering memory with a device may want more"
    )
    lines.append(Line(_SECTION, "locked memory", "ok", told, locked))
    for name, title, flag, why in (
        ("Max address space", "address space", "v", "each process maps a pool twice"),
        ("Max file size", "file size", "f", "a pool's segment is one file"),
    ):
        limit = machine.limit(name)
        if limit is not None:
            text = f"limited to {format_size(limit)}, and {why}"
            lines.append(Line(_SECTION, title, "bad", text, limit, f"ulimit -{flag} unlimited"))
    return lines
