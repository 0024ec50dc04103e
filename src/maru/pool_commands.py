"""`maru pool …`: make pools, list them, give one its index back, remove one."""

from __future__ import annotations

import sys
import time
from enum import StrEnum
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

import maru
from maru.config import format_size, secure_folder
from maru.errors import PoolBusy
from maru.native import core
from maru.stat_view import others, pairs, plain, share
from maru.survey import survey, url_in
from maru.terminal import SETTINGS, JsonFlag, PlaceOption, complain, config_of, console, print_json, say_none, url_of

READY_DEADLINE_S = 600.0
READY_STEP_S = 0.2

pool_app = typer.Typer(**SETTINGS)


@pool_app.command("create")
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="maru:///NAME?size=8GiB&…, or only NAME (4 GiB).")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all of the pool's memory is real.")] = True,
    json_output: JsonFlag = False,
) -> None:
    """Create a pool and say what was obtained.

    The pool outlives this command and every process: it goes with [cyan]maru pool destroy[/cyan] or a reboot.

    [bold]Examples[/bold]

    [cyan]maru pool create 'maru:///kv?size=8GiB'[/cyan]   in /dev/shm
    [cyan]maru pool create 'maru:///kv?size=64GiB&medium=hugetlb&data=/dev/hugepages'[/cyan]   in huge pages
    [cyan]maru pool create 'maru:///kv?size=8GiB&dir=/shared/place&share=group'[/cyan]   for a group of users
    """
    config = config_of(url, None)
    with maru.Pool.create(url if "://" in url else url_of(config)) as pool:
        is_ready = not wait or not config.populate or _wait_ready(pool, json_output)
        stats = pool.stats()
    if json_output:
        print_json(stats)
        return
    out = console()
    out.print(Text.assemble("Created ", (url_of(config), "bold")))
    real = f"{format_size(stats['real_bytes'])} ({share(stats['real_bytes'], stats['size_bytes'])})"
    slabs = f"{stats['slab_count']:,} of {format_size(stats['slab_bytes'])}; one chunk must fit a slab"
    out.print(
        pairs(
            {
                "size": format_size(stats["size_bytes"]),
                "real": real,
                "medium": stats["medium"],
                "slabs": slabs,
                "index": format_size(stats["index_bytes"]),
                "folder": plain(stats["folder"]),
            }
        )
    )
    if wait and config.populate and stats["real_bytes"] < stats["size_bytes"]:
        why = "the medium has no more room" if is_ready else f"not finished after {READY_DEADLINE_S:.0f} s"
        out.print(f"Only a part of it is real: {why}. The pool works with that part.", style="yellow")


def _wait_ready(pool: maru.Pool, json_output: bool) -> bool:
    """Show a bar until the pool's memory is real, or all of it that the medium gives."""
    columns = (
        TextColumn("making memory real"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + READY_DEADLINE_S
    with Progress(*columns, console=console(json_output), transient=True) as progress:
        task = progress.add_task("", total=None, done="")
        while True:
            is_ready = pool.wait_ready(READY_STEP_S)
            stats = pool.stats()
            real, size = stats["real_bytes"], stats["size_bytes"]
            progress.update(task, total=size, completed=real, done=f"{format_size(real)} of {format_size(size)}")
            if is_ready or time.monotonic() > deadline:
                return is_ready


@pool_app.command("list")
def list_pools(json_output: JsonFlag = False, place: PlaceOption = None) -> None:
    """List the pools there are, their URLs and the processes that use them.

    [bold]Examples[/bold]

    [cyan]maru pool list[/cyan]   this user's pools
    [cyan]maru pool list --dir /shared/place[/cyan]   those in a folder that several users share
    [cyan]maru pool list --json[/cyan]   for programs
    """
    pools = survey(place)
    if json_output:
        print_json(
            [
                seen.error_json()
                if seen.error
                else {
                    "url": url_in(seen.folder),
                    "folder": str(seen.folder),
                    "medium": seen.stats["medium"],
                    "size_bytes": seen.stats["size_bytes"],
                    "processes": [{"pid": row["pid"], "name": row["name"]} for row in others(seen.stats)],
                }
                for seen in pools
            ]
        )
        return
    if not pools:
        say_none(place)
    for seen in pools:
        line = Text.assemble((url_in(seen.folder), "bold"), "  ")
        if seen.error:
            line.append(seen.error.message, style="red")
        else:
            users = ", ".join(f"{row['pid']} ({row['name']})" for row in others(seen.stats))
            line.append(f"{format_size(seen.stats['size_bytes'])} {seen.stats['medium']}  ")
            line.append_text(plain(f"used by {users}" if users else "not in use"))
        console().print(line, soft_wrap=True)


@pool_app.command("rebuild")
def rebuild(
    url: Annotated[str, typer.Argument(metavar="URL|NAME", help="The pool, with data= if its segments lie elsewhere.")],
    json_output: JsonFlag = False,
    place: PlaceOption = None,
) -> None:
    """Make a lost index anew from the segments' own records. Only what verifies comes back.

    For a pool whose segments are there while its index is not: somebody cleaned the folder, or the container that held
    it is gone. Chunks that expire or were invalidated are left out.

    [bold]Examples[/bold]

    [cyan]maru pool rebuild kv[/cyan]   segments in the pool's own folder
    [cyan]maru pool rebuild 'maru:///kv?data=/dev/dax0.0&medium=devdax'[/cyan]   on a device
    """
    config = config_of(url, place)
    found = maru.Pool.rebuild(url if "://" in url else url_of(config))
    if json_output:
        print_json(found)
        return
    out = console()
    out.print(Text.assemble("Rebuilt ", (url_of(config), "bold")))
    left_out = {f"left out: {why}": f"{count:,}" for why, count in found["left_out"].items()}
    out.print(pairs({"chunks": f"{found['chunks']:,}", "bytes": format_size(found["bytes"]), **left_out}))


class SegmentState(StrEnum):
    """What can be asked of a segment."""

    ONLINE = "online"
    DRAINING = "draining"
    LOST = "lost"


@pool_app.command("segment")
def segment(
    pool: Annotated[str, typer.Argument(metavar="URL|NAME", help="The pool.")],
    number: Annotated[int, typer.Argument(min=0, max=31, help="Which segment; `maru stat` lists them from 0.")],
    state: Annotated[SegmentState, typer.Argument(help="What it should be from now on.")],
    place: PlaceOption = None,
) -> None:
    """Empty a data segment, take it back, or give it up.

    A [bold]draining[/bold] segment gets no new chunks and loses the old ones as soon as nobody reads them.
    Everything in a [bold]lost[/bold] one is a miss at once, and there is no way back: for a device that failed.

    [bold]Examples[/bold]

    [cyan]maru pool segment kv 2 draining[/cyan]   before a device is taken out
    [cyan]maru pool segment kv 2 lost[/cyan]   after it failed
    """
    config = config_of(pool, place)
    maru.Pool.set_segment(url_of(config), number, state.value)
    console().print(
        Text.assemble("Segment ", (str(number), "bold"), " of ", (url_of(config), "bold"), f" is {state.value}")
    )


class AddedMedium(StrEnum):
    """What a segment that is added can be."""

    SHM = "shm"
    FILE = "file"
    HUGETLB = "hugetlb"
    DEVDAX = "devdax"


@pool_app.command("add-segment")
def add_segment(
    pool: Annotated[str, typer.Argument(metavar="URL|NAME", help="The pool.")],
    path: Annotated[str, typer.Argument(metavar="PATH", help="A file to make, a folder to make one in, or a device.")],
    medium: Annotated[
        AddedMedium | None, typer.Option(help="Seen from the path, but for huge pages: say hugetlb.")
    ] = None,
    place: PlaceOption = None,
) -> None:
    """Give a pool more memory while it lives.

    How much may be added is said when the pool is created, since its index is laid out then:
    [bold]spare=SIZE[,SIZE…][/bold] in its URL, one size for each segment that may come. Every process that is attached
    uses the new memory within a quarter of a second; one that cannot see the path misses what lies there.

    [bold]Examples[/bold]

    [cyan]maru pool create 'maru:///kv?size=64GiB&spare=64GiB,64GiB'[/cyan]   room for two more
    [cyan]maru pool add-segment kv /dev/dax1.0[/cyan]   the first of them, a device
    [cyan]maru pool add-segment kv /mnt/huge --medium hugetlb[/cyan]   the second, huge pages
    """
    config = config_of(pool, place)
    number = maru.Pool.add_segment(url_of(config), path, medium.value if medium else None)
    console().print(
        Text.assemble("Segment ", (str(number), "bold"), " of ", (url_of(config), "bold"), f" is online: {path}")
    )


def _stdin_is_terminal() -> bool:
    return sys.stdin.isatty()


@pool_app.command("destroy")
def destroy(
    pool: Annotated[str, typer.Argument(metavar="URL|NAME", help="The pool to remove.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when processes use it: all of them see misses from then on.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    place: PlaceOption = None,
) -> None:
    """Remove a pool and everything in it. Asks first when run on a terminal.

    [bold]Examples[/bold]

    [cyan]maru pool destroy kv[/cyan]   when nobody uses it
    [cyan]maru pool destroy kv --force --yes[/cyan]   whoever uses it, and without a question
    [cyan]maru pool destroy 'maru:///kv?dir=/shared/place'[/cyan]   one that several users share
    """
    config = config_of(pool, place)
    url = url_of(config)
    secure_folder(config, create=False)
    if not yes and _stdin_is_terminal():
        users = core.attached_processes(str(config.folder))
        state = f"in use by {', '.join(str(plain(user)) for user in users)}" if users else "not in use"
        if not typer.confirm(f"Remove {url} ({state}) and everything in it?"):
            console().print("Nothing was changed.")
            return
    try:
        maru.Pool.destroy(url, force=force)
    except PoolBusy as error:
        if not error.processes:
            raise
        busy = f"{url} is in use by {plain(error.processes)}"
        complain(f"{busy}; stop them first, or --force: from then on each of them sees misses")
        raise typer.Exit(1) from error
    console().print(Text.assemble("Removed ", (url, "bold")))


# ---- maru demo --------------------------------------------------------------------------------------------
