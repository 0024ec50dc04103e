"""Secrets in memory: a process that holds keys is not written to a disk when it crashes.

Leaves:     the pool's own memory to the core, which keeps it out of every dump by itself.
"""

from __future__ import annotations

import ctypes

_PR_SET_DUMPABLE = 4


def keep_out_of_dumps() -> bool:
    """No core dump of this process, and no debugger of the same user: both would show its keys.

    A core limit of zero would not do: a kernel that hands dumps to a program does not ask it. False where the system
    does not know the call. A child that runs another program is as it would be without.
    """
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        return bool(libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False
