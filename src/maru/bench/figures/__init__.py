"""The figures of `maru bench`, one module each.

base         what a figure is
ttft         time to first token by context length: computed, first transfer, reuse
"""

from __future__ import annotations

import importlib

from maru.bench.figures.base import Figure

_MODULES = ("ttft",)


def all_figures() -> dict[str, Figure]:
    """By name, in the order of the report."""
    return {name: importlib.import_module(f"{__name__}.{name}").FIGURE for name in _MODULES}
