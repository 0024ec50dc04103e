"""The facts that a figure means nothing without: CPU, memory, kernel, versions, and what the pool's memory is made of.

Everything is read, nothing is measured. A fact that cannot be had is "unknown", never left out.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import maru
from maru.native import core
from maru.pool import Pool

UNKNOWN = "unknown"
_CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
_HUGE_SHM = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_LLC_BYTES_ASSUMED = 64 << 20


def _read(path: Path | str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _kib_field(text: str, name: str) -> int:
    """Bytes of a `Name:   123 kB` line, 0 without one."""
    found = re.search(rf"^{re.escape(name)}:\s+(\d+) kB$", text, re.M)
    return int(found[1]) * 1024 if found else 0


def cpu_model() -> str:
    text = _read("/proc/cpuinfo")
    found = re.search(r"^(?:model name|Processor)\s*:\s*(.+)$", text, re.M)
    return found[1].strip() if found else platform.processor() or platform.machine() or UNKNOWN


def last_level_cache_bytes() -> int:
    """Size of the largest cache of CPU 0; a guess on the large side when the kernel does not say."""
    sizes = [_read(path).strip() for path in _CACHES.glob("index*/size")]
    units = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    return max((int(size[:-1]) * units[size[-1]] for size in sizes if size[-1:] in units), default=_LLC_BYTES_ASSUMED)


def memory_available_bytes() -> int:
    """What this process may still take: of the machine, and of its control group's limit."""
    available = _kib_field(_read("/proc/meminfo"), "MemAvailable")
    group = re.search(r"^0::(/.*)$", _read("/proc/self/cgroup"), re.M)
    folder = f"/sys/fs/cgroup{group[1]}" if group else "/sys/fs/cgroup"
    limit, used = _read(f"{folder}/memory.max").strip(), _read(f"{folder}/memory.current").strip()
    return min(available, max(0, int(limit) - int(used))) if limit.isdigit() and used.isdigit() else available


def commit() -> str:
    """The commit of the checkout that this package lies in, "+changes" if it was edited since."""
    folder = Path(maru.__file__).resolve().parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", str(folder), *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", "__init__.py") != "__init__.py":
            return UNKNOWN
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN


def mapping_facts(address: int) -> dict[str, int]:
    """Page size of the mapping at `address` of this process, and how much of it the kernel maps by huge pages."""
    text, is_inside = [], False
    for line in _read("/proc/self/smaps").splitlines():
        bounds = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if bounds:
            is_inside = int(bounds[1], 16) <= address < int(bounds[2], 16)
        elif is_inside:
            text.append(line)
    entry = "\n".join(text)
    return {
        "page_bytes": _kib_field(entry, "KernelPageSize"),
        "resident_bytes": _kib_field(entry, "Rss"),
        "huge_mapped_bytes": _kib_field(entry, "ShmemPmdMapped") + _kib_field(entry, "FilePmdMapped"),
    }


def pool_facts(pool: Pool) -> dict[str, Any]:
    """Medium and pages of a pool's data, as this process has it mapped."""
    writable, _, _ = pool._data_range()
    return {
        "medium": pool.config.medium,
        "filesystem": filesystem_of(pool.config.folder),
        **mapping_facts(writable),
    }


def filesystem_of(folder: Path) -> str:
    """Type and mount point of the file system that holds `folder`."""
    best, kind = "", UNKNOWN
    for line in _read("/proc/self/mounts").splitlines():
        _, place, name, *_ = line.split(" ")
        if len(place) >= len(best) and folder.is_relative_to(place):
            best, kind = place, name
    return f"{kind} at {best}" if best else UNKNOWN


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return UNKNOWN


def core_is_for_tests() -> bool:
    """Is this the build with crash points, which is slower?"""
    return core.__name__.endswith("_testing")


def machine_facts(pool: Pool) -> dict[str, Any]:
    """All facts, for the JSON file and the table's head. `pool` is any ready pool of this run."""
    meminfo = _read("/proc/meminfo")
    return {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_model(),
        "cores": os.cpu_count() or 0,
        "cores_usable": len(os.sched_getaffinity(0)),
        "virtual_machine": bool(re.search(r"^flags\s*:.*\bhypervisor\b", _read("/proc/cpuinfo"), re.M)),
        "last_level_cache_bytes": last_level_cache_bytes(),
        "memory_bytes": _kib_field(meminfo, "MemTotal"),
        "memory_available_bytes": memory_available_bytes(),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "numpy": version_of("numpy"),
        "maru": maru.__version__,
        "commit": commit(),
        "core": core.__name__,
        "copy_path": core.stream_copy_path(),
        "hash_path": core.hash_paths()[0],
        "load_average": list(os.getloadavg()),
        "huge_pages_for_shm": _read(_HUGE_SHM).strip() or UNKNOWN,
        "pool": pool_facts(pool),
    }
