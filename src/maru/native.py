"""The native core this process uses: the product build, or the one with crash points when a test asked for it.

The choice is made once, when `maru` is imported: MARU_CORE=testing in the environment loads the test build.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING or os.environ.get("MARU_CORE") != "testing":
    import maru._native as core
else:
    import maru._native_testing as core

__all__ = ["core"]
