"""The folders of those stores that need one: virtual environments under `.cache/rivals` of the checkout."""

from __future__ import annotations

import functools
import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path

import maru
from maru.bench.rivals.roster import ENTRIES, Entry

COMMAND = "python -m maru.bench rivals --install"
EXTRA = "pip install 'maru-kvcache[rivals]'"


def rivals_folder() -> Path:
    """In the checkout that this package is run from, or else in the working directory."""
    checkout = Path(maru.__file__).resolve().parents[2]
    return (checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()) / ".cache" / "rivals"


def interpreter_of(entry: Entry) -> Path:
    """The interpreter that has the store, if it is installed."""
    return rivals_folder() / entry.folder / "bin" / "python" if entry.folder else Path(sys.executable)


def why_not(entry: Entry) -> str:
    """Why this store cannot be measured here; "" if it can."""
    if not entry.folder:
        absent = [name for name in entry.modules if importlib.util.find_spec(name) is None]
        if absent:
            return f"not installed: {EXTRA}"
        if entry.program and shutil.which(entry.program) is None:
            return f"there is no {entry.program} (a system package of that name on Debian and Ubuntu)"
        return ""
    if not interpreter_of(entry).exists():
        return f"not installed: {COMMAND} {entry.folder}"
    return _why_not_imported(interpreter_of(entry), entry.modules)


@functools.cache
def _why_not_imported(interpreter: Path, modules: tuple[str, ...]) -> str:
    """What an interpreter of another folder says when it imports these; asked once, since some take seconds."""
    program = "import " + ", ".join(modules)
    done = subprocess.run([interpreter, "-c", program], capture_output=True, text=True, check=False)
    if not done.returncode:
        return ""
    words = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
    # Mooncake's wheels expect the RDMA library of the system, also where there is no such device.
    hint = " (a system package: libibverbs1 on Debian and Ubuntu)" if "libibverbs" in words else ""
    return f"does not run here: {words}{hint}"


def folders() -> list[str]:
    """What can be installed."""
    return list(dict.fromkeys(entry.folder for entry in ENTRIES.values() if entry.folder))


def install(folder: str) -> str:
    """Make the environment, showing how it goes. Returns why the store still does not run, or ""."""
    entry = next(one for one in ENTRIES.values() if one.folder == folder)
    place = rivals_folder() / folder
    print(f"making {place}", flush=True)
    for command in (
        [sys.executable, "-m", "venv", str(place)],
        [str(interpreter_of(entry)), "-m", "pip", "--disable-pip-version-check", "install", *entry.packages],
    ):
        done = subprocess.run(command, check=False)
        if done.returncode:
            return f"{' '.join(command)} ended with {done.returncode}"
    _why_not_imported.cache_clear()
    return why_not(entry)
