"""What tests do with pools by name."""

from __future__ import annotations

import maru


def with_force_gone(url: str) -> None:
    """Destroy the pool if it is there."""
    try:
        maru.Pool.destroy(url, force=True)
    except maru.MaruError:
        return
