"""`maru stat --watch`: the same figures again and again, with what happened in between, until Ctrl-C.

On a terminal the view stays in its place; elsewhere each look is a line a pool, or one JSON document a line. Each look
attaches and lets go again, so that watching keeps no pool from being destroyed.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from maru.config import format_size
from maru.stat_view import SeenPool, plain, share, table_of_pools, view_of_pool

Look = Callable[[], list[SeenPool]]
SECONDS_DEFAULT = 2.0
SECONDS_MIN = 0.1


def watch(
    look: Look,
    console: Console,
    seconds: float,
    json_output: bool = False,
    closely: bool = False,
    pause: Callable[[float], None] = time.sleep,
) -> None:
    """Look every `seconds` until KeyboardInterrupt, which is the end and no error. `closely`: all about one pool.

    Raises what `look` raises: a pool that was destroyed ends the watch.
    """
    before: dict[str, Mapping[str, Any]] = {}
    try:
        if json_output or not console.is_terminal:
            while True:
                pools = look()
                for seen in pools:
                    print(_json_line(seen) if json_output else _line(seen, before), flush=True)
                before = _stats_of(pools)
                pause(seconds)
        with Live(console=console, auto_refresh=False) as live:
            while True:
                pools = look()
                live.update(_screen(pools, before, seconds, closely), refresh=True)
                before = _stats_of(pools)
                pause(seconds)
    except KeyboardInterrupt:
        return


def _stats_of(pools: list[SeenPool]) -> dict[str, Mapping[str, Any]]:
    return {str(seen.folder): seen.stats for seen in pools if not seen.error}


def rates(now: Mapping[str, Any], before: Mapping[str, Any] | None) -> dict[str, float]:
    """What the counters did since the look before, per second; empty at the first look, and for a pool made anew."""
    if not before or before["uuid"] != now["uuid"] or now["now_ns"] <= before["now_ns"]:
        return {}
    seconds = (now["now_ns"] - before["now_ns"]) / 1e9
    return {name: max(0, count - before["counters"][name]) / seconds for name, count in now["counters"].items()}


def _told(figures: Mapping[str, float]) -> str:
    """Rates for people."""
    if not figures:
        return "first look"
    hits = share(round(figures["hit_keys"]), round(figures["lookup_keys"]))
    return (
        f"{figures['lookup_keys']:,.0f} keys/s asked for ({hits} hit), {format_size(round(figures['pinned_bytes']))}/s "
        f"read in place, {format_size(round(figures['stored_bytes']))}/s stored, {figures['evicted']:,.0f}/s evicted"
    )


def _line(seen: SeenPool, before: Mapping[str, Mapping[str, Any]]) -> str:
    clock = time.strftime("%H:%M:%S")
    if seen.error:
        return f"{clock} {plain(seen.folder.name)}: {plain(seen.error.message)}"
    stats = seen.stats
    held = sum(row["pins"] for row in stats["processes"])
    return (
        f"{clock} {plain(seen.folder.name)}: {format_size(stats['used_bytes'])} of "
        f"{format_size(stats['size_bytes'])} used, "
        f"{stats['chunks']['sealed']:,} chunks, {held:,} pins, {stats['chunks']['reserved']:,} reserved; "
        f"{_told(rates(stats, before.get(str(seen.folder))))}"
    )


def _json_line(seen: SeenPool) -> str:
    return json.dumps(seen.error_json() if seen.error else seen.stats)


def _screen(
    pools: list[SeenPool], before: Mapping[str, Mapping[str, Any]], seconds: float, closely: bool
) -> RenderableType:
    head = Text(f"{time.strftime('%H:%M:%S')}, every {seconds:g} s; Ctrl-C ends it", style="dim")
    parts: list[RenderableType] = [head]
    for seen in pools:
        if not seen.error:
            told = _told(rates(seen.stats, before.get(str(seen.folder))))
            parts.append(Text.assemble(plain(seen.folder.name), "  ", (told, "cyan")))
    if closely and len(pools) == 1 and not pools[0].error:
        return Group(*parts, view_of_pool(pools[0].stats))
    return Group(*parts, table_of_pools(pools) if pools else Text("No pools.", style="yellow"))
