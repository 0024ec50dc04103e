"""Memory devices: DAX devices, CXL memory, NUMA nodes, as sysfs describes them. Nothing is opened."""

from __future__ import annotations

import os
import re
from pathlib import Path

from maru.config import format_size
from maru.doctor.line import Line
from maru.doctor.machine import Machine

_SECTION = "devices"


def look_at_devices(machine: Machine) -> list[Line]:
    """All lines of this section."""
    return [*_dax(machine), _cxl(machine), *_nodes(machine)]


def _dax(machine: Machine) -> list[Line]:
    devices = machine.folders(machine.sys / "bus/dax/devices", "dax*")
    if not devices:
        return [Line(_SECTION, "DAX devices", "ok", "none; pools lie in /dev/shm", [])]
    lines = []
    for folder in devices:
        size = machine.number(folder / "size") or 0
        align = machine.number(folder / "align") or 0
        node = machine.number(folder / "numa_node")
        place = machine.dev / folder.name
        driver = _driver(folder)
        figure = {"size_bytes": size, "align_bytes": align, "numa_node": node, "driver": driver}
        text = f"{format_size(size)}, aligned to {format_size(align)}, NUMA node {'unknown' if node is None else node}"
        name = f"/dev/{folder.name}"
        if driver == "kmem":
            text += "; used as ordinary memory"
            advice = f"for pools: sudo daxctl reconfigure-device --mode=devdax --force {folder.name}"
            lines.append(Line(_SECTION, name, "improve", text, figure, advice))
        elif not place.exists():
            advice = f"sudo daxctl enable-device {folder.name}; a container: --device=/dev/{folder.name}"
            lines.append(Line(_SECTION, name, "improve", f"{text}; there is no such file", figure, advice))
        elif not os.access(place, os.R_OK | os.W_OK):
            advice = f"sudo chgrp {os.getgid()} /dev/{folder.name} && sudo chmod g+rw /dev/{folder.name}"
            lines.append(Line(_SECTION, name, "improve", f"{text}; not ours to open", figure, advice))
        else:
            lines.append(Line(_SECTION, name, "ok", f"{text}; medium=devdax&data=/dev/{folder.name}", figure))
    return lines


def _driver(folder: Path) -> str:
    try:
        return (folder / "driver").readlink().name
    except OSError:
        return ""


def _cxl(machine: Machine) -> Line:
    devices = machine.folders(machine.sys / "bus/cxl/devices", "*")
    memories = [folder for folder in devices if re.fullmatch(r"mem\d+", folder.name)]
    regions = [folder for folder in devices if re.fullmatch(r"region\d+", folder.name)]
    sizes = [_size(machine.read(folder / "ram/size")) for folder in memories]
    figure = {"memories": len(memories), "regions": len(regions), "ram_bytes": sum(sizes)}
    if not memories:
        return Line(_SECTION, "CXL memory", "ok", "none", figure)
    text = f"{len(memories)} with {format_size(sum(sizes))} of RAM, in {len(regions)} regions"
    if not regions:
        return Line(_SECTION, "CXL memory", "improve", text, figure, "sudo cxl create-region -m -t ram -d decoder0.0 …")
    return Line(_SECTION, "CXL memory", "ok", text, figure)


def _size(text: str) -> int:
    """sysfs writes some sizes in hexadecimal."""
    try:
        return int(text, 0)
    except ValueError:
        return 0


def _nodes(machine: Machine) -> list[Line]:
    lines = []
    for folder in machine.folders(machine.sys / "devices/system/node", "node[0-9]*"):
        found = re.search(r"MemTotal:\s+(\d+) kB", machine.read(folder / "meminfo"))
        memory = int(found[1]) * 1024 if found else 0
        cpus = machine.read(folder / "cpulist")
        text = f"{format_size(memory)}, CPUs {cpus}" if cpus else f"{format_size(memory)} without CPUs: CXL or the like"
        lines.append(Line(_SECTION, f"NUMA {folder.name}", "ok", text, {"memory_bytes": memory, "cpus": cpus}))
    return lines
