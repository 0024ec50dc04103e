"""`maru tier …`: try a place below the pool before an engine depends on it, and see what lies there.

Holds what a person types and reads; `maru.tier` and `maru.tiering` do it.
"""

from __future__ import annotations

import asyncio
import os
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Any

import typer
from rich.progress import Progress
from rich.table import Table

from maru.config import format_size
from maru.errors import MaruError, TierFailed
from maru.terminal import SETTINGS, JsonFlag, console, print_json
from maru.tier.contract import DIGEST_BYTES
from maru.tier.envelope import ChunkFacts
from maru.tier.opening import TierConfig, open_tier, parse_tier_url
from maru.tiering.place import Loaded, Place, Which

tier_app = typer.Typer(**SETTINGS)

UrlArgument = Annotated[str, typer.Argument(metavar="URL", help="file:///DIR?size=1TiB, s3://BUCKET/PREFIX, redis://…")]
_MIB = 1 << 20


@tier_app.callback()
def _tier() -> None:
    """Places below the pool: disk, NFS, object stores, Valkey or Redis, Mooncake.

    What leaves the pool is copied there first, and comes up again when an engine asks for it.

    [bold]Examples[/bold]

    [cyan]maru tier check 'file:///var/lib/maru?size=500GiB'[/cyan]   can it be used, and how fast is it?
    [cyan]maru tier show 's3://bucket/kv'[/cyan]   what lies there
    [cyan]maru serve kv --tier 'file:///var/lib/maru?size=500GiB'[/cyan]   switch it on
    """


@dataclass
class _Tried:
    stored_s: list[float]
    loaded_s: list[float]
    wrong: int


@tier_app.command("check")
def check(
    url: UrlArgument,
    chunk_mib: Annotated[int, typer.Option(min=1, max=64, help="Size of a chunk in MiB.")] = 8,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many chunks to store and load.")] = 16,
    json_output: JsonFlag = False,
) -> None:
    """Store chunks of our own there, load and compare them, remove them: does it work, and how fast?

    With the URL's codec and key, one chunk after the other; the chunks are bytes that no codec makes smaller.
    """
    config = parse_tier_url(url)
    with Progress(console=console(), transient=True, disable=json_output) as progress:
        task = progress.add_task("trying it", total=2 * count)
        tried = asyncio.run(_try(config, chunk_mib * _MIB, count, lambda: progress.advance(task)))
    size = chunk_mib * _MIB
    figures = {
        "url": config.shown,
        "chunks": count,
        "chunk_bytes": size,
        "store_bytes_per_s": size / statistics.median(tried.stored_s),
        "load_bytes_per_s": size / statistics.median(tried.loaded_s),
        "store_s_max": max(tried.stored_s),
        "load_s_max": max(tried.loaded_s),
        "wrong": tried.wrong,
    }
    if json_output:
        print_json(figures)
    else:
        table = Table("", "median", "slowest", title=config.shown, title_justify="left")
        for name, seconds in (("store", tried.stored_s), ("load and verify", tried.loaded_s)):
            speed = format_size(int(size / statistics.median(seconds)))
            table.add_row(name, f"{speed}/s", f"{max(seconds) * 1e3:.0f} ms")
        console().print(table)
        console().print(f"{count} chunks of {format_size(size)}: all came back as they were stored")
    if tried.wrong:
        raise MaruError(f"{tried.wrong} of {count} chunks did not come back as they were stored")


async def _try(config: TierConfig, size: int, count: int, advance: Any) -> _Tried:
    """Raises TierFailed with the place's own words."""
    place = Place.open(config, os.urandom(16))
    digest = os.urandom(DIGEST_BYTES)
    tried = _Tried([], [], 0)
    content = [memoryview(os.urandom(size)) for _ in range(min(count, 4))]
    chunks = [Which(os.urandom(16), digest, 0) for _ in range(count)]
    try:
        async with asyncio.timeout(config.deadline_s):
            await place.tier.health()
        for number, chunk in enumerate(chunks):
            begun = time.perf_counter()
            if not await place.store(chunk, None, content[number % len(content)], 3600.0):
                raise TierFailed(f"{config.shown}: a chunk was not stored: {_troubles(place)}", place=config.shown)
            tried.stored_s.append(time.perf_counter() - begun)
            advance()
        for number, chunk in enumerate(chunks):
            landing = memoryview(bytearray(size))

            async def begin(_: ChunkFacts, landing: memoryview = landing) -> memoryview:
                return landing

            begun = time.perf_counter()
            loaded = await place.load(chunk, begin)
            tried.loaded_s.append(time.perf_counter() - begun)
            tried.wrong += loaded is not Loaded.WHOLE or landing != content[number % len(content)]
            advance()
    except TimeoutError:
        raise TierFailed(f"{config.shown} does not answer within {config.deadline_s:g} s", place=config.shown) from None
    finally:
        await place.forget(digest)
        await place.close()
    return tried


def _troubles(place: Place) -> str:
    figures = place.stats()
    found = [f"{name} {figures[name]}" for name in ("timeouts", "full", "failures") if figures[name]]
    return ", ".join(found) or "no reason given"


@tier_app.command("show")
def show(url: UrlArgument, json_output: JsonFlag = False) -> None:
    """Objects and bytes that lie there, by namespace. Reads names and sizes, no content."""
    config = parse_tier_url(url)
    objects, sizes = asyncio.run(_list(config))
    rows = [{"folder": name, "objects": objects[name], "bytes": sizes[name]} for name in sorted(objects)]
    if json_output:
        print_json({"url": config.shown, "namespaces": rows, "bytes": sum(sizes.values())})
        return
    table = Table("namespace and generation", "objects", "bytes", title=config.shown, title_justify="left")
    for name in sorted(objects, key=lambda one: -sizes[one]):
        table.add_row(name, str(objects[name]), format_size(sizes[name]))
    table.add_row("all", str(sum(objects.values())), format_size(sum(sizes.values())))
    console().print(table)


async def _list(config: TierConfig) -> tuple[Counter[str], Counter[str]]:
    objects: Counter[str] = Counter()
    sizes: Counter[str] = Counter()
    tier = open_tier(config)
    try:
        async for one in tier.list():
            folder = one.name.partition("/")[0]
            objects[folder] += 1
            sizes[folder] += one.size_bytes
    finally:
        await tier.close()
    return objects, sizes
