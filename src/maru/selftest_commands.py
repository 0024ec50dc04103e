"""`maru selftest …`: tests of a machine that need what only that machine has."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from maru.doctor.line import worst
from maru.doctor.show import show_lines
from maru.engine.device_copy.survey import survey
from maru.terminal import SETTINGS, JsonFlag, complain, console, print_json

selftest_app = typer.Typer(**SETTINGS)


@selftest_app.callback()
def _selftest() -> None:
    """Tests of a machine that need what only that machine has."""


@selftest_app.command("gpu")
def gpu(
    pool: Annotated[
        str | None, typer.Option(metavar="URL", help="Where to make the test's own pool; it must not exist yet.")
    ] = None,
    device: Annotated[int, typer.Option(min=0, help="Which GPU, from 0.")] = 0,
    kills: Annotated[int, typer.Option(min=0, help="How many workers to kill in the middle of a copy.")] = 1000,
    json_output: JsonFlag = False,
) -> None:
    """Register a pool with a GPU, compare bytes both ways, measure, and kill workers in the middle of their copies.

    Exit code 0: as it should be, 1: it is not, 3: there is no GPU here, or no package to reach it with. Each of
    the thousand kills starts a process anew, which takes its time. Nobody else's pool is touched.

    [bold]Examples[/bold]

    [cyan]maru selftest gpu[/cyan]   all of it
    [cyan]maru selftest gpu --kills 20[/cyan]   for a first impression
    [cyan]maru selftest gpu --pool 'maru:///test?data=/dev/dax0.0&medium=devdax'[/cyan]   in a device's memory
    [cyan]maru selftest gpu --json > gpu.json[/cyan]   for a report
    """
    from maru.engine.device_copy import DeviceUnavailable
    from maru.selftest import MISSING, document
    from maru.selftest.gpu import run, url_of_own

    facts = survey()
    if "problem" in facts:
        _say_missing(facts, json_output)
        raise typer.Exit(MISSING)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    out = console(json_output)
    try:
        with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as bar:
            task = bar.add_task("beginning", total=None)
            lines = run(
                pool or url_of_own(), device, kills,
                lambda what, done, total: bar.update(task, description=what, completed=done, total=total),
            )  # fmt: skip
    except DeviceUnavailable as error:
        _say_missing({"problem": str(error)}, json_output)
        raise typer.Exit(MISSING) from error
    if json_output:
        print_json(document(lines, facts))
    else:
        show_lines(console(), lines)
    raise typer.Exit(1 if worst(lines) == "bad" else 0)


def _say_missing(facts: dict[str, object], json_output: bool) -> None:
    from maru.selftest import document

    complain(f"no GPU to test: {facts['problem']}; maru doctor --gpu says more, and docs/gpu.md")
    if json_output:
        print_json(document([], facts))
