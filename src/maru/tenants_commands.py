"""`maru tenants …`: who was promised how much of a pool, who may take how much, and who takes it."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

import typer

import maru
from maru.config import format_size, parse_size
from maru.stat_view import tenants_table
from maru.terminal import SETTINGS, JsonFlag, PlaceOption, config_of, console, print_json, url_of

tenants_app = typer.Typer(**SETTINGS)

PoolArgument = Annotated[str, typer.Argument(metavar="POOL", help="NAME or maru:/// URL.")]


class AtLimit(StrEnum):
    """What happens at a tenant's limit."""

    EVICT = "evict"
    REFUSE = "refuse"


@tenants_app.callback()
def _tenants() -> None:
    """Who was promised how much of a pool, who may take how much, and who takes it.

    Nobody else pushes a tenant below its share. Above it a tenant borrows what nobody was promised, and whoever has
    borrowed most gives back first. A limit is never passed. Both count at once, in every process.

    [bold]Examples[/bold]

    [cyan]maru tenants list kv[/cyan]   what each takes
    [cyan]maru tenants set kv search --share 20GiB[/cyan]   promise 20 GiB, lend what is free
    [cyan]maru tenants set kv batch --share 5GiB --limit 5GiB[/cyan]   lend nothing: its own coldest makes way
    [cyan]maru tenants set kv guest --limit 1GiB --at-limit refuse[/cyan]   promise nothing, take no more than 1 GiB
    """


@tenants_app.command("list")
def list_tenants(pool: PoolArgument, json_output: JsonFlag = False, place: PlaceOption = None) -> None:
    """Show what each tenant takes of a pool, was promised and may take, and whose chunks made way."""
    with maru.Pool.attach(url_of(config_of(pool, place))) as attached:
        stats = attached.stats()
    _show(stats, json_output)


@tenants_app.command("set")
def set_tenant(
    pool: PoolArgument,
    tenant: Annotated[str, typer.Argument(metavar="TENANT", help="Name of the tenant; need not be there yet.")],
    share: Annotated[str, typer.Option("--share", metavar="SIZE", help="Promised to it, as 20GiB.")] = "0",
    limit: Annotated[str, typer.Option("--limit", metavar="SIZE", help="It takes no more. 0: no limit.")] = "0",
    at_limit: Annotated[
        AtLimit, typer.Option("--at-limit", help="What it stores then: takes its own coldest's place, or is refused.")
    ] = AtLimit.EVICT,
    json_output: JsonFlag = False,
    place: PlaceOption = None,
) -> None:
    """Say what a tenant is promised and what it may take; what was said before is replaced."""
    with maru.Pool.attach(url_of(config_of(pool, place))) as attached:
        try:
            attached.set_share(tenant, _bytes(share), _bytes(limit), at_limit.value)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
        stats = attached.stats()
    _show(stats, json_output)


def _bytes(size: str) -> int:
    return 0 if size == "0" else parse_size(size)


def _show(stats: Mapping[str, Any], json_output: bool) -> None:
    if json_output:
        print_json(stats["tenants"])
    else:
        console().print(tenants_table(stats))
        promised = sum(row["share_bytes"] for row in stats["tenants"])
        left = format_size(max(0, stats["size_bytes"] - promised))
        console().print(f"{left} of {format_size(stats['size_bytes'])} are promised to nobody: lent to whoever comes.")
