"""Which GPUs there are, asked in a process of its own: no context and no library of the driver stays in the caller's.

A driver that hangs or crashes while it is asked takes that process along, and is an answer like any other.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from maru.engine.device_copy.driver import DeviceUnavailable, describe

DEADLINE_S = 60.0


def survey() -> dict[str, Any]:
    """What driver.describe() says, or {"problem": why there is nothing to say}."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-m", "maru.engine.device_copy.survey"]
    try:
        done = subprocess.run(command, env=dict(os.environ, PYTHONPATH=paths), capture_output=True, text=True,
                              timeout=DEADLINE_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"problem": f"the CUDA driver did not answer within {DEADLINE_S:.0f} s"}
    try:
        facts: dict[str, Any] = json.loads(done.stdout)
    except ValueError:
        return {"problem": f"the CUDA driver ended the process that asked it ({done.returncode})"}
    return facts


def _answer() -> dict[str, Any]:
    try:
        return describe()
    except DeviceUnavailable as error:
        return {"problem": error.message}


if __name__ == "__main__":
    print(json.dumps(_answer()))
