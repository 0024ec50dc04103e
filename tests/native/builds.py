"""Builds of the core for the tests of this folder, in build/ of the checkout; quick when nothing changed.

Each mode of the compiler has a folder of its own. A compiler without the sanitizer's runtime library is told apart
from one that cannot compile us: the first is a reason to skip, the second a failure.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "build" / "native-tests"
COMPILER = os.environ.get("CXX") or next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), "c++")
FAILED_STATUS = 86  # Of a process that a sanitizer ended.


@functools.cache
def why_not(sanitize: str) -> str | None:
    """Why this compiler cannot build and run anything with these sanitizers here; None when it can."""
    BUILD.mkdir(parents=True, exist_ok=True)
    program = BUILD / f"probe-{sanitize.replace(',', '-')}"
    compiled = subprocess.run(
        [COMPILER, "-x", "c++", f"-fsanitize={sanitize}", "-o", program, "-"],
        input="int main() { return 0; }", capture_output=True, text=True, check=False,
    )  # fmt: skip
    if compiled.returncode != 0:
        return f"{COMPILER} cannot link -fsanitize={sanitize}: {compiled.stderr.strip().splitlines()[-1]}"
    ran = subprocess.run([*calm_addresses(), program], capture_output=True, text=True, check=False)
    if ran.returncode != 0:
        return f"programs built with -fsanitize={sanitize} do not run here: {ran.stderr.strip()[:200]}"
    return None


@functools.cache
def calm_addresses() -> tuple[str, ...]:
    """Runs a command without address randomisation, where that is allowed.

    Older sanitizer runtimes die at start when the kernel places a mapping where they keep their shadow.
    """
    tool = shutil.which("setarch")
    if tool and subprocess.run([tool, "-R", "true"], capture_output=True, check=False).returncode == 0:
        return (tool, "-R")
    return ()


@functools.cache
def build_drivers(sanitize: str, with_python: bool = False) -> Path:
    """Build with these sanitizers ("" for the product's own flags); returns the folder of what was built."""
    folder = BUILD / (sanitize.replace(",", "-") or "plain")
    if with_python or (folder / "with-python").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "with-python").touch()
        with_python = True
    tools = Path(sys.executable).parent
    configure = [
        str(tools / "cmake"), "-S", str(Path(__file__).parent), "-B", str(folder), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={tools / 'ninja'}", f"-DSANITIZE={sanitize}",
        f"-DWITH_PYTHON={'ON' if with_python else 'OFF'}", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    for command in (configure, [str(tools / "cmake"), "--build", str(folder)]):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return folder


def sanitizer_environment() -> dict[str, str]:
    """The environment in which a report of any sanitizer ends the process with FAILED_STATUS."""
    ended = f"exitcode={FAILED_STATUS}:halt_on_error=1"
    excused = Path(__file__).parent
    return os.environ | {
        "ASAN_OPTIONS": f"{ended}:detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": f"{ended}:print_stacktrace=1:suppressions={excused / 'undefined.suppressions'}",
        "TSAN_OPTIONS": f"{ended}:suppressions={excused / 'thread.suppressions'}",
    }
