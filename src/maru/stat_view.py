"""What `maru stat` shows: one pool closely, or a line for each of many.

Holds tables only; it gets the figures of Pool.stats() and asks nobody. Names of processes, tenants and paths
come out of shared memory, where anybody may have written them: they pass through plain().
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from maru.config import format_size
from maru.errors import MaruError


@dataclass
class SeenPool:
    """One pool of a listing: its figures, or why there are none."""

    folder: Path
    stats: dict[str, Any] = field(default_factory=dict)
    error: MaruError | None = None

    def error_json(self) -> dict[str, Any]:
        return {"folder": str(self.folder), "error": type(self.error).__name__, "message": str(self.error)}


def plain(text: str) -> Text:
    """Text from shared memory: no markup in it, and nothing that moves a terminal's cursor."""
    return Text("".join(letter if letter.isprintable() else "?" for letter in text))


def share(part: int, whole: int) -> str:
    """A percentage for people, "-" of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else "-"


def others(stats: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The living processes of a pool, without this command."""
    return [row for row in stats["processes"] if row["alive"] and row["pid"] != os.getpid()]


def pairs(rows: Mapping[str, RenderableType]) -> Table:
    """Names and values, one a line."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column()
    for name, value in rows.items():
        grid.add_row(name, value)
    return grid


def table_of_pools(pools: list[SeenPool]) -> Table:
    """A line for each pool; those that could not be attached come last, with the reason."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for title in ("pool", "medium", "size", "used", "", "chunks", "hit rate", "processes"):
        table.add_column(title, justify="left" if title in ("pool", "medium", "") else "right", no_wrap=True)
    outer = Table.grid()
    for seen in pools:
        if seen.error:
            continue
        stats = seen.stats
        table.add_row(
            plain(seen.folder.name),
            stats["medium"],
            format_size(stats["size_bytes"]),
            format_size(stats["used_bytes"]),
            _bar(stats["used_bytes"], stats["size_bytes"], width=10),
            f"{stats['chunks']['sealed']:,}",
            _hit_rate(stats),
            str(len(others(stats))),
        )
    if table.row_count:
        outer.add_row(table)
    for seen in pools:
        if seen.error:
            outer.add_row(Text.assemble(plain(seen.folder.name), "  ", (seen.error.message, "red")))
    return outer


def show_pool(console: Console, stats: Mapping[str, Any]) -> None:
    """Everything that there is to know about one pool."""
    console.print(view_of_pool(stats))


def view_of_pool(stats: Mapping[str, Any]) -> Group:
    """The same, to be printed or kept up to date on a terminal."""
    size_bytes, used_bytes = stats["size_bytes"], stats["used_bytes"]
    occupancy = Table.grid(padding=(0, 1))
    occupancy.add_row(_bar(used_bytes, size_bytes, width=40), f"{share(used_bytes, size_bytes)} used")
    title = Text.assemble(("pool ", "dim"), plain(Path(stats["folder"]).name))
    parts: list[RenderableType] = [title, occupancy, _summary(stats)]
    views = (
        _chunks, _counters, _places, _decisions, _processes, _pins, _reservations, _tenants, _namespaces, _segments,
        _chunk_sizes,
    )  # fmt: skip
    for table in (view(stats) for view in views):
        if table.row_count:
            parts += ["", table]
    return Group(*parts)


def _bar(part: int, whole: int, width: int) -> ProgressBar:
    return ProgressBar(total=max(whole, 1), completed=min(part, whole), width=width)


def _hit_rate(stats: Mapping[str, Any]) -> str:
    return share(stats["counters"]["hit_keys"], stats["counters"]["lookup_keys"])


