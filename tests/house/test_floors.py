"""Stairs go one way: imports between the rooms of the package."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

from checkout import ROOT

SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]
OFF_THE_STAIRS = {"testing"}  # Has contracts of its own: sees no door, and no product file sees it.
COMPILED = re.compile(r"_native\w*")


def test_imports_go_down_only() -> None:
    # In a process of its own: the linter's logging set-up silences the loggers of whoever runs it.
    command = [Path(sys.executable).with_name("lint-imports"), "--no-logo", "--no-cache"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr


def test_every_room_has_a_floor() -> None:
    layers = next(contract for contract in SETTINGS["contracts"] if contract["type"] == "layers")["layers"]
    on_the_stairs = set(re.findall(r"maru\.(\w+)", " ".join(layers)))
    rooms = {
        path.stem
        for path in (ROOT / "src" / "maru").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").is_file()
    }
    assert {room for room in rooms if not COMPILED.fullmatch(room)} - OFF_THE_STAIRS - on_the_stairs == set()
