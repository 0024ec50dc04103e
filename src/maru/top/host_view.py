"""What other hosts do at a daemon, as tables: requests, leases, kept prefixes, peers. It gets a frame's parts and asks
nobody.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table

from maru.config import format_size
from maru.daemon.facts import quantile
from maru.stat_view import plain


def view_of_hosts(hosts: Mapping[str, Any]) -> Group:
    """All of it, one table below the other; what there is none of is left out."""
    parts: list[RenderableType] = []
    for table in (_requests(hosts["rpc"]), _leases(hosts["leases"]), _keeps(hosts["keeps"]), _peers(hosts["peers"])):
        if table.row_count:
            parts += [table, ""]
    return Group(*parts) if parts else Group("No other host asks this daemon for anything.")


def duration(seconds: float) -> str:
    """A duration for people, in the unit that suits it; "-" of none."""
    if math.isnan(seconds):
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    if seconds >= 1 or seconds <= 0:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.1f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} µs"


def _table(title: str, *columns: str) -> Table:
    """A heading that begins with ">" is of figures, and goes to the right."""
    table = Table(title=title, title_justify="left", title_style="bold", box=None, header_style="dim", pad_edge=False)
    for name in columns:
        table.add_column(name.removeprefix(">"), justify="right" if name.startswith(">") else "left")
    return table


def _buckets(rpc: Mapping[str, Any], op: str) -> Sequence[tuple[float, int]]:
    """JSON knows no infinity: the last bound is null."""
    pairs = rpc["seconds"].get(op, {"buckets": []})["buckets"]
    return [(math.inf if bound_s is None else bound_s, count) for bound_s, count in pairs]


def _requests(rpc: Mapping[str, Any]) -> Table:
    failed = ", ".join(f"{count:,} {error}" for error, count in sorted(rpc["errors"].items()))
    clients = f"{rpc['clients']:,} client" + ("" if rpc["clients"] == 1 else "s")
    title = f"Requests of {clients}; {format_size(rpc['bytes_in'])} in, {format_size(rpc['bytes_out'])} out"
    table = _table(title + (f"; {failed}" if failed else ""), "operation", ">requests", ">median", ">99 of 100 within")
    for op, count in sorted(rpc["requests"].items()):
        buckets = _buckets(rpc, op)
        table.add_row(plain(op), f"{count:,}", duration(quantile(buckets, 0.5)), duration(quantile(buckets, 0.99)))
    return table


def _leases(leases: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Leases", "host", "bytes", "pool", ">ends in", ">pins", ">pinned", ">being written")
    for row in leases:
        table.add_row(
            plain(row["host"]),
            row["kind"],
            plain(row["pool"] or "-"),
            duration(row["seconds_left"]),
            f"{row['pins']:,}",
            format_size(row["pinned_bytes"]),
            f"{row['reservations']:,}",
        )
    return table


def _keeps(keeps: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Kept prefixes", "pool", ">chunks", ">size", ">ends in")
    for row in keeps:
        ends = duration(row["seconds_left"])
        table.add_row(plain(row["pool"]), f"{row['chunks']:,}", format_size(row["bytes"]), ends)
    return table


def _peers(peers: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("Other daemons", "name", "address", "pools", ">seen")
    for row in peers:
        pools = ", ".join(row["pools"]) or "-"
        table.add_row(plain(row["name"]), plain(row["url"]), plain(pools), f"{duration(row['seen_ago_s'])} ago")
    return table
