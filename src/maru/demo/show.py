"""Everything a person sees of the demo: acts, steps with a spinner, progress bars, tables, verdicts.

On a terminal things move and are coloured; anywhere else each step is one plain line, begun when it begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table

from maru.demo.packages import Report
from maru.demo.preflight import Finding, Torch
from maru.demo.turns import Turn
from maru.errors import MaruError

__all__ = ["Stage"]

# Wide enough for the table of turns wherever no terminal says how wide it is.
PLAIN_WIDTH = 132


class Stage:
    """Where the story is shown: stdout, or stderr when stdout carries JSON."""

    def __init__(self, *, to_stderr: bool) -> None:
        self._console = Console(stderr=to_stderr, highlight=False)
        if not self._console.is_terminal:
            self._console.width = PLAIN_WIDTH

    def say(self, text: str = "") -> None:
        self._console.print(text, markup=False)

    def failure(self, error: MaruError) -> None:
        """The demo ended early: what went wrong, with its numbers, and what to do."""
        self._console.print(f"\n[bold red]{type(error).__name__}[/bold red]: {escape(error.message)}")
        if error.hint:
            self._console.print(f"  {escape(error.hint)}")

    def act(self, number: int, title: str) -> None:
        self._console.print(f"\n[bold]Act {number}. {title}[/bold]")

    def quote(self, speaker: str, question: str, answer: str) -> None:
        self._console.print(f"    [dim]{escape(question)}[/dim]")
        self._console.print(f"    {speaker}: [italic]{escape(' '.join(answer.split()))}[/italic]")

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show that something long is going on, and afterwards how long it took."""
        started = time.perf_counter()
        if self._console.is_terminal:
            with self._console.status(text):
                yield
        else:
            self._console.print(f"  … {text}")
            yield
        self._console.print(f"  [green]✓[/green] {text} [dim]({time.perf_counter() - started:.1f} s)[/dim]")

    @contextmanager
    def bars(self) -> Iterator[Report]:
        """One progress bar for each label that is reported."""
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, disable=not self._console.is_terminal) as progress:
            tasks: dict[str, TaskID] = {}

            def report(label: str, done: int, total: int) -> None:
                if label not in tasks:
                    tasks[label] = progress.add_task(label, total=total)
                    if not self._console.is_terminal:
                        self._console.print(f"  … {label}")
                progress.update(tasks[label], completed=done)

            yield report

    def findings(self, found: list[Finding]) -> None:
        """What this machine lacks, each with the line that fixes it."""
        self._console.print("[bold red]The demo cannot run here yet:[/bold red]")
        for one in found:
            self._console.print(f"  [red]✗[/red] {escape(one.problem)}")
            self._console.print(f"      {escape(one.fix)}", soft_wrap=True)

    def torch(self, torch: Torch) -> None:
        build = f"a CUDA {torch.cuda} build" if torch.cuda else "a CPU build"
        vllm = f"vLLM {torch.vllm_version}, " if torch.vllm_version else ""
        self._console.print(
            f"  {vllm}torch {torch.version} ({build}), transformers {torch.transformers_version}; "
            "the demo runs on the CPU"
        )
        if torch.cuda and not vllm:
            self._console.print(
                "  [dim]The CPU build is 2 GB smaller: make clean, then "
                "TORCH_INDEX=https://download.pytorch.org/whl/cpu make demo[/dim]"
            )

    def turns(self, turns: list[Turn]) -> None:
        """The demo's table, one row a turn. A column that nobody measured anything for is left out, with its note."""
        shown = [one for one in COLUMNS if not one.optional or any(one.cell(turn) for turn in turns)]
        table = Table(title="Follow-up turns, each once cold and once from the pool", title_justify="left")
        table.add_column("process", justify="center")
        for column in shown:
            table.add_column(column.heading, justify="right")
        for turn in turns:
            table.add_row(turn.process, *(column.cell(turn) or "not measured" for column in shown))
        self._console.print()
        self._console.print(table)
        for note in (column.note for column in shown if column.note):
            self._console.print(f"  [dim]{note}[/dim]")

    def promises(self, promises: dict[str, bool]) -> None:
        self._console.print()
        for promise, kept in promises.items():
            mark = "[green]✓[/green]" if kept else "[bold red]✗ NOT KEPT:[/bold red]"
            self._console.print(f"  {mark} {promise}")


def _mib(size_bytes: int | None) -> str | None:
    return None if size_bytes is None else f"{size_bytes / (1 << 20):.1f} MiB"


@dataclass(frozen=True)
class _Column:
    """One column of the table of turns; `cell` gives None for what was not measured."""

    heading: str
    cell: Callable[[Turn], str | None]
    note: str = ""
    optional: bool = False


COLUMNS = (
    _Column("prompt\ntokens", lambda turn: f"{turn.prompt_tokens:,}"),
    _Column("reused\ntokens", lambda turn: f"{turn.reused_tokens:,}"),
    _Column("TTFT\ncold", lambda turn: f"{turn.ttft_cold_s:.2f} s", "TTFT: time to first token."),
    _Column("TTFT from\nthe pool", lambda turn: f"{turn.ttft_pool_s:.2f} s"),
    _Column("\nspeed-up", lambda turn: f"[bold]{turn.speedup:.1f}x[/bold]"),
    _Column(
        "shared\nin place",
        lambda turn: _mib(turn.bytes_shared),
        "Shared in place: KV bytes read in the pool's memory, where A (or an earlier turn) wrote them; from there\n"
        "  they are copied once, into the engine's own cache.",
    ),
    _Column(
        "copied between\nprocesses",
        lambda turn: None if turn.bytes_copied is None else f"{turn.bytes_copied} B",
        "Copied between processes: bytes that the answering thread moved through files, pipes or sockets\n"
        "  meanwhile, as Linux counts them.",
        optional=True,
    ),
    _Column("same\nanswer", lambda turn: "[green]yes[/green]" if turn.same_answer else "[bold red]NO[/bold red]"),
)
