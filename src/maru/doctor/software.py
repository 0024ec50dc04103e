"""Kernel, container, versions, copy path, and the pools there are."""

from __future__ import annotations

import fcntl
import mmap
import os
import platform
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import maru
from maru.doctor.line import Line
from maru.doctor.machine import Machine
from maru.native import core

_HOST_PID_NAMESPACE = "pid:[4026531836]"  # The kernel's first one has this number everywhere.
_ENGINES = ("torch", "transformers", "vllm", "sglang", "lmcache", "numpy")
_MADV_DONTFORK, _MADV_POPULATE_WRITE = 10, 23


@dataclass(frozen=True)
class PoolSeen:
    """A pool of this user: its figures as people read them, or why it cannot be attached."""

    name: str
    text: str
    problem: str = ""


# ---- kernel -----------------------------------------------------------------------------------------------


def _try_ofd_locks() -> None:
    fd = os.memfd_create("maru-doctor")
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 1, 0))
    finally:
        os.close(fd)


def _try_memfd() -> None:
    os.close(os.memfd_create("maru-doctor"))


def _try_advice(advice: int) -> Callable[[], None]:
    def attempt() -> None:
        with mmap.mmap(-1, mmap.PAGESIZE) as page:
            page.madvise(advice)

    return attempt


PROBES: Mapping[str, tuple[Callable[[], None], bool, str]] = {
    "open-file-description locks": (_try_ofd_locks, True, "a kernel of 3.15 or newer (in gVisor and the like: ask it)"),
    "memfd": (_try_memfd, False, "a kernel of 3.17 or newer"),
    "MADV_DONTFORK": (_try_advice(_MADV_DONTFORK), True, "a kernel of 2.6.16 or newer"),
    "MADV_POPULATE_WRITE": (
        _try_advice(_MADV_POPULATE_WRITE), False, "a kernel of 5.14 or newer: until then first touches are slow",
    ),
}  # fmt: skip
"""What the kernel must do: how to try it, whether Maru needs it, and where it is to be had."""


def look_at_kernel(machine: Machine, probes: Mapping[str, tuple[Callable[[], None], bool, str]] = PROBES) -> list[Line]:
    """Each feature is tried, not looked up: a container may forbid what its kernel has."""
    lines = [Line("kernel", "version", "ok", machine.read(machine.proc / "sys/kernel/osrelease") or "unknown",
                  machine.read(machine.proc / "sys/kernel/osrelease"))]  # fmt: skip
    if not machine.read(machine.proc / "sys/kernel/random/boot_id"):
        advice = "mount -t proc proc /proc: pools of an earlier boot are recognised by it"
        lines.append(Line("kernel", "boot id", "bad", "/proc/sys/kernel/random/boot_id cannot be read", None, advice))
    for name, (attempt, is_needed, where) in probes.items():
        try:
            attempt()
        except (OSError, ValueError, AttributeError) as error:
            lines.append(Line("kernel", name, "bad" if is_needed else "improve", f"refused: {error}", False, where))
        else:
            lines.append(Line("kernel", name, "ok", "works", True))
    return lines


# ---- container --------------------------------------------------------------------------------------------


def look_at_container(machine: Machine) -> list[Line]:
    """Whether this is a container, for those who wonder why two processes do not see one pool."""
    try:
        namespace = str((machine.proc / "self/ns/pid").readlink())
    except OSError:
        namespace = "unknown"
    signs = [str(path) for path in (".dockerenv", "run/.containerenv") if (machine.root / path).exists()]
    cgroup = machine.read(machine.proc / "1/cgroup")
    signs += re.findall(r"docker|kubepods|containerd|lxc|libpod", cgroup)[:1]
    own = namespace not in (_HOST_PID_NAMESPACE, "unknown")
    figure = {"signs": signs, "pid_namespace": namespace, "own_pid_namespace": own}
    if not signs and not own:
        return [Line("container", "container", "ok", "none that we can see", figure)]
    text = f"yes ({', '.join([*signs, *(['its own PID namespace'] if own else [])])}); processes elsewhere share pools "
    text += "only where both see the same /dev/shm (--ipc=host) or the same folder (dir=PLACE)"
    return [Line("container", "container", "ok", text, figure)]


# ---- versions and pools -----------------------------------------------------------------------------------


def version_of_package(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def look_at_versions(version_of: Callable[[str], str | None] = version_of_package) -> list[Line]:
    """What is installed, read from package metadata: nothing is imported."""
    installed = version_of("maru-kvcache")
    lines = []
    if installed not in (None, maru.__version__):
        advice = "pip install --force-reinstall maru-kvcache, or look at PYTHONPATH"
        text = f"{maru.__version__} runs, {installed} is installed"
        lines.append(Line("versions", "maru", "improve", text, maru.__version__, advice))
    else:
        lines.append(Line("versions", "maru", "ok", maru.__version__, maru.__version__))
    if version_of("maru") is not None:
        advice = "pip uninstall maru && pip install --force-reinstall maru-kvcache"
        text = "a package named maru is installed: an unrelated project whose files may lie over ours"
        lines.append(Line("versions", "another maru", "improve", text, version_of("maru"), advice))
    form = re.search(r'"format": (\d+)', core.layout_description())
    number = int(form[1]) if form else 0
    crc = f"{core.layout_crc():08x}"
    lines.append(
        Line("versions", "pool format", "ok", f"{number}, layout {crc}", {"format": number, "layout_crc": crc})
    )
    lines.append(Line("versions", "python", "ok", platform.python_version(), platform.python_version()))
    found = {name: version_of(name) for name in _ENGINES}
    told = ", ".join(f"{name} {has}" for name, has in found.items() if has) or "none"
    lines.append(Line("versions", "engines", "ok", told, found))
    return lines


def look_at_cpu() -> list[Line]:
    """Which ways of copying and hashing the core has chosen on this CPU."""
    copy, hashing = core.stream_copy_path(), core.hash_paths()[0]
    slow = copy == "memcpy" and platform.machine() in ("x86_64", "AMD64")
    advice = "a virtual machine that hides AVX2: choose its host's CPU model" if slow else ""
    return [
        Line("cpu", "copy path", "improve" if slow else "ok", copy, copy, advice),
        Line("cpu", "hash path", "ok", hashing, hashing),
    ]


def look_at_pools(pools: list[PoolSeen], place: Path) -> list[Line]:
    """The pools of this user, and whether they can be attached."""
    if not pools:
        return [Line("pools", "pools", "ok", f"none in {place}", [])]
    lines = []
    for pool in pools:
        if pool.problem:
            advice = f"maru check {pool.name} says more; maru pool destroy {pool.name} removes it"
            lines.append(Line("pools", pool.name, "improve", pool.problem, None, advice))
        else:
            lines.append(Line("pools", pool.name, "ok", pool.text, pool.text))
    return lines
