"""The description of the pool's layout that others read is the one that the core has."""

from __future__ import annotations

import json
import subprocess
import sys

from checkout import ROOT

from maru.native import core

GENERATOR = ROOT / "scripts" / "generate_pool_format.py"


def test_pool_format_json_is_the_cores_description() -> None:
    written = json.loads((ROOT / "src" / "maru" / "pool_format.json").read_text())
    assert written == json.loads(core.layout_description())


def test_what_the_generator_writes_now_is_what_is_there() -> None:
    done = subprocess.run([sys.executable, str(GENERATOR), "--check"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr
