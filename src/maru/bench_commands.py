"""`maru bench …`: figures measured on this machine, beside what one would use instead; compared, and drawn.

Holds what a person types; measuring, and numpy with it, is imported by the command that measures. Exit codes: 0 done, 1
something could not be measured or an answer was wrong, 2 a command line that cannot be read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from maru.bench.figures import NAMES, figure_named
from maru.config import parse_size
from maru.errors import MaruError
from maru.terminal import SETTINGS, JsonFlag, complain, console, print_json

RESULTS = Path("bench-results")
PLAIN_WIDTH = 144  # Wide enough for the table wherever no terminal says how wide it is.
NEEDS = frozenset({"numpy", "msgspec", "matplotlib"})

bench_app = typer.Typer(**SETTINGS)

EngineOption = Annotated[
    str | None,
    typer.Option("--engine", metavar="NAME", help="transformers, synthetic, vllm or lmcache; the figure's own first."),
]
SystemsOption = Annotated[
    str | None, typer.Option("--systems", metavar="A,B,…", help="Only these; `maru bench list` shows all of them.")
]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", metavar="NAME", help="Of synthetic: a named model or its KV bytes a token. Else a folder."),
]
ContextsOption = Annotated[str | None, typer.Option("--contexts", metavar="N,N,…", help="Context lengths in tokens.")]
RoundsOption = Annotated[int | None, typer.Option("--rounds", min=1, help="Samples of each kind.")]
CapacityOption = Annotated[str | None, typer.Option("--capacity", metavar="SIZE", help="Of every cache: 8GiB.")]
QuickOption = Annotated[bool, typer.Option("--quick", help="A minute or two; for a first look.")]
ResumeOption = Annotated[bool, typer.Option("--resume", help="Go on where an interrupted run of these settings ended.")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="A setting of this figure; may be repeated.")
]
OutOption = Annotated[Path, typer.Option("--out", metavar="PATH", help="Folder for results, or a .json file.")]
CacheOption = Annotated[Path, typer.Option("--cache-dir", metavar="PATH", help="Where model and data stay.")]


@bench_app.callback()
def _bench() -> None:
    """Measure the published figures on this machine, against what you would use instead.

    Every figure writes a JSON file with every sample, a picture, and its section of report.html.

    [bold]Begin here[/bold]

    [cyan]maru bench ttft --quick[/cyan]   what a hit saves, on a real small model
    [cyan]maru bench ttft --engine synthetic --model Llama-3.1-8B[/cyan]   the data path at full size, no GPU needed
    [cyan]maru bench list[/cyan]   figures, engines and rivals, and what is missing here
    [cyan]maru bench all --quick[/cyan]   everything, roughly
    """


@contextmanager
def _explained() -> Iterator[None]:
    """A package that is not there is said, with the line that brings it."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in NEEDS:
            raise
        complain(f"measuring needs the package {missing!r}: pip install 'maru-kvcache[bench]'")
        raise typer.Exit(1) from error


def _figure_command(name: str) -> Callable[..., None]:
    def command(
        engine: EngineOption = None,
        systems: SystemsOption = None,
        model: ModelOption = None,
        contexts: ContextsOption = None,
        rounds: RoundsOption = None,
        capacity: CapacityOption = None,
        quick: QuickOption = False,
        resume: ResumeOption = False,
        settings: SetOption = None,
        out: OutOption = RESULTS,
        cache_dir: CacheOption = Path(".cache"),
        json_output: JsonFlag = False,
    ) -> None:
        with _explained():
            from maru.bench.session import Options

            options = Options(
                engine=engine, systems=_words(systems), model=model, contexts=_numbers(contexts), rounds=rounds,
                capacity_bytes=None if capacity is None else parse_size(capacity), is_quick=quick, is_resumed=resume,
                settings=_pairs(settings), cache_dir=cache_dir, path=out, command=_command_line(),
            )  # fmt: skip
            is_good = _run(name, options, json_output)
        raise typer.Exit(0 if is_good else 1)

    command.__doc__ = (
        f"Measure {NAMES[name]}.\n\nSettings of this figure, engines and systems: [cyan]maru bench list {name}[/cyan]"
    )
    return command


for _name in NAMES:
    bench_app.command(_name, rich_help_panel="Figures")(_figure_command(_name))


@bench_app.command("all")
def all_figures(
    quick: QuickOption = False,
    resume: ResumeOption = False,
    out: OutOption = RESULTS,
    cache_dir: CacheOption = Path(".cache"),
) -> None:
    """Measure every figure, each on its own first engine; one that fails does not end the others."""
    with _explained():
        from maru.bench.session import Options

        failed = []
        for name in NAMES:
            options = Options(is_quick=quick, is_resumed=resume, cache_dir=cache_dir, path=out, command=_command_line())
            try:
                is_good = _run(name, options, json_output=False)
            except MaruError as error:
                complain(f"{name}: {error}")
                is_good = False
            if not is_good:
                failed.append(name)
    if failed:
        complain(f"not measured, or wrong: {', '.join(failed)}")
    raise typer.Exit(1 if failed else 0)


@bench_app.command("list")
def list_all(
    figure: Annotated[str | None, typer.Argument(metavar="[FIGURE]", help="One figure, closely.")] = None,
    json_output: JsonFlag = False,
) -> None:
    """Show figures, engines and systems, and what those that cannot be measured here lack."""
    if figure is not None and figure not in NAMES:
        raise typer.BadParameter(f"no figure {figure!r}; there are {', '.join(NAMES)}")
    with _explained():
        from maru.bench.systems.roster import ENGINES, systems_of

        found = [figure_named(name) for name in ([figure] if figure else NAMES)]
        engines = [name for name in ENGINES if not figure or name in found[0].engines]
        systems = {engine: [(one.name, one.title, one.why_not()) for one in systems_of(engine)] for engine in engines}
    if json_output:
        print_json(
            {
                "figures": {
                    one.name: {
                        "title": one.title, "question": one.question, "engines": one.engines,
                        "settings": [
                            {"name": k.name, "full": k.full, "quick": k.quick, "meaning": k.meaning} for k in one.knobs
                        ],
                    }
                    for one in found
                },
                "systems": {
                    engine: [{"name": name, "title": title, "absent": why} for name, title, why in some]
                    for engine, some in systems.items()
                },
            }
        )  # fmt: skip
        return
    out = console()
    _print_figures(out, found, closely=figure is not None)
    for engine, some in systems.items():
        table = Table(box=None, pad_edge=False, header_style="dim", title=f"\n{engine}", title_justify="left")
        for title in ("system", "", "here"):
            table.add_column(title)
        for name, title, why in some:
            table.add_row(name, title, f"[yellow]{why}[/yellow]" if why else "[green]yes[/green]")
        out.print(table)


@bench_app.command()
def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="A run of a figure.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="Another run of it.")],
    json_output: JsonFlag = False,
) -> None:
    """Say what became better and what worse between two runs of one figure.

    Different is what differs by more than its spread. Exit code 1 when anything became worse.
    """
    with _explained():
        from maru.bench import compare as comparing
        from maru.bench import document as documents

        try:
            a, b = documents.read(before), documents.read(after)
        except OSError as error:
            complain(str(error))
            raise typer.Exit(1) from error
        changes = comparing.compare(a, b)
        warnings = comparing.differences(a, b)
    if json_output:
        print_json(comparing.as_json(a, b))
    else:
        out = _wide(json_output)
        for line in warnings:
            out.print(f"Note: {line}", style="yellow", markup=False)
        out.print(comparing.table(changes))
    raise typer.Exit(1 if any(change.verdict == "worse" for change in changes) else 0)


@bench_app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="[FOLDER]", help="Where the results lie.")] = RESULTS,
) -> None:
    """Draw every picture of a folder's results again, and its report.html."""
    with _explained():
        from maru.bench import results
        from maru.bench.drawing.picture import draw

        for path, document in results.files_in(folder):
            path.with_suffix(".png").write_bytes(draw(document))
        console().print(f"report: {results.write_report(folder)}", markup=False)


def _print_figures(out: Console, figures: list[Any], closely: bool) -> None:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("figure", "question", "engines"):
        table.add_column(title)
    for one in figures:
        table.add_row(one.name, one.question, ", ".join(one.engines) or "none")
    out.print(table)
    if closely:
        for knob in figures[0].knobs:
            out.print(
                f"--set {knob.name}={_shown(knob.full)}   {knob.meaning} (quick: {_shown(knob.quick)})", markup=False
            )


def _shown(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _words(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(part.strip() for part in text.split(",") if part.strip())


def _numbers(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        numbers = tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise typer.BadParameter(f"numbers above 0 with commas between, not {text!r}")
    return numbers


def _pairs(texts: list[str] | None) -> dict[str, str]:
    pairs = {}
    for text in texts or []:
        name, equals, value = text.partition("=")
        if not equals:
            raise typer.BadParameter(f"--set takes NAME=VALUE, not {text!r}")
        pairs[name] = value
    return pairs


def _command_line() -> str:
    return " ".join(["maru", *sys.argv[1:]])


def _run(name: str, options: Any, json_output: bool) -> bool:
    """Measure one figure, write its files, say what came out. Raises MaruError.

    False: an answer was wrong, none was compared, or a system did not come to the end.
    """
    from maru.bench import results
    from maru.bench.session import opened
    from maru.bench.step_log import NoPlace

    out = _wide(json_output)
    figure = figure_named(name)
    with _progress(out, figure.title) as show, opened(figure, options, show) as run:
        try:
            figure.perform(run)
        except KeyboardInterrupt:
            complain("interrupted; --resume goes on from here")
            raise typer.Exit(1) from None
        run.insist_on_samples()
        document, failed = run.document(), run.failed
        try:
            files = results.keep(document, run.json_path)
        except OSError as error:
            raise NoPlace(f"{run.json_path}: {error.strerror}") from error
        run.finished()
    if json_output:
        from maru.bench.document import as_json

        print_json(as_json(document))
    else:
        results.show(out, document)
        for what, path in files.items():
            out.print(f"{what}: {path}", markup=False)
    if not document.checks.are_good:
        complain(f"{name}: {document.checks.wrong} of {document.checks.compared} answers were wrong")
    if not document.checks.compared:
        complain(f"{name}: nothing was compared")
    if failed:
        complain(f"{name}: not measured to the end: {', '.join(failed)}")
    return document.checks.are_good and document.checks.compared > 0 and not failed


def _wide(json_output: bool) -> Console:
    """Where tables have room: a terminal has its own width."""
    out = console(json_output)
    return out if out.is_terminal else Console(stderr=json_output, highlight=False, width=PLAIN_WIDTH)


@contextmanager
def _progress(out: Console, title: str) -> Iterator[Callable[[str, int, int], None]]:
    """A bar with the time that is left; elsewhere than on a terminal a line for each step."""
    if not out.is_terminal:
        said: set[str] = set()

        def say(what: str, done: int, total: int) -> None:
            if what not in said:
                said.add(what)
                out.print(f"{title}: {what} ({done} of {total})", markup=False)

        yield say
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True) as bar:
        task = bar.add_task(title, total=None)
        yield lambda what, done, total: bar.update(task, description=f"{title}: {what}", completed=done, total=total)
