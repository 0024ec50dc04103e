"""GPUs, as far as copies between them and a pool are concerned. `maru doctor --gpu`; nothing of it runs otherwise.

The driver is asked in a process of its own, and no context is made. Not run on a GPU.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from maru.config import format_size
from maru.doctor.line import Line
from maru.doctor.machine import Machine
from maru.engine.device_copy.survey import survey

_SECTION = "gpu"


def look_at_gpus(machine: Machine, segments: Sequence[Path], ask: Callable[[], dict[str, Any]] = survey) -> list[Line]:
    """All lines of this section. `segments`: files of the pools there are, where a GPU's memory lines end."""
    facts = ask()
    return [*_driver(machine, facts), *_devices(facts), *_media(machine, segments), *_movable(machine)]


def _driver(machine: Machine, facts: dict[str, Any]) -> list[Line]:
    problem = facts.get("problem")
    if problem:
        kernel = machine.read(machine.proc / "driver/nvidia/version").splitlines()
        if not kernel:
            text = f"none: {problem}. Everything but copies with a GPU works without it"
            return [Line(_SECTION, "driver", "ok", text, None)]
        advice = "pip install 'maru-kvcache[gpu]'; a container: docker run --gpus all"
        return [Line(_SECTION, "driver", "improve", f"{problem}, though the kernel has {kernel[0]}", None, advice)]
    text = f"{facts['driver']}, cuda-bindings {facts['bindings']}"
    figure = {name: facts[name] for name in ("driver", "bindings", "copies_in_batches")}
    if facts["copies_in_batches"]:
        return [Line(_SECTION, "driver", "ok", f"{text}; copies go in batches", figure)]
    advice = "a driver of 12.8 or newer, and not older than the bindings: pip install 'cuda-bindings>=12.8,<13'"
    return [Line(_SECTION, "driver", "improve", f"{text}; copies go one by one", figure, advice)]


def _devices(facts: dict[str, Any]) -> list[Line]:
    lines = []
    for device in facts.get("devices", []):
        node = device["numa_node"]
        text = f"{device['name']}, {format_size(device['memory_bytes'])}, PCI {device['pci']}, "
        text += f"NUMA node {'unknown' if node is None else node}"
        name = f"GPU {device['ordinal']}"
        if device["registers_host_memory"]:
            read_only = "also" if device["registers_read_only_memory"] else "but not"
            text += f"; registers host memory, {read_only} read-only mappings (Maru registers a writable one)"
            lines.append(Line(_SECTION, name, "ok", text, device))
        else:
            text += "; registers no host memory: every copy takes a detour through pinned memory"
            advice = "confidential computing or a virtual GPU forbids it; pass the GPU through, or live with the detour"
            lines.append(Line(_SECTION, name, "improve", text, device, advice))
    return lines


def _media(machine: Machine, segments: Sequence[Path]) -> list[Line]:
    """Pools whose memory no driver registers: long-term pins of a file system's own DAX pages are refused."""
    dax = [place for place, _, options in machine.mounts() if re.search(r"(?:^|,)dax(?:=always)?(?:,|$)", options)]
    lines = []
    for segment in segments:
        if any(segment.is_relative_to(place) for place in dax):
            text = "lies on a file system mounted with dax: a GPU cannot register it, copies take a detour"
            advice = "sudo ndctl create-namespace --mode=devdax …, then medium=devdax&data=/dev/daxX.Y"
            lines.append(Line(_SECTION, str(segment), "improve", text, "fsdax", advice))
    return lines


def _movable(machine: Machine) -> list[Line]:
    """Memory that the kernel promised to be able to move, as CXL memory used as ordinary memory mostly is."""
    nodes = []
    for node, zone in re.findall(r"^Node (\d+), zone +Movable\n((?:[ \t].*\n?)*)", _zoneinfo(machine), re.M):
        present = re.search(r"^ +present +(\d+)", zone, re.M)
        if present and int(present[1]):
            nodes.append(int(node))
    if not nodes:
        return []
    text = f"on NUMA node {', '.join(map(str, nodes))}: pages are moved to another node when a GPU registers them"
    advice = "medium=devdax on that device; or sudo daxctl online-memory --no-movable dax0.0"
    return [Line(_SECTION, "movable memory", "improve", text, nodes, advice)]


def _zoneinfo(machine: Machine) -> str:
    return machine.read(machine.proc / "zoneinfo") + "\n"