def _seconds(duration_ns: float) -> str:
    seconds = duration_ns / 1e9
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def _table(title: str, *columns: str) -> Table:
    """A titled table. A heading that begins with ">" is of figures, and goes to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    return table


def _summary(stats: Mapping[str, Any]) -> Table:
    counters = stats["counters"]
    made = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(stats["created_unix_ns"] / 1e9))
    slab, unit = format_size(stats["slab_bytes"]), format_size(stats["unit_bytes"])
    sealed, used = format_size(stats["chunk_bytes"]), format_size(stats["used_bytes"])
    asked = f"{counters['hit_keys']:,} of {counters['lookup_keys']:,} keys asked for"
    suffixes = counters["suffixes_linked"] + counters["suffixes_orphaned"]
    orphaned = f"{share(counters['suffixes_orphaned'], suffixes)} of {suffixes:,} that an engine stored"
    return pairs(
        {
            "folder": plain(stats["folder"]),
            "made": f"{made}, pool format {stats['format']}",
            "size": f"{format_size(stats['size_bytes'])}, {format_size(stats['real_bytes'])} of it real",
            "used": f"{used}, {sealed} of it sealed chunks",
            "index": format_size(stats["index_bytes"]),
            "slabs": f"{stats['slab_count']:,} of {slab}, in units of {unit}",
            "medium": f"{stats['medium']}, checksums {stats['checksum']}, copies by {stats['copy_path']}",
            "hit rate": f"{_hit_rate(stats)}: {asked}",
            "read in place": format_size(counters["pinned_bytes"]),
            **({"orphaned suffixes": orphaned} if suffixes else {}),
        }
    )


def _chunks(stats: Mapping[str, Any]) -> Table:
    chunks = stats["chunks"]
    table = _table("Chunks", "state", ">count")
    for name, count in chunks.items():
        if count and name not in ("slots", "free_slots"):
            table.add_row(name, f"{count:,}")
    table.add_row("slots in use", f"{chunks['slots'] - chunks['free_slots']:,} of {chunks['slots']:,}")
    return table


def _counters(stats: Mapping[str, Any]) -> Table:
    table = _table("Counters", "what", ">count")
    for name, count in stats["counters"].items():
        if count:
            table.add_row(name, format_size(count) if name.endswith("_bytes") else f"{count:,}")
    return table


def _figure(told: Mapping[str, Any], name: str) -> float | None:
    """A figure that some process wrote into a file; None when it is none, or is not known yet."""
    value = told.get(name)
    return value if isinstance(value, int | float) and math.isfinite(value) and value >= 0 else None


def _count(told: Mapping[str, Any], name: str) -> str:
    value = _figure(told, name)
    return "-" if value is None else f"{value:,.0f}"


def _places(stats: Mapping[str, Any]) -> Table:
    """Places below the pool, as each process that has them measured them: a chunk at a time."""
    table = _table(
        "Places below", ">pid", "place", "state", ">first byte", ">loading", ">storing", ">loaded", ">stored", ">absent"
    )

    def speed(place: Mapping[str, Any], name: str) -> str:
        value = _figure(place, name)
        return "-" if value is None else f"{format_size(int(value))}/s"

    for told in stats.get("ladders", []):
        for place in told["places"]:
            first_s = _figure(place, "load_first_byte_s")
            state = str(place.get("state"))
            table.add_row(
                str(told["pid"]),
                plain(str(place.get("url"))),
                Text("up", style="green") if state == "up" else Text.assemble((plain(state).plain, "red")),
                "-" if first_s is None else f"{1e3 * first_s:,.1f} ms",
                speed(place, "load_bytes_per_s"),
                speed(place, "store_bytes_per_s"),
                _count(place, "loaded"),
                _count(place, "stored"),
                _count(place, "absent"),
            )
    return table


def _decisions(stats: Mapping[str, Any]) -> Table:
    """Load or compute, process by process; chunks by where they came from."""
    table = _table(
        "Load or compute", ">pid", ">prefill", "which is", ">prefixes loaded", ">computed", ">chunks from the pool",
        ">from below", ">computed",
    )  # fmt: skip
    for told in stats.get("ladders", []):
        decision, sources = told["decision"], told["sources"]
        below = sources.get("below")
        table.add_row(
            str(told["pid"]),
            _prefill(decision),
            plain(str(decision.get("prefill_is"))),
            _count(decision, "loads"),
            _count(decision, "computes"),
            _count(sources, "pool"),
            _from_below(below if isinstance(below, dict) else {}),
            _count(sources, "computed"),
        )
    return table


def _prefill(decision: Mapping[str, Any]) -> str:
    if _figure(decision, "prefill_tokens_per_s") is None:
        return "-"
    further_back = (
        f", half at {_count(decision, 'prefill_double_at')}" if _figure(decision, "prefill_double_at") else ""
    )
    return f"{_count(decision, 'prefill_tokens_per_s')} tokens/s{further_back}"


def _from_below(below: Mapping[str, Any]) -> Text:
    """Chunks, place by place."""
    return (
        Text("\n").join(Text.assemble(f"{_count(below, name)} ", plain(name)) for name in below) if below else Text("0")
    )


def _processes(stats: Mapping[str, Any]) -> Table:
    """Of a process's pins, those by key are nobody's address: they end at an age. The rest are views somebody holds."""
    table = _table("Processes", ">pid", "name", "state", ">pins", ">by key", ">oldest of these", ">attached for")
    for row in stats["processes"]:
        table.add_row(
            str(row["pid"]),
            Text("this command", style="dim") if row["pid"] == os.getpid() else plain(row["name"]),
            Text("alive", style="green") if row["alive"] else Text("dead", style="red"),
            f"{row['pins']:,}",
            f"{row['key_pins']:,}",
            _seconds(max(0, stats["now_ns"] - row["key_pin_ns"])) if row["key_pins"] else "-",
            _seconds(stats["now_ns"] - row["attached_ns"]),
        )
    return table


def _holder(stats: Mapping[str, Any], hold: Mapping[str, Any]) -> tuple[RenderableType, ...]:
    """Who holds something: pid, name, how long it has been attached. A row may be gone by now."""
    rows = [row for row in stats["processes"] if row["number"] == hold["process"]]
    if not rows:
        return ("-", "nobody", "-")
    attached_ns = stats["now_ns"] - rows[0]["attached_ns"]
    return (str(rows[0]["pid"]), plain(rows[0]["name"]), _seconds(max(0, attached_ns)))


def _pins(stats: Mapping[str, Any]) -> Table:
    """How long a pin is held is written nowhere; how long nobody has asked for its chunk is."""
    table = _table("Oldest pins", ">slot", ">pid", "process", ">attached for", ">pins", ">size", ">epochs since a hit")
    for pin in stats["oldest_pins"]:
        age = str(pin["epochs_since_hit"])
        table.add_row(str(pin["slot"]), *_holder(stats, pin), f"{pin['count']:,}", format_size(pin["bytes"]), age)
    return table


def _reservations(stats: Mapping[str, Any]) -> Table:
    table = _table("Reservations", ">slot", "state", ">pid", "process", ">attached for", ">size", ">deadline")
    for row in stats["reservations"]:
        late_ns = stats["now_ns"] - row["deadline_ns"]
        deadline = Text(f"{_seconds(late_ns)} ago", style="red") if late_ns > 0 else Text(f"in {_seconds(-late_ns)}")
        state = Text(row["state"]) if row["alive"] else Text(f"{row['state']}, process dead", style="red")
        table.add_row(str(row["slot"]), state, *_holder(stats, row), format_size(row["bytes"]), deadline)
    return table


def tenants_table(stats: Mapping[str, Any]) -> Table:
    """What each tenant takes, was promised and may take, and how often its chunks made way."""
    heads = ("tenant", ">uses", ">of the pool", ">share", ">limit", ">made way for others", ">for its own", ">refused")
    table = _table("Tenants", *heads)
    for row in stats["tenants"]:
        limit = format_size(row["limit_bytes"]) if row["limit_bytes"] else "none"
        table.add_row(
            plain(row["name"]),
            format_size(row["used_bytes"]),
            share(row["used_bytes"], stats["size_bytes"]),
            format_size(row["share_bytes"]) if row["share_bytes"] else "none",
            f"{limit}, refuses" if row["at_limit"] == "refuse" else limit,
            f"{row['made_way']:,}",
            f"{row['made_own_way']:,}",
            f"{row['refused']:,}",
        )
    return table


def _tenants(stats: Mapping[str, Any]) -> Table:
    """Only where there is more to say than that everything is one tenant's."""
    if len(stats["tenants"]) > 1 or any(row["share_bytes"] or row["limit_bytes"] for row in stats["tenants"]):
        return tenants_table(stats)
    return _table("Tenants")


def _namespaces(stats: Mapping[str, Any]) -> Table:
    table = _table("Namespaces", ">id", "tenant", "digest", "rules", ">epoch", ">ttl", ">chunks", ">bytes")
    for row in stats["namespaces"]:
        table.add_row(
            str(row["id"]),
            plain(row["tenant"] or "-"),
            row["digest"][:12],
            ", ".join(row["policy"]) or "-",
            str(row["epoch"]),
            _seconds(row["ttl_ns"]) if row["ttl_ns"] else "none",
            f"{row['chunks']:,}",
            format_size(row["bytes"]),
        )
    return table


def _segments(stats: Mapping[str, Any]) -> Table:
    table = _table("Segments", "medium", "state", ">size", "path")
    for row in stats["segments"]:
        table.add_row(row["medium"], row["state"], format_size(row["bytes"]), plain(row["path"]))
    return table


def _chunk_sizes(stats: Mapping[str, Any]) -> Table:
    table = _table("Chunk sizes", ">chunk", ">slabs", ">free chunks")
    for row in stats["classes"]:
        table.add_row(format_size(row["chunk_bytes"]), f"{row['slabs']:,}", f"{row['free_chunks']:,}")
    return table
